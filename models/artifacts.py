"""What lies in the artifact root: base models, snapshots, checkpoints, and the manifest that completes each folder."""

import json
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from models.contract import Contract
from models.fingerprint import ID_LENGTH, fingerprint
from models.launch import Sharding

Precision = Literal["bf16", "fp16", "fp32"]
Stage = Literal["base", "sft", "reward", "dpo", "grpo"]
TrainingStage = Literal["sft", "reward", "dpo", "grpo"]
Outcome = Literal["running", "completed", "out_of_memory", "killed", "failed", "cancelled", "died"]
Kind = Literal["base", "dataset", "checkpoint", "evaluation"]

SCHEMA_VERSION = 3
"""Version of the manifest's layout; readers accept every version up to this one."""


class FileEntry(Contract):
    """One file of a finished folder."""

    path: str
    """Path relative to the folder, with forward slashes."""
    size_bytes: int
    """Size."""
    sha256: str
    """Digest of the content, 64 hexadecimal digits."""

    @field_validator("path")
    @classmethod
    def _stays_in_its_folder(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"the file '{path}' leads out of the folder")
        return path


class Attempt(Contract):
    """One try at a stage, as noted in the ledger beside the unfinished checkpoint."""

    per_device_train_batch_size: int
    """Rows that went through the model at once."""
    gradient_accumulation_steps: int
    """Micro-batches of each process per optimizer step."""
    gradient_checkpointing: bool = False
    """Whether activations were recomputed in the backward pass."""
    share_prompts: bool = False
    """Whether what rows of a micro-batch have in common at their beginnings was computed once."""
    processes: int = 1
    """Processes that trained together."""
    sharding: Sharding = "ddp"
    """What they spread over themselves."""
    run: str = ""
    """Name of the run that made it."""
    machine: str = ""
    """The maker's name for the device that it ran on; empty before layout 3."""
    device: str = ""
    """Kind of that device: `cpu`, `cuda`, `mps`; empty before layout 3."""
    started: str
    """UTC time, ISO 8601."""
    seconds: float
    """Wall time of the attempt."""
    training_seconds: float = 0.0
    """The part of it in which the trainer was at work; the rest is loading, merging, checking and writing."""
    outcome: Outcome
    """How it ended; `killed`: its training process was, `died`: the flow's process went away as well."""
    cause: str = ""
    """First line of the error, where there was one."""
    resumed_from_step: int = 0
    """Optimizer step that the attempt went on from."""
    reached_step: int = 0
    """Optimizer step last heard of."""
    peak_memory_bytes: int = 0
    """Largest resident set of a training process, or the accelerator's peak where there is one; 0: unknown."""
    energy_joules: float | None = None
    """Energy that the processor packages and NVIDIA devices of the machine took meanwhile, whatever else ran on them;
    none: the machine does not tell."""


class Ancestor(Contract):
    """One of the folders that a folder was made from, directly or not, as its own manifest describes it."""

    kind: Kind
    """What it holds."""
    fingerprint: str
    """SHA-256 of its identity."""
    identity: dict[str, Any]
    """Everything asked for that decided its content."""
    parents: dict[str, str] = {}
    """Names of the folders that it was made from, by role."""
    origin: dict[str, Any] = {}
    """Where its content came from."""
    created: str
    """UTC time, ISO 8601."""

    @property
    def is_scorer(self) -> bool:
        """Whether it gives scores: a reward model, trained here or converted."""
        return self.identity.get("stage") == "reward"


class Manifest(Contract):
    """What a finished folder is made of. Written last: a folder without a manifest is not finished."""

    schema_version: int = SCHEMA_VERSION
    """Layout of this file."""
    kind: Kind
    """What the folder holds."""
    fingerprint: str
    """SHA-256 of `identity`."""
    identity: dict[str, Any]
    """Everything asked for that decides the content, parents and datasets by their own fingerprints."""
    parents: dict[str, str] = {}
    """Names of the folders this one was made from, by role (`policy`, `reward_model`, `dataset`, ...)."""
    ancestors: dict[str, Ancestor] = {}
    """All folders that this one was made from, down to base model and datasets, by name: its lineage is told by this
    file alone, wherever the folder is copied to and whatever becomes of the others. Empty before layout 3."""
    origin: dict[str, Any] = {}
    """Where the content came from: hub id and revision, licence, names of files without their folders, digests."""
    metrics: dict[str, float] = {}
    """Figures measured while making it."""
    machine: dict[str, str | int] = {}
    """Device, precision and cores that it was made on."""
    versions: dict[str, str] = {}
    """Versions of the libraries that it was made with."""
    code: dict[str, str] = {}
    """Version of this pipeline and, in a checkout, its git commit."""
    attempts: tuple[Attempt, ...] = ()
    """Every try, failed ones included."""
    run: str = ""
    """Name of the run that made it."""
    prefect: dict[str, str] = {}
    """Prefect's ids of the `flow_run` and the `task_run` that made it."""
    created: str
    """UTC time, ISO 8601."""
    files: tuple[FileEntry, ...]
    """Every other file of the folder."""
    digest: str = ""
    """SHA-256 of all the fields above; empty in layout 1."""

    def as_ancestor(self) -> Ancestor:
        """What the manifests of folders made from this one say of it."""
        return Ancestor.model_validate(self.model_dump(include=set(Ancestor.model_fields)))

    def sealed(self) -> "Manifest":
        """The same with its digest."""
        return self.model_copy(update={"digest": _digest(json.loads(self.model_dump_json()))})

    @model_validator(mode="before")
    @classmethod
    def _is_as_written(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        layout = content.get("schema_version", 1)
        if isinstance(layout, int) and layout > SCHEMA_VERSION:
            raise ValueError(f"layout {layout} is newer than this version reads")
        if content.get("digest") and content["digest"] != _digest(content):
            raise ValueError("its content was changed after it was written")
        return content


def _digest(content: dict[str, Any]) -> str:
    return fingerprint({key: value for key, value in content.items() if key != "digest"})


class Pruned(Contract):
    """`pruned.json` beside a manifest: files of the folder were removed on purpose, to free space."""

    files: tuple[str, ...] = Field(min_length=1)
    """The manifest's files that were removed, by path."""
    when: str
    """UTC time, ISO 8601."""
    why: str
    """Why nobody needs them, or what they can be rebuilt from."""


class Artifact(Contract):
    """A finished folder of the artifact root."""

    path: Path
    """The folder, absolute."""
    fingerprint: str
    """64 hexadecimal digits; the first ones end the folder's name."""

    @property
    def id(self) -> str:
        """The short form of the fingerprint, as in the folder's name."""
        return self.fingerprint[:ID_LENGTH]


class Dataset(Artifact):
    """A frozen, checked snapshot of rows."""

    rows: int
    """Number of rows."""
    source: str
    """The source as the recipe names it."""


class Checkpoint(Artifact):
    """A self-contained model: merged weights, tokenizer and chat template, loadable by Transformers as it is."""

    stage: Stage
    """The stage that trained it; `base` for the converted base model."""
    precision: Precision
    """Number format of its weights."""
    metrics: dict[str, float] = {}
    """Figures measured while making it."""

    @property
    def name(self) -> str:
        """Stage and short fingerprint, as people quote it: `dpo-0123456789abcdef`."""
        return f"{self.stage}-{self.id}"

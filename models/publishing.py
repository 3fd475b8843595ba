"""What an exported folder says of itself: how it was written and from what, under which licence, and every file."""

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from models.artifacts import Ancestor, FileEntry, Manifest, Precision
from models.contract import Contract
from models.evaluation import Estimate

Weights = Literal["merged", "adapter", "gguf"]
Dtype = Literal["float32", "bfloat16", "float16"]
Family = Literal[
    "permissive",
    "share-alike",
    "copyleft",
    "community",
    "non-commercial",
    "no-derivatives",
    "not classified",
    "unknown",
]
"""What a licence asks for, from the least to the most restrictive; the last two: nobody has said so here, or at all."""

EXPORT_VERSION = 1
"""Version of the layout of `export.json`."""
PRECISIONS: dict[Dtype, Precision] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""The pipeline's names of the number formats."""
DTYPES: dict[Precision, Dtype] = {precision: dtype for dtype, precision in PRECISIONS.items()}
"""Transformers' and PyTorch's names of the number formats."""


class ExportRequest(Contract):
    """What to write."""

    weights: Weights = "merged"
    """The whole model, its last adapter alone, or one GGUF file."""
    dtype: Dtype | None = None
    """Number format of the weights; none: as published."""
    sign: Path | None = None
    """A private elliptic-curve key in PEM to sign the folder with."""

    @model_validator(mode="after")
    def _adapters_keep_their_numbers(self) -> "ExportRequest":
        if self.weights == "adapter" and self.dtype:
            raise ValueError(
                f"--dtype {self.dtype} does not go with --weights adapter, kept as it was trained; remove it"
            )
        return self


class LicenseClaim(Contract):
    """The licence of one thing that a model was made from, as its publisher or the recipe says."""

    what: str
    """What it is: `base model smollm2`, `dataset sums.jsonl (sft)`."""
    license: str
    """SPDX expression or the publisher's own word; empty: nobody says."""
    family: Family
    """What the licence asks for."""


class Licensing(Contract):
    """What the licences of everything that a model was made from say together. No legal advice."""

    license: str
    """The most restrictive one as the hub's cards name it; `other` where the hub knows no such name."""
    license_name: str = ""
    """Its own name where `license` is `other`."""
    claims: tuple[LicenseClaim, ...] = ()
    """The licence of each source."""
    cautions: tuple[str, ...] = ()
    """What does not go together, what restricts use, and what is not known; one sentence each."""


class DatasetUse(Contract):
    """A snapshot of rows, and what it was used for."""

    name: str
    """Name of its folder."""
    use: str
    """The stage that trained on it, or what an evaluation took it for: `prompts`, `preferences`."""
    source: str
    """Hub id, or name of the file or folder, as the recipe said."""
    on_hub: bool
    """Whether that is a hub id."""
    revision: str
    """The hub's commit, or the revision asked for; empty where there is none."""
    split: str
    """Split of a hub dataset."""
    sha256: str
    """Digest of the checked rows."""
    files: dict[str, str] = {}
    """Digest of each local file."""
    rows: int | None
    """Number of rows; none: its folder is gone, and nothing else has noted it."""
    rules: dict[str, Any] = {}
    """What was done to the rows."""
    license: str
    """SPDX expression or the publisher's own word; empty: nobody says."""


class Judgement(Contract):
    """Figures of the checkpoint on held-out rows."""

    id: str
    """Name of the evaluation's folder."""
    created: str
    """UTC time, ISO 8601."""
    figures: dict[str, Estimate]
    """Each figure with its 95 % interval."""
    datasets: tuple[DatasetUse, ...]
    """The held-out rows."""


class Dossier(Contract):
    """Everything that model card and bill of materials tell of a checkpoint."""

    name: str
    """Name of its folder."""
    manifest: Manifest
    """Its manifest."""
    lineage: dict[str, Ancestor]
    """The checkpoint and all that it was made from, by name, from the base model on."""
    missing: tuple[str, ...] = ()
    """Ancestors of which nothing is known any more."""
    datasets: tuple[DatasetUse, ...] = ()
    """The data of every stage, in the order of training."""
    judgements: tuple[Judgement, ...] = ()
    """Evaluations of it, newest first."""
    licensing: Licensing
    """What the licences of base model and data say."""

    @property
    def title(self) -> str:
        """The name that people know it by."""
        return f"base-{self.name}" if self.manifest.kind == "base" else self.name

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return str(self.manifest.identity.get("stage", self.manifest.kind))

    @property
    def models(self) -> dict[str, Ancestor]:
        """Base model and checkpoints, the checkpoint itself last."""
        return {name: each for name, each in self.lineage.items() if each.kind in ("base", "checkpoint")}

    @property
    def base(self) -> Ancestor | None:
        """The base model, where anything is known of it."""
        return next((each for each in self.lineage.values() if each.kind == "base" and not each.is_scorer), None)

    @property
    def hub_base(self) -> str:
        """The base model's hub id; empty where it came from elsewhere."""
        return str(self.base.origin["name"]) if self.base and self.base.origin.get("source") == "hub" else ""


class Export(Contract):
    """`export.json` of an exported folder."""

    schema_version: int = EXPORT_VERSION
    """Layout of this file."""
    source: str
    """Name of the checkpoint."""
    fingerprint: str
    """SHA-256 of the checkpoint's identity."""
    weights: Weights
    """What the folder holds: the whole model, its last adapter alone, or one GGUF file."""
    dtype: Dtype
    """Number format of the weights."""
    base_model: str = ""
    """What an adapter belongs on: a hub id, or the name of a folder of the artifact root."""
    base_revision: str = ""
    """The hub's commit of that; empty where it is on no hub."""
    relative_error: float | None = None
    """Norm of the difference of outputs, relative to the checkpoint's in that number format; none: the files are the
    checkpoint's own, byte for byte."""
    licensing: Licensing
    """Licences of base model and data."""
    code: dict[str, str] = {}
    """Version and commit of the pipeline that wrote the folder."""
    created: str
    """UTC time, ISO 8601."""
    files: tuple[FileEntry, ...]
    """Every other file of the folder, its signature apart."""

"""Small finished folders to fill an artifact root with: real manifests over content that nobody has to train."""

from pathlib import Path
from typing import Any

from models.artifacts import Kind, Manifest, Pruned
from models.fingerprint import ID_LENGTH, fingerprint
from tasks.pruned import mark_pruned
from tasks.store import ArtifactStore, read_manifest

KINDS: dict[str, Kind] = {"base": "base", "dataset": "dataset", "evaluation": "evaluation"}
FILES = {"model.safetensors": b"weights " * 100, "adapter/adapter_model.safetensors": b"a" * 10, "config.json": b"{}"}


def identity_of(stage: str, number: int = 0) -> dict[str, Any]:
    return {"stage": stage, "seed": number, "precision": "fp32"}


def name_of(stage: str, number: int = 0) -> str:
    """Name of the folder that `publish` makes."""
    prefix = "" if stage in KINDS else f"{stage}-"
    return prefix + fingerprint(identity_of(stage, number))[:ID_LENGTH]


def publish(
    store: ArtifactStore, stage: str, number: int = 0, files: dict[str, bytes] | None = None, **manifest: Any
) -> Path:
    """Publish a folder of that stage (or `base`, `dataset`, `evaluation`) and return where it lies."""
    kind, name, identity = KINDS.get(stage, "checkpoint"), name_of(stage, number), identity_of(stage, number)
    content = store.home / "making" / name
    for path, text in (files or FILES).items():
        (content / path).parent.mkdir(parents=True, exist_ok=True)
        (content / path).write_bytes(text)
    fields: dict[str, Any] = {"fingerprint": fingerprint(identity), "identity": identity, **manifest}
    store.publish(content, kind=kind, name=name, **fields)
    (store.home / "making").rmdir()
    return store.folder(kind, name)


def family(store: ArtifactStore) -> dict[str, Path]:
    """A base model from a folder, a snapshot of a local file, SFT of both, and DPO and a reward model of that."""
    made = {
        "base": publish(store, "base", origin={"source": "folder", "name": "model"}),
        "dataset": publish(store, "dataset", origin={"path": "rows.jsonl", "files": {"rows.jsonl": "0" * 64}}),
    }
    made["sft"] = publish(store, "sft", parents={"policy": name_of("base"), "dataset": name_of("dataset")})
    for stage in ("reward", "dpo"):
        parents = {"policy": name_of("sft"), "dataset": name_of("dataset")}
        made[stage] = publish(store, stage, parents=parents)
    return made


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks, which tell of their last holder; links as where they lead."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and ".locks" not in path.parts
    }


def manifest_of(**changes: Any) -> Manifest:
    """A manifest without a folder."""
    identity = identity_of("sft")
    fields = {"kind": "checkpoint", "fingerprint": fingerprint(identity), "identity": identity, "files": ()}
    return Manifest.model_validate({"created": "2026-01-01T00:00:00+00:00", **fields, **changes})


def drop(folder: Path, *files: str) -> None:
    """Remove files as prune does."""
    names = files or tuple(entry.path for entry in read_manifest(folder).files)
    mark_pruned(folder, Pruned(files=names, when="2026-01-02T00:00:00+00:00", why="for a test"))
    for name in names:
        (folder / name).unlink()

"""Which reward model a recipe's reward names: one of the artifact root, a local folder, or one from the hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.artifacts import Checkpoint, Manifest, Precision
from models.errors import InputError
from models.rewards import Reward
from models.scorer import ScorerInput
from models.sources import BaseModelSource
from tasks.base_model_check import has_template, locate, look_up
from tasks.data.sources import HUB_ID
from tasks.finding import as_checkpoint, resolve
from tasks.store import ArtifactStore

PLACE = "grpo.rewards: model"
_KIND = "ForSequenceClassification"


@dataclass(frozen=True)
class FoundScorer:
    """A reward model as it lies, or will lie, in the artifact root."""

    checkpoint: Checkpoint
    """The finished folder, or the promised one where there is something to convert."""
    wanted: ScorerInput | None = None
    """What to convert; none: the folder was trained or converted here."""
    source: BaseModelSource | None = None
    """Where to convert it from."""


def find_scorer(reward: Reward, store: ArtifactStore, precision: Precision, offline: bool = False) -> FoundScorer:
    """Look up the reward model that a reward names; nothing is loaded or fetched.

    A local folder comes first, then what the artifact root knows by that name, then the hub.

    Args:
        reward: A reward with a `model`.
        store: The artifact root.
        precision: What a model from elsewhere is converted to.
        offline: Ask no hub: one from there is promised by its name alone.

    Raises:
        InputError: there is none of that name, or it is no reward model that can read a conversation.
        DamagedArtifact: it is here, and cannot be read.
    """
    name = reward.model or ""
    elsewhere = Path(name).is_dir() and not Path(name).is_relative_to(store.home)
    if not elsewhere and (found := _of_artifact_root(name, store)):
        return FoundScorer(found)
    source = BaseModelSource(source="folder" if elsewhere else "hub", name=name, revision=reward.revision)
    unasked = offline and source.source == "hub"
    wanted = ScorerInput(origin={"hub": name} if unasked else _checked_origin(source), precision=precision)
    path = store.folder("base", wanted.id)
    promised = Checkpoint(path=path, fingerprint=wanted.fingerprint, stage="reward", precision=precision)
    return FoundScorer(promised, wanted, source)


def _of_artifact_root(name: str, store: ArtifactStore) -> Checkpoint | None:
    """A finished reward model by alias, name or fingerprint; none where only the hub can know that name."""
    try:
        path, manifest = resolve(store, name)
    except InputError as error:
        if HUB_ID.fullmatch(name) and "/" in name:
            return None
        raise InputError(f"{PLACE} {error}; a folder or a hub id (`organisation/model`) may be given, too") from None
    return scorer_checkpoint(path, manifest)


def scorer_checkpoint(path: Path, manifest: Manifest) -> Checkpoint:
    """A finished folder as a reward model.

    Raises:
        InputError: it holds another kind of model.
    """
    stage = manifest.identity.get("stage")
    if stage != "reward":
        raise InputError(
            f"{PLACE}: {path.name} is a model of stage '{stage}', which gives no score; name a reward model"
        )
    return as_checkpoint(path, manifest)


def _checked_origin(source: BaseModelSource) -> dict[str, str]:
    """What pins the content of a model from elsewhere, after a look at what it is."""
    if source.source == "folder":
        config = _config(Path(source.name))
        files = {file.name for file in Path(source.name).iterdir()}
        templated = has_template(Path(source.name))
    else:
        found = look_up(source, PLACE)
        config, files = found.config or {}, {file.rfilename for file in found.siblings or ()}
        tokenizer = config.get("tokenizer_config")  # the hub does not tell it of every model
        templated = tokenizer is None or bool(tokenizer.get("chat_template")) or "chat_template.jinja" in files
    place = f"{PLACE}: '{source.name}'"
    architectures = config.get("architectures") or [f"another{_KIND}"]
    if not any(str(each).endswith(_KIND) for each in architectures):
        raise InputError(f"{place} is a {architectures[0]}; a reward model is one of Transformers' …{_KIND}")
    if len(config.get("id2label") or [0]) != 1:
        raise InputError(f"{place} gives {len(config['id2label'])} scores; a reward model gives one")
    if not any(file.endswith(".safetensors") for file in files):
        raise InputError(f"{place} has no .safetensors files; choose a model that has")
    if not templated:
        raise InputError(f"{place} has no chat template, so it cannot read a conversation; add chat_template.jinja")
    return locate(source, PLACE)[1]


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{PLACE}: '{folder}' has no config.json that can be read ({error})") from None
    return config

"""Training a checkpoint again from its manifest alone, in an artifact root of its own.

The manifest tells of every ancestor what decided it. Base model and snapshots are taken from the artifact root where
they are whole, else fetched from where they came from; every training stage is carried out anew.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.artifacts import Ancestor, Artifact, Checkpoint, Dataset, Manifest
from models.errors import InputError
from models.evaluation import Estimate
from models.rewards import Reward
from models.sources import BaseModelSource, DatasetSource
from models.stages import DPOInput, GRPOInput, RewardInput, SFTInput, TrainingInput
from settings.machine import inspect_machine, resolve_precision
from settings.settings import Settings
from tasks.child_main import ChildOptions
from tasks.data.formats.reading import Role
from tasks.execution import Execution, stages_at_once
from tasks.finding import resolve
from tasks.launch import group_problems
from tasks.remote.opening import open_store
from tasks.restoring import obstacle, restore
from tasks.reward_functions import function_digests
from tasks.store import ArtifactStore, damage, read_manifest

_INPUTS: dict[str, type[TrainingInput]] = {"sft": SFTInput, "reward": RewardInput, "dpo": DPOInput, "grpo": GRPOInput}
_SCORER = "reward_model "
"""What a reward model's role starts with that is not the run's own; the reward's label follows."""
_ROLES: dict[str, Role] = {"sft": "sft", "reward": "preference", "dpo": "preference", "grpo": "prompts"}


@dataclass(frozen=True)
class Step:
    """One folder of an ancestry, to be found or made again."""

    name: str
    """Name of the folder."""
    record: Ancestor
    """What the manifest says of it."""
    manifest: Manifest | None
    """Its own manifest, where that is still there."""
    role: Role
    """What its rows are for, where it is a dataset."""


def ancestry(store: ArtifactStore, wanted: str) -> list[Step]:
    """A checkpoint and everything that it was made from, parents first.

    Raises:
        InputError: nothing or several match, it was not trained, or too little is known of an ancestor.
        DamagedArtifact: its manifest cannot be read.
    """
    path, manifest = resolve(store, wanted)
    if manifest.kind != "checkpoint":
        raise InputError(f"{path.name} was converted, not trained; name a checkpoint that a stage has made")
    known = store.ancestors([path.name])
    order = list(TopologicalSorter({name: record.parents.values() for name, record in known.items()}).static_order())
    for name in order:
        if name not in known:
            raise InputError(f"{path.name}: its manifest is of an old layout, and its ancestor {name} is not here")
    return [_step(name, known, store) for name in order]


def _step(name: str, known: Mapping[str, Ancestor], store: ArtifactStore) -> Step:
    place = store.locate(name)
    stages = [record.identity["stage"] for record in known.values() if record.parents.get("dataset") == name]
    role: Role = _ROLES[stages[0]] if stages else "sft"
    return Step(name, known[name], read_manifest(place) if place else None, role)


def check_reproduction(wanted: str, settings: Settings) -> None:
    """Refuse what cannot be trained again, before anything is.

    Raises:
        InputError: an ancestor is neither here nor to be fetched, this version would train something else, or this
            machine cannot compute in that precision.
        DamagedArtifact: a manifest cannot be read.
    """
    store = open_store(settings)
    steps = ancestry(store, wanted)
    scratch_execution(steps, settings)
    made: dict[str, Artifact] = {}
    for step in steps:
        made[step.name] = _promised(step, store)
        if step.record.kind == "checkpoint":
            training_input(step, made)


def _promised(step: Step, store: ArtifactStore) -> Artifact:
    """What a step will lead to."""
    path, record = store.folder(step.record.kind, step.name), step.record
    if record.kind == "dataset":
        if not found_whole(step, store):
            dataset_source(step)
        return Dataset(path=path, fingerprint=record.fingerprint, rows=0, source="")
    if record.kind == "base" and not found_whole(step, store):
        base_model_source(step)
    stage, precision = record.identity["stage"], record.identity["precision"]
    return Checkpoint(path=path, fingerprint=record.fingerprint, stage=stage, precision=precision)


def scratch_execution(steps: list[Step], settings: Settings) -> Execution:
    """The machine's part, with an artifact root of its own below the usual one that nobody shares.

    Raises:
        InputError: this machine cannot compute in the precision that the checkpoint was trained in.
    """
    target, machine = steps[-1], inspect_machine(settings)
    home = settings.home / "reproductions" / target.name
    apart = {"home": home, "remote": None, "machines": 1}  # others join the usual root only
    return Execution(
        settings=settings.model_copy(update=apart),
        machine=machine,
        precision=resolve_precision(machine, target.record.identity["precision"]),
        threads=settings.threads or machine.cores,
        parallel_stages=stages_at_once(settings, machine),
        run=f"reproduction-of-{target.name}",
    )


def as_it_was(step: Step, execution: Execution) -> Execution:
    """With the threads, micro-batch, sharing and processes that the stage had: all of them decide the order of sums.

    Where this machine cannot have such processes, those of the settings train, and the comparison tells of it.
    """
    if step.manifest is None or not step.manifest.attempts:
        return execution
    last = step.manifest.attempts[-1]
    update = {
        "per_device_train_batch_size": last.per_device_train_batch_size,
        "gradient_checkpointing": last.gradient_checkpointing,
        "share_prompts": last.share_prompts,
    }
    threads = int(step.manifest.machine.get("threads", execution.threads))
    settings = execution.settings.model_copy(update=update)
    group = settings.model_copy(update={"processes": last.processes, "sharding": last.sharding})
    if not any(group_problems(group, execution.machine)):
        settings = group
    return execution.model_copy(update={"settings": settings, "threads": threads})


def found_whole(step: Step, store: ArtifactStore) -> Artifact | None:
    """The base model or snapshot of the usual artifact root, where every byte agrees with its manifest.

    Files that lie elsewhere count, too, where `tasks.restoring.restore` can bring them back.
    """
    path = store.locate(step.name)
    if path is None or step.manifest is None or damage(path) or obstacle(store, path):
        return None
    fingerprint, record = step.record.fingerprint, step.record
    if record.kind == "dataset":
        rows = int(step.manifest.metrics.get("rows", 0))
        return Dataset(path=path, fingerprint=fingerprint, rows=rows, source=str(record.origin.get("path")))
    identity = record.identity
    return Checkpoint(path=path, fingerprint=fingerprint, stage=identity["stage"], precision=identity["precision"])


def base_model_source(step: Step) -> BaseModelSource:
    """Where to fetch a base model from that is not in the artifact root any more.

    Raises:
        InputError: it came from a folder, or with a template of its own.
    """
    origin = step.record.origin
    if step.record.is_scorer:
        raise _not_here(step, "a reward model from elsewhere is not fetched again")
    if origin.get("source") == "folder" or "chat_template" in origin:
        raise _not_here(step, "it came from a local folder or with a chat template of its own")
    asked = {"source": origin["source"], "name": origin.get("hub", origin["name"]), "revision": origin.get("commit")}
    return BaseModelSource.model_validate(asked | step.record.identity["tokens"])


def dataset_source(step: Step) -> DatasetSource:
    """Where to fetch rows from whose snapshot is not in the artifact root any more.

    Raises:
        InputError: they came from local files.
    """
    origin = step.record.origin
    if "files" in origin or "commit" not in origin:
        raise _not_here(step, "its rows came from local files")
    keys = ("path", "name", "split", "max_rows", "heldout_share", "part", "format", "columns")
    asked = {key: origin.get(key) for key in keys}
    given = {key: value for key, value in asked.items() if value is not None}
    return DatasetSource.model_validate(given | {"revision": origin["commit"]})


def _not_here(step: Step, why: str) -> InputError:
    remedy = "`align import` it from where it still lies, or run the recipe that made it"
    return InputError(f"{step.record.kind} {step.name} is not whole in this artifact root, and {why}; {remedy}")


def refuse_other_content(step: Step, made: Artifact) -> None:
    """Refuse to go on from a base model or rows that came out other than they were.

    Raises:
        InputError: they did.
    """
    if made.fingerprint != step.record.fingerprint:
        raise InputError(f"{step.record.kind} {step.name} came out as {made.id}: its source holds something else now")


def training_input(step: Step, made: Mapping[str, Artifact]) -> TrainingInput:
    """What a stage was asked for, told from its manifest.

    Args:
        step: The stage.
        made: Its parents by the names of their folders.

    Raises:
        InputError: this version of the pipeline would train something else.
    """
    identity, origin = step.record.identity, step.record.origin
    asked = identity["hyperparameters"] | {"dataset": origin.get("dataset") or {"path": "unknown"}}
    fields = {key: identity.get(key) for key in ("seed", "precision", "versions", "quantization")}
    parents: dict[str, Any] = {role: made[name] for role, name in step.record.parents.items()}
    judged = (
        {"reward_accuracy": Estimate.model_validate(origin["reward_accuracy"])} if "reward_model" in parents else {}
    )
    if identity["stage"] == "grpo":
        asked, parents = _with_rewards(step, asked, parents)
        fields["generator"] = identity.get("generator", "transformers")
    prompt = {"system_prompt": origin.get("system_prompt")}
    unstopped = {"alarms": {"stop": ()}}  # it came to its end then, whatever its log said
    try:
        stage = _INPUTS[identity["stage"]].model_validate(
            {"hyperparameters": asked} | fields | parents | judged | prompt | unstopped
        )
    except (ValidationError, KeyError):
        stage = None
    if stage is None or stage.fingerprint != step.record.fingerprint:
        commit = step.manifest.code.get("commit") if step.manifest else None
        remedy = f"check out commit {commit}" if commit else "use the version that made it"
        raise InputError(f"{step.name} was made by another version of this stage's code or recipe; {remedy}")
    if isinstance(stage, GRPOInput) and function_digests(stage.hyperparameters) != stage.functions:
        names = ", ".join(stage.functions)
        raise InputError(f"{step.name}: another file of a reward function ({names}) is here than it was trained with")
    return stage


def _with_rewards(step: Step, asked: dict[str, Any], parents: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hyperparameters with the rewards in full, and parents with what the rewards are made from by their labels.

    Files of functions are looked for in the working directory, since a manifest names no folders.
    """
    told, origin = asked["rewards"], step.record.origin
    rewards = [Reward.model_validate(reward) for reward in origin.get("rewards", told)]
    others = {role: parent for role, parent in parents.items() if role.startswith(_SCORER)}
    pairs = zip(rewards, told, strict=True)
    return asked | {"rewards": rewards}, {role: parents[role] for role in parents.keys() - others.keys()} | {
        "scorers": {role.removeprefix(_SCORER): scorer for role, scorer in others.items()},
        "scorer_accuracies": origin.get("scorer_accuracies", {}),
        "functions": {reward.label: each["sha256"] for reward, each in pairs if reward.function},
    }


def make_whole(store: ArtifactStore, path: Path, execution: Execution) -> None:
    """Bring the files of a folder of the usual artifact root back, where they were pruned or lie in the remote.

    Raises:
        InputError: that is not possible.
    """
    options = ChildOptions.of(execution, (0,))
    restore(store, path, execution.run, lambda: nullcontext(options), ignore)


def ignore(_: object) -> None:
    """Nothing to tell of a comparison of seconds."""

"""Point an alias to a checkpoint, or back to the one before, once every byte of that has been verified."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.aliases import CHAMPION, Alias, Promotion, alias_problem
from models.artifacts import Manifest
from models.errors import DamagedArtifact, InputError
from models.retraining import Decision
from tasks.aliases import read_alias, write_alias
from tasks.finding import resolve
from tasks.gate import last_gate, refuse_closed_gate
from tasks.pruned import is_pruned
from tasks.remote.catalogue import changing_alias
from tasks.store import ArtifactStore, Waiting, damage, read_manifest, utc_now


def promote(
    store: ArtifactStore,
    path: Path,
    alias: str,
    waiting: Waiting,
    despite_gate: bool = False,
    answers: Decision | None = None,
    **told: Any,
) -> tuple[Alias, bool]:
    """Point an alias to a checkpoint.

    Args:
        store: The artifact root.
        path: The checkpoint's folder, as `tasks.finding.resolve` finds it.
        alias: The alias; made where there is none of that name.
        waiting: Called where another process is at work on the checkpoint.
        despite_gate: Whether a checkpoint that the gate of its newest run has not let pass may be promoted.
        answers: The question that a person has answered so, where one was asked.
        told: Further fields of `Promotion`: `by`, `reason`, `command` or `flow_run`.

    Returns:
        The alias as it is now, and whether that has changed: one that points there already stays as it is.

    Raises:
        InputError: the alias has an impossible name or is for policies only, the gate is closed, or the alias points
            elsewhere than when the question was put.
        DamagedArtifact: the checkpoint is not whole.
    """
    check_alias(alias)
    manifest, gate = read_manifest(path), last_gate(store.home, path.name)
    if not despite_gate:
        refuse_closed_gate(gate)
    told["gate"] = gate and gate.model_dump(mode="json")
    with _whole(store, path, manifest, waiting), changing_alias(store, alias, _holder(), waiting):
        known = read_alias(store.home, alias)
        if known and known.checkpoint == path.name:
            return known, False
        refuse_reward_model(manifest, path.name, alias, known)
        if answers:
            _refuse_moved(answers, known)
        return _extend(store, alias, known, path, manifest, told), True


def check_alias(name: str) -> None:
    """Refuse an impossible name.

    Raises:
        InputError: no alias can have that name.
    """
    if problem := alias_problem(name):
        raise InputError(f"'{name}' cannot be an alias: {problem}")


def refuse_reward_model(manifest: Manifest, checkpoint: str, alias: str, known: Alias | None) -> None:
    """Keep aliases of policies to policies: what a policy is to be held against must write replies.

    Raises:
        InputError: the checkpoint is a reward model, and the alias is the champion or points to a policy.
    """
    of_policies = alias == CHAMPION or (known and not known.checkpoint.startswith("reward-"))
    if manifest.identity.get("stage") == "reward" and of_policies:
        raise InputError(
            f"'{alias}' cannot point to {checkpoint}, a reward model; a policy can only beat a policy; take another "
            "alias for it, such as 'judge'"
        )


def _refuse_moved(asked: Decision, known: Alias | None) -> None:
    """An approval that was asked for against one champion is none against another."""
    if known and known.checkpoint != asked.rival:
        raise InputError(
            f"{asked.alias} points to {known.checkpoint} since {known.history[-1].when}, but {asked.checkpoint} was "
            f"compared with {asked.rival or 'nothing'}; retrain to compare it anew, or `align promote` it"
        )


def rollback(store: ArtifactStore, alias: str, waiting: Waiting, **told: Any) -> Alias:
    """Point an alias back to what it pointed to before; each further time one promotion further back.

    Args:
        store: The artifact root.
        alias: The alias.
        waiting: Called where another process is at work on the checkpoint.
        told: Further fields of `Promotion`.

    Raises:
        InputError: there is no such alias, or nothing that it pointed to before.
        DamagedArtifact: what it pointed to before is not whole.
    """
    path, manifest = resolve(store, before(store.home, alias).checkpoint)
    with _whole(store, path, manifest, waiting), changing_alias(store, alias, _holder(), waiting):
        if before(store.home, alias).checkpoint != path.name:
            raise InputError(f"'{alias}' was changed meanwhile; look at `align aliases` and try again")
        return _extend(store, alias, read_alias(store.home, alias), path, manifest, told | {"kind": "rollback"})


def before(home: Path, alias: str) -> Promotion:
    """The promotion that a rollback of an alias goes back to.

    Raises:
        InputError: there is no such alias, or nothing that it pointed to before.
    """
    known = read_alias(home, alias)
    if not known:
        raise InputError(f"there is no alias '{alias}' in {home}; `align promote CHECKPOINT --alias {alias}` makes it")
    if not known.before:
        raise InputError(f"'{alias}' has pointed to nothing before {known.checkpoint}; promote another checkpoint")
    return known.before


@contextmanager
def _whole(store: ArtifactStore, path: Path, manifest: Manifest, waiting: Waiting) -> Iterator[None]:
    """Make sure of the checkpoint and hold its lock, so that it is not removed or made anew before it is promoted.

    That may take long, so it comes before the right to change the alias, which nobody renews.
    """
    with store.lock(manifest.kind, path.name, _holder(), waiting):
        _make_sure_of(store, path, manifest)
        yield


def _holder() -> str:
    return f"a promotion (process {os.getpid()})"


def _make_sure_of(store: ArtifactStore, path: Path, manifest: Manifest) -> None:
    """Fetch what lies in the remote alone, and refuse what is not whole; the caller holds its lock."""
    if store.remote and is_pruned(path) and store.remote.has(path):
        store.remote.fetch(store, manifest.kind, path.name)
    if damaged := damage(path):
        raise DamagedArtifact(f"{damaged[0]}; nothing was promoted; run its recipe again to make it anew")
    if is_pruned(path):
        raise DamagedArtifact(f"{path.name} was pruned; nothing was promoted; run its recipe again to make it anew")


def _extend(
    store: ArtifactStore, name: str, known: Alias | None, path: Path, manifest: Manifest, told: dict[str, Any]
) -> Alias:
    entry = Promotion(
        when=utc_now(),
        checkpoint=path.name,
        fingerprint=manifest.fingerprint,
        previous=known.checkpoint if known else None,
        **told,
    )
    alias = Alias(name=name, history=(*(known.history if known else ()), entry))
    write_alias(store.home, alias)
    return alias

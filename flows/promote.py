"""Promotion as a flow: point an alias to a checkpoint, or back, from the Prefect UI or another flow."""

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from models.aliases import CHAMPION, Alias
from models.errors import InputError
from settings.settings import load_settings
from tasks.finding import resolve
from tasks.promoting import promote as point_to
from tasks.promoting import rollback as point_back
from tasks.store import ArtifactStore


@flow(name="promote")
def promote(
    checkpoint: str | None = None,
    alias: str = CHAMPION,
    reason: str = "",
    by: str = "",
    rollback: bool = False,
    despite_gate: bool = False,
) -> Alias:
    """Point an alias to a checkpoint after reading every byte of that, or back to what it pointed to before.

    Args:
        checkpoint: An alias, a stage (its newest checkpoint), a name, or the beginning of a fingerprint.
        alias: The alias to point to it.
        reason: Why, for the alias's history.
        by: Who does it, for the history; default: ALIGN_PROMOTED_BY.
        rollback: Go back to what the alias pointed to before; leave `checkpoint` empty.
        despite_gate: Promote it although the gate of its newest run has not let it pass.
    """
    if bool(checkpoint) == rollback:
        raise InputError("give either a checkpoint to promote, or rollback, and not both")
    settings, logger = load_settings(), get_run_logger()
    store = ArtifactStore(settings.home)
    told = {"by": by or settings.promoted_by, "reason": reason, "flow_run": str(flow_run.id or "")}
    if checkpoint:
        now, _ = point_to(store, resolve(store, checkpoint)[0], alias, logger.info, despite_gate, **told)
    else:
        now = point_back(store, alias, logger.info, **told)
    logger.info("%s points to %s", alias, now.checkpoint)
    return now

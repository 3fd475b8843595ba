"""Promotion as a flow: point an alias to a checkpoint, or back, from the Prefect UI or another flow."""

from typing import Annotated, Any

from prefect import get_run_logger
from prefect.runtime import flow_run

from flows.parameters import checked_flow, titled
from models.aliases import CHAMPION, Alias
from models.errors import InputError
from models.retraining import Decision
from settings.settings import load_settings
from tasks.approving import ask, promote_and_tell, record
from tasks.ending import ended
from tasks.finding import resolve
from tasks.promoting import rollback as point_back
from tasks.remote.opening import learn, open_store


@checked_flow(name="promote")
def promote(  # noqa: PLR0913, PLR0917 - a form
    checkpoint: Annotated[str | None, titled("Checkpoint")] = None,
    alias: Annotated[str, titled("Alias")] = CHAMPION,
    reason: Annotated[str, titled("Reason")] = "",
    by: Annotated[str, titled("By")] = "",
    rollback: Annotated[bool, titled("Roll back")] = False,
    despite_gate: Annotated[bool, titled("Despite its gate")] = False,
    approval_days: Annotated[float | None, titled("Days to approve")] = None,
) -> Alias | Decision:
    """Point an alias to a checkpoint after reading every byte of that, or back to what it pointed to before.

    With `approval_days` the run suspends itself first, shows what is to be decided, and goes on when somebody has
    pressed Resume and filled in the form: approved, the alias points to the checkpoint; rejected, it ends as `Rejected`
    and the decision is kept. When nobody answers in time, the run ends as Failed and nothing is promoted.

    Args:
        checkpoint: An alias, a stage (its newest checkpoint), a name, or the beginning of a fingerprint; what that
            means when the run starts, also where somebody is asked first.
        alias: The alias to point to it.
        reason: Why, for the alias's history; with `approval_days`, the form asks for it.
        by: Who does it, for the history; default: ALIGN_PROMOTED_BY.
        rollback: Go back to what the alias pointed to before; leave `checkpoint` empty.
        despite_gate: Promote it although the gate of its newest run has not let it pass.
        approval_days: Ask a person first, and wait so many days for an answer; default: ask nobody.

    Returns:
        The alias as it is now, or the decision against the checkpoint.

    Raises:
        InputError: what was asked for contradicts itself, the gate is closed, or the alias has moved on meanwhile.
    """
    if bool(checkpoint) == rollback:
        raise InputError("give either a checkpoint to promote, or rollback, and not both")
    settings, logger = load_settings(), get_run_logger()
    store = open_store(settings)
    learn(store, logger.warning)
    told: dict[str, Any] = {"by": by or settings.promoted_by, "reason": reason}
    if not checkpoint:
        now = point_back(store, alias, logger.info, flow_run=str(flow_run.id or ""), **told)
    elif approval_days is None:
        now = promote_and_tell(store, resolve(store, checkpoint)[0], alias, despite_gate, **told)
    else:
        decision = ask(store, checkpoint, alias, approval_days)
        if decision.state == "rejected":
            return ended("Rejected", f"rejected by {decision.by or 'somebody'}: {decision.reason}", decision)
        told = {"by": decision.by or told["by"], "reason": decision.reason}
        path = resolve(store, decision.checkpoint)[0]
        now = promote_and_tell(store, path, alias, despite_gate, decision, **told)
        record(store, decision)
    logger.info("%s points to %s", alias, now.checkpoint)
    return now

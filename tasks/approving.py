"""Promotion from flows: told to Prefect as an event, and put to a person first where that is wanted.

The question is a flow run of its own, of the deployment `promote/approve`, which suspends itself until somebody presses
Resume and fills in the form. A retraining so ends at once and holds no worker for days.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from prefect import get_run_logger, suspend_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import ConfigDict, Field

from models.aliases import Alias
from models.errors import InputError
from models.retraining import Decision
from models.run import RunRecord
from tasks.aliases import read_alias
from tasks.decisions import APPROVE, in_days, read_decision, stands, what_to_do, write_decision
from tasks.events import tell
from tasks.promoting import promote
from tasks.remote.catalogue import changing_alias
from tasks.reporting.verdict import verdict
from tasks.run_record import all_runs
from tasks.store import ArtifactStore, utc_now
from tasks.telling import publish

_SECONDS_OF_A_DAY = 86_400


class Approval(RunInput):
    """The form that Resume shows."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    decision: Literal["approve", "reject"] = Field(title="Decision")
    """`approve` points the alias to the checkpoint; `reject` leaves it, and the checkpoint is not offered again."""
    reason: str = Field(min_length=1, title="Reason")
    """Why, for the history."""
    by: str = Field("", title="Decided by")
    """Who decides, for the history."""


def promote_and_tell(store: ArtifactStore, path: Path, alias: str, despite_gate: bool = False, **told: Any) -> Alias:
    """Point an alias to a checkpoint, as `tasks.promoting.promote` does, and emit an event where that changes it."""
    run = str(flow_run.id or "")
    now, changed = promote(store, path, alias, get_run_logger().info, despite_gate, flow_run=run, **told)
    if changed:
        before = now.history[-1].previous
        message = f"{alias} points to {path.name}" + f", before to {before}" * bool(before)
        tell("align.checkpoint.promoted", path.name, message, alias=alias, previous=before, **told)
    return now


def hold(store: ArtifactStore, record: RunRecord, alias: str, days: float) -> Decision:
    """Put the promotion of a run's last policy to a person, unless somebody has been asked already.

    Args:
        store: The artifact root.
        record: The run that has judged the policy.
        alias: What would point to it.
        days: How long the question stands.

    Returns:
        The question; without a deployment `promote/approve` on the server, nobody is asked but through it.
    """
    checkpoint = record.policies[-1].name
    with changing_alias(store, alias, _holder(), get_run_logger().info):
        known = read_decision(store.home, alias, checkpoint)
        if known and stands(known, read_alias(store.home, alias)):
            return known
        asking = _start_asking(checkpoint, alias, days)
        decision = _new_question(store, checkpoint, alias, days).model_copy(update={"asking": asking})
        write_decision(store.home, decision)
    message = f"{checkpoint}: {what_to_do(decision)}"
    tell("align.checkpoint.held", checkpoint, message, **decision.model_dump(mode="json"))
    return decision


def _start_asking(checkpoint: str, alias: str, days: float) -> str:
    """Id of the flow run that asks; empty where the server has no such deployment."""
    with suppress(ObjectNotFound):
        asking: FlowRun = run_deployment(  # type: ignore[assignment]  # it also has an asynchronous form
            APPROVE,
            parameters={"checkpoint": checkpoint, "alias": alias, "approval_days": days},
            flow_run_name=f"{checkpoint} as {alias}",
            timeout=0,
            as_subflow=False,
            # A retraining that dies here and is tried again asks once.
            idempotency_key=f"{alias}-{checkpoint}-{flow_run.id}",
        )
        return str(asking.id)
    return ""


def ask(store: ArtifactStore, checkpoint: str, alias: str, days: float) -> Decision:
    """Suspend the flow run until somebody has decided; it begins anew then, and this returns what was decided.

    Where nobody resumes it in time, the server ends it as Failed: nothing is promoted, and the next retraining asks
    again.

    Raises:
        InputError: it was approved, but the alias points elsewhere than when the question was put.
    """
    evidence = _evidence(store, checkpoint, alias)
    if (flow_run.run_count or 1) == 1:
        publish(create_markdown_artifact, evidence, key=f"approval-{checkpoint}", description=f"{checkpoint}: {alias}?")
    form = Approval.with_initial_data(description=evidence)
    approval = suspend_flow_run(wait_for_input=form, timeout=int(days * _SECONDS_OF_A_DAY))
    with changing_alias(store, alias, _holder(), get_run_logger().info):
        asked = _question(store, checkpoint, alias, days)
        if approval.decision == "approve":
            _refuse_moved_alias(asked, store.home)
        return _decided(store.home, asked, approval)


def _holder() -> str:
    return f"flow run {flow_run.id}"


def _refuse_moved_alias(decision: Decision, home: Path) -> None:
    """An approval that was asked for against one champion is none against another."""
    alias = read_alias(home, decision.alias)
    if alias and alias.checkpoint not in (decision.rival, decision.checkpoint):
        raise InputError(
            f"{decision.alias} points to {alias.checkpoint} since {alias.history[-1].when}, but {decision.checkpoint} "
            f"was compared with {decision.rival or 'nothing'}; retrain to compare it anew, or `align promote` it"
        )


def _decided(home: Path, asked: Decision, approval: Approval) -> Decision:
    state: Literal["approved", "rejected"] = "approved" if approval.decision == "approve" else "rejected"
    told = {"state": state, "decided": utc_now(), "by": approval.by, "reason": approval.reason}
    return write_decision(home, asked.model_copy(update=told))


def _question(store: ArtifactStore, checkpoint: str, alias: str, days: float) -> Decision:
    """The question that was put about a checkpoint and an alias; without a retraining, none was."""
    known = read_decision(store.home, alias, checkpoint)
    return known if known and known.state == "held" else _new_question(store, checkpoint, alias, days)


def _new_question(store: ArtifactStore, checkpoint: str, alias: str, days: float) -> Decision:
    points_to, record = read_alias(store.home, alias), _judged_by(store, checkpoint)
    return Decision(
        alias=alias,
        checkpoint=checkpoint,
        run=record.id if record else "",
        state="held",
        rival=points_to.checkpoint if points_to else None,
        asked=utc_now(),
        until=in_days(days),
    )


def _judged_by(store: ArtifactStore, checkpoint: str) -> RunRecord | None:
    """The newest run whose last policy it is."""
    records, _ = all_runs(store.home)
    return next((one for one in records if one.policies and one.policies[-1].name == checkpoint), None)


def _evidence(store: ArtifactStore, checkpoint: str, alias: str) -> str:
    """What is to be decided, as markdown: verdict, gate, comparison with what the alias points to, the report."""
    lines = [f"Shall **{alias}** point to **{checkpoint}**?"]
    record = _judged_by(store, checkpoint)
    if not record:
        return "\n\n".join([*lines, "No run of this artifact root has judged it."])
    lines.append(f"## Verdict\n\n{verdict(record)}")
    for one in record.gate.conditions if record.gate else ():
        lines.append(f"- gate {'holds' if one.passed else 'DOES NOT HOLD'}: {one.condition} ({one.found})")
    for comparison in record.comparisons:
        if comparison.model == checkpoint and comparison.role in (alias, "base"):
            rows = "\n".join(f"| {each.measure} | {each} |" for each in comparison.differences)
            lines.append(
                f"## Against {comparison.role} {comparison.against}\n\n| measure | change |\n|---|---|\n{rows}"
            )
    if record.report:
        lines.append(f"[Report of {record.id}]({record.report.as_uri()})")
    return "\n\n".join(lines)

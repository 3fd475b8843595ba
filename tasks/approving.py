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
from prefect.context import FlowRunContext
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
from tasks.decisions import APPROVE, asked_by, in_days, is_open, read_decision, stands, what_to_do, write_decision
from tasks.events import tell
from tasks.finding import resolve
from tasks.promoting import check_alias, promote, refuse_reward_model
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


def promote_and_tell(
    store: ArtifactStore,
    path: Path,
    alias: str,
    despite_gate: bool = False,
    answers: Decision | None = None,
    **told: Any,
) -> Alias:
    """Point an alias to a checkpoint, as `tasks.promoting.promote` does, and emit an event where that changes it."""
    run = str(flow_run.id or "")
    now, changed = promote(store, path, alias, get_run_logger().info, despite_gate, answers, flow_run=run, **told)
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
        asking = _start_asking(checkpoint, alias, days, known.asking if known else "")
        decision = write_decision(store.home, _new_question(store, checkpoint, alias, days, asking))
    message = f"{checkpoint}: {what_to_do(decision)}"
    tell("align.checkpoint.held", checkpoint, message, **decision.model_dump(mode="json"))
    return decision


def _start_asking(checkpoint: str, alias: str, days: float, before: str) -> str:
    """Id of the flow run that asks; empty where the server has no such deployment."""
    with suppress(ObjectNotFound):
        asking: FlowRun = run_deployment(  # type: ignore[assignment]  # it also has an asynchronous form
            APPROVE,
            parameters={"checkpoint": checkpoint, "alias": alias, "approval_days": days},
            flow_run_name=f"{checkpoint} as {alias}",
            timeout=0,
            as_subflow=False,
            # A retraining that dies here and is tried again asks once, but anew where the run that asked has died.
            idempotency_key=f"{alias}-{checkpoint}-{flow_run.id}-{before}",
        )
        return str(asking.id)
    return ""


def ask(store: ArtifactStore, wanted: str, alias: str, days: float) -> Decision:
    """Suspend the flow run until somebody has decided; it begins anew then, and this returns what was decided.

    The question is on file before the run waits: it names the checkpoint, which so is not pruned, and what the alias
    pointed to. A rejection is on file when this returns; an approval is for the caller to write once the alias points
    to the checkpoint. Where nobody resumes the run in time, the server ends it as Failed: nothing is promoted, and the
    next retraining asks again.

    Args:
        store: The artifact root.
        wanted: The checkpoint, as a user names it; what it means when the question is put is what the answer is about.
        alias: What would point to it.
        days: How long the question stands.

    Raises:
        InputError: there is no such checkpoint, the alias is not for it, or it is asked about elsewhere.
    """
    check_alias(alias)
    resumed = _is_resumed()
    with changing_alias(store, alias, _holder(), get_run_logger().info):
        asked = _question(store, wanted, alias, days, resumed)
    evidence = _evidence(store, asked.checkpoint, alias)
    if not resumed:
        about = f"{asked.checkpoint}: {alias}?"
        publish(create_markdown_artifact, evidence, key=f"approval-{asked.checkpoint}", description=about)
    form = Approval.with_initial_data(description=evidence)
    decision = _decided(asked, suspend_flow_run(wait_for_input=form, timeout=int(days * _SECONDS_OF_A_DAY)))
    return record(store, decision) if decision.state == "rejected" else decision


def record(store: ArtifactStore, decision: Decision) -> Decision:
    """Put on file what was decided."""
    with changing_alias(store, decision.alias, _holder(), get_run_logger().info):
        return write_decision(store.home, decision)


def _holder() -> str:
    return f"flow run {flow_run.id}"


def _is_resumed() -> bool:
    """Whether this flow run has waited for its answer already; a Retry of one that has ended asks anew."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.empirical_policy.pause_keys)


def _question(store: ArtifactStore, wanted: str, alias: str, days: float, resumed: bool) -> Decision:
    """The question that this flow run asks; put on file where it is not there yet."""
    run = str(flow_run.id)
    known = asked_by(store.home, alias, run)
    if known and (resumed or is_open(known)):
        return known
    if resumed:
        place = store.home / "decisions" / alias
        raise InputError(f"another question has replaced that of this run in {place}, or it was removed; ask anew")
    path, manifest = resolve(store, known.checkpoint if known else wanted)
    points_to = read_alias(store.home, alias)
    refuse_reward_model(manifest, path.name, alias, points_to)
    other = read_decision(store.home, alias, path.name)
    if other and other.asking not in ("", run) and stands(other, points_to):
        raise InputError(f"{path.name}: {what_to_do(other)}")
    return write_decision(store.home, _new_question(store, path.name, alias, days, run))


def _decided(asked: Decision, approval: Approval) -> Decision:
    state: Literal["approved", "rejected"] = "approved" if approval.decision == "approve" else "rejected"
    told = {"state": state, "decided": utc_now(), "by": approval.by, "reason": approval.reason}
    return asked.model_copy(update=told)


def _new_question(store: ArtifactStore, checkpoint: str, alias: str, days: float, asking: str) -> Decision:
    points_to, record = read_alias(store.home, alias), _judged_by(store, checkpoint)
    return Decision(
        alias=alias,
        checkpoint=checkpoint,
        run=record.id if record else "",
        state="held",
        rival=points_to.checkpoint if points_to else None,
        asked=utc_now(),
        until=in_days(days),
        asking=asking,
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

"""Retraining: nothing new ends in seconds, new data trains what depends on it, and gate and people decide the rest."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed, Failed, Suspended

from models.gate import Better, Gate, NoWorse
from models.recipe import Recipe
from models.retraining import Decision, Promotion, Retraining
from models.run import RunRecord
from tasks.aliases import read_alias
from tasks.decisions import awaited, in_days, read_decision, stands
from tasks.finding import resolve
from tasks.pruning import plan_prune
from tasks.retraining import gate_of_retraining
from tasks.store import ArtifactStore
from tests.faults import Server, wait_until
from tests.folders import publish
from tests.test_flow import changed, task_runs
from tests.test_worker import Workplace

KEEPS_UP = NoWorse(measure="*", than="champion")
BETTER = Better(measure="exact_match", than="parent")
OF_THE_ALIAS = Better(measure="exact_match", than="champion")


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (None, Gate(no_worse=(KEEPS_UP,))),
        (Gate(better=(BETTER,)), Gate(better=(BETTER,), no_worse=(KEEPS_UP,))),
        (Gate(better=(OF_THE_ALIAS,)), Gate(better=(OF_THE_ALIAS,))),
    ],
)
def test_a_policy_is_always_held_against_what_it_replaces(recipe: Recipe, gate: Gate | None, expected: Gate) -> None:
    assert gate_of_retraining(recipe.model_copy(update={"gate": gate}), "champion") == expected


@dataclass(frozen=True)
class Ended:
    """How a retraining ended."""

    state: str
    message: str
    result: Retraining
    seconds: float
    flow_run: UUID | None

    @property
    def stages(self) -> dict[str, str | None]:
        """State of each stage's and each evaluation's task run."""
        found = task_runs(self.flow_run)
        return {one.name.rpartition("-")[0]: one.state_name for one in found if "-" in one.name}


def retrain(recipe: Recipe, home: Path, promotion: Promotion = "automatic", alias: str = "champion") -> Ended:
    """Run the flow in this process."""
    from flows.retrain import retrain as retraining

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_HOME", str(home))
        patch.setenv("ALIGN_PROMOTED_BY", "the schedule")
        begun = time.monotonic()
        state = retraining(recipe, "tiny", promotion, alias, return_state=True)
        seconds = time.monotonic() - begun
    assert state.type.value == "COMPLETED", state
    return Ended(str(state.name), str(state.message), state.result(), seconds, state.state_details.flow_run_id)


def made(home: Path) -> set[Path]:
    """Every folder and file that a run, a stage, an evaluation or a promotion makes."""
    return {path for part in ("runs", "checkpoints", "evaluations", "aliases") for path in (home / part).glob("*/*")}


@pytest.mark.slow
def test_new_data_trains_what_depends_on_it_and_a_closed_gate_promotes_nothing(
    home: Path, recipe: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copy(tiny_data / "prompts.jsonl", tmp_path))
    asked = changed(recipe, grpo={"dataset": {"path": str(data)}})
    first = retrain(asked, home)
    # All was trained and judged by `align run`, but never held against a gate.
    assert (first.state, set(first.stages.values())) == ("Promoted", {"Cached", "Completed"})
    assert {first.stages[stage] for stage in ("sft", "reward", "dpo", "grpo", "evaluate grpo")} == {"Cached"}
    alias = read_alias(home, "champion")
    assert alias
    assert alias.checkpoint == first.result.checkpoint
    assert (alias.history[-1].by, alias.history[-1].gate is not None) == ("the schedule", True)

    there = made(home)
    again = retrain(asked, home)
    assert again.state == "Unchanged"
    assert again.result.outcome == "promoted"
    assert f"nothing has changed since run {first.result.run}" in again.message
    assert made(home) == there
    assert again.seconds < 10

    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-8]))
    unreachable = Gate(better=(Better(measure="exact_match", than="champion", by=1.0),))
    second = retrain(asked.model_copy(update={"gate": unreachable}), home)
    assert second.state == "GateClosed"
    assert "exact_match surely better than champion by at least 1" in second.message
    states = {
        stage: second.stages[stage] for stage in ("sft", "reward", "dpo", "grpo", "evaluate dpo", "evaluate grpo")
    }
    assert list(states.values()) == ["Cached", "Cached", "Cached", "Completed", "Cached", "Completed"]
    assert read_alias(home, "champion") == alias
    closed = retrain(asked.model_copy(update={"gate": unreachable}), home)
    assert (closed.state, closed.result.outcome) == ("Unchanged", "gate_closed")


@pytest.mark.slow
def test_a_question_stands_while_its_flow_run_can_be_resumed(prefect_api: None) -> None:
    @flow
    def asks() -> None: ...

    held = Decision(alias="champion", checkpoint="sft-0", run="", state="held", asked=in_days(0), until=in_days(1))
    with get_client(sync_client=True) as client:
        states: list[State[None]] = [Suspended(), Cancelled(), Crashed(), Failed()]
        runs = [str(client.create_flow_run(asks, state=state).id) for state in states]
    found = [stands(held.model_copy(update={"asking": run}), None) for run in runs]
    assert found == [True, False, False, False]
    assert not stands(held.model_copy(update={"asking": str(uuid4())}), None)
    assert stands(held, None)


@pytest.fixture(scope="module")
def workplace(prefect_api: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A pool of the tests' server, the deployments that ask and retrain, and a worker for them."""
    server = Server(tmp_path_factory.mktemp("prefect"))
    server.environment |= {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with get_client(sync_client=True) as client:
        place = Workplace(server, client)
        place.prefect("work-pool", "create", "local", "--type", "process")
        place.prefect("deploy", "--name", "promote/approve", "--name", "retrain/weekly")
        yield place
        place.worker.kill()
        place.worker.wait()


@pytest.fixture(scope="module")
def shared_home(finished_run: tuple[Path, RunRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished_run[0], tmp_path_factory.mktemp("shared") / "home"))


def asking(home: Path, ended: Ended, alias: str) -> UUID:
    """The flow run that asks, once it waits for an answer."""
    decision = read_decision(home, alias, ended.result.checkpoint)
    assert decision
    return UUID(decision.asking)


@pytest.mark.slow
@pytest.mark.e2e
def test_people_approve_and_reject_and_late_runs_are_harmless(
    workplace: Workplace, shared_home: Path, recipe: Recipe
) -> None:
    home, client = shared_home, workplace.client
    workplace.server.environment["ALIGN_HOME"] = str(home)
    dead = asking(home, retrain(recipe, home, "approval"), "champion")
    client.delete_flow_run(dead)
    workplace.start_worker()
    held = {alias: retrain(recipe, home, "approval", alias) for alias in ("champion", "candidate")}
    assert {one.state for one in held.values()} == {"Held"}
    runs = {alias: asking(home, one, alias) for alias, one in held.items()}
    by_hand = {"checkpoint": "sft", "alias": "tried", "approval_days": 1}
    asked = client.create_flow_run_from_deployment(
        client.read_deployment_by_name("promote/approve").id, parameters=by_hand
    )
    for alias, run in runs.items():
        workplace.wait_for(run, "Suspended")
        assert read_alias(home, alias) is None
        assert str(run) in held[alias].message
    checkpoint = held["champion"].result.checkpoint
    waiting = [item.why for item in plan_prune(ArtifactStore(home), 0, 7, False).items if item.path.name == checkpoint]
    assert waiting == ["it waits for approval as candidate"]
    once_more = retrain(recipe, home, "approval")
    assert (once_more.state, once_more.result.outcome) == ("Unchanged", "held")

    # What was asked about is promoted, not what the word means by then.
    sft = resolve(ArtifactStore(home), "sft")[0].name
    workplace.wait_for(asked.id, "Suspended")
    assert [one.checkpoint for one in awaited(home) if one.alias == "tried"] == [sft]
    publish(ArtifactStore(home), "sft")
    assert resolve(ArtifactStore(home), "sft")[0].name != sft
    runs["tried"] = asked.id
    answers = {
        "champion": ("approve", "reads well"),
        "candidate": ("reject", "too long"),
        "tried": ("approve", "good for a start"),
    }
    for alias, (decision, reason) in answers.items():
        answer = {"decision": decision, "reason": reason, "by": "A. Name"}
        client.resume_flow_run(runs[alias], run_input=answer)
    workplace.wait_for(runs["champion"], "Completed")
    workplace.wait_for(runs["candidate"], "Rejected")
    workplace.wait_for(runs["tried"], "Completed")
    assert (tried := read_alias(home, "tried"))
    assert tried.checkpoint == sft
    assert (kept := read_decision(home, "tried", sft))
    assert (kept.state, kept.asking) == ("approved", str(asked.id))
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=list(runs.values())))
    assert len(client.read_artifacts(artifact_filter=of_run)) == len(runs)
    champion = read_alias(home, "champion")
    assert champion
    assert (champion.checkpoint, read_alias(home, "candidate")) == (checkpoint, None)
    last = champion.history[-1]
    assert (last.by, last.reason, last.flow_run) == ("A. Name", "reads well", str(runs["champion"]))
    rejected = retrain(recipe, home, "approval", "candidate")
    assert (rejected.state, rejected.result.outcome) == ("Unchanged", "rejected")
    assert "rejected by A. Name" in rejected.message
    assert "too long" in rejected.message

    there = made(home)
    late = _three_late_runs(workplace, "retrain/weekly", recipe)
    wait_until(lambda: all(_ended(workplace, run) for run in late), 180)
    assert sorted(str(_ended(workplace, run)) for run in late) == ["Cancelled", "Cancelled", "Unchanged"]
    assert made(home) == there


def _three_late_runs(workplace: Workplace, name: str, recipe: Recipe) -> list[UUID]:
    """Runs that were due while nobody was there to carry them out."""
    deployment = workplace.client.read_deployment_by_name(name)
    parameters = {"recipe": recipe.model_dump(mode="json")}
    runs = [workplace.client.create_flow_run_from_deployment(deployment.id, parameters=parameters) for _ in range(3)]
    return [run.id for run in runs]


def _ended(workplace: Workplace, run: UUID) -> str | None:
    state = workplace.client.read_flow_run(run).state
    return state.name if state and state.is_final() else None

"""Runs that a worker carries out: retried, cancelled and orphaned as people do it in the Prefect UI."""

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import State, StateType
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from models.run import RunRecord
from tasks.store import read_manifest
from tests.faults import BIN, ROOT, SECONDS_TO_END, SETTINGS, Scene, Server, checkpoints, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults]
Record = Callable[[str, object], None]


class Workplace:
    """A server, a pool, the deployment and a worker."""

    def __init__(self, server: Server, client: SyncPrefectClient) -> None:
        self.server, self.client = server, client

    def prefect(self, *arguments: str) -> None:
        """Call the `prefect` command."""
        subprocess.run(
            [BIN / "prefect", "--no-prompt", *arguments],
            cwd=ROOT,
            env=self.server.environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start_worker(self) -> None:
        """Start a worker, as people do in a terminal of its own."""
        self.worker = subprocess.Popen(
            [BIN / "prefect", "worker", "start", "--pool", "local"],
            cwd=ROOT,
            env=self.server.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def submit(self, scene: Scene, name: str = "align/on-demand", **more: str) -> UUID:
        """Run a deployment as the UI's form does, with further parameters."""
        deployment = self.client.read_deployment_by_name(name)
        environment = SETTINGS | {"ALIGN_HOME": str(scene.home)}
        run = self.client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"recipe": scene.recipe.model_dump(mode="json"), "recipe_name": "tiny", **more},
            job_variables={"env": environment},
        )
        return run.id

    def retry(self, run: UUID) -> None:
        """What the Retry button does."""
        state = State(type=StateType.SCHEDULED, name="AwaitingRetry", message="Retry from the UI")
        self.client.set_flow_run_state(run, state, force=True)

    def wait_for(self, run: UUID, *states: str) -> None:
        """Wait until the run is in one of the states."""
        wait_until(lambda: self.client.read_flow_run(run).state_name in states, 180)

    def task_states(self, run: UUID) -> dict[str, str | None]:
        """State of each training task run of the last try, by stage."""
        found = self.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])), limit=200)
        newest = sorted(found, key=lambda each: each.expected_start_time or each.created)  # type: ignore[arg-type,return-value]
        return {each.name.partition("-")[0]: each.state_name for each in newest}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    server = Server(tmp_path_factory.mktemp("prefect"))
    server.start()
    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as client:
        place = Workplace(server, client)
        place.prefect("work-pool", "create", "local", "--type", "process")
        place.prefect("deploy", "--all")
        place.start_worker()
        yield place
        place.worker.kill()
        place.worker.wait()
    server.kill()


def record(scene: Scene) -> RunRecord:
    (path,) = scene.home.glob("runs/*/run.json")
    return RunRecord.model_validate_json(path.read_bytes())


def tree_of(scene: Scene) -> list[psutil.Process]:
    """The flow's process and all that it has started."""
    flow = scene.flow_process()
    return [flow, *flow.children(recursive=True)]


def told_to_stop(process: psutil.Process) -> bool:
    """Whether SIGTERM waits for a suspended process."""
    (pending,) = re.findall(r"ShdPnd:\s*([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def assert_gone(processes: list[psutil.Process]) -> None:
    gone, alive = psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE], gone


def retried(workplace: Workplace, run: UUID, scene: Scene) -> int:
    """Retry it: the finished stages are shown as Cached, the interrupted one goes on; the steps that were lost."""
    wait_until(lambda: _settled(workplace, run), 60)
    workplace.retry(run)
    workplace.wait_for(run, "Completed")
    wait_until(lambda: workplace.task_states(run).get("dpo") == "Completed", 30)
    states = workplace.task_states(run)
    assert {stage: states[stage] for stage in ("sft", "reward", "grpo")} == dict.fromkeys(
        ("sft", "reward", "grpo"), "Cached"
    )
    assert record(scene).state == "completed"
    attempts = read_manifest(checkpoints(scene.home)["dpo"]).attempts
    scene.assert_whole()
    return attempts[-2].reached_step - attempts[-1].resumed_from_step


def test_a_crashed_run_is_retried_from_the_ui(workplace: Workplace, scene: Scene, record_property: Record) -> None:
    scene.without("dpo")
    run = workplace.submit(scene)
    scene.training_process("dpo")
    tree = tree_of(scene)
    tree[0].kill()
    assert_gone(tree)
    workplace.wait_for(run, "Crashed")
    retried(workplace, run, scene)
    resumed = read_manifest(checkpoints(scene.home)["dpo"]).attempts[-1].resumed_from_step
    assert resumed >= 2
    record_property("fault", ("flow killed, Retry in UI", f"dpo, resumed at {resumed}", "same weights", 0))


def test_a_cancelled_run_saves_first_and_can_be_retried(
    workplace: Workplace, scene: Scene, record_property: Record
) -> None:
    scene.without("dpo")
    run = workplace.submit(scene)
    training = scene.training_process("dpo")
    tree = tree_of(scene)
    training.suspend()  # until the worker has heard of it, and told the run
    workplace.client.set_flow_run_state(run, Cancelling())
    wait_until(lambda: told_to_stop(training), 60)
    training.resume()
    assert_gone(tree)
    workplace.wait_for(run, "Cancelled")
    assert record(scene).state == "cancelled"
    assert retried(workplace, run, scene) == 0
    record_property("fault", ("Cancel in UI", "dpo, after step 2", "same weights", 0))


def test_a_killed_worker_takes_its_run_along(workplace: Workplace, scene: Scene, record_property: Record) -> None:
    scene.without("dpo")
    run = workplace.submit(scene)
    scene.training_process("dpo")
    tree = tree_of(scene)
    workplace.worker.kill()
    workplace.worker.wait()
    assert_gone(tree)
    assert record(scene).error == "stopped by SIGTERM"
    workplace.start_worker()
    assert retried(workplace, run, scene) == 0
    record_property("fault", ("worker killed", "dpo, after step 2", "same weights", 0))


def test_a_run_with_an_unknown_parameter_says_so(workplace: Workplace, scene: Scene) -> None:
    run = workplace.submit(scene, recipe_nme="x")
    workplace.wait_for(run, "Failed")
    state = workplace.client.read_flow_run(run).state
    assert state
    assert state.message == "Wrong parameters: unknown key 'recipe_nme'; did you mean 'recipe_name'?"


@pytest.mark.parametrize("end", ["Crashed", "Cancelled"])
def test_a_retraining_ends_and_goes_on_as_a_run_does(
    workplace: Workplace, scene: Scene, record_property: Record, end: str
) -> None:
    scene.without("dpo")
    run = workplace.submit(scene, "retrain/weekly")
    scene.training_process("dpo")
    tree = tree_of(scene)
    if end == "Crashed":
        tree[0].kill()
    else:
        workplace.client.set_flow_run_state(run, Cancelling())
    assert_gone(tree)
    workplace.wait_for(run, end)
    wait_until(lambda: record(scene).state == end.lower(), 30)
    wait_until(lambda: _settled(workplace, run), 60)
    workplace.retry(run)
    workplace.wait_for(run, "Held")
    assert record(scene).state == "completed"
    scene.assert_whole()
    record_property("fault", (f"retraining {end.lower()}", "dpo", "same weights", 0))


def _settled(workplace: Workplace, run: UUID) -> bool:
    """Whether the end was reported a while ago: the worker reports it once more a moment later."""
    state = workplace.client.read_flow_run(run).state
    assert state
    return (datetime.now(UTC) - state.timestamp).total_seconds() > 15

"""Several machines that train as one: what they tell one another, and one training over two of them for real.

Both machines are this one, on the loopback device, with one artifact root and a queue each.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow

from models.artifacts import Checkpoint
from models.errors import InputError, Killed, OutOfMemory, StageError, Stopped
from models.launch import Launch
from models.machines import Announcement, Ended, Post
from models.recipe import Recipe
from models.run import RunRecord
from models.stages import SFTInput, TrainingInput
from settings.machine import inspect_machine
from settings.settings import Settings, load_settings
from tasks import machines
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.closing import closing
from tasks.core import entry
from tasks.core.plan import TrainingResult
from tasks.execution import Execution, stages_at_once
from tasks.forecast import stage_inputs
from tasks.gathering import gathered
from tasks.joining import INPUTS as JOINED
from tasks.joining import check_joining, join
from tasks.launch import asked_launch, check_batch, launch_problems
from tasks.ledger import plan_attempt
from tasks.preflight import preflight
from tasks.progress import Progress, listening
from tasks.sft import train_sft
from tasks.store import read_manifest
from tests.faults import ROOT, wait_until, without_sft
from tests.operating import free_port
from tests.test_child import gone
from tests.test_contracts import INPUTS
from tests.test_core import Laboratory, silent
from tests.test_launch import machine
from tests.test_out_of_memory import relative_difference

TWO: dict[str, Any] = {"machines": 2, "main_address": "10.0.0.1:29500"}


def test_processes_of_all_machines_are_numbered() -> None:
    launch = asked_launch(Settings(processes=4, machine_rank=1, **TWO))
    assert launch == Launch(processes=4, machines=2, machine=1, address="10.0.0.1", port=29500)
    assert launch.environment(2) == {
        "RANK": "6",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
    }
    assert asked_launch(Settings(machines=2, main_address="[fd00::1]:1")).address == "fd00::1"
    assert asked_launch(Settings(machines=2, main_address="a:1")).environment(0)["WORLD_SIZE"] == "2"


def test_a_batch_is_shared_by_the_processes_of_all_machines() -> None:
    with pytest.raises(InputError) as caught:
        check_batch("sft", 12, Launch(processes=4, machines=2))
    assert (
        "12 rows a step cannot be shared equally by 8 processes of 2 machines; use 3 or 2 (ALIGN_PROCESSES), "
        in str(caught.value)
    )
    with pytest.raises(InputError, match="by 2 processes of 2 machines; use batch_size=8 or 10, which"):
        check_batch("sft", 9, Launch(machines=2))
    check_batch("sft", 16, Launch(processes=4, machines=2))


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"machines": 2}, "ALIGN_MAIN_ADDRESS: 2 machines have to know where they meet"),
        (TWO | {"machine_rank": 2}, "ALIGN_MACHINE_RANK: 2 is none of 2 machines"),
        (TWO | {"machine_rank": 1}, "runs belong to machine 0; on machine 1 start `align join`"),
    ],
)
def test_a_run_needs_to_be_on_machine_0_and_to_know_where_it_is(
    recipe: Recipe, asked: dict[str, Any], problem: str
) -> None:
    assert any(problem in found for found in launch_problems(Settings(**asked), machine(), recipe))
    assert list(launch_problems(Settings(**TWO), machine(), recipe)) == []


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({}, "ALIGN_MACHINES: is 1"),
        (TWO, "ALIGN_MACHINE_RANK: is 0; machine 0 runs the flow"),
        (TWO | {"machine_rank": 1, "home": Path("/nowhere")}, "ALIGN_HOME /nowhere: is not there"),
    ],
)
def test_what_cannot_join_is_refused(tmp_path: Path, asked: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        wanted: dict[str, Any] = {"home": tmp_path} | asked
        check_joining(Settings(**wanted))
    check_joining(Settings(home=tmp_path, machine_rank=1, **TWO))


def test_an_address_has_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_MAIN_ADDRESS", "10.0.0.1")
    with pytest.raises(InputError, match="ALIGN_MAIN_ADDRESS"):
        load_settings()


def test_stages_of_several_machines_go_one_by_one() -> None:
    assert stages_at_once(Settings(parallel_stages=4, **TWO), machine()) == 1


@pytest.mark.parametrize("stage", INPUTS.values(), ids=list(INPUTS))
def test_a_stage_is_announced_as_it_is(stage: TrainingInput) -> None:
    assert JOINED[stage.stage].model_validate(stage.model_dump(mode="json")) == stage
    assert not [name for name in ("machines", "main_address") if name in str(stage.identity())]


@pytest.fixture
def posts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Post]:
    """The posts of three machines in an attempt that is announced; they lose patience soon."""
    monkeypatch.setattr(machines, "SECONDS_OF_SILENCE", 0.4)
    monkeypatch.setattr(machines, "SECONDS_BETWEEN_SIGNS", 0.05)
    found = [Post(folder=tmp_path, name="sft-1", attempt="a", machine=number, machines=3) for number in range(3)]
    told: dict[str, Any] = {"stage": {}, "plan": {}, "facts": {}}
    machines.announce(found[0], Announcement(attempt="a", name="sft-1", run="", kind="sft", workspace=tmp_path, **told))
    return found


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        ("killed", "", Killed, "machine 1: why"),
        ("out_of_memory", "stage", OutOfMemory, "machine 1: why"),
        ("input", "", InputError, "machine 1: why"),
        ("stopped", "", Stopped, "machine 1: why"),
        ("disk_full", "", OSError, "machine 1: why"),
        ("stage", "returned", StageError, "machine 1: why"),
        ("stage", "killed", Killed, "machine 2: why"),
        ("stage", "", Killed, r"machine 2 has not been heard of for 0.4 s; .*`align join`"),
        ("returned", "", Killed, "machine 2 has not been heard of"),
    ],
)
def test_machine_0_hears_how_the_others_end(
    posts: list[Post], first: Ended, second: Ended, error: type[Exception], message: str
) -> None:
    machines.give_sign(posts[1], first, "why")
    machines.give_sign(posts[2], second, "why")
    with pytest.raises(error, match=message) as caught:
        machines.keep_in_touch(posts[0], silent)
    assert caught.type is error


def test_the_others_hear_machine_0_until_it_withdraws(posts: list[Post]) -> None:
    def live() -> None:
        for _ in range(12):
            machines.give_sign(posts[0])
            time.sleep(0.1)
        machines.withdraw(posts[0])

    living = threading.Thread(target=live)
    living.start()
    with pytest.raises(Stopped, match="machine 0 has ended the attempt"):
        machines.keep_in_touch(posts[1], silent)
    living.join()


def test_all_others_may_return(posts: list[Post]) -> None:
    for post in posts[1:]:
        machines.give_sign(post, "returned")
    machines.keep_in_touch(posts[0], silent)
    later = posts[0].model_copy(update={"attempt": "b"})
    assert machines.read_sign(later, 1) is None
    assert not machines.is_announced(later)


class Group:
    """Machine 0, which is this process, and what it asks of the others."""

    def __init__(self, home: Path, **settings: Any) -> None:
        asked: dict[str, Any] = {"machines": 2, "main_address": f"127.0.0.1:{free_port()}", "device": "cpu"}
        asked |= {"home": home, "threads": 1, "checkpoint_every_steps": 2, "reserved_disk_bytes": 0}
        self.settings = Settings(**asked | settings)
        here = inspect_machine(self.settings)
        facts: dict[str, Any] = {"settings": self.settings, "machine": here, "precision": "fp32"}
        self.execution = Execution(threads=1, parallel_stages=1, run="r", **facts).of_training()
        home.mkdir(parents=True, exist_ok=True)

    def train(
        self, stage: TrainingInput, folder: Path, on_report: Callable[[dict[str, Any]], None] = silent
    ) -> TrainingResult:
        """One attempt, as a stage's task makes it."""
        plan = plan_attempt(stage, (), self.execution)
        options = ChildOptions.of(self.execution, (0,))
        with gathered(stage, plan, folder, self.execution, silent) as post:
            options = options.model_copy(update={"post": post})
            result: TrainingResult = run_in_child(entry.sft, (stage, plan, folder), options, on_report, silent)
        return result

    @contextmanager
    def joined(self) -> Iterator["subprocess.Popen[str]"]:
        """`align join` as machine 1, which nothing of survives."""
        asked = {
            "ALIGN_HOME": str(self.settings.home),
            "ALIGN_MACHINES": "2",
            "ALIGN_MACHINE_RANK": "1",
            "ALIGN_MAIN_ADDRESS": str(self.settings.main_address),
            "ALIGN_QUEUE": str(self.settings.home.parent / "queue-1"),
            "ALIGN_DEVICE": "cpu",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "join"],
            cwd=ROOT,
            env=os.environ | asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started: list[psutil.Process] = []
        try:
            yield process
            started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        finally:
            process.terminate()
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM, said
        assert all(gone(each.pid) for each in started)


def test_a_machine_that_does_not_come_is_told_of(tmp_path: Path) -> None:
    group = Group(tmp_path / "home", join_seconds=0.5)
    with pytest.raises(StageError) as caught:
        group.train(INPUTS["sft"], tmp_path)
    said = str(caught.value)
    assert "machine 1 has not joined within 0.5 s (ALIGN_JOIN_SECONDS); run there: `ALIGN_HOME=" in said
    assert f"ALIGN_MACHINE_RANK=1 ALIGN_MAIN_ADDRESS={group.settings.main_address} align join`" in said
    assert [*(tmp_path / "home").rglob("*.json")] == []


@contextmanager
def joining(settings: Settings) -> Iterator[None]:
    """Machine 1 in a thread of this process."""
    other = threading.Thread(target=join, args=(settings, silent))
    other.start()
    try:
        yield
    finally:
        closing.set()
        other.join()
        closing.clear()


@pytest.mark.slow
def test_a_machine_that_differs_is_refused(tmp_path: Path) -> None:
    group = Group(tmp_path / "home")
    other = group.settings.model_copy(update={"machine_rank": 1, "processes": 2})
    with joining(other), pytest.raises(InputError, match="machine 1: ALIGN_PROCESSES is 1 on machine 0, 2 here; "):
        group.train(INPUTS["sft"], tmp_path)


@pytest.mark.slow
def test_a_join_that_is_started_anew_says_so_in_the_attempt_that_is_lost(posts: list[Post], tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, machine_rank=1, **TWO)
    place = tmp_path / machines.FOLDER
    main, lost = (post.model_copy(update={"folder": place, "machines": 2}) for post in posts[:2])
    told: dict[str, Any] = {"stage": {}, "plan": {}, "facts": {"ALIGN_MAIN_ADDRESS": settings.main_address}}
    machines.announce(main, Announcement(attempt="a", name="sft-1", run="", kind="sft", workspace=tmp_path, **told))
    machines.give_sign(lost)

    def ended() -> str:
        machines.give_sign(main)
        sign = machines.read_sign(lost, 1)
        return sign.ended if sign else ""

    with joining(settings):
        assert wait_until(ended, 120) == "killed"


def training_process(join: int) -> psutil.Process:
    """Of what the fork server of `align join` has started, the process that computes."""
    started = [each for each in psutil.Process(join).children(recursive=True) if each.ppid() != join]
    return max(started, key=lambda each: each.cpu_times().user)


@pytest.mark.slow
def test_two_machines_end_where_one_does_also_when_a_process_of_the_other_is_killed(
    recipe: Recipe, tmp_path: Path
) -> None:
    group, laboratory = Group(tmp_path / "home"), Laboratory.of(recipe, tmp_path / "laboratory")
    with group.joined() as joined:
        stage = laboratory.stage("sft", max_steps=6)
        alone = laboratory.train(stage, tmp_path / "alone")
        folder = tmp_path / "together"

        def strike(said: dict[str, Any]) -> None:
            if said.get("step") == 3:
                training_process(joined.pid).kill()

        with pytest.raises(Killed, match=r"machine 1: .*SIGKILL"):
            group.train(stage, folder, strike)
        assert group.train(stage, folder).resumed_from_step == 2
    assert {path.name for path in folder.glob("trainer/checkpoint-6/rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert relative_difference(folder / "model", alone.model) <= 1e-5


@flow(validate_parameters=False)
def sft_flow(stage: TrainingInput, execution: Execution) -> Checkpoint:
    """One stage."""
    assert isinstance(stage, SFTInput)
    return train_sft.submit(stage, execution).result()


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_waits_for_a_machine_that_was_told_to_stop(
    finished_run: tuple[Path, RunRecord], recipe: Recipe, tmp_path: Path
) -> None:
    home, expected = without_sft(finished_run[0], tmp_path / "home")
    group = Group(home, checkpoint_every_steps=25)
    stage, *_ = stage_inputs(recipe, preflight(recipe, group.settings).datasets, group.execution)
    assert isinstance(stage, SFTInput)
    with ExitStack() as others:
        running = [others.enter_context(group.joined())]

        def strike(progress: Progress) -> None:
            if progress.step == 2 and len(running) == 1:
                running[0].terminate()
                running.append(others.enter_context(group.joined()))

        with listening(strike):
            made = sft_flow(stage, group.execution)
    attempts = read_manifest(made.path).attempts
    assert [attempt.outcome for attempt in attempts] == ["killed", "completed"]
    assert "machine 1: it was told to stop; the stage waits" in attempts[0].cause
    assert [attempt.processes for attempt in attempts] == [2, 2]
    assert attempts[1].resumed_from_step >= 2
    assert relative_difference(made.path, expected) <= 1e-5

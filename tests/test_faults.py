"""Faults that really happen, on the whole pipeline with a tiny model: what dies goes on, to the very same weights.

A short selection runs in `make test`, all in `make test-faults`, which ends with a table of what each fault cost.
"""

import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.recipe import Recipe
from tasks.run_record import unfinished_run
from tasks.store import read_manifest
from tests.faults import (
    EVERY_STEPS,
    STAGES,
    STEPS,
    Aftermath,
    Scene,
    Server,
    Strike,
    checkpoints,
    manifests,
    wait_until,
)

pytestmark = pytest.mark.slow

STOPS = ("SIGTERM", "SIGINT", "SIGHUP")
Record = Callable[[str, object], None]


def seeded_strikes() -> Iterator[Strike]:
    """Moments over the four stages, their merge, publishing and evaluation; a SIGKILL to child, flow or both."""
    rng = random.Random(20)
    victims = ("child", "flow", "both")
    for stage in STAGES:
        moments = [("training", rng.randint(1, STEPS[stage])) for _ in range(6)]
        moments += [("merging", 0), ("merging", 0), ("publishing", 0), ("starting", 0)]
        for number, (phase, step) in enumerate(moments):
            victim = victims[number % 3] if phase != "publishing" else "flow"
            delay = round(rng.uniform(0, 0.15), 3)
            yield Strike(stage, phase, step, victim, delay=delay)
        evaluating = "scoring" if stage == "reward" else "answering"
        yield Strike(f"evaluation-of-{stage}", evaluating, victim="child")
        yield Strike(f"evaluation-of-{stage}", evaluating, victim="flow")
    yield Strike("base", "reading the weights", victim="child")
    yield Strike("base", "writing", victim="flow")


STRIKES = [*seeded_strikes()]
SHORT = {1, 17, 30, 35}  # flow and both in training, child in the merge, flow in an evaluation


def all_or_short(strikes: list[Strike], short: set[int]) -> list[Any]:
    return [
        pytest.param(
            strike,
            id=f"{number:02} {strike} {strike.signal} {strike.victim}",
            marks=[] if number in short else pytest.mark.faults,
        )
        for number, strike in enumerate(strikes)
    ]


def stage_of(strike: Strike) -> str:
    return strike.stage.rpartition("-")[2]


def lost_steps(home: Path, strike: Strike, end: Aftermath) -> int:
    """Optimizer steps that had to be trained again."""
    if stage_of(strike) == "base":
        return 0
    attempts = read_manifest(checkpoints(home)[stage_of(strike)]).attempts
    return max(0, end.seen_step - attempts[-1].resumed_from_step) if len(attempts) > 1 else 0


def test_there_are_at_least_forty_moments() -> None:
    assert len(set(STRIKES)) == len(STRIKES) >= 40


@pytest.mark.parametrize("strike", all_or_short(STRIKES, SHORT))
def test_a_kill_costs_no_more_than_the_steps_since_the_last_checkpoint(
    scene: Scene, strike: Strike, record_property: Record
) -> None:
    scene.without(stage_of(strike))
    end = scene.strike(strike)
    assert (end.returncode == 0) == (strike.victim == "child"), end.said  # Prefect tries that again by itself
    scene.run_again()
    scene.assert_whole()
    lost = lost_steps(scene.home, strike, end)
    assert lost <= EVERY_STEPS
    record_property("fault", (f"SIGKILL of {strike.victim}", str(strike), "same weights", lost))


SIGNALS = [Strike("sft", "training", 3, victim, number) for victim in ("flow", "group") for number in STOPS]
SIGNALS += [Strike(stage, "training", 3, "flow", "SIGTERM") for stage in STAGES[1:]]
SIGNALS += [Strike(stage, "training", 3, "group", "SIGHUP") for stage in STAGES[1:]]


@pytest.mark.parametrize("strike", all_or_short(SIGNALS, {0, 4}))
def test_a_signal_saves_a_checkpoint_first(scene: Scene, strike: Strike, record_property: Record) -> None:
    stage, number = strike.stage, strike.signal
    scene.without(stage)
    end = scene.strike(strike)
    assert end.returncode == 128 + signal.Signals[number]
    assert "`align resume`, to go on" in end.said
    run = unfinished_run(scene.home, None)
    assert (run.state, run.error) == ("cancelled", f"stopped by {number}")
    resumed = scene.ending(scene.command("resume"))
    assert resumed.returncode == 0, resumed.said
    assert f"goes on after step {end.seen_step} of {STEPS[stage]}" in resumed.said
    scene.assert_whole()
    lost = lost_steps(scene.home, strike, end)
    assert lost == 0
    record_property("fault", (f"{number} to {strike.victim}", str(strike), "same weights", lost))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


FULL_DISKS = [
    Strike("sft", "training", 3, "disk"),
    Strike("grpo", "publishing", 0, "disk"),
    *(Strike(stage, "training", 5, "disk") for stage in STAGES[1:]),
    *(Strike(stage, phase, 0, "disk") for stage in STAGES for phase in ("starting", "merging")),
    Strike("evaluation-of-dpo", "answering", 0, "disk"),
    Strike("evaluation-of-dpo", "completed", 0, "disk"),
]


@pytest.mark.parametrize("strike", all_or_short(FULL_DISKS, {0, 1}))
def test_a_full_disk_loses_nothing(
    undisturbed: Path, lasting_recipe: Recipe, small_disk: Path, strike: Strike, record_property: Record
) -> None:
    note = small_disk.parent / "step"
    scene = Scene(undisturbed, lasting_recipe, small_disk / "home", note).without(stage_of(strike))
    filler = small_disk / "filler"
    end = scene.strike(strike, filler=str(filler))
    assert end.returncode == 1, end.said
    assert f"the disk of {scene.home} is full" in end.said
    assert "Traceback" not in end.said
    filler.unlink()
    scene.run_again()
    scene.assert_whole()
    lost = lost_steps(scene.home, strike, end)
    assert lost <= EVERY_STEPS
    record_property("fault", ("disk full", str(strike), "same weights", lost))


def test_two_runs_train_a_stage_once(scene: Scene, record_property: Record) -> None:
    scene.without("dpo")
    racing = [scene.command("run", str(scene.recipe_file)) for _ in range(2)]
    said = [scene.ending(process).said for process in racing]
    assert [process.returncode for process in racing] == [0, 0], said
    assert any("waiting for run 2" in text and "which makes it" in text for text in said)
    assert len(read_manifest(checkpoints(scene.home)["dpo"]).attempts) == 1
    scene.assert_whole()
    record_property("fault", ("two runs racing", "dpo", "trained once", 0))


def test_a_run_that_waits_can_be_stopped(scene: Scene, record_property: Record) -> None:
    scene.without("dpo")
    first = scene.command("run", str(scene.recipe_file))
    training = scene.training_process("dpo")
    training.suspend()
    second = scene.command("run", str(scene.recipe_file), note=str(scene.home.parent / "step-of-second"))
    wait_until(lambda: len([*scene.home.glob("runs/*/run.json")]) == 2, 120)
    second.terminate()
    assert scene.ending(second).returncode == 128 + signal.SIGTERM
    training.resume()
    assert scene.ending(first).returncode == 0
    scene.assert_whole()
    record_property("fault", ("SIGTERM to a run that waits", "dpo", "ends at once", 0))


@pytest.mark.parametrize("victim", ["flow", pytest.param("child", marks=pytest.mark.faults)])
def test_two_stages_side_by_side_survive_a_kill(scene: Scene, victim: str, record_property: Record) -> None:
    strike = Strike("dpo", "training", 5, victim)
    scene.without("reward").without("dpo")
    end = scene.strike(strike)
    assert (end.returncode == 0) == (victim == "child"), end.said
    scene.run_again()
    scene.assert_whole()
    lost = lost_steps(scene.home, strike, end)
    assert lost <= EVERY_STEPS
    record_property("fault", (f"SIGKILL of {victim}", "reward model beside DPO, step 5", "same weights", lost))


def test_a_run_that_waits_takes_over_from_one_that_dies(scene: Scene, record_property: Record) -> None:
    scene.without("dpo")
    watched = Strike("dpo", "never")
    first = scene.command("run", str(scene.recipe_file), strike=watched)
    training = scene.training_process("dpo")
    training.suspend()
    second = scene.command("run", str(scene.recipe_file), note=str(scene.home.parent / "step-of-second"))
    wait_until(lambda: len([*scene.home.glob("runs/*/run.json")]) == 2, 120)
    training.kill()
    first.kill()
    end = scene.ending(first)
    assert end.returncode == -signal.SIGKILL
    assert scene.ending(second).returncode == 0
    scene.assert_whole()
    lost = lost_steps(scene.home, watched, end)
    assert lost <= EVERY_STEPS
    record_property("fault", ("holder of a lock dies", "dpo, after step 2", "taken over", lost))


@pytest.fixture(scope="module")
def interrupted(undisturbed: Path, lasting_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact root of a run that was killed late in DPO."""
    scene = Scene(undisturbed, lasting_recipe, tmp_path_factory.mktemp("interrupted") / "home").without("dpo")
    assert scene.strike(Strike("dpo", "training", 7, "both")).returncode != 0
    return scene.home


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


NEWEST = "checkpoints/.partial/dpo-*/trainer/checkpoint-6"
UNFINISHED = [
    *(f"{NEWEST}/{name}" for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")),
    *(f"{NEWEST}/{name}" for name in ("trainer_state.json", "training_args.bin", "seal.json")),
    "checkpoints/.partial/dpo-*/attempts.jsonl",
]


@pytest.mark.parametrize("harm", [flip, truncate])
@pytest.mark.parametrize(
    "pattern", [pytest.param(path, marks=[] if "optimizer" in path else pytest.mark.faults) for path in UNFINISHED]
)
def test_a_damaged_file_of_an_unfinished_stage(
    undisturbed: Path,
    lasting_recipe: Recipe,
    interrupted: Path,
    tmp_path: Path,
    pattern: str,
    harm: Callable[[Path], None],
    record_property: Record,
) -> None:
    scene = Scene(undisturbed, lasting_recipe, tmp_path / "home").without("dpo")
    shutil.copytree(interrupted, scene.home, dirs_exist_ok=True)
    (path,) = scene.home.glob(pattern)
    harm(path)
    scene.run_again()
    scene.assert_whole()
    resumed = read_manifest(checkpoints(scene.home)["dpo"]).attempts[-1].resumed_from_step
    assert resumed == (4 if "trainer" in pattern else 6)
    record_property("fault", (f"{harm.__name__} a file", f"dpo, {path.name}", "same weights", 6 - resumed))


FINISHED = [
    *(
        f"checkpoints/reward-*/{name}"
        for name in ("model.safetensors", "config.json", "tokenizer.json", "history.jsonl")
    ),
    *(f"checkpoints/reward-*/{name}" for name in ("manifest.json", "adapter/adapter_model.safetensors")),
    "base/*/model.safetensors",
    "datasets/*/rows.parquet",
    "evaluations/*/result.json",
]


@pytest.mark.faults
@pytest.mark.parametrize("harm", [flip, truncate])
@pytest.mark.parametrize("pattern", FINISHED)
def test_a_damaged_file_of_a_finished_folder(
    scene: Scene, pattern: str, harm: Callable[[Path], None], record_property: Record
) -> None:
    path = next(scene.home.glob(pattern))
    kind, name, *_ = path.relative_to(scene.home).parts
    scene.before = {other: manifest for other, manifest in manifests(scene.home).items() if other != name}
    harm(path)
    scene.run_again()
    (aside,) = scene.home.glob("*/.damaged/*")
    assert aside.name.startswith(name)
    shutil.rmtree(aside)
    scene.assert_whole()
    record_property("fault", (f"{harm.__name__} a file", f"{kind}, {path.name}", "same weights", 0))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "prefect")
    server.start()
    yield server
    server.kill()


@pytest.mark.faults
def test_a_stage_survives_the_api(scene: Scene, server: Server, record_property: Record) -> None:
    scene.without("dpo")
    process = scene.command("run", str(scene.recipe_file), api=server.api)
    scene.training_process("dpo")
    server.kill()
    end = scene.ending(process)
    assert end.returncode == 0, end.said
    assert f"the Prefect API at {server.api} failed or cannot be reached" in end.said
    assert "the run is complete, but Prefect does not know it" in end.said
    assert "Traceback" not in end.said
    assert len(read_manifest(checkpoints(scene.home)["dpo"]).attempts) == 1
    scene.assert_whole()
    record_property("fault", ("API goes away", "dpo, step 2", "run completes", 0))


def test_an_api_that_is_not_there_is_named(scene: Scene, server: Server) -> None:
    server.kill()
    end = scene.ending(scene.command("run", str(scene.recipe_file), api=server.api))
    assert end.returncode == 1
    assert f"the Prefect API at {server.api} failed or cannot be reached" in end.said
    assert "Traceback" not in end.said


@pytest.mark.faults
def test_a_restart_of_the_server_goes_unnoticed(scene: Scene, server: Server, record_property: Record) -> None:
    scene.without("dpo")
    process = scene.command("run", str(scene.recipe_file), api=server.api)
    training = scene.training_process("dpo")
    training.suspend()
    server.kill()
    server.start()
    training.resume()
    end = scene.ending(process)
    assert end.returncode == 0, end.said
    scene.assert_whole()
    record_property("fault", ("server restarts", "dpo, step 2", "run completes", 0))

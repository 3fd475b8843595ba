"""Two workers with artifact roots of their own and one bucket: each stage is trained once, whoever dies."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.recipe import Recipe
from models.run import RunRecord
from tasks.run_record import all_runs
from tests.faults import ROOT, manifests, model_files, wait_until
from tests.object_server import BUCKET, ObjectServer
from tests.tiny import tiny_recipe, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.faults]

STEPS = 100
"""Enough for a trainer checkpoint to arrive while it is trained."""
EVERY_STEPS = 10


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.start()
    yield server
    server.kill()


class Workers:
    """`align` on machines of their own, as far as files go, with one bucket."""

    def __init__(self, folder: Path, server: ObjectServer, recipe: dict[str, object], prefix: str) -> None:
        self.folder = folder
        self._server, self._prefix = server, prefix
        self._recipe = write_recipe(folder / "recipe.yaml", Recipe.model_validate(recipe).model_dump(mode="json"))

    def home(self, worker: str) -> Path:
        """Its artifact root."""
        return self.folder / worker

    def start(self, worker: str, *arguments: str) -> "subprocess.Popen[str]":
        """Run the recipe, or the command given, on a worker."""
        from prefect.settings import PREFECT_API_URL

        environment = (
            os.environ
            | self._server.environment
            | {
                "ALIGN_HOME": str(self.home(worker)),
                "ALIGN_REMOTE": f"s3://{BUCKET}/{self._prefix}",
                "ALIGN_REMOTE_LEASE_SECONDS": "6",
                "ALIGN_CHECKPOINT_EVERY_STEPS": str(EVERY_STEPS),
                "ALIGN_RESERVED_DISK_BYTES": "0",
                "ALIGN_QUEUE": str(self.folder / f"{worker}.queue"),
                "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            }
        )
        return subprocess.Popen(
            [sys.executable, "-m", "flows", *(arguments or ("run", str(self._recipe)))],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, worker: str, *arguments: str) -> str:
        """The same, to a good end; what it said."""
        return finish(self.start(worker, *arguments))


def finish(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def record(home: Path) -> RunRecord:
    """The newest run of an artifact root."""
    return all_runs(home)[0][0]


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, tiny_data: Path) -> dict[str, object]:
    return tiny_recipe(tiny_model, tiny_data, reward=None, dpo=None, grpo=None, sft={"max_steps": STEPS})


@pytest.fixture(scope="module")
def workers(
    tmp_path_factory: pytest.TempPathFactory, server: ObjectServer, recipe: dict[str, object], prefect_api: None
) -> Workers:
    """The first has died while it trained, with all of its processes; the second has run the same recipe."""
    workers = Workers(tmp_path_factory.mktemp("workers"), server, recipe, "killed")
    process = workers.start("first")
    wait_until(lambda: any(key.endswith("/seal.json") for key in server.keys("killed/unfinished/")), 120)
    process.kill()
    process.communicate(timeout=60)
    workers.run("second")
    return workers


def test_a_worker_that_dies_is_followed_by_another_from_its_trainer_checkpoint(workers: Workers) -> None:
    (sft,) = (made for name, made in manifests(workers.home("second")).items() if name.startswith("sft-"))
    assert [attempt.outcome for attempt in sft.attempts] == ["died", "completed"]
    assert sft.attempts[1].resumed_from_step >= EVERY_STEPS


def test_another_worker_takes_all_that_was_trained(workers: Workers) -> None:
    workers.run("third")
    second, third = workers.home("second"), workers.home("third")
    assert all(outcome.cached for outcome in record(third).stages)
    assert manifests(third) == manifests(second)
    assert model_files(third) == model_files(second)
    assert {run.id for run in all_runs(third)[0]} > {run.id for run in all_runs(second)[0]}


def test_reading_commands_fetch_what_they_need(workers: Workers) -> None:
    lineage = json.loads(workers.run("reader", "lineage", "sft", "--json"))
    assert {node["state"] for node in lineage["nodes"].values()} == {"pruned"}
    assert not [*workers.home("reader").rglob("*.safetensors")]
    out = workers.folder / "out"
    workers.run("reader", "export", "sft", str(out))
    assert (out / "model.safetensors").exists()
    assert "pruned" not in workers.run("reader", "verify", "sft")


def test_two_workers_at_once_train_each_stage_once_to_the_same_weights(
    tmp_path: Path, server: ObjectServer, recipe: dict[str, object], workers: Workers
) -> None:
    both = Workers(tmp_path, server, recipe, "both")
    said = [finish(process) for process in [both.start(worker) for worker in ("first", "second")]]
    runs = [record(both.home(worker)) for worker in ("first", "second")]
    made = [outcome.stage for run in runs for outcome in run.stages if not outcome.cached]
    assert sorted(made) == ["base", "sft"], said
    weights = model_files(both.home("first"))
    assert weights == model_files(both.home("second")) == model_files(workers.home("second"))

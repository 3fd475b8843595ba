"""Trackers for real and offline: what each gets of a stage, where it stays, and what is said of one that is missing."""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from models.artifacts import Checkpoint
from models.recipe import Recipe
from models.stages import SFTInput
from settings.settings import Settings
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core import entry
from tasks.core.plan import TrainingPlan
from tasks.core.tracking import ending_runs, lineage_facts
from tasks.execution import Execution
from tasks.trackers import EXTRAS, check_trackers, tracker_environment
from tests.prepared import frozen

RUN = "20260101-tiny"


@pytest.fixture
def stage(recipe: Recipe, tiny_model: Path, tmp_path: Path) -> SFTInput:
    """Two steps of supervised fine-tuning."""
    dataset = frozen(tmp_path / "data", recipe.sft.dataset, "sft")
    policy = Checkpoint(path=tiny_model, fingerprint="0" * 64, stage="base", precision="fp32")
    section = recipe.sft.model_copy(update={"max_steps": 2})
    return SFTInput(policy=policy, dataset=dataset, hyperparameters=section, seed=1, precision="fp32")


def at_work(execution: Execution, *trackers: str) -> Execution:
    settings = execution.settings.model_copy(update={"report_to": trackers})
    return execution.model_copy(update={"settings": settings, "run": RUN})


def tensorboard(home: Path, stage: SFTInput) -> tuple[set[str], str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(home / "trackers" / "tensorboard" / stage.name))
    events.Reload()
    (told,) = events.Tensors("lineage/text_summary")
    return set(events.Tags()["scalars"]), told.tensor_proto.string_val[0].decode()


def mlflow(home: Path, stage: SFTInput) -> tuple[set[str], str]:
    with closing(sqlite3.connect(home / "trackers" / "mlflow.db")) as database:
        (name,) = database.execute("select name from runs").fetchone()
        assert name == stage.name
        assert database.execute("select status from runs").fetchone() == ("FINISHED",)
        assert ("align",) in database.execute("select name from experiments").fetchall()
        metrics = {key for (key,) in database.execute("select distinct key from metrics")}
        tags = dict(database.execute("select key, value from tags"))
    return metrics, json.dumps(tags)


def wandb(home: Path, stage: SFTInput) -> tuple[set[str], str]:
    (file,) = (home / "trackers" / "wandb").glob("offline-run-*/*.wandb")
    told = _records(file.read_bytes()).decode("utf-8", "replace")
    assert stage.name in told
    return {key for key in ("train/loss",) if key in told}, told


def _records(log: bytes, block: int = 2**15, header: int = 7) -> bytes:
    """What wandb's file holds, a log in LevelDB's format: blocks of chunks, each with checksum, length and kind."""
    found, place = b"", header  # the file's own header is as long as a chunk's
    while place + header <= len(log):
        if block - place % block < header:
            place += block - place % block
            continue
        length = int.from_bytes(log[place + 4 : place + 6], "little")
        found += log[place + header : place + header + length]
        place += header + length
    return found


def trackio(home: Path, stage: SFTInput) -> tuple[set[str], str]:
    with closing(sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "align.db")) as database:
        rows = database.execute("select run_name, metrics from metrics").fetchall()
        configs = database.execute("select config from configs").fetchall()
    assert {name for name, _ in rows} == {stage.name}
    return {key for _, metrics in rows for key in json.loads(metrics)}, str(configs)


READERS: dict[str, Callable[[Path, SFTInput], tuple[set[str], str]]] = {
    "tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb, "trackio": trackio,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tracker", READERS)
def test_a_tracker_gets_metrics_name_and_lineage(
    tracker: str, stage: SFTInput, execution: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not importlib.util.find_spec(tracker):
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.chdir(tmp_path)
    execution = at_work(execution, tracker)
    plan = TrainingPlan(
        device="cpu", per_device_train_batch_size=8, gradient_accumulation_steps=1, report_to=(tracker,), run=RUN
    )
    options = ChildOptions(threads=1, environment=tracker_environment(execution, stage.name))
    lines: list[str] = []
    run_in_child(entry.sft, (stage, plan, tmp_path / "work"), options, lambda report: None, lines.append)
    metrics, told = READERS[tracker](execution.settings.home, stage)
    assert any(name.endswith("loss") for name in metrics), lines
    for name, value in lineage_facts(stage, plan).items():
        assert name in told
        assert value in told
    assert not [path.name for path in tmp_path.iterdir() if path.name not in ("data", "work", "home")]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
def test_two_stages_make_mlflows_database_at_once(tmp_path: Path) -> None:
    code = "import sys; from tasks.core.tracking import _make_mlflow_database as make; make(sys.argv[1])"
    place = f"sqlite:///{tmp_path / 'trackers' / 'mlflow.db'}"
    both = [subprocess.Popen([sys.executable, "-c", code, place], cwd=Path(__file__).parents[1]) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]


def test_lineage_tells_checkpoint_run_and_parents(stage: SFTInput) -> None:
    plan = TrainingPlan(device="cpu", per_device_train_batch_size=8, gradient_accumulation_steps=1, run=RUN)
    assert lineage_facts(stage, plan) == {
        "align_checkpoint": stage.name,
        "align_stage": "sft",
        "align_fingerprint": stage.fingerprint,
        "align_run": RUN,
        "align_parent_policy": stage.policy.path.name,
        "align_parent_dataset": stage.dataset.path.name,
    }


def test_what_the_user_sets_wins(execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"WANDB_MODE": "disabled", "WANDB_PROJECT": "mine", "MLFLOW_TRACKING_URI": "http://tracker:5000"}
    for name, value in (own | {"TENSORBOARD_LOGGING_DIR": "/logs"}).items():
        monkeypatch.setenv(name, value)
    found = tracker_environment(at_work(execution, *EXTRAS), "sft-0")
    assert found.items() >= own.items()
    assert found["TENSORBOARD_LOGGING_DIR"] == "/logs/sft-0"
    assert found["MLFLOW_EXPERIMENT_NAME"] == "align"


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("secret", "online")])
def test_wandb_stays_offline_without_a_key(
    key: str, mode: str, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    found = tracker_environment(at_work(execution, "wandb"), "sft-0")
    assert found["WANDB_MODE"] == mode
    assert "secret" not in str(found)  # the child has it from its own environment


def test_without_trackers_nothing_is_set(execution: Execution) -> None:
    assert tracker_environment(execution, "sft-0") == {}


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        ("wandbb", "unknown tracker 'wandbb'; did you mean 'wandb'?"),
        ("nothing-like-it", "known trackers: tensorboard, wandb"),
        ("mlflow", "'mlflow' is not installed; run `pip install 'alignment-pipeline[mlflow]'`"),
        ("comet_ml", "'comet_ml' is not installed; run `pip install comet-ml`"),
    ],
)
def test_a_missing_tracker_is_named(tracker: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problems: list[str] = []
    check_trackers([tracker], problems)
    assert len(problems) == 1
    assert said in problems[0]
    assert problems[0].startswith("ALIGN_REPORT_TO: ")


def test_settings_and_secrets_of_trackers_stay_out_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    options: Any = ChildOptions(threads=1, environment={"WANDB_API_KEY": "secret"})
    assert "secret" not in repr(options)
    assert "secret" not in Settings().model_dump_json()


@pytest.mark.parametrize("error", [None, MemoryError("out of memory")])
def test_runs_of_trackers_end_however_training_does(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[dict[str, Any]] = []
    for name, end in (("wandb", "finish"), ("mlflow", "end_run")):
        module = ModuleType(name)  # both are extras
        setattr(module, end, lambda **how: ended.append(how))
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(type(error)) if error else nullcontext(), ending_runs(("wandb", "mlflow")):
        if error:
            raise error
    assert ended == [{"exit_code": int(bool(error))}, {"status": "FAILED" if error else "FINISHED"}]


def test_a_tracker_that_cannot_end_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # its import fails
    with pytest.raises(MemoryError), ending_runs(("wandb",)):
        raise MemoryError

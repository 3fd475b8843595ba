"""GRPO trained for real on a user's functions: what is logged, what is kept, and what stops it."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.artifacts import Checkpoint, Dataset
from models.errors import StageError
from models.recipe import GRPO, LoRA
from models.sources import DatasetSource
from models.stages import GRPOInput
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core import entry
from tasks.core.plan import TrainingPlan, TrainingResult
from tasks.reward_functions import function_digests
from tests.tiny import PROMPTS, write_rows

pytestmark = pytest.mark.slow
PLAN = TrainingPlan(device="cpu", per_device_train_batch_size=8, gradient_accumulation_steps=1)
LABELS = ("brevity", "parity", "exact_answer")
FUNCTIONS = """
import os, time

calls = 0

def brevity(completions, **kwargs):
    return [-len(done[-1]["content"]) for done in completions]

async def second_time(completions, **kwargs):
    global calls
    calls += 1
    if calls == 2:
        os._exit(7)
    return [float(at % 2) for at, _ in enumerate(completions)]

def broken(completions, **kwargs):
    raise KeyError("verdict")

def hangs(completions, **kwargs):
    time.sleep(60)
"""


def train(folder: Path, model: Path, rewards: list[dict[str, Any]], steps: int = 4) -> TrainingResult:
    """Train a few steps in a child process, as a run does."""
    rows = [{"prompt": [{"role": "user", "content": text}], "answer": ["7"]} for text in PROMPTS[:8]]
    (folder / "mine.py").write_text(FUNCTIONS)
    write_rows(folder / "rows" / "rows.jsonl", rows)
    place = folder / "mine.py"
    rewards = [one | ({"function": f"{place}:{one['function']}"} if "function" in one else {}) for one in rewards]
    asked = GRPO.model_validate(
        {"dataset": DatasetSource(path="rows"), "rewards": rewards, "max_steps": steps, "batch_size": 8}
        | {"num_generations": 4, "max_completion_length": 6, "lora": LoRA(r=2), "learning_rate": 1e-2}
    )
    stage = GRPOInput(
        policy=Checkpoint(path=model, fingerprint="a" * 64, stage="sft", precision="fp32"),
        dataset=Dataset(path=folder / "rows", fingerprint="b" * 64, rows=8, source="rows"),
        hyperparameters=asked,
        functions=function_digests(asked),
        seed=0,
        precision="fp32",
    )
    asked_for = (stage, PLAN, folder / "work")
    result: TrainingResult = run_in_child(entry.grpo, asked_for, ChildOptions(threads=1), lambda report: None, print)
    return result


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "work" / "model" / "history.jsonl").read_text().splitlines()]


def test_each_reward_is_logged_under_its_name_and_a_failed_call_costs_that_reward_only(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rewards: list[dict[str, Any]] = [
        {"kind": "function", "function": "brevity", "weight": 0.1},
        {"kind": "function", "function": "second_time", "name": "parity"},
        {"kind": "exact_answer"},
    ]
    result = train(tmp_path, tiny_model, rewards)
    entries = history(tmp_path)
    for label in LABELS:
        assert {f"rewards/{label}/{figure}" for figure in ("mean", "std", "share")} <= entries[0].keys()
    assert [entry["rewards/parity/failures"] for entry in entries] == [0, 1, 0, 1]
    assert [entry["rewards/parity/mean"] for entry in entries] == [0.5, None, 0.5, None]
    shares = [[step[f"rewards/{label}/share"] for label in LABELS] for step in entries]
    assert [sum(step) for step in shares] == pytest.approx([1] * 4)
    assert result.metrics["rewards/parity/failures/crash"] == 2
    kept = json.loads((tmp_path / "work" / "model" / "reward_failures.json").read_text())
    assert list(kept) == ["parity"]
    assert "exit code 7" in kept["parity"]["last"]
    assert "reward parity: call 4 failed (crash)" in capfd.readouterr().out
    assert not workers()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("broken", r"failed in 4 of 4 calls \(exception 4\)[\s\S]*mine.py\", line 17, in broken[\s\S]*verdict"),
        ("hangs", r"failed in 4 of 4 calls \(timeout 4\)[\s\S]*mine.py\", line 20 in hangs"),
    ],
)
def test_a_function_that_fails_too_often_stops_the_stage(
    name: str, told: str, tmp_path: Path, tiny_model: Path
) -> None:
    reward = {"kind": "function", "function": name, "timeout_seconds": 0.5}
    with pytest.raises(StageError, match=told):
        train(tmp_path, tiny_model, [reward, {"kind": "exact_answer"}])
    assert not workers()


def test_a_function_alone_may_fail_and_no_completion_then_moves_the_policy(tmp_path: Path, tiny_model: Path) -> None:
    reward = {"kind": "function", "function": "broken", "failures_allowed": 1.0}
    train(tmp_path, tiny_model, [reward], steps=2)
    assert [entry["grad_norm"] for entry in history(tmp_path)] == [0, 0]


def workers() -> list[int]:
    """Functions' processes that this test has left behind."""
    mine = [each for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    return [each.pid for each in mine if "tasks.core.reward_worker" in " ".join(each.cmdline())]

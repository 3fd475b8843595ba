"""Trainer checkpoints: taken up only where every byte agrees with their seal."""

import signal
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from tasks.checkpoints import SEAL, discard_after, last_whole_checkpoint, read_seal, seal
from tasks.core import saving
from tasks.core.plan import TrainingPlan


def trainer_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"):
        (checkpoint / name).write_text(f"{name} of step {step}")
    return checkpoint


def sealed(folder: Path, step: int) -> Path:
    checkpoint = trainer_checkpoint(folder, step)
    seal(checkpoint, step, 20, seconds=1.5)
    return checkpoint


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "added", "seal flipped", "no seal"])
def test_a_trainer_checkpoint_that_is_not_whole_is_passed_over(tmp_path: Path, harm: str) -> None:
    assert last_whole_checkpoint(tmp_path) is None
    sealed(tmp_path, 8)
    newest = sealed(tmp_path, 10)
    assert last_whole_checkpoint(tmp_path) == (newest, read_seal(newest))
    optimizer, seal_file = newest / "optimizer.pt", newest / SEAL
    if harm == "truncated":
        optimizer.write_bytes(optimizer.read_bytes()[:-1])
    elif harm == "flipped":
        optimizer.write_bytes(b"O" + optimizer.read_bytes()[1:])
    elif harm == "missing":
        optimizer.unlink()
    elif harm == "added":
        (newest / "more").touch()
    elif harm == "seal flipped":
        seal_file.write_bytes(b"[" + seal_file.read_bytes()[1:])
    else:
        seal_file.unlink()
    found = last_whole_checkpoint(tmp_path)
    assert found
    assert (found[0].name, found[1].step, found[1].seconds) == ("checkpoint-8", 8, 1.5)
    assert discard_after(tmp_path, found[0]) == ["checkpoint-10"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


def test_a_signal_amid_a_vote_stops_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = TrainingPlan(device="cpu", per_device_train_batch_size=1, gradient_accumulation_steps=1)
    saver, controls = saving.Saver(plan, 0.0), [TrainerControl(), TrainerControl()]
    votes: list[tuple[bool, ...]] = []

    def vote(*flags: bool) -> list[bool]:
        votes.append(flags)
        signal.raise_signal(signal.SIGTERM)
        return list(flags)

    monkeypatch.setattr(saving, "any_of_all", vote)
    with saver.heeding_sigterm():
        for step, control in enumerate(controls, 1):
            state = TrainerState(global_step=step, max_steps=9)
            saver.on_step_end(TrainingArguments(str(tmp_path), use_cpu=True), state, control)
    assert votes == [(False, False), (False, True)]
    assert [(control.should_save, control.should_training_stop) for control in controls] == [(False,) * 2, (True,) * 2]

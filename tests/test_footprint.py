"""The estimate of memory: what it counts, how it follows the recipe, and what is concluded from it."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory
from models.artifacts import Stage
from models.recipe import DPO, GRPO, SFT, RewardModel, Training
from models.sources import BaseModelSource
from models.stages import BaseModelInput
from settings.machine import Machine
from settings.settings import Settings
from tasks import memory_forecast
from tasks.core.plan import Footprint, StageShape, TrainingPlan
from tasks.core.tally import _covered, heap_bytes
from tasks.execution import Execution
from tasks.memory_forecast import _compare

ROWS: dict[str, Any] = {"dataset": {"path": "rows"}, "batch_size": 8}
SECTIONS: dict[Stage, type[Training]] = {"sft": SFT, "reward": RewardModel, "dpo": DPO, "grpo": GRPO}


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def shape(stage: Stage, rows: int = 8, *, checkpointing: bool = False, **asked: Any) -> StageShape:
    """A stage of eight rows of about fifty tokens each."""
    row = {"prompt": said("user", "1 + 2 " * 6), "completion": said("assistant", "three")}
    row |= {"chosen": said("assistant", "three"), "rejected": said("assistant", "four")}
    plan = TrainingPlan(
        device="cpu",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=8 // rows,
        gradient_checkpointing=checkpointing,
        share_prompts=False,  # which estimates do not know of
    )
    section = SECTIONS[stage].model_validate(ROWS | asked)
    return StageShape(
        stage=stage, hyperparameters=section, precision="fp32", plan=plan, splits_generation=False, longest_rows=(row,)
    )


def footprint(model: Path, wanted: StageShape) -> Footprint:
    from tasks.core.footprint import estimate_footprints

    source = BaseModelSource(source="folder", name=str(model))
    asked = BaseModelInput(source=source, origin={}, precision="fp32")
    (found,) = estimate_footprints(asked, str(model), (wanted,), lambda report: None)
    return found


@pytest.mark.slow
def test_weights_are_those_of_the_model(tiny_model: Path) -> None:
    plain = footprint(tiny_model, shape("sft", lora=None))
    in_file = (tiny_model / "model.safetensors").stat().st_size
    assert 0 <= in_file - plain.weights < 10_000  # its header
    assert plain.gradients == plain.weights
    assert plain.optimizer == 2 * plain.weights


@pytest.mark.slow
@pytest.mark.parametrize("stage", SECTIONS)
def test_more_rows_take_more(tiny_model: Path, stage: Stage) -> None:
    whole, half = footprint(tiny_model, shape(stage)), footprint(tiny_model, shape(stage, 4))
    assert 1.9 < whole.activations / half.activations < 2.1
    assert whole.activations + whole.logits > half.activations + half.logits


@pytest.mark.slow
def test_what_the_recipe_asks_for_counts(tiny_model: Path) -> None:
    lora, full = footprint(tiny_model, shape("dpo")), footprint(tiny_model, shape("dpo", lora=None))
    assert lora.gradients < full.gradients
    assert (lora.reference, full.reference) == (0, full.weights)
    recomputed = footprint(tiny_model, shape("dpo", checkpointing=True))
    assert recomputed.activations < lora.activations / 2
    scored = footprint(tiny_model, shape("grpo", rewards=[{"kind": "reward_model"}]))
    longer = footprint(tiny_model, shape("grpo", max_completion_length=512))
    assert scored.reward_model > 0
    assert longer.generation_cache > 1.5 * scored.generation_cache
    assert footprint(tiny_model, shape("sft", max_length=16)).longest_tokens == 16
    assert footprint(tiny_model, shape("sft", max_length=200, packing=True)).longest_tokens == 200


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "weights"), [("zero2", 1), ("zero3", 4), ("fsdp2", 4)])
def test_what_is_sharded_counts_by_what_each_process_holds(tiny_model: Path, sharding: str, weights: int) -> None:
    asked = shape("sft", 2, lora=None)
    whole, sharded = (
        footprint(tiny_model, asked.model_copy(update={"plan": asked.plan.model_copy(update=update)}))
        for update in (
            {"device": "cuda", "processes": 4},
            {"device": "cuda", "processes": 4, "sharding": sharding},
        )
    )
    assert sharded.weights == pytest.approx(whole.weights / weights, abs=4)
    assert sharded.gradients == pytest.approx(whole.gradients / 4, abs=4)
    assert sharded.optimizer == pytest.approx(whole.optimizer / 4, abs=4)
    assert sharded.peak < whole.peak
    assert sharded.peak >= sharded.weights + sharded.gradients + sharded.optimizer


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_estimates_are_near_what_is_measured(tmp_path: Path, quantized: bool) -> None:
    asked = Namespace(full=False, quantized=quantized, precision="bf16")
    errors = [error for _, error in memory.compare(memory.SIZES[0], tmp_path, asked)]
    assert len(errors) == len(SECTIONS)
    assert all(memory.TOO_LOW <= error <= memory.TOO_HIGH for error in errors), errors


def test_the_heap_holds_what_is_used_at_once() -> None:
    size = 50_000_000
    side_by_side = [(1, size), (2, size), (1, 0), (2, 0)]
    assert heap_bytes([], side_by_side, 0) >= 2 * size
    huge = 2**41  # more than there is: nobody touches it
    assert heap_bytes([(1, huge)], [], huge) >= huge


def test_bytes_are_counted_once() -> None:
    assert _covered([(20, 5), (0, 10), (5, 10), (6, 2)]) == 20


UNIT = 6_000_000
PARTS = dict.fromkeys(
    ("weights", "gradients", "optimizer", "activations", "logits", "reference", "reward_model"), 0
) | dict.fromkeys(("generation_cache", "merging", "process"), 0)


@pytest.mark.parametrize(
    ("limit", "verdict", "rows"),
    [(1000, "fits", 8), (900, "tight", 8), (700, "won't fit", 4), (350, "won't fit", 2), (50, "won't fit", None)],
)
def test_the_verdict_names_what_fits(tmp_path: Path, limit: int, verdict: str, rows: int | None) -> None:
    estimate = Footprint(stage="sft", longest_tokens=50, **PARTS, peak=800 * UNIT, peak_of_one_row=100 * UNIT)
    machine = Machine(device="cpu", name="test", cores=2, memory_bytes=2**34, native_bf16=False, accelerators=0)
    settings = Settings(home=tmp_path, memory_limit_bytes=limit * UNIT)
    execution = Execution(settings=settings, machine=machine, precision="fp32", threads=1, parallel_stages=2)
    found = _compare(shape("sft"), estimate, [estimate], execution)
    assert (found.verdict, found.fitting_batch_size) == (verdict, rows)


@pytest.mark.parametrize(("device", "left"), [("cpu", (10 - 2 * 2) // 2), ("cuda", 10 - 2)])
def test_a_stage_beside_takes_memory_for_each_of_its_processes(
    device: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: Namespace(available=10 * 2**30))
    monkeypatch.setattr(memory_forecast, "_CUDA_CONTEXT_BYTES", 0)
    peaks: dict[str, Any] = {"peak": 2 * 2**30, "peak_of_one_row": 2**30, "longest_tokens": 50}
    reward, dpo = (Footprint(stage=stage, **PARTS, **peaks) for stage in ("reward", "dpo"))
    facts = {"name": "test", "cores": 2, "memory_bytes": 10 * 2**30, "native_bf16": False, "accelerators": 1}
    machine = Machine.model_validate(facts | {"device": device})
    settings = Settings(home=tmp_path, processes=2)
    execution = Execution(settings=settings, machine=machine, precision="fp32", threads=1, parallel_stages=2)
    asked = shape("dpo", 4)
    asked = asked.model_copy(update={"plan": asked.plan.model_copy(update={"processes": 2})})
    assert _compare(asked, dpo, [reward, dpo], execution).available_bytes == left * 2**30

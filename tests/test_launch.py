"""What settings for several processes become: the group, equal parts of a batch, and Accelerate's own configuration."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.fsdp.api import StateDictType
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
from trl import DPOConfig, GRPOConfig, RewardConfig, SFTConfig

from models.artifacts import Manifest
from models.errors import InputError
from models.launch import Launch, Sharding
from models.queue import Share
from models.recipe import Quantization, Recipe
from settings.machine import Machine
from settings.settings import Settings, load_settings
from tasks import ledger, preflight
from tasks.child_main import ChildOptions
from tasks.core import ranks
from tasks.core.plan import TrainingPlan
from tasks.core.ranks import any_of_all, distribution_arguments, whole_state
from tasks.execution import Execution, stages_at_once
from tasks.launch import check_batch, launch_problems, meeting, uneven_steps
from tasks.queue import Queue, is_admitted
from tasks.reproduced import _changes
from tasks.reproducing import Step, as_it_was
from tests.folders import manifest_of
from tests.test_contracts import INPUTS
from tests.test_hyperparameters import arguments

CONFIGS: dict[str, type[Any]] = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig, "grpo": GRPOConfig}


def machine(device: str = "cuda", accelerators: int = 4, cores: int = 8) -> Machine:
    facts = {"name": "t", "memory_bytes": 2**34, "native_bf16": True}
    return Machine.model_validate(facts | {"device": device, "accelerators": accelerators, "cores": cores})


def execution(device: str = "cuda", threads: int = 8, **settings: Any) -> Execution:
    asked, here = Settings(**settings), machine(device)
    at_once = stages_at_once(asked, here)
    bare = Execution(settings=asked, machine=here, precision="bf16", threads=threads, parallel_stages=at_once)
    return bare.of_training()


def test_each_process_is_told_of_the_group() -> None:
    assert Launch(processes=4, port=29500).environment(2) == {
        "RANK": "2",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    assert Launch().environment(0) == {}


def test_settings_ask_for_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_PROCESSES", "4")
    monkeypatch.setenv("ALIGN_SHARDING", "fsdp2")
    settings = load_settings()
    assert (settings.processes, settings.sharding) == (4, "fsdp2")
    monkeypatch.setenv("ALIGN_SHARDING", "fsdp")
    with pytest.raises(InputError, match="ALIGN_SHARDING"):
        load_settings()


def test_processes_meet_on_a_free_port() -> None:
    met = meeting(Launch(processes=2))
    assert met.port > 0
    assert meeting(met) == met
    assert meeting(Launch()).port == 0


@given(st.integers(1, 512), st.sampled_from([1, 2, 3, 4, 8]), st.none() | st.integers(1, 64))
def test_processes_share_the_batch_equally(batch: int, processes: int, largest: int | None) -> None:
    asked = INPUTS["sft"].hyperparameters.model_copy(update={"batch_size": batch})
    stage = INPUTS["sft"].model_copy(update={"hyperparameters": asked})
    here = execution(processes=processes, per_device_train_batch_size=largest)
    if batch % processes:
        with pytest.raises(InputError, match="cannot be shared equally"):
            ledger.plan_attempt(stage, (), here)
        return
    plan = ledger.plan_attempt(stage, (), here)
    rows = plan.per_device_train_batch_size
    assert rows * plan.gradient_accumulation_steps * plan.processes == batch
    assert rows <= (largest or batch)


@pytest.mark.parametrize(
    ("batch", "processes", "divides"),
    [
        (10, 4, "use 2 or 1 (ALIGN_PROCESSES), or batch_size=8 or 12, "),
        (3, 8, "use 3 or 1 (ALIGN_PROCESSES), or batch_size=8, "),
    ],
)
def test_what_would_divide_is_named(batch: int, processes: int, divides: str) -> None:
    with pytest.raises(InputError) as caught:
        check_batch("sft", batch, Launch(processes=processes))
    assert f"sft.batch_size: {batch} rows a step cannot be shared equally by {processes} processes" in str(caught.value)
    assert divides in str(caught.value)


@pytest.mark.parametrize("stage", INPUTS.values(), ids=list(INPUTS))
def test_fingerprints_do_not_depend_on_processes(stage: Any) -> None:
    told = str(stage.identity())
    assert not [name for name in ("processes", "sharding", "per_device") if name in told]


def plan(sharding: Sharding, processes: int = 2, device: str = "cuda", **changes: Any) -> TrainingPlan:
    asked = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "processes": processes}
    return TrainingPlan.model_validate(asked | {"device": device, "sharding": sharding} | changes)


@pytest.mark.parametrize("sharding", get_args(Sharding))
def test_one_process_is_trained_as_ever(sharding: Sharding) -> None:
    assert distribution_arguments(plan(sharding, processes=1)) == {}


@pytest.mark.parametrize("name", CONFIGS)
def test_ddp_reaches_accelerate(name: str) -> None:
    assert distribution_arguments(plan("ddp", device="cpu"))["ddp_backend"] == "gloo"
    config = CONFIGS[name](**arguments(INPUTS[name], plan("ddp")) | {"use_cpu": True, "bf16": False})
    assert config.ddp_find_unused_parameters is False
    assert config.ddp_backend is None  # NCCL is Accelerate's own choice for CUDA
    assert config.fsdp_plugin_args is None
    assert config.deepspeed is None


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fsdp2_reaches_accelerates_plugin(name: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "")  # which the plugin sets
    asked = arguments(INPUTS[name], plan("fsdp2", gradient_checkpointing=checkpointing))
    config = CONFIGS[name](**asked | {"use_cpu": True, "bf16": False})
    assert config.activation_checkpointing is False
    plugin = FullyShardedDataParallelPlugin(**config.fsdp_plugin_args)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.activation_checkpointing is checkpointing
    assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)


class Zero(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """Transformers' reader of DeepSpeed's configuration, which otherwise asks for an installed DeepSpeed."""

    def __init__(self, config: dict[str, Any]) -> None:
        HfDeepSpeedConfig.__init__(self, config)
        self.mismatches: list[str] = []


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("sharding", "stage"), [("zero2", 2), ("zero3", 3)])
def test_zero_is_what_transformers_fills_in(name: str, sharding: Sharding, stage: int) -> None:
    zero = Zero(distribution_arguments(plan(sharding))["deepspeed"])
    config = CONFIGS[name](**arguments(INPUTS[name], plan("ddp")) | {"use_cpu": True, "bf16": False})
    zero.trainer_config_process(config)
    assert (zero.is_zero2(), zero.is_zero3(), zero.is_offload()) == (stage == 2, stage == 3, False)
    assert zero.get_value("zero_optimization.stage3_gather_16bit_weights_on_model_save", False) is (stage == 3)
    assert zero.get_value("train_micro_batch_size_per_gpu") == config.per_device_train_batch_size == 2
    assert zero.get_value("gradient_accumulation_steps") == config.gradient_accumulation_steps == 2
    assert zero.get_value("gradient_clipping") == config.max_grad_norm
    assert zero.dtype() == torch.float32
    assert zero.mismatches == []
    assert "auto" not in str(zero.config)


WRONG: list[tuple[dict[str, Any], Machine, bool, str]] = [
    (
        {"processes": 8},
        machine(),
        False,
        "8 processes need as many accelerators; there is: 4 cuda",
    ),
    (
        {"processes": 2},
        machine("mps", 1),
        False,
        "2 processes need as many accelerators; there is: 1 mps",
    ),
    (
        {"processes": 3, "vllm": "colocate", "vllm_tensor_parallel_size": 2},
        machine(),
        False,
        "ALIGN_VLLM_TENSOR_PARALLEL_SIZE: 2 does not divide the 3 processes",
    ),
    ({"processes": 2, "sharding": "fsdp2"}, machine("cpu", 0), False, "'fsdp2' needs CUDA devices, and this is a cpu"),
    ({"processes": 2, "sharding": "zero2"}, machine(), False, "pip install 'alignment-pipeline[deepspeed]'"),
    (
        {"processes": 2, "sharding": "fsdp2"},
        machine(),
        True,
        "4-bit weights cannot be trained with ALIGN_SHARDING",
    ),
]


@pytest.mark.parametrize(("asked", "here", "quantised", "problem"), WRONG, ids=[case[-1] for case in WRONG])
def test_impossible_groups_are_refused(
    recipe: Recipe, asked: dict[str, Any], here: Machine, quantised: bool, problem: str
) -> None:
    quantization = Quantization() if quantised else None
    problems = list(launch_problems(Settings(**asked), here, recipe.model_copy(update={"quantization": quantization})))
    assert any(problem in found for found in problems), problems


@pytest.mark.parametrize("asked", [{}, {"sharding": "zero3"}, {"processes": 4}, {"processes": 2, "sharding": "fsdp2"}])
def test_possible_groups_are_not(recipe: Recipe, asked: dict[str, Any]) -> None:
    assert list(launch_problems(Settings(**asked), machine(), recipe)) == []


def test_preflight_names_every_stage_that_cannot_be_shared(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        preflight.preflight(recipe, Settings(home=tmp_path, device="cpu", processes=3))
    said = str(caught.value).splitlines()
    assert [line.partition(".")[0] for line in said if "cannot be shared" in line] == ["sft", "reward", "dpo", "grpo"]


@pytest.mark.parametrize(
    ("processes", "rows", "changes", "told"),
    [
        (2, 43, {"max_steps": None}, True),
        (2, 43, {"max_steps": 5}, False),
        (2, 43, {"max_steps": 6}, True),
        (2, 48, {"max_steps": None}, False),
        (1, 43, {"max_steps": None}, False),
    ],
)
def test_steps_that_several_processes_fill_up_are_told(
    recipe: Recipe, processes: int, rows: int, changes: dict[str, Any], told: bool
) -> None:
    sections: Any = {"sft": recipe.sft.model_copy(update=changes), "grpo": recipe.grpo}
    notes = list(uneven_steps(sections, {"sft": rows, "grpo": rows}, processes))
    assert [note.partition(":")[0] for note in notes] == ["sft"] * told


def trained_with(processes: int, sharding: str) -> Manifest:
    rows = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    ended = {"started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "outcome": "completed"}
    return manifest_of(attempts=({"processes": processes, "sharding": sharding} | rows | ended,))


@pytest.mark.parametrize(
    ("device", "recorded", "expected", "change"),
    [
        ("cuda", (4, "fsdp2"), (4, "fsdp2"), ""),
        ("cpu", (2, "ddp"), (2, "ddp"), ""),
        ("cuda", (8, "ddp"), (1, "ddp"), "8 processes (ddp) -> 1 process"),
        ("cpu", (2, "fsdp2"), (1, "ddp"), "2 processes (fsdp2) -> 1 process"),
    ],
)
def test_what_many_trained_is_reproduced_by_as_many(
    device: str, recorded: tuple[int, str], expected: tuple[int, str], change: str
) -> None:
    manifest = trained_with(*recorded)
    step = Step("sft-0", manifest.as_ancestor(), manifest, "sft")
    here = as_it_was(step, execution(device)).of_training()
    found = (here.launch.processes, here.settings.sharding)
    assert found == expected
    assert "".join(_changes(manifest, trained_with(*found))) == change


def test_a_cpus_threads_are_divided_among_processes() -> None:
    here = execution("cpu", threads=4, processes=2)
    assert (here.share.threads, here.share.places) == (4, 1)
    assert ChildOptions.of(here, (0,)).threads == 2
    assert execution("cpu", threads=1, processes=2).share.threads == 2


def test_processes_take_an_accelerator_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    here = execution(processes=2)
    assert here.share == Share(
        devices=("cuda:0", "cuda:1", "cuda:2", "cuda:3"), places=2, threads=0, threads_limit=8, stages_limit=2
    )
    queue = Queue(tmp_path / "queue")
    with queue.turn("r", "a", here.share, print) as first, queue.turn("r", "b", here.share, print) as second:
        assert (first, second) == ((0, 1), (2, 3))
        assert [ticket.computes_on for ticket in queue.tickets()] == [("cuda:0", "cuda:1"), ("cuda:2", "cuda:3")]
        assert ChildOptions.of(here, second).places == (2, 3)
        assert not is_admitted([here.share, here.share], here.share.model_copy(update={"stages_limit": 9, "places": 9}))


@pytest.mark.parametrize(
    ("device", "processes", "expected"), [("cuda", 1, 4), ("cuda", 2, 2), ("cuda", 4, 1), ("cpu", 1, 2), ("cpu", 8, 1)]
)
def test_stages_at_once_leave_room_for_processes(device: str, processes: int, expected: int) -> None:
    assert stages_at_once(Settings(processes=processes), machine(device)) == expected


@pytest.mark.parametrize("main", [True, False])
def test_only_the_process_that_writes_takes_the_weights_of_zero3(main: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, deepspeed = torch.nn.Linear(2, 2), ModuleType("deepspeed")
    deepspeed.zero = ModuleType("deepspeed.zero")  # type: ignore[attr-defined]
    deepspeed.zero.GatheredParameters = nullcontext
    model.weight.ds_id = 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)
    monkeypatch.setitem(sys.modules, "deepspeed.zero", deepspeed.zero)
    monkeypatch.setattr(ranks, "is_main", lambda: main)
    assert set(whole_state(model) or {}) == ({"weight", "bias"} if main else set())


def test_a_process_alone_decides_for_all_and_is_whole() -> None:
    assert any_of_all(True, False) == [True, False]
    assert whole_state(torch.nn.Linear(2, 2)) is None

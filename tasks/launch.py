"""Many processes for one training: what the settings ask for, whether that can be, and where the processes meet."""

import importlib.util
import socket
from collections.abc import Iterator, Mapping

from models.artifacts import Stage
from models.errors import InputError
from models.launch import LOOPBACK, Launch
from models.recipe import GRPO, Recipe, Training
from settings.machine import Machine
from settings.settings import Settings


def meeting(launch: Launch) -> Launch:
    """The group with a free port of this machine, where it has none yet and needs one."""
    if launch.processes == 1 or launch.port:
        return launch
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return launch.model_copy(update={"port": free.getsockname()[1]})


def check_batch(stage: str, batch_size: int, processes: int) -> None:
    """Refuse a batch that its processes cannot share equally.

    Raises:
        InputError: it is one; the message names what would divide.
    """
    if batch_size % processes == 0:
        return
    fewer = [str(size) for size in range(processes - 1, 0, -1) if batch_size % size == 0]
    below = batch_size // processes * processes
    sizes = [str(size) for size in (below, below + processes) if size]
    raise InputError(
        f"{stage}.batch_size: {batch_size} rows a step cannot be shared equally by {processes} processes; use "
        f"{' or '.join(fewer[:2])} (ALIGN_PROCESSES), or batch_size={' or '.join(sizes)}, which trains another "
        "model"
    )


def uneven_steps(sections: Mapping[Stage, Training], rows: Mapping[str, int], processes: int) -> Iterator[str]:
    """What to say of stages in which several processes do not see the very rows that one would.

    Args:
        sections: The recipe's sections of training stages.
        rows: Rows of each stage's dataset, as far as they are known.
        processes: Processes that train together.
    """
    for stage, section in sections.items():
        known, size = rows.get(stage, 0), section.batch_size
        ends_an_epoch = not section.max_steps or section.max_steps * size >= known
        if processes > 1 and known % size and ends_an_epoch and not isinstance(section, GRPO):
            yield (
                f"{stage}: {known} rows do not fill the last step of an epoch; {processes} processes fill it up with "
                "rows from the epoch's beginning, so the weights differ somewhat from those of one process"
            )


def launch_problems(settings: Settings, machine: Machine, recipe: Recipe) -> Iterator[str]:
    """What is wrong with the processes that the settings ask for, on this machine and for this recipe."""
    yield from group_problems(settings, machine)
    if recipe.quantization and settings.sharding != "ddp" and settings.processes > 1:
        yield f"quantization: 4-bit weights cannot be trained with ALIGN_SHARDING={settings.sharding}; use 'ddp'"


def group_problems(settings: Settings, machine: Machine) -> Iterator[str]:
    """What is wrong with the processes that the settings ask for, on this machine and whatever they train."""
    processes, on_cpu = settings.processes, machine.device == "cpu"
    if processes > 1 and not on_cpu and processes > machine.accelerators:
        there = f"{machine.accelerators} {machine.device}"
        yield f"ALIGN_PROCESSES: {processes} processes need as many accelerators; there is: {there}; lower it"
    parts = settings.vllm_tensor_parallel_size
    if settings.vllm == "colocate" and processes % parts:
        yield f"ALIGN_VLLM_TENSOR_PARALLEL_SIZE: {parts} does not divide the {processes} processes (ALIGN_PROCESSES)"
    if settings.sharding == "ddp" or processes == 1:
        return
    if machine.device != "cuda":
        yield f"ALIGN_SHARDING: '{settings.sharding}' needs CUDA devices, and this is a {machine.device}; use 'ddp'"
    if settings.sharding != "fsdp2" and not importlib.util.find_spec("deepspeed"):
        yield "ALIGN_SHARDING: DeepSpeed is not installed; run `pip install 'alignment-pipeline[deepspeed]'`"

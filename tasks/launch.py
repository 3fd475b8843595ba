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


def asked_launch(settings: Settings) -> Launch:
    """The group that the settings ask for; several machines meet at machine 0's address."""
    if settings.machines == 1 or not settings.main_address:
        return Launch(processes=settings.processes)
    address, _, port = settings.main_address.rpartition(":")
    return Launch(
        processes=settings.processes,
        machines=settings.machines,
        machine=settings.machine_rank,
        address=address.strip("[]"),  # as an IPv6 address is written before a port
        port=int(port),
    )


def meeting(launch: Launch) -> Launch:
    """The group with a free port of this machine, where it has none yet and needs one."""
    if launch.world == 1 or launch.port:
        return launch
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return launch.model_copy(update={"port": free.getsockname()[1]})


def check_batch(stage: str, batch_size: int, launch: Launch) -> None:
    """Refuse a batch that its processes cannot share equally.

    Raises:
        InputError: it is one; the message names what would divide.
    """
    world, machines = launch.world, launch.machines
    if batch_size % world == 0:
        return
    fewer = [str(size) for size in range(launch.processes - 1, 0, -1) if batch_size % (size * machines) == 0]
    below = batch_size // world * world
    sizes = " or ".join(str(size) for size in (below, below + world) if size)
    among = f"{world} processes" + f" of {machines} machines" * (machines > 1)
    processes = f"{' or '.join(fewer[:2])} (ALIGN_PROCESSES), or " if fewer else ""
    raise InputError(
        f"{stage}.batch_size: {batch_size} rows a step cannot be shared equally by {among}; use {processes}"
        f"batch_size={sizes}, which trains another model"
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


def machine_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with the machines that the settings ask for."""
    machines, rank = settings.machines, settings.machine_rank
    if rank >= machines:
        yield f"ALIGN_MACHINE_RANK: {rank} is none of {machines} machines, which count from 0 (ALIGN_MACHINES)"
    if machines > 1 and not settings.main_address:
        yield (
            f"ALIGN_MAIN_ADDRESS: {machines} machines have to know where they meet; set it to host:port of machine 0, "
            "the same on all of them"
        )


def launch_problems(settings: Settings, machine: Machine, recipe: Recipe) -> Iterator[str]:
    """What is wrong with the processes that the settings ask for, on this machine and for this recipe."""
    yield from machine_problems(settings)
    if 0 < settings.machine_rank < settings.machines:
        yield f"ALIGN_MACHINE_RANK: runs belong to machine 0; on machine {settings.machine_rank} start `align join`"
    yield from group_problems(settings, machine)
    if recipe.quantization and settings.sharding != "ddp" and settings.processes * settings.machines > 1:
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
    if settings.sharding == "ddp" or processes * settings.machines == 1:
        return
    if machine.device != "cuda":
        yield f"ALIGN_SHARDING: '{settings.sharding}' needs CUDA devices, and this is a {machine.device}; use 'ddp'"
    if settings.sharding != "fsdp2" and not importlib.util.find_spec("deepspeed"):
        yield "ALIGN_SHARDING: DeepSpeed is not installed; run `pip install 'alignment-pipeline[deepspeed]'`"

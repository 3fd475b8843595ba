"""Many processes for one training: what the settings ask for, whether that can be, and where the processes meet."""

import importlib.util
import socket
from collections.abc import Iterator

from models.errors import InputError
from models.launch import Launch
from models.recipe import Recipe
from settings.machine import Machine
from settings.settings import Settings


def asked_launch(settings: Settings) -> Launch:
    """The processes that the settings ask for; where those of one machine meet is chosen when they start."""
    host, _, port = (settings.main_address or "127.0.0.1:0").rpartition(":")
    return Launch(
        processes=settings.processes,
        machines=settings.machines,
        machine_rank=settings.machine_rank,
        main_address=host,
        main_port=int(port),
    )


def meeting(launch: Launch) -> Launch:
    """The group with a free port of this machine, where it has none yet."""
    if launch.world_size == 1 or launch.main_port:
        return launch
    with socket.socket() as free:
        free.bind((launch.main_address, 0))
        return launch.model_copy(update={"main_port": free.getsockname()[1]})


def check_batch(stage: str, batch_size: int, world_size: int) -> None:
    """Refuse a batch that its processes cannot share equally.

    Raises:
        InputError: it is one; the message names what would divide.
    """
    if batch_size % world_size == 0:
        return
    fewer = [str(size) for size in range(world_size - 1, 0, -1) if batch_size % size == 0]
    below = batch_size // world_size * world_size
    sizes = [str(size) for size in (below, below + world_size) if size]
    raise InputError(
        f"{stage}.batch_size: {batch_size} rows a step cannot be shared equally by {world_size} processes; use "
        f"{' or '.join(fewer[:2])} in all (ALIGN_PROCESSES), or batch_size={' or '.join(sizes)}, which trains another "
        "model"
    )


def launch_problems(settings: Settings, machine: Machine, recipe: Recipe) -> Iterator[str]:
    """What is wrong with the processes that the settings ask for, on this machine and for this recipe."""
    yield from _unknown_machines(settings)
    processes, on_cpu = settings.processes, machine.device == "cpu"
    if processes > 1 and not on_cpu and processes > machine.accelerators:
        there = f"{machine.accelerators} {machine.device}"
        yield f"ALIGN_PROCESSES: {processes} processes need as many accelerators; there is: {there}; lower it"
    if settings.sharding == "ddp" or asked_launch(settings).world_size == 1:
        return
    if machine.device != "cuda":
        yield f"ALIGN_SHARDING: '{settings.sharding}' needs CUDA devices, and this is a {machine.device}; use 'ddp'"
    if settings.sharding != "fsdp2" and not importlib.util.find_spec("deepspeed"):
        yield "ALIGN_SHARDING: DeepSpeed is not installed; run `pip install 'alignment-pipeline[deepspeed]'`"
    if recipe.quantization:
        yield f"quantization: 4-bit weights cannot be trained with ALIGN_SHARDING={settings.sharding}; use 'ddp'"


def _unknown_machines(settings: Settings) -> Iterator[str]:
    machines, rank = settings.machines, settings.machine_rank
    if rank >= machines:
        yield f"ALIGN_MACHINE_RANK: {rank} is not one of the {machines} machines, which are counted from 0"
    if machines > 1 and not settings.main_address:
        yield "ALIGN_MAIN_ADDRESS: more than one machine; name machine 0 and a free port of it, such as node0:29500"

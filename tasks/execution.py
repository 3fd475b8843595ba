"""How the stages of a run are carried out on this machine: settings and machine together, handed down by the flow."""

import os
from functools import cache
from importlib.metadata import version
from typing import Any

from models.artifacts import Precision, Stage
from models.contract import Contract
from models.launch import Launch
from models.queue import Share
from models.recipe import Recipe
from models.run import RunRecord
from models.stages import Generator
from settings.machine import Machine, inspect_machine, resolve_precision
from settings.settings import Settings
from tasks.launch import asked_launch

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "prefect")


@cache
def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result."""
    return {name: version(name) for name in _LIBRARIES}


class Execution(Contract):
    """What a task needs to know of the machine; none of it changes a weight, save the precision as resolved."""

    settings: Settings
    """Settings as read when the run started."""
    machine: Machine
    """Device, cores and memory."""
    precision: Precision
    """Number format of weights and activations on this machine."""
    threads: int
    """CPU threads of each stage."""
    launch: Launch = Launch()
    """The processes that carry out a stage together; only training knows more than one."""
    parallel_stages: int
    """Stages that may compute at the same time."""
    run: str = ""
    """Name of the run that the stages belong to."""
    force: tuple[Stage, ...] = ()
    """Stages to train in this run although they are there from an earlier one."""

    def of_run(self, run: RunRecord) -> "Execution":
        """The same machine at work for a run."""
        return self.model_copy(update={"run": run.id, "force": run.force})

    def shared_by(self, stages: int) -> "Execution":
        """The same machine with its threads divided among stages that run side by side.

        The share depends on the recipe alone, not on what is cached: the number of threads changes the order of sums.
        """
        side_by_side = min(stages, self.parallel_stages)
        return self.model_copy(update={"threads": max(1, self.threads // side_by_side)})

    def of_training(self) -> "Execution":
        """The same machine at work with as many processes as the settings ask for."""
        return self.model_copy(update={"launch": asked_launch(self.settings)})

    @property
    def generator(self) -> Generator:
        """What generates GRPO's completions on this machine."""
        return "vllm" if self.settings.vllm else "transformers"

    @property
    def share(self) -> Share:
        """What a stage takes of the machine: its threads of a CPU, or a place on an accelerator for each process."""
        on_cpu = self.machine.device == "cpu"
        return Share(
            devices=self._devices(),
            places=1 if on_cpu else self.launch.processes,
            threads=max(self.threads, self.launch.processes) if on_cpu else 0,
            threads_limit=self.settings.threads or self.machine.cores,
            stages_limit=self.parallel_stages,
        )

    def _devices(self) -> tuple[str, ...]:
        """The CPU or the accelerators that this process sees, by the system's names for them."""
        if self.machine.device != "cuda":
            return (self.machine.device,)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self.machine.accelerators)))
        return tuple(f"cuda:{device.strip()}" for device in visible.split(",") if device)[: self.machine.accelerators]

    def shared_inputs(self, recipe: Recipe) -> dict[str, Any]:
        """The fields that every training stage's input takes from the run as a whole."""
        return {
            "seed": recipe.seed,
            "precision": self.precision,
            "quantization": recipe.quantization,
            "system_prompt": recipe.system_prompt,
            "alarms": recipe.alarms,
            "versions": library_versions() if self.settings.strict_versions else {},
        }


def plan_execution(recipe: Recipe, settings: Settings, machine: Machine | None = None) -> Execution:
    """Look at the machine and resolve what the recipe leaves to it.

    Args:
        recipe: What would be trained.
        settings: How.
        machine: Another machine than this one, to plan for.

    Raises:
        InputError: the machine cannot do what recipe or settings ask for.
    """
    machine = machine or inspect_machine(settings)
    return Execution(
        settings=settings,
        machine=machine,
        precision=resolve_precision(machine, recipe.precision),
        threads=settings.threads or machine.cores,
        parallel_stages=stages_at_once(settings, machine),
    )


def stages_at_once(settings: Settings, machine: Machine) -> int:
    """Stages that may compute on the machine at the same time."""
    if settings.machines > 1:  # which meet at one port
        return 1
    on_cpu = machine.device == "cpu"
    places = machine.cores if on_cpu else machine.accelerators
    return settings.parallel_stages or max(1, min(2 if on_cpu else places, places // settings.processes))

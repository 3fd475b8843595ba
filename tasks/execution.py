"""How the stages of a run are carried out on this machine: settings and machine together, handed down by the flow."""

from functools import cache
from importlib.metadata import version
from typing import Any

from models.artifacts import Precision, Stage
from models.contract import Contract
from models.recipe import Recipe
from models.run import RunRecord
from settings.machine import Machine, inspect_machine, resolve_precision
from settings.settings import Settings

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


def plan_execution(recipe: Recipe, settings: Settings) -> Execution:
    """Look at the machine and resolve what the recipe leaves to it.

    Raises:
        InputError: the machine cannot do what recipe or settings ask for.
    """
    machine = inspect_machine(settings)
    on_cpu = machine.device == "cpu"
    return Execution(
        settings=settings,
        machine=machine,
        precision=resolve_precision(machine, recipe.precision),
        threads=settings.threads or machine.cores,
        parallel_stages=settings.parallel_stages or (min(2, machine.cores) if on_cpu else machine.accelerators),
    )

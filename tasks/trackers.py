"""Trackers: the services and folders that get a stage's training metrics beside the pipeline's own report.

Each reads its own environment variables. What the user has not set stays on this machine, in the artifact root.
"""

import importlib.util
import os
from collections.abc import Iterable
from difflib import get_close_matches

from tasks.core.plan import PROJECT
from tasks.execution import Execution

EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Trackers that are tried with the pipeline, by Transformers' names, and the extra that installs each."""
_OTHERS = {
    "comet_ml": "comet_ml", "swanlab": "swanlab", "clearml": "clearml", "neptune": "neptune", "dvclive": "dvclive",
    "codecarbon": "codecarbon",
}  # fmt: skip
"""Further trackers that Transformers knows, and the package that each needs."""


def check_trackers(names: Iterable[str], problems: list[str]) -> None:
    """Refuse trackers that are not known or whose packages are not installed."""
    known = [*EXTRAS, *_OTHERS]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            remedy = f"did you mean '{near[0]}'?" if near else f"known trackers: {', '.join(known)}"
            problems.append(f"ALIGN_REPORT_TO: unknown tracker '{name}'; {remedy}")
        elif not importlib.util.find_spec(EXTRAS.get(name) or _OTHERS[name]):
            package = f"'alignment-pipeline[{name}]'" if name in EXTRAS else _OTHERS[name].replace("_", "-")
            problems.append(f"ALIGN_REPORT_TO: '{name}' is not installed; run `pip install {package}`")


def tracker_environment(execution: Execution, stage_name: str) -> dict[str, str]:
    """The variables that the trackers of a stage read, completed where the user has not set them.

    Args:
        execution: Settings and run.
        stage_name: Name of the stage's checkpoint, which is also the name of the tracker's run.
    """
    folder = execution.settings.home / "trackers"
    defaults = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard")},
        "mlflow": {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "MLFLOW_EXPERIMENT_NAME": PROJECT},
        "wandb": {
            "WANDB_DIR": str(folder),
            "WANDB_PROJECT": PROJECT,
            "WANDB_RUN_GROUP": execution.run,
            # Without a key it would ask for one, where nobody can answer.
            "WANDB_MODE": "online" if os.environ.get("WANDB_API_KEY") else "offline",
        },
    }
    wanted = {
        name: value for tracker in execution.settings.report_to for name, value in defaults.get(tracker, {}).items()
    }
    wanted |= {name: os.environ[name] for name in wanted if os.environ.get(name)}
    if "TENSORBOARD_LOGGING_DIR" in wanted:  # it takes each folder for a run
        wanted["TENSORBOARD_LOGGING_DIR"] += f"/{stage_name}"
    return wanted

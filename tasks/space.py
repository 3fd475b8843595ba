"""The disk space that a run takes at most, by kind, and whether it is there."""

import os
import shutil
from pathlib import Path

from models.artifacts import Precision, Stage
from models.errors import InputError
from models.recipe import Recipe, Training
from settings.settings import Settings
from tasks.data.checking import training_sections

_BYTES_PER_WEIGHT: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
_LORA_SHARE = 0.002
"""Weights of adapters to weights of the model, for each rank; models with wide layers need less."""


def disk_needed(
    recipe: Recipe, parameters: int, precision: Precision, settings: Settings, missing: set[Stage]
) -> dict[str, int]:
    """The converted base model, each stage's merged model, and the largest of the stages' trainer checkpoints."""
    model = parameters * _BYTES_PER_WEIGHT[precision]
    sections = training_sections(recipe)
    trained = [_trained_share(section) for stage, section in sections.items() if stage in missing]
    # One more than is kept, since the oldest goes last; weights and two moments of AdamW in float32.
    checkpoint = int(parameters * max(trained, default=0.0) * 3 * 4)
    return {
        "base model": model * ("base" in missing),
        "merged models": model * len(missing - {"base"}),
        "trainer checkpoints": checkpoint * (settings.checkpoints_kept + 1),
    }


def _trained_share(section: Training) -> float:
    """Share of the weights that a stage trains, roughly."""
    return min(1.0, _LORA_SHARE * section.lora.r) if section.lora else 1.0


def check_disk(settings: Settings, disk: dict[str, int]) -> None:
    """Refuse a run that its disk cannot hold.

    Raises:
        InputError: it cannot; the message says what is needed and what is free.
    """
    needed = sum(disk.values())
    free = shutil.disk_usage(nearest_existing(settings.home)).free
    usable = free - settings.reserved_disk_bytes
    if needed > usable or usable < 0:
        raise InputError(
            f"disk of {settings.home}: the run writes about {_gigabytes(needed)}, but {_gigabytes(free)} are free, of "
            f"which {_gigabytes(settings.reserved_disk_bytes)} stay reserved; free space, set ALIGN_HOME to another "
            "disk, or lower ALIGN_RESERVED_DISK_BYTES"
        )


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest of the folders above it that is there."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))

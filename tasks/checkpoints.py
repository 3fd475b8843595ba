"""Trainer checkpoints of an unfinished stage: sealed once they are whole, and read back only where every byte agrees.

Transformers writes a checkpoint file by file and takes up the newest folder whatever it holds. Here a checkpoint counts
from the moment that its seal is written, which lists every file with size and digest; what has no seal, or does not
agree with it, is passed over for the one before.
"""

import shutil
from pathlib import Path

from pydantic import ValidationError

from models.artifacts import FileEntry
from models.contract import Contract
from tasks.files import differences, list_files, replace_file

SEAL = "seal.json"
TRAINER = "trainer"
"""Folder of the trainer's checkpoints in an unfinished stage's workspace."""
_FOLDERS = "checkpoint-[0-9]*"


class Seal(Contract):
    """What a whole trainer checkpoint holds."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps of the whole training."""
    seconds: float
    """Time spent on these steps, those before a resume included."""
    files: tuple[FileEntry, ...]
    """Every other file of the folder."""


def seal(folder: Path, step: int, total_steps: int, seconds: float) -> None:
    """Declare a trainer checkpoint whole."""
    whole = Seal(step=step, total_steps=total_steps, seconds=seconds, files=list_files(folder, SEAL))
    replace_file(folder / SEAL, whole.model_dump_json(indent=2))


def last_whole_checkpoint(trainer_folder: Path) -> tuple[Path, Seal] | None:
    """The newest trainer checkpoint whose files are all there, unchanged."""
    for folder in sorted(trainer_folder.glob(_FOLDERS), key=_step, reverse=True):
        found = read_seal(folder)
        if found and not differences(folder, found.files, SEAL):
            return folder, found
    return None


def discard_after(trainer_folder: Path, last: Path | None) -> list[str]:
    """Remove the checkpoints behind the last whole one, so that none of their files mixes with new ones.

    Returns:
        Their names.
    """
    start = _step(last) if last else -1
    broken = [folder for folder in trainer_folder.glob(_FOLDERS) if _step(folder) > start]
    for folder in broken:
        shutil.rmtree(folder)
    return sorted(folder.name for folder in broken)


def read_seal(folder: Path) -> Seal | None:
    """A trainer checkpoint's seal, where it has one that can be read."""
    try:
        return Seal.model_validate_json((folder / SEAL).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])

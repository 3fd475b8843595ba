"""The local files that a source names, or the hub dataset.

A path is a file, a folder, a pattern, or several of these separated by commas; files are read in the order of their
names, whatever the order in which they are given. A folder holds files of one format. What is no local path and has the
form of a hub id is loaded with `datasets`.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.sources import RowSource
from tasks.data.readers import FORMATS, file_format, shown_names

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_on_hub(source: RowSource, files: list[Path]) -> bool:
    """Whether the source, which has these local files, is a hub dataset.

    Raises:
        InputError: it is neither here nor has the form of a hub id, or keys of hub datasets are given for local files.
    """
    path = Path(source.path)
    if files:
        _refuse_hub_keys(source)
        return False
    if HUB_ID.fullmatch(source.path) and not file_format(path):
        return True
    raise InputError(f"{path}: no such file or folder; {_nearest_file(path)}")


def local_files(source: RowSource) -> list[Path]:
    """The data files that a path names, in the order of their names, or nothing.

    A file that is named twice is taken once. Of a folder, a README and the like are ignored.

    Raises:
        InputError: files of no known format, or what cannot be read.
    """
    whole = Path(source.path)
    pieces = [piece.strip() for piece in source.path.split(",") if piece.strip()]
    if len(pieces) < 2 or _exists(whole):
        return _in_order(_files(source.path))
    found = {piece: _files(piece) for piece in pieces}
    for piece, files in found.items():
        if not files:
            raise InputError(f"{piece}: no such file or folder, one of several; {_nearest_file(Path(piece))}")
    return _in_order([file for files in found.values() for file in files])


def _in_order(files: list[Path]) -> list[Path]:
    """The files in the order of their names; of several paths to one file, the first."""
    found: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: (file.name, str(file))):
        found.setdefault(file.resolve(), file)
    return list(found.values())


def _files(text: str) -> list[Path]:
    path = Path(text)
    if not _exists(path):
        return _matching_files(text) if has_magic(text) else []
    if path.is_dir():
        return _folder_files(path)
    if not file_format(path):
        raise InputError(f"{path}: the ending '{path.suffix}' belongs to no format known here; give {FORMATS}")
    return [path]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); correct the path or its permissions") from error


def _matching_files(pattern: str) -> list[Path]:
    files = [Path(found) for found in glob(pattern, recursive=True)]  # noqa: PTH207 - patterns are absolute, too
    files = [file for file in files if file.is_file() and file_format(file)]
    if not files:
        raise InputError(f"{pattern}: no data file has such a name; correct the pattern, or give {FORMATS}")
    return files


def _folder_files(folder: Path) -> list[Path]:
    try:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file_format(file))
        deeper = next(_deeper_files(folder), None)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error}); correct the path or its permissions") from error
    if deeper:
        these = f"; give '{folder}/**/*{file_format(deeper)}*' to take subfolders, too"
        these += f", or '{folder}/*{file_format(files[0])}*' to leave them out" if files else ""
        raise InputError(f"{folder}: a folder is read without its subfolders, and one holds '{deeper}'{these}")
    formats = sorted({str(file_format(file)) for file in files})
    if not files:
        raise InputError(f"{folder}: the folder holds no data file; give {FORMATS}")
    if len(formats) > 1:
        names = shown_names([file.name for file in files])
        remedy = "a folder is read as one format: name one file, or move the others"
        raise InputError(f"{folder}: the folder mixes {' and '.join(formats)} ({names}); {remedy}")
    return files


def _deeper_files(folder: Path) -> Iterator[Path]:
    """Data files in subfolders, hidden ones excepted, by their path in the folder."""
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and not inner.name.startswith("."):
            paths = (path.relative_to(folder) for path in inner.rglob("*") if file_format(path) and path.is_file())
            yield from (path for path in paths if not any(part.startswith(".") for part in path.parts))


def _refuse_hub_keys(source: RowSource) -> None:
    split = source.split if source.split != "train" else None
    for key, value in {"name": source.name, "split": split, "revision": source.revision}.items():
        if value is not None:
            remedy = f"remove {key}, or name the file that holds these rows"
            rule = "applies to hub datasets only, and this is a local path"
            raise InputError(f"{source.path}: {key} '{value}' {rule}; {remedy}")


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder '{path.parent}' either; correct the path"
    near = get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1)
    return f"did you mean '{near[0]}'?" if near else "correct the path"


def load_from_hub(source: RowSource) -> Any:
    """A hub dataset as `datasets` holds it.

    Raises:
        InputError: it cannot be loaded, or has no rows.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # whatever the library raises is about what was asked for
        raise InputError(_hub_failure(source, error)) from error
    if not len(rows):
        raise InputError(f"{source.path}: split '{source.split}' holds no rows; name another split")
    return rows


def _hub_failure(source: RowSource, error: Exception) -> str:
    asked = {"name": source.name, "split": source.split, "revision": source.revision}
    shown = ", ".join(f"{key} '{value}'" for key, value in asked.items() if value is not None)
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"{source.path}: there is no local file or folder of this name, and as a hub dataset ({shown}) it could not be "
        f"loaded: {cause}; correct the path or these keys, check the connection and your access, or name a local file"
    )

"""Rows of a hub dataset as a local file: fetched in a child process, since the flow's process imports no `datasets`."""

from pathlib import Path

from tasks.data.located import Located
from tasks.data.preparing import FETCHED


def fetched(part: Located, folder: Path) -> Path:
    """Fetch a hub dataset at the commit that it was found at.

    Args:
        part: The dataset.
        folder: A new folder, which gets the file.

    Raises:
        InputError: it cannot be loaded, or has no rows.
        Killed, StageError: the process ended.
    """
    from tasks.child import run_in_child
    from tasks.child_main import ChildOptions
    from tasks.core.entry import fetch_rows

    folder.mkdir()
    run_in_child(fetch_rows, (part.pinned, folder / FETCHED), ChildOptions(threads=1), _ignore, _ignore)
    return folder / FETCHED


def _ignore(said: object) -> None:
    """Nobody listens."""

"""What a source names, as it lies on disk or on the hub right now, and the key under which its rows are remembered."""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.fingerprint import fingerprint
from models.sources import DatasetSource, RowSource
from tasks.data.conversion import Wanted
from tasks.data.sources import is_on_hub, local_files

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CODE = (
    "tasks/data",
    "tasks/core/verifiers",
    "tasks/core/columns.py",
    "models/fingerprint.py",
    "models/sources.py",
    "models/data_rules.py",
)
"""What decides how a source becomes rows."""


@dataclass(frozen=True)
class Located:
    """One source, or one part of a mixture."""

    source: RowSource
    """The source."""
    files: tuple[Path, ...]
    """Its local files in the order in which they are read; none of a hub dataset."""
    commit: str | None = None
    """Commit of a hub dataset; none where the hub cannot be asked."""

    @property
    def pinned(self) -> RowSource:
        """The source at that commit."""
        return self.source.model_copy(update={"revision": self.commit or self.source.revision})


def locate(source: DatasetSource) -> tuple[Located, ...]:
    """Find the files, or the hub's commits, of the source or of each part of a mixture.

    Raises:
        InputError: something is not there, or cannot be read.
    """
    return tuple(_locate(each) for each in source.sources)


def _locate(source: RowSource) -> Located:
    files = local_files(source)
    if not is_on_hub(source, files):
        return Located(source, tuple(files))
    if _COMMIT.fullmatch(source.revision or ""):
        return Located(source, (), source.revision)
    from tasks.licensing import hub_dataset

    return Located(source, (), hub_dataset(source).get("commit"))


def key_of(source: DatasetSource, located: tuple[Located, ...], wanted: Wanted) -> str | None:
    """A fingerprint of everything that decides the rows, found without reading them; none where that cannot be told.

    A file counts as unchanged while path, inode, size and times of change are what they were.

    Raises:
        InputError: a file is gone.
    """
    if any(not part.files and not part.commit for part in located):
        return None
    content = [part.commit or [_status(file) for file in part.files] for part in located]
    return fingerprint(what_decides(source, wanted) | {"content": content, "code": _code_digest()})


def what_decides(source: DatasetSource, wanted: Wanted) -> dict[str, Any]:
    """What a recipe says of the rows of one of its datasets, as JSON data; licences change no row."""
    return {
        "source": source.model_dump(mode="json", exclude={"license": True, "mixture": {"__all__": {"license"}}}),
        "role": wanted.role,
        "system_prompt": wanted.system_prompt,
        "rules": [rule.model_dump(mode="json") for rule in wanted.rules],
        "tokenizer": [str(wanted.tokenizer or ""), wanted.chat_template, wanted.max_tokens],
        "data_rules": wanted.data_rules.model_dump(mode="json"),
        "special_tokens": wanted.special_tokens,
        "heldout": [each.rows_sha256 for each in wanted.heldout],
    }


def _status(file: Path) -> list[Any]:
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error}); correct the path or its permissions") from error
    return [str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


@cache
def _code_digest() -> str:
    root, code = Path(__file__).parents[2], hashlib.sha256()
    for name in _CODE:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            code.update(path.read_bytes())
    return code.hexdigest()

"""Sources prepared as a run prepares them, in this process: the rows that come of them, and snapshots of these."""

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.artifacts import Dataset
from models.data_rules import DataRules
from models.fingerprint import canonical_json
from models.preparation import Prepared
from models.rewards import Reward, Verifier
from models.sources import DatasetSource
from tasks.core.hub_rows import write_hub_rows
from tasks.data.conversion import Wanted
from tasks.data.formats.reading import Role
from tasks.data.lines import Row
from tasks.data.located import locate
from tasks.data.preparing import FETCHED, Manner, prepare
from tasks.data.snapshot import read_rows

STRICT = DataRules(max_dropped=0, unicode="drop")
"""Only duplicates and ties may be left out."""


@dataclass(frozen=True)
class Sourced:
    """What a source came to."""

    rows: list[Row]
    """In normal form, as a snapshot holds them."""
    found: Prepared
    """What is said of them."""


def digest(rows: Iterable[Row]) -> str:
    """SHA-256 over the rows' canonical JSON, one a line: what a snapshot of them is known by."""
    return hashlib.sha256("".join(canonical_json(row) + "\n" for row in rows).encode()).hexdigest()


def sourced(
    source: DatasetSource, role: Role, system_prompt: str | None = None, rules: Sequence[Reward | Verifier] = ()
) -> Sourced:
    """The rows of a source of which none may be left out."""
    with tempfile.TemporaryDirectory() as folder:
        found = _prepared(source, Path(folder), Wanted(role, system_prompt, tuple(rules), data_rules=STRICT))
        return Sourced(list(read_rows(Path(folder))), found)


def frozen(folder: Path, source: DatasetSource, role: Role, rules: Sequence[Reward | Verifier] = ()) -> Dataset:
    """A snapshot of a source, in a new folder of that one."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=folder))
    found = _prepared(source, place, Wanted(role, rules=tuple(rules), data_rules=STRICT))
    return Dataset(path=place, fingerprint=found.rows_sha256, rows=found.rows, source=source.label)


def _prepared(source: DatasetSource, folder: Path, wanted: Wanted) -> Prepared:
    (located,) = locate(source)
    files = list(located.files)
    if not files:
        files = [folder / FETCHED]
        write_hub_rows(located.pinned, files[0])
    return prepare(source, files, wanted, folder, Manner(workers=0))

"""The file behind the index of manifests: brought up to date, rebuilt where damaged, done without where locked."""

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import get_args

from models.artifacts import Ancestor, Kind, Manifest
from models.errors import DamagedArtifact
from tasks.store import ArtifactStore, read_manifest

INDEX = Path(".cache", "manifests.sqlite3")
"""Where the index lies in an artifact root."""

_LAYOUT = 1
"""Raise it with every change to the tables or to what is put into them."""
_SECONDS_TO_WAIT = 2.0
"""For another process that writes the index; after that, this one does without the file."""
_TABLES = (
    "CREATE TABLE seen (place TEXT PRIMARY KEY, modified_ns INTEGER, size INTEGER)",
    "CREATE TABLE folders (name TEXT PRIMARY KEY, kind TEXT, stage TEXT, fingerprint TEXT, created TEXT, run TEXT, "
    "parents TEXT, origin TEXT, metrics TEXT, place TEXT, modified_ns INTEGER)",
    "CREATE TABLE edges (child TEXT, role TEXT, parent TEXT, PRIMARY KEY (child, role))",
    "CREATE INDEX edges_by_parent ON edges (parent)",
    "CREATE TABLE tells (teller TEXT, told TEXT, PRIMARY KEY (teller, told)) WITHOUT ROWID",
    "CREATE INDEX tells_by_told ON tells (told)",
)
State = dict[str, tuple[int, int]]
"""Time of change in nanoseconds and size of each manifest, by its folder's place in the root."""


def open_index(home: Path) -> sqlite3.Connection:
    """The database, up to date: on the disk if that can be, else in memory."""
    state = _scan(home)
    if not state:
        return rebuilt_in_memory(home)
    for _ in range(2):
        try:
            return _updated_on_disk(home, state)
        except (sqlite3.OperationalError, OSError):  # locked, not to be written, no space
            return _copied_to_memory(home, state)
        except sqlite3.DatabaseError:
            with suppress(OSError):
                (home / INDEX).unlink(missing_ok=True)
    return rebuilt_in_memory(home)


def _updated_on_disk(home: Path, state: State) -> sqlite3.Connection:
    (home / INDEX).parent.mkdir(exist_ok=True)
    database = sqlite3.connect(home / INDEX, timeout=_SECONDS_TO_WAIT, isolation_level=None)
    try:
        _update(database, home, state)
    except BaseException:
        database.close()
        raise
    return database


def _copied_to_memory(home: Path, state: State) -> sqlite3.Connection:
    """What can be read of the file, brought up to date in memory."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    try:
        with closing(sqlite3.connect(f"{(home / INDEX).as_uri()}?mode=ro", uri=True, timeout=0)) as file:
            file.backup(database, progress=_give_up_where_locked)
        _update(database, home, state)
    except sqlite3.DatabaseError:
        database.close()
        return rebuilt_in_memory(home)
    return database


def _give_up_where_locked(status: int, remaining: int, total: int) -> None:
    """Left alone, `backup` would ask again for ever."""
    if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise sqlite3.OperationalError("another process writes the index")


def rebuilt_in_memory(home: Path) -> sqlite3.Connection:
    """The database, made anew from the folders and kept off the disk."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    _update(database, home, _scan(home))
    return database


def _scan(home: Path) -> State:
    """Every manifest of a finished folder."""
    store = ArtifactStore(home)
    places = {kind: store.folder(kind, "any").parent.name for kind in get_args(Kind)}
    return {
        f"{place}/{name}": (status.st_mtime_ns, status.st_size)
        for kind, place in places.items()
        for name, status in store.finished(kind)
    }


def _update(database: sqlite3.Connection, home: Path, state: State) -> None:
    """Read what is new or changed and forget what is gone, in one transaction; nothing is written where all is known.

    Raises:
        sqlite3.DatabaseError: the database is damaged, locked, or cannot be written.
    """
    if _is_current(database) and _known(database) == state:
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        if not _is_current(database):
            _create_tables(database)
        known = _known(database)
        _remove(database, known.keys() - state.keys())
        for place, seen in state.items():
            if known.get(place) != seen:
                _read(database, home, place, seen)
        _sweep(database)
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _is_current(database: sqlite3.Connection) -> bool:
    """Whether the database is of this layout and has every table and index just as it is made here."""
    (layout,) = database.execute("PRAGMA user_version").fetchone()
    made = database.execute("SELECT sql FROM sqlite_master WHERE type IN ('table', 'index') AND sql IS NOT NULL")
    return bool(layout == _LAYOUT and {sql for (sql,) in made} == set(_TABLES))


def _create_tables(database: sqlite3.Connection) -> None:
    tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in tables:
        database.execute(f'DROP TABLE "{table}"')
    for statement in _TABLES:
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {_LAYOUT}")


def _known(database: sqlite3.Connection) -> State:
    rows = database.execute("SELECT place, modified_ns, size FROM seen")
    return {place: (modified_ns, size) for place, modified_ns, size in rows}


def _read(database: sqlite3.Connection, home: Path, place: str, seen: tuple[int, int]) -> None:
    """Take one manifest in; of an unreadable one it is only noted that it was seen."""
    _remove(database, [place])
    database.execute("INSERT INTO seen VALUES (?, ?, ?)", (place, *seen))
    with suppress(DamagedArtifact):
        manifest = read_manifest(home / place)
        name = place.rpartition("/")[2]
        _insert(database, name, manifest, place=place, modified_ns=seen[0])
        for ancestor, told in manifest.ancestors.items():
            _insert(database, ancestor, told)
        tells = ((name, ancestor) for ancestor in manifest.ancestors)
        database.executemany("INSERT OR IGNORE INTO tells VALUES (?, ?)", tells)


def _insert(
    database: sqlite3.Connection,
    name: str,
    said: Manifest | Ancestor,
    place: str | None = None,
    modified_ns: int | None = None,
) -> None:
    """Note a folder; one that is told of gives way to one that is there."""
    run, metrics = (said.run, said.metrics) if isinstance(said, Manifest) else ("", {})
    stage = str(said.identity.get("stage", ""))
    texts = [json.dumps(value) for value in (said.parents, said.origin, metrics)]
    values = (name, said.kind, stage, said.fingerprint, said.created, run, *texts, place, modified_ns)
    if place:
        database.execute("DELETE FROM folders WHERE name = ?", (name,))
        database.execute("DELETE FROM edges WHERE child = ?", (name,))
    done = database.execute("INSERT OR IGNORE INTO folders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    if done.rowcount > 0:
        edges = ((name, role, parent) for role, parent in said.parents.items())
        database.executemany("INSERT OR IGNORE INTO edges VALUES (?, ?, ?)", edges)


def _remove(database: sqlite3.Connection, places: Iterable[str]) -> None:
    """Forget folders that are gone or changed; what others tell of them stays."""
    for place in places:
        name = place.rpartition("/")[2]
        database.execute("DELETE FROM seen WHERE place = ?", (place,))
        database.execute("DELETE FROM tells WHERE teller = ?", (name,))
        database.execute(
            "UPDATE folders SET place = NULL, modified_ns = NULL, run = '', metrics = '{}' WHERE place = ?", (place,)
        )


def _sweep(database: sqlite3.Connection) -> None:
    """Forget what is gone and what nobody tells of any more."""
    database.execute("DELETE FROM folders WHERE place IS NULL AND name NOT IN (SELECT told FROM tells)")
    database.execute("DELETE FROM edges WHERE child NOT IN (SELECT name FROM folders)")

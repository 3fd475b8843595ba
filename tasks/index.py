"""An index of all manifests of an artifact root, for what would otherwise read thousands of files.

The folders are the truth and this is a cache: each time it is opened, times and sizes of the manifests are compared
with those that it knows, and only what is new or changed is read. An index that is missing, damaged or of another
layout is built anew; one that is locked or cannot be written is read into memory and brought up to date there.

It also knows folders that are gone, as the manifests of those that were made from them tell of them.
"""

import json
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from models.artifacts import Kind
from models.lineage import LineageNode
from tasks.index_file import open_index, rebuilt_in_memory
from tasks.pruned import is_pruned

_BY_PREFIX = """
SELECT * FROM folders WHERE substr(name, 1, length(:it)) = :it OR substr(fingerprint, 1, length(:it)) = :it
    OR (length(:it) > length(kind) AND substr(kind || '-' || fingerprint, 1, length(:it)) = :it)
    ORDER BY place IS NULL, modified_ns DESC, name
"""
_ANCESTORS = """
WITH RECURSIVE up(name) AS (
    SELECT parent FROM edges WHERE child = ? UNION SELECT parent FROM edges JOIN up ON child = up.name)
SELECT up.name, folders.* FROM up LEFT JOIN folders ON folders.name = up.name
"""
_DESCENDANTS = """
WITH RECURSIVE down(name) AS (
    SELECT child FROM edges WHERE parent = ? UNION SELECT child FROM edges JOIN down ON parent = down.name)
SELECT down.name, folders.* FROM down LEFT JOIN folders ON folders.name = down.name
"""


class Index:
    """The manifests below an artifact root as they were when this was opened; close it, or use it in a `with`."""

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._database = open_index(self._home)

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def entries(self, *kinds: Kind) -> list[LineageNode]:
        """Every folder of these kinds, or of all, newest first."""
        query = (
            "SELECT * FROM folders WHERE place IS NOT NULL AND kind IN (SELECT value FROM json_each(?)) "
            "ORDER BY modified_ns DESC, name"
        )
        return [self._node(*row) for row in self._rows(query, json.dumps(kinds or get_args(Kind)))]

    def get(self, name: str) -> LineageNode | None:
        """The folder of that name, also one that is gone but told of; none: nothing is known of it."""
        rows = self._rows("SELECT * FROM folders WHERE name = ?", name)
        return self._node(*rows[0]) if rows else None

    def matching(self, prefix: str) -> list[LineageNode]:
        """Folders whose name or fingerprint begins like that, also as `base-0123…`; newest first, then what is gone."""
        return [self._node(*row) for row in self._rows(_BY_PREFIX, it=prefix)]

    def children(self, name: str) -> list[LineageNode]:
        """What was made from a folder directly, newest first; their `parents` say in which role it was used."""
        query = (
            "SELECT * FROM folders WHERE name IN (SELECT child FROM edges WHERE parent = ?) "
            "ORDER BY modified_ns DESC, name"
        )
        return [self._node(*row) for row in self._rows(query, name)]

    def ancestors(self, name: str) -> list[LineageNode]:
        """Everything that a folder was made from, directly or not, nearest first."""
        return self._walk(_ANCESTORS, name)

    def descendants(self, name: str) -> list[LineageNode]:
        """Everything that was made from a folder, directly or not, nearest first."""
        return self._walk(_DESCENDANTS, name)

    def _walk(self, query: str, name: str) -> list[LineageNode]:
        found = self._rows(query, name)
        others = [(met, row) for met, *row in found if met != name]
        return [self._node(*row) if row[0] else LineageNode(name=met, state="missing") for met, row in others]

    def _rows(self, query: str, *values: str, **named: str) -> list[Any]:
        try:
            return self._database.execute(query, named or values).fetchall()
        except sqlite3.DatabaseError:  # damage in a part of the file that was not read before
            self._database.close()
            self._database = rebuilt_in_memory(self._home)
            return self._database.execute(query, named or values).fetchall()

    def _node(self, name: str, kind: Kind, *rest: Any) -> LineageNode:
        stage, fingerprint, created, run, *texts, place, _ = rest
        parents, origin, metrics = (json.loads(text) if text != "{}" else {} for text in texts)
        pruned = bool(place) and is_pruned(f"{self._home}/{place}")  # as text: paths of ten thousand take their time
        # Of ten thousand, each was checked when its manifest was read.
        return LineageNode.model_construct(
            name=name,
            state="pruned" if pruned else "there" if place else "missing",
            kind=kind,
            stage=stage,
            fingerprint=fingerprint,
            created=created,
            run=run,
            parents=parents,
            origin=origin,
            metrics=metrics,
        )

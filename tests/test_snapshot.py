"""Snapshots give back the very rows that they were made of, and the same rows give the same bytes."""

from pathlib import Path
from typing import Any

import pytest

from tasks.data import snapshot
from tasks.data.identity import canonical_line, prompt_id
from tasks.data.lines import Row
from tasks.data.snapshot import ROWS, ROWS_BEFORE, Writer, read_prompt_ids, read_rows, table_bytes, write_rows
from tests.prepared import digest

USER = {"role": "user", "content": "ünïcode 🙂\r\n\u2028"}
REPLY = [{"role": "assistant", "content": "yes"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1.5, "y": [None]}}]}
ROWS_OF: dict[str, list[Row]] = {
    "sft": [
        {"prompt": [USER], "completion": REPLY, "kind": "all"},
        {
            "prompt": [{"role": "system", "content": "s"}, USER],
            "completion": REPLY,
            "kind": "k",
            "tools": [{"a": 1e16}],
        },
        {"prompt": [USER, CALL, {"role": "tool", "content": "4", "name": "f"}], "completion": [CALL], "kind": "all"},
    ],
    "preference": [
        {"prompt": [USER], "chosen": REPLY, "rejected": [{"role": "assistant", "content": "no"}], "kind": "all"},
    ],
    "prompts": [
        {"prompt": [USER], "answer": [], "kind": "all"},
        {
            "prompt": [USER],
            "answer": ["4", "four"],
            "kind": "all",
            "extra": {"n": 10**30, "odd": [{"a": []}], "f": 0.1},
        },
    ],
}


@pytest.mark.parametrize("role", ROWS_OF)
def test_rows_come_back_as_they_were(tmp_path: Path, role: str) -> None:
    write_rows(tmp_path, ROWS_OF[role], role)
    found = list(read_rows(tmp_path))
    assert found == ROWS_OF[role]
    assert digest(found) == digest(ROWS_OF[role])
    assert [[*row] for row in found] == [sorted(row) for row in found]
    assert list(read_prompt_ids(tmp_path)) == [*map(prompt_id, ROWS_OF[role])]


def test_snapshots_of_earlier_versions_are_read(tmp_path: Path) -> None:
    rows = ROWS_OF["sft"]
    (tmp_path / ROWS_BEFORE).write_bytes(b"".join(map(canonical_line, rows)))
    assert list(read_rows(tmp_path)) == rows
    assert list(read_prompt_ids(tmp_path)) == [*map(prompt_id, rows)]


def rows_of_lengths(count: int) -> list[Row]:
    return [{"prompt": [USER], "answer": ["x" * (number % 50)], "kind": str(number)} for number in range(count)]


@pytest.mark.parametrize("limits", [{}, {"_GROUP_ROWS": 30}, {"_GROUP_BYTES": 5000}])
def test_bytes_do_not_depend_on_how_rows_come(
    tmp_path: Path, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(snapshot, name, value)
    rows = rows_of_lengths(100)
    files = [written(tmp_path / str(size), rows, size) for size in (1, 7, 30, 100)]
    assert len(set(files)) == 1


def written(folder: Path, rows: list[Row], at_once: int) -> bytes:
    folder.mkdir()
    writer = Writer(folder, "prompts")
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        lines: list[Any] = [len(canonical_line(row)) for row in part]
        writer.add(table_bytes(part, [*map(prompt_id, part)], "prompts"), lines)
    writer.close()
    assert list(read_rows(folder)) == rows
    return (folder / ROWS).read_bytes()


def test_row_groups_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    monkeypatch.setattr(snapshot, "_GROUP_ROWS", 30)
    write_rows(tmp_path, rows_of_lengths(100), "prompts")
    metadata = pyarrow.parquet.read_metadata(tmp_path / ROWS)
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [30, 30, 30, 10]


def test_left_out_rows_are_not_written(tmp_path: Path) -> None:
    rows = rows_of_lengths(5)
    writer = Writer(tmp_path, "prompts")
    keep = [True, False, True, True, False]
    writer.add(table_bytes(rows, [*map(prompt_id, rows)], "prompts"), [1, 1, 1], keep)
    writer.close()
    assert [row["kind"] for row in read_rows(tmp_path)] == ["0", "2", "3"]

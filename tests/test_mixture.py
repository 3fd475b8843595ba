"""Mixtures keep their shares and hold no row twice; a prompt's side of a held-out split never changes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.errors import InputError
from models.preparation import Prepared
from models.sources import DatasetSource
from tasks.data import mixing
from tasks.data.conversion import Wanted
from tasks.data.lines import Row
from tasks.data.located import locate
from tasks.data.mixing import mix
from tasks.data.preparing import Manner, prepare
from tasks.data.snapshot import read_rows
from tests.prepared import digest
from tests.tiny import write_rows


def numbered(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {number}", "completion": "x", "kind": name} for number in range(count)]


def mixed(folder: Path, source: DatasetSource, wanted: Wanted | None = None) -> tuple[Prepared, list[Row]]:
    folder.mkdir()
    files = [part.files for part in locate(source)]
    found = mix(source, files, wanted or Wanted("sft"), folder, Manner())
    rows = list(read_rows(folder))
    assert digest(rows) == found.rows_sha256
    return found, rows


def two(
    folder: Path, weights: tuple[float, float], counts: tuple[int, int] = (1000, 300), **keys: Any
) -> DatasetSource:
    for name, count in zip("ab", counts, strict=True):
        write_rows(folder / f"{name}.jsonl", numbered(name, count))
    parts = [{"path": str(folder / f"{name}.jsonl"), "weight": w} for name, w in zip("ab", weights, strict=True)]
    return DatasetSource.model_validate({"mixture": parts, **keys})


@pytest.mark.parametrize(
    ("weights", "max_rows", "expected"),
    [
        ((1, 1), None, {"a": 300, "b": 300}),
        ((1, 3), None, {"a": 100, "b": 300}),
        ((9, 1), None, {"a": 1000, "b": 111}),
        ((0.2, 0.8), None, {"a": 75, "b": 300}),
        ((1, 1), 50, {"a": 25, "b": 25}),
        ((1, 1), 5000, {"a": 300, "b": 300}),
    ],
)
def test_shares(tmp_path: Path, weights: tuple[float, float], max_rows: int | None, expected: dict[str, int]) -> None:
    found, rows = mixed(tmp_path / "out", two(tmp_path, weights, max_rows=max_rows))
    assert Counter(row["kind"] for row in rows) == expected
    assert {part.source[0]: part.rows for part in found.parts} == expected
    assert [part.available for part in found.parts] == [1000, 300]
    assert len({json.dumps(row) for row in rows}) == len(rows) == found.rows


def test_parts_are_well_mixed(tmp_path: Path) -> None:
    _, rows = mixed(tmp_path / "out", two(tmp_path, (1, 1)))
    halves = [Counter(row["kind"] for row in rows[start : start + 300])["a"] for start in (0, 300)]
    assert all(110 < count < 190 for count in halves)


def test_a_row_of_two_parts_is_taken_once(tmp_path: Path) -> None:
    source = two(tmp_path, (1, 1), (20, 10))
    write_rows(tmp_path / "b.jsonl", numbered("a", 5) + numbered("b", 10))
    found, rows = mixed(tmp_path / "out", source)
    assert [part.available for part in found.parts] == [20, 10]
    assert (found.read, found.duplicates, found.rows) == (35, 5, 20)
    assert len({row["prompt"][0]["content"] for row in rows}) == 20


@pytest.mark.parametrize("bucket_bytes", [1000, 1 << 20])
def test_neither_order_of_rows_nor_memory_has_a_say(
    tmp_path: Path, bucket_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = mixed(tmp_path / "first", two(tmp_path, (1, 3)))
    monkeypatch.setattr(mixing, "_BUCKET_BYTES", bucket_bytes)
    write_rows(tmp_path / "a.jsonl", numbered("a", 1000)[::-1])
    again, _ = mixed(tmp_path / "again", two_again(tmp_path))
    assert again.rows_sha256 == first.rows_sha256


def two_again(folder: Path) -> DatasetSource:
    parts = [{"path": str(folder / "b.jsonl"), "weight": 3}, {"path": str(folder / "a.jsonl"), "weight": 1}]
    return DatasetSource.model_validate({"mixture": parts})


def test_another_row_exchanges_few(tmp_path: Path) -> None:
    _, before = mixed(tmp_path / "before", two(tmp_path, (1, 3)))
    _, after = mixed(tmp_path / "after", two(tmp_path, (1, 3), (1003, 300)))
    assert len({json.dumps(row) for row in before} - {json.dumps(row) for row in after}) <= 3


@pytest.mark.parametrize(
    ("weights", "counts", "fragments"),
    [
        ((1000, 1), (100, 10), ["b.jsonl", "weight 1 of 1001", "is no whole row", "more weight"]),
        ((1, 1), (10, 0), ["b.jsonl", "holds no rows"]),
    ],
)
def test_a_part_without_rows_is_refused(
    tmp_path: Path, weights: tuple[float, float], counts: tuple[int, int], fragments: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        mixed(tmp_path / "out", two(tmp_path, weights, counts))
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_a_part_that_others_have_whole_is_named(tmp_path: Path) -> None:
    source = two(tmp_path, (1, 1), (10, 0))
    write_rows(tmp_path / "b.jsonl", numbered("a", 5))
    with pytest.raises(InputError, match=r"b\.jsonl: all its rows are in earlier parts, .*leave it out"):
        mixed(tmp_path / "out", source)


def test_problems_of_all_parts_are_told(tmp_path: Path) -> None:
    source = two(tmp_path, (1, 1))
    for name in "ab":
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": name}])
    with pytest.raises(InputError) as caught:
        mixed(tmp_path / "out", source)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path}/a.jsonl: columns found: 'prompt'")
    assert second.startswith(f"{tmp_path}/b.jsonl: columns found: 'prompt'")


def side(folder: Path, file: Path, part: str, share: float = 0.25) -> tuple[Prepared, list[str]]:
    folder.mkdir(parents=True)
    source = DatasetSource.model_validate({"path": str(file), "heldout_share": share, "part": part})
    wanted = Wanted("sft", "be brief", heldout_share=source.heldout_share, part=source.part)
    found = prepare(source, [file], wanted, folder, Manner())
    return found, [row["prompt"][-1]["content"] for row in read_rows(folder)]


def test_sides_share_no_prompt_and_leave_none_out(tmp_path: Path) -> None:
    rows = numbered("a", 400)
    file = write_rows(tmp_path / "rows.jsonl", rows + [row | {"completion": "y"} for row in rows])
    training, trained = side(tmp_path / "t", file, "training")
    heldout, held = side(tmp_path / "h", file, "heldout")
    assert not set(trained) & set(held)
    assert len(trained) + len(held) == 800
    assert len(held) == 2 * len(set(held))
    assert 0.18 < len(held) / 800 < 0.32
    assert (training.other_side, heldout.other_side) == (len(held), len(trained))


def test_a_row_never_changes_sides(tmp_path: Path) -> None:
    small = write_rows(tmp_path / "small.jsonl", numbered("a", 200))
    large = write_rows(tmp_path / "large.jsonl", numbered("b", 300) + numbered("a", 200)[::-1])
    _, before = side(tmp_path / "before", small, "heldout")
    _, after = side(tmp_path / "after", large, "heldout")
    _, more = side(tmp_path / "more", small, "heldout", 0.5)
    assert set(before) == {prompt for prompt in after if prompt.startswith("a")}
    assert set(before) < set(more)


def test_a_side_without_rows_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", numbered("a", 3))
    with pytest.raises(InputError, match=r"rows\.jsonl: no row of part 'heldout'.*another share, or add rows"):
        side(tmp_path / "out", file, "heldout", 1e-9)


def test_mixtures_split_alike(tmp_path: Path) -> None:
    source = two(tmp_path, (1, 1), (200, 200), heldout_share=0.2, part="heldout")
    _, rows = mixed(tmp_path / "out", source, Wanted("sft", heldout_share=0.2, part="heldout"))
    _, held = side(tmp_path / "side", tmp_path / "a.jsonl", "heldout", 0.2)
    assert {row["prompt"][0]["content"] for row in rows if row["kind"] == "a"} <= set(held)


@pytest.mark.parametrize(
    ("keys", "fragment"),
    [
        ({}, "neither path nor mixture"),
        ({"path": "a", "mixture": [{"path": "b"}]}, "both path and mixture"),
        ({"mixture": [{"path": "b"}], "split": "test"}, "split belongs to the parts"),
        ({"mixture": [{"path": "b"}], "license": "mit"}, "license belongs to the parts"),
        ({"mixture": [{"path": "b", "weight": 0}]}, "greater than 0"),
        ({"mixture": [{"path": "b", "wieght": 1}]}, "did you mean 'weight'?"),
        ({"path": "a", "heldout_share": 0.1}, "part 'all' with heldout_share 0.1"),
        ({"path": "a", "part": "heldout"}, "part 'heldout' with heldout_share 0"),
        ({"path": "a", "heldout_share": 1.0, "part": "heldout"}, "less than 1"),
    ],
)
def test_sources_that_contradict_themselves_are_refused(keys: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DatasetSource.model_validate(keys)
    assert fragment in str(caught.value)


def test_a_plain_source_is_recorded_as_before() -> None:
    told = {"path": "a", "name": None, "split": "train", "revision": None, "max_rows": None, "license": None}
    added = {"mixture", "heldout_share", "part"}
    assert added.isdisjoint(DatasetSource(path="a").model_dump())
    assert DatasetSource.model_validate(told) == DatasetSource(path="a")

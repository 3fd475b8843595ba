"""The index of manifests: it follows the folders, knows what is gone, and is never needed."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.index import Index
from tasks.index_file import INDEX
from tasks.store import MANIFEST, ArtifactStore
from tests.folders import family, name_of, publish


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An empty artifact root."""
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def folders(store: ArtifactStore) -> dict[str, Path]:
    """A family of folders by stage."""
    return family(store)


def names(store: ArtifactStore, name: str) -> tuple[set[str], set[str]]:
    """Ancestors and descendants of a folder."""
    with Index(store.home) as index:
        return {entry.name for entry in index.ancestors(name)}, {entry.name for entry in index.descendants(name)}


def test_both_ways(store: ArtifactStore, folders: dict[str, Path]) -> None:
    base, dataset, sft, reward, dpo = (name_of(stage) for stage in folders)
    assert names(store, sft) == ({base, dataset}, {reward, dpo})
    assert names(store, dataset) == (set(), {sft, reward, dpo})
    assert names(store, dpo) == ({base, dataset, sft}, set())


def test_what_is_made_later_is_known(store: ArtifactStore, folders: dict[str, Path]) -> None:
    assert names(store, name_of("dpo"))[1] == set()
    grpo = publish(store, "grpo", parents={"policy": name_of("dpo")})
    assert names(store, name_of("dpo"))[1] == {grpo.name}


def test_what_is_gone_is_told_of_while_something_was_made_from_it(
    store: ArtifactStore, folders: dict[str, Path]
) -> None:
    names(store, name_of("sft"))
    shutil.rmtree(folders["sft"])
    shutil.rmtree(folders["dataset"])
    with Index(store.home) as index:
        gone = index.get(name_of("dataset"))
        assert gone
        assert (gone.state, gone.origin["path"]) == ("missing", "rows.jsonl")
        assert {entry.name for entry in index.descendants(gone.name)} == {
            name_of(stage) for stage in ("sft", "reward", "dpo")
        }
        assert gone.name not in [entry.name for entry in index.entries()]
    for stage in ("reward", "dpo"):
        shutil.rmtree(folders[stage])
    with Index(store.home) as index:
        assert index.get(name_of("dataset")) is None


def remove(file: Path) -> None:
    file.unlink()


def garble(file: Path) -> None:
    file.write_bytes(b"no database" * 1000)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def another_layout(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("DROP TABLE folders")
        database.execute("PRAGMA user_version = 99")


def lose(table: str) -> Callable[[Path], None]:
    def harm(file: Path) -> None:
        with closing(sqlite3.connect(file)) as database:
            database.execute(f"DROP TABLE {table}")

    return harm


def change_a_table(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("ALTER TABLE folders RENAME COLUMN stage TO step")


def replace_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


LOSSES = [lose(table) for table in ("seen", "folders", "edges", "tells")]


@pytest.mark.parametrize("harm", [*LOSSES, change_a_table, another_layout])
def test_tables_that_are_missing_or_others_are_made_again_on_the_disk(
    store: ArtifactStore, folders: dict[str, Path], harm: Callable[[Path], None]
) -> None:
    expected = names(store, name_of("sft"))
    harm(store.home / INDEX)
    assert names(store, name_of("sft")) == expected
    with closing(sqlite3.connect(store.home / INDEX)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert tables == {"seen", "folders", "edges", "tells"}
        assert database.execute("SELECT count(stage) FROM folders").fetchone() == (len(folders),)


@pytest.mark.parametrize("harm", [remove, garble, cut, another_layout, replace_by_a_folder, *LOSSES, change_a_table])
def test_an_index_that_is_of_no_use_is_done_without(
    store: ArtifactStore, folders: dict[str, Path], harm: Callable[[Path], None]
) -> None:
    expected = names(store, name_of("sft"))
    harm(store.home / INDEX)
    assert names(store, name_of("sft")) == expected
    assert names(store, name_of("sft")) == expected


def test_one_that_another_process_writes_is_read_beside(
    store: ArtifactStore, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.index_file._SECONDS_TO_WAIT", 0.05)
    names(store, name_of("sft"))
    grpo = publish(store, "grpo", parents={"policy": name_of("dpo")})
    with closing(sqlite3.connect(store.home / INDEX, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert names(store, name_of("dpo"))[1] == {grpo.name}


def test_an_empty_root_stays_empty(store: ArtifactStore) -> None:
    with Index(store.home) as index:
        assert index.entries() == []
    assert not store.home.exists()


def test_an_unreadable_manifest_is_left_out_until_it_is_readable(
    store: ArtifactStore, folders: dict[str, Path]
) -> None:
    manifest = folders["dpo"] / MANIFEST
    content = manifest.read_bytes()
    manifest.write_bytes(b"{")
    assert name_of("dpo") not in names(store, name_of("sft"))[1]
    manifest.write_bytes(content)
    assert name_of("dpo") in names(store, name_of("sft"))[1]


@settings(max_examples=15)
@given(parents=st.lists(st.integers(0, 7), min_size=1, max_size=8), removed=st.sets(st.integers(0, 7)))
def test_it_agrees_with_the_folders(
    tmp_path_factory: pytest.TempPathFactory, parents: list[int], removed: set[int]
) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("root") / "home")
    made: list[Path] = []
    for number, parent in enumerate(parents):
        from_here = {"policy": made[parent % number].name} if number else {}
        made.append(publish(store, "sft", number, parents=from_here))
        with Index(store.home):
            pass
    for number in removed & set(range(len(made))):
        shutil.rmtree(made[number])
    with Index(store.home) as index:
        seen = [(entry.name, [each.name for each in index.ancestors(entry.name)]) for entry in index.entries()]
    shutil.rmtree(store.home / INDEX.parent)
    with Index(store.home) as index:
        anew = [(entry.name, [each.name for each in index.ancestors(entry.name)]) for entry in index.entries()]
    assert seen == anew

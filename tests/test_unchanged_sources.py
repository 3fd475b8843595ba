"""An unchanged source is not read again, a changed one always is, and what is prepared in vain leaves nothing."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from prefect import flow

from models.artifacts import Dataset
from models.errors import InputError
from models.fingerprint import ID_LENGTH
from models.preparation import CARD_VERSION, Cleaning, PartCount, Prepared, RenderedExample, SnapshotCard
from models.recipe import Recipe
from models.sources import DatasetSource, RowSource
from tasks.core.hub_rows import write_hub_rows
from tasks.data.card import read_card, write_card
from tasks.data.checking import cleaning_of, read_tables, wanted_rows
from tasks.data.conversion import Wanted
from tasks.data.left_out import LEFT_OUT
from tasks.data.located import Located, key_of
from tasks.data.preparations import Preparations, Ready, hand_over, leaving_nothing
from tasks.data.preparing import Manner
from tasks.data.snapshot import ROWS, ROWS_BEFORE, read_rows
from tasks.dataset import _card, _origin, prepare_dataset
from tasks.execution import Execution
from tasks.pruning import plan_prune
from tasks.store import ArtifactStore
from tests.forms.rows import completion, system
from tests.prepared import digest
from tests.tiny import write_rows

DATA: list[dict[str, Any]] = [{"prompt": f"prompt {n}", "completion": str(n), "kind": "k"} for n in range(20)]
SFT = Wanted("sft")


def normal(rows: list[dict[str, Any]], *before: dict[str, str]) -> list[dict[str, Any]]:
    """The rows in normal form, with turns before each prompt."""
    made = [completion(row["prompt"], row["completion"], kind="k") for row in rows]
    return [row | {"prompt": [*before, *row["prompt"]]} for row in made]


BRIEF = normal(DATA, system("be brief"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data" / "rows.jsonl", DATA)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were read."""
    read: list[str] = []
    prepare = Preparations._prepare

    def counted(self: Preparations, source: DatasetSource, *arguments: Any) -> Prepared:
        read.append(source.label)
        return prepare(self, source, *arguments)

    monkeypatch.setattr(Preparations, "_prepare", counted)
    return read


def touch(file: Path) -> None:
    os.utime(file, ns=(time.time_ns(), time.time_ns()))


def rewrite(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)


def change_in_place(file: Path) -> None:
    """Other content of the same size, with the old time of change."""
    status = file.stat()
    file.write_bytes(file.read_bytes().replace(b"prompt 7", b"prompt x"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "reads_again", "same_rows"),
    [(lambda file: None, False, True), (touch, True, True), (rewrite, True, True), (change_in_place, True, False)],
)
def test_only_a_changed_file_is_read_again(
    tmp_path: Path, file: Path, reads: list[str], change: Callable[[Path], None], *, reads_again: bool, same_rows: bool
) -> None:
    source = DatasetSource(path=str(file))
    first = Preparations(tmp_path / "home").ready(source, SFT)
    time.sleep(0.02)
    change(file)
    second = Preparations(tmp_path / "home").ready(source, SFT)
    assert len(reads) == 1 + reads_again
    assert (first.prepared == second.prepared) == same_rows
    assert [*read_rows(second.folder)] == normal([*map(json.loads, file.read_text().splitlines())])


def test_other_wishes_are_other_keys(file: Path) -> None:
    def key(wanted: Wanted = SFT, **keys: Any) -> str | None:
        source = DatasetSource(path=str(file), **keys)
        return key_of(source, (Located(source, (file,)),), wanted)

    split: dict[str, Any] = {"heldout_share": 0.5, "part": "training"}
    keys = [key(), key(max_rows=3), key(Wanted("prompts")), key(Wanted("sft", "be brief")), key(**split)]
    assert len(set(keys)) == len(keys)
    assert key(license="mit") == key()


def test_a_hub_dataset_is_recognised_by_its_commit() -> None:
    source = DatasetSource(path="org/rows")
    assert key_of(source, (Located(source, (), None),), SFT) is None
    one, other = (key_of(source, (Located(source, (), commit),), SFT) for commit in ("a" * 40, "b" * 40))
    assert one != other


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Preparations._prepare

    def prepare_and_change(*arguments: Any) -> Any:
        found = prepare(*arguments)
        write_rows(file, DATA[1:])
        return found

    monkeypatch.setattr(Preparations, "_prepare", prepare_and_change)
    with pytest.raises(InputError, match="it changed while it was read"):
        Preparations(tmp_path / "home").ready(DatasetSource(path=str(file)), SFT)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("good", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_what_is_prepared_in_vain_leaves_nothing(
    tmp_path: Path, file: Path, *, keep: bool, good: bool, there: bool
) -> None:
    home = tmp_path / "deep" / "home"
    if there:
        home.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    other = write_rows(tmp_path / "data" / "bad.jsonl", [{"prompt": "x"}]) if not good else file
    before.add(other)
    try:
        with leaving_nothing(home, Manner(), keep=keep) as preparations:
            for path in (file, other):
                preparations.ready(DatasetSource(path=str(path)), SFT)
    except InputError:
        assert not good
    if keep and good:
        (waiting,) = home.glob("datasets/.partial/*")
        assert {path.name for path in waiting.iterdir()} == {ROWS, "prepared.json"}
    else:
        assert set(tmp_path.rglob("*")) == before


def test_what_nobody_would_find_again_is_not_kept(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.data.preparations.key_of", lambda *arguments: None)  # as where no hub can be asked
    with leaving_nothing(tmp_path / "home", Manner(), keep=True) as preparations:
        folder = preparations.ready(DatasetSource(path=str(file)), SFT).folder
    assert not folder.exists()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("lost", [ROWS, "prepared.json"])
def test_a_half_waiting_folder_is_made_again(tmp_path: Path, file: Path, reads: list[str], lost: str) -> None:
    source = DatasetSource(path=str(file))
    first = Preparations(tmp_path / "home").ready(source, SFT)
    (first.folder / lost).unlink()
    second = Preparations(tmp_path / "home").ready(source, SFT)
    assert (second, len(reads)) == (first, 2)
    assert len([*read_rows(second.folder)]) == len(DATA)


def test_rows_are_handed_over_whole(tmp_path: Path, file: Path) -> None:
    source = DatasetSource(path=str(file))
    ready = Preparations(tmp_path / "home").ready(source, SFT)
    hand_over(ready, tmp_path / "home" / "new")
    assert [path.name for path in (tmp_path / "home" / "new").iterdir()] == [ROWS]
    assert Preparations(tmp_path / "home").ready(source, SFT).prepared == ready.prepared


def test_each_file_and_part_of_a_mixture_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def hub_dataset(part: RowSource) -> dict[str, str]:
        asked.append(part.revision)
        return {}

    monkeypatch.setattr("tasks.dataset.hub_dataset", hub_dataset)
    files = [write_rows(tmp_path / place / "t.jsonl", DATA) for place in ("u/data", "v/data", "w")]
    parts = [{"path": str(file)} for file in files] + [{"path": "org/rows"}, {"path": "org/rows", "split": "test"}]
    source = DatasetSource.model_validate({"mixture": parts})
    local = [Located(part, (Path(part.path),)) for part in source.mixture[:3]]
    hub = [Located(part, (), letter * 40) for part, letter in zip(source.mixture[3:], "ab", strict=True)]
    counts = [PartCount(source=part.path, weight=1, available=9, rows=3) for part in source.mixture]
    prepared = Prepared(rows=15, read=45, duplicates=0, rows_sha256="0" * 64, size_bytes=1, parts=tuple(counts))
    card = _card(source, "sft", None, Ready(prepared, tmp_path, (*local, *hub), None, published=False))
    assert list(card.files) == ["u/data/t.jsonl", "v/data/t.jsonl", "w/t.jsonl"]
    assert [part.revision for part in card.parts] == [None, None, None, "a" * 40, "b" * 40]
    assert asked == ["a" * 40, "b" * 40]
    told = _origin(card, {})["mixture"]
    assert [(part["path"], part.get("commit")) for part in told[2:]] == [
        ("t.jsonl", None), ("org/rows", "a" * 40), ("org/rows", "b" * 40)
    ]  # fmt: skip
    write_card(tmp_path, card, None)
    text = (tmp_path / "README.md").read_text()
    assert f"| org/rows | 3 of 9 rows, commit {'a' * 40} |\n| org/rows | 3 of 9 rows, commit {'b' * 40} |" in text


def test_names_write_no_markdown(tmp_path: Path) -> None:
    name = "[x](y)|`<b>*\n# z"
    keys: dict[str, Any] = {"digest": "d", "role": "sft", "rows_read": 1, "rows": 1}
    code = "```\n# title\n````"
    shown = RenderedExample(
        context=code, trained="", tokens=1, trained_tokens=0, eos_trained=None, bos_doubled=False,
        generation_prompt=True, tools_shown=None,
    )  # fmt: skip
    write_card(tmp_path, SnapshotCard(source={"path": name}, files={name: "f"}, example=shown, **keys), None)
    text = (tmp_path / "README.md").read_text()
    escaped = r"\[x\](y)\|\`\<b\>\* # z"
    assert f"# Snapshot of {escaped}\n" in text
    assert f"| {escaped} | f |\n" in text
    assert f"\n`````text\n{code}\n`````\n" in text


def test_parts_of_a_mixture_are_not_kept(tmp_path: Path, file: Path, reads: list[str]) -> None:
    other = write_rows(tmp_path / "data" / "other.jsonl", [row | {"prompt": f"other {row['prompt']}"} for row in DATA])
    source = DatasetSource.model_validate({"mixture": [{"path": str(file)}, {"path": str(other), "weight": 3}]})
    ready = Preparations(tmp_path / "home").ready(source, SFT)
    assert {path.name for path in ready.folder.iterdir()} == {ROWS, "prepared.json"}
    assert [(part.source, part.rows) for part in ready.prepared.parts] == [("rows.jsonl", 6), ("other.jsonl", 20)]
    touch(other)
    Preparations(tmp_path / "home").ready(source, SFT)
    assert len(reads) == 2


def test_rows_are_checked_where_nothing_can_be_written(tmp_path: Path, file: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with leaving_nothing(tmp_path / "home", Manner(), keep=True) as preparations:
        ready = preparations.ready(DatasetSource(path=str(file)), SFT)
        assert len([*read_rows(ready.folder)]) == len(DATA)


def test_what_a_killed_process_leaves_is_pruned(tmp_path: Path, file: Path) -> None:
    home = tmp_path / "home"
    ready = Preparations(home).ready(DatasetSource(path=str(file)), SFT)
    half = ready.folder.with_name("source-0123456789abcdef")
    shutil.copytree(ready.folder, half)
    (half / "prepared.json").unlink()
    items = plan_prune(ArtifactStore(home), keep=0, older_than_days=0, drop_merged=False).items
    assert {item.path.name for item in items if item.action == "remove"} == {ready.folder.name, half.name}


@flow
def freezing(source: DatasetSource, execution: Execution, cleaning: Cleaning | None = None) -> Dataset:
    """One dataset."""
    wanted: Dataset = prepare_dataset.submit(source, "sft", "be brief", execution, cleaning=cleaning).result()
    return wanted


@pytest.mark.slow
def test_a_snapshot_tells_where_it_is_from(
    tmp_path: Path, file: Path, reads: list[str], execution: Execution, prefect_api: None
) -> None:
    home = execution.settings.home
    source = DatasetSource(path=str(file), license="mit")
    made = freezing(source, execution)
    assert [*read_rows(made.path)] == BRIEF
    card = read_card(made.path)
    assert card
    assert (card.schema_version, card.rows, card.rows_read, card.license) == (CARD_VERSION, 20, 20, "mit")
    assert (card.digest, card.source["path"], list(card.files)) == (digest(BRIEF), "rows.jsonl", ["rows.jsonl"])
    text = (made.path / "README.md").read_text()
    assert "# Snapshot of rows.jsonl" in text
    assert "20 of 20 read" in text
    assert str(tmp_path) not in text + card.model_dump_json()
    assert [*home.glob("datasets/.partial/*")] == []

    assert freezing(source, execution) == made
    assert reads == [str(file)]
    (made.path / ROWS).write_bytes(b"damaged")  # moved aside and made again
    assert freezing(source, execution).fingerprint == made.fingerprint
    assert [*read_rows(made.path)] == BRIEF
    assert reads == [str(file)] * 2

    copies = DatasetSource(path=str(write_rows(tmp_path / "elsewhere" / "other.jsonl", DATA)))
    assert freezing(copies, execution).fingerprint == made.fingerprint
    assert [*home.glob("datasets/.partial/*")] == []


@pytest.mark.slow
def test_a_snapshot_is_kept_apart_from_held_out_rows(
    tmp_path: Path, file: Path, execution: Execution, prefect_api: None
) -> None:
    heldout = write_rows(tmp_path / "heldout.jsonl", [{"prompt": "prompt 7", "answer": "7"}])
    asked = {"sft": {"dataset": {"path": str(file)}}, "evaluation": {"prompts": {"path": str(heldout)}}}
    recipe = Recipe.model_validate(asked | {"data_rules": {"leak": "drop"}, "system_prompt": "be brief"})
    promised = read_tables(recipe, [], Preparations(tmp_path / "check"))["sft.dataset"].check
    made = freezing(recipe.sft.dataset, execution, cleaning_of(recipe, "sft"))
    assert made.fingerprint == promised.fingerprint
    assert [*read_rows(made.path)] == [*BRIEF[:7], *BRIEF[8:]]
    (listed,) = map(json.loads, (made.path / LEFT_OUT).read_text().splitlines())
    assert (listed["rule"], listed["place"]) == ("leak", f"{file}: line 8")
    assert [*execution.settings.home.glob("datasets/.partial/*")] == []


@pytest.mark.slow
def test_a_snapshot_of_an_earlier_version_is_taken(
    tmp_path: Path, file: Path, execution: Execution, prefect_api: None
) -> None:
    source = DatasetSource(path=str(file))
    store = ArtifactStore(execution.settings.home)
    name = published_before(store, BRIEF)
    made = freezing(source, execution)
    assert made.path.name == name
    assert not (made.path / ROWS).exists()
    assert [*read_rows(made.path)] == BRIEF
    found = Preparations(store.home).ready(source, wanted_rows(source, "sft", "be brief", ()))
    assert (found.published, found.folder) == (True, made.path)


def published_before(store: ArtifactStore, rows: list[dict[str, Any]]) -> str:
    """A snapshot as earlier versions wrote it."""
    from models.fingerprint import fingerprint

    identity = {"rows_sha256": digest(rows)}
    name = fingerprint(identity)[:ID_LENGTH]
    folder = store.partial("dataset", name)
    folder.mkdir(parents=True)
    write_rows(folder / ROWS_BEFORE, rows)
    store.publish(folder, name=name, kind="dataset", fingerprint=fingerprint(identity), identity=identity)
    return name


def test_hub_rows_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list(DATA)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **keys: rows)
    source = DatasetSource(path="org/rows", max_rows=7)
    write_hub_rows(source, tmp_path / "fetched.parquet")
    table = datasets.Dataset.from_parquet(str(tmp_path / "fetched.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table.to_list() == DATA[:7]

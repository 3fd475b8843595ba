"""Sources of every kind are prepared to the same rows, by any number of processes; where one dies, nothing is left."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from models.data_rules import DataRules
from models.errors import InputError, Killed
from models.fingerprint import canonical_json
from models.preparation import Prepared
from models.sources import DatasetSource
from settings.recipes import build_recipe
from tasks.data import json_arrays, readers
from tasks.data.conversion import Wanted
from tasks.data.located import locate
from tasks.data.preparing import Manner, prepare
from tasks.data.snapshot import ROWS, read_rows
from tests.forms.rows import completion, pair
from tests.prepared import digest
from tests.tiny import write_rows

DATA: list[dict[str, Any]] = [
    {"prompt": f"prompt {number % 189}\n\u2028é", "completion": "reply " * (number % 7) + "end", "kind": "k"}
    for number in range(200)
]
NORMAL = [completion(row["prompt"], row["completion"], kind="k") for row in DATA[:189]]
"""The rows after these repeat the first ones."""
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]


def preparing() -> list[psutil.Process]:
    """The processes of this one that prepare rows; other tests leave a server of processes behind."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it ends right now
            if "tasks.data.worker" in child.cmdline():
                found.append(child)
    return found


def packed_zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue().to_pybytes())


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_arrow_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)


def write_arrow_file(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)


FILES: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "rows.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "rows.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),
    "rows.jsonl.zst": lambda path, rows: path.write_bytes(packed_zstd(lines(rows))),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "lines.json": lambda path, rows: path.write_bytes(lines(rows)),
    "rows.json.zst": lambda path, rows: path.write_bytes(packed_zstd(json.dumps(rows).encode())),
    "rows.csv": write_csv,
    "rows.parquet": lambda path, rows: pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), path, row_group_size=30
    ),
    "rows.arrow": write_arrow_file,
    "stream.arrow": write_arrow_stream,
    "rows.feather": lambda path, rows: pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), path),
}


def prepared(folder: Path, path: Path | str, workers: int | None = 0, **keys: Any) -> Prepared:
    folder.mkdir()
    source = DatasetSource(path=str(path), **keys)
    files = list(locate(source)[0].files)
    wanted = Wanted("sft", data_rules=DataRules(max_dropped=0))
    found = prepare(source, files, wanted, folder, Manner(workers))
    assert digest(read_rows(folder)) == found.rows_sha256
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file has many blocks."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 512)
    monkeypatch.setattr(readers, "_BLOCK_ROWS", 9)
    monkeypatch.setattr(json_arrays, "WHOLE_BYTES", 1000)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.usefixtures("small_blocks")
def test_every_format_gives_the_same_snapshot(tmp_path: Path, file: str) -> None:
    FILES[file](tmp_path / file, DATA)
    found = prepared(tmp_path / "out", tmp_path / file)
    assert (found.rows_sha256, found.rows) == (digest(NORMAL), 189)
    assert (found.read, found.duplicates) == (200, 11)
    lengths = [len(row["prompt"][0]["content"]) + len(row["completion"][0]["content"]) for row in found.longest_rows]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) == 8


CALLS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": arguments}]},
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": f"called {name}"},
        ],
        "tools": [{"name": name, "parameters": {"type": "object", "properties": {key: {"type": "string"}}}}],
    }
    for name, arguments, key in (("f", {"a": 1}, "a"), ("g", {"b": "x", "c": {"d": [1]}}, "b"))
]


@pytest.mark.parametrize("file", ["rows.parquet", "rows.arrow", "stream.arrow", "rows.feather"])
def test_columnar_files_add_no_argument(tmp_path: Path, file: str) -> None:
    FILES[file](tmp_path / file, CALLS)
    expected = prepared(tmp_path / "plain", write_rows(tmp_path / "plain.jsonl", CALLS))
    assert prepared(tmp_path / "out", tmp_path / file).rows_sha256 == expected.rows_sha256


def write_as(path: Path, table: pyarrow.Table) -> Path:
    """In the format of the path's ending, all rows in one group or batch."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("file", ["rows.parquet", "rows.arrow"])
def test_a_text_that_is_not_utf8_is_found(tmp_path: Path, file: str) -> None:
    rows = pyarrow.array([b"\xff" if number == 6 else b"a" for number in range(9)])
    columns = {
        "prompt": pyarrow.array([f"p{number}" for number in range(9)]),
        "completion": rows.view(pyarrow.string()),
    }
    path = write_as(tmp_path / file, pyarrow.table(columns))
    with pytest.raises(InputError) as caught:
        prepared(tmp_path / "out", path)
    assert str(caught.value).startswith(f"{path}: row 7: unreadable")


@pytest.mark.parametrize("file", ["rows.parquet", "rows.arrow"])
def test_columns_of_one_name_are_refused(tmp_path: Path, file: str) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "completion", "completion"])
    path = write_as(tmp_path / file, table)
    with pytest.raises(InputError, match="it names column 'completion' twice; rename or remove one of them"):
        prepared(tmp_path / "out", path)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_neither_processes_nor_files_have_a_say(tmp_path: Path) -> None:
    write_rows(tmp_path / "plain.jsonl", DATA)
    (tmp_path / "parts").mkdir()
    FILES["rows.jsonl"](tmp_path / "parts" / "1.jsonl", DATA[:70])
    FILES["rows.jsonl.gz"](tmp_path / "parts" / "2.jsonl.gz", DATA[70:71])
    FILES["rows.jsonl.zst"](tmp_path / "parts" / "3.jsonl.zst", DATA[71:])
    ways = [(tmp_path / "plain.jsonl", 0), (tmp_path / "plain.jsonl", 3), (tmp_path / "parts", 2)]
    found = [prepared(tmp_path / f"out-{number}", *way) for number, way in enumerate(ways)]
    assert found[0] == found[1]
    alike = [each.model_copy(update={"problems": ()}) for each in found]  # these name the files
    assert alike[0] == alike[2]
    assert len({(tmp_path / f"out-{number}" / ROWS).read_bytes() for number in range(3)}) == 1
    assert not preparing()


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.usefixtures("small_blocks")
def test_places_are_exact(tmp_path: Path, workers: int) -> None:
    rows = [*DATA]
    rows[150] = {"prompt": "x"}
    rows[151] = {"prompt": "x", "completion": 5}
    content = lines(rows).replace(b'{"prompt": "prompt 100', b'\n\n{"prompt": "prompt 100', 1)
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError) as caught:
        prepared(tmp_path / "out", tmp_path / "rows.jsonl", workers)
    first, second, rules = str(caught.value).splitlines()
    assert rules == "by rule: missing 1, wrong_type 1"
    assert first.startswith(f"{tmp_path}/rows.jsonl: line 153: column 'completion': it is missing")
    assert second.startswith(f"{tmp_path}/rows.jsonl: line 154: column 'completion': got 5")


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.usefixtures("small_blocks")
def test_max_rows_stops_before_what_is_wrong(tmp_path: Path, workers: int) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(DATA[:20]) + b"\xff\n" + lines(DATA[20:]))
    found = prepared(tmp_path / "out", tmp_path / "rows.jsonl", workers, max_rows=20)
    assert (found.read, found.rows) == (20, 20)
    with pytest.raises(InputError, match=r"rows\.jsonl: line 21: byte 0xff is not UTF-8"):
        prepared(tmp_path / "again", tmp_path / "rows.jsonl", workers, max_rows=21)


@pytest.mark.parametrize(
    ("content", "fragment", "workers"),
    [
        (b"", "2.jsonl: the file holds no rows (0 bytes)", 0),
        (b"\n \n", "2.jsonl: the file holds no rows (3 bytes)", 0),
        pytest.param(b"\n \n", "2.jsonl: the file holds no rows (3 bytes)", 1, marks=pytest.mark.slow),
        (b"{", "2.jsonl: line 1: invalid JSON", 0),
    ],
)
def test_one_bad_file_of_several_is_named(tmp_path: Path, content: bytes, fragment: str, workers: int) -> None:
    (tmp_path / "rows").mkdir()
    for name in ("1", "3"):
        write_rows(tmp_path / "rows" / f"{name}.jsonl", DATA)
    (tmp_path / "rows" / "2.jsonl").write_bytes(content)
    with pytest.raises(InputError) as caught:
        prepared(tmp_path / "out", tmp_path / "rows", workers)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.jsonl.gz", gzip.compress(lines(DATA))[:-20]),
        ("a.jsonl.zst", packed_zstd(lines(DATA))[:-20]),
        ("a.arrow", b"ARROW1 and nothing else"),
        ("b.arrow", b"not Arrow at all"),
        ("a.parquet", b"PAR1"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        prepared(tmp_path / "out", tmp_path / file)
    assert str(caught.value).startswith(f"{tmp_path / file}: ")
    assert "fetch it again" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('[{"a": "%s"}, {"b": 1}]', None),
        ('[{"a": "%s"},\n {"b": 1},\n]', "line 3: invalid JSON"),
        ('[{"a": "%s"}\n {"b": 1}]', "line 2: invalid JSON"),
        ('[{"a": "%s"},\n {"b": 1}', "line 2: invalid JSON"),
        ('[{"a": "%s"}]\n\n{}', "line 3: invalid JSON (Extra data)"),
        ('"%s"', "no array"),
    ],
)
def test_large_arrays_are_read_in_parts(
    tmp_path: Path, text: str, fragment: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_arrays, "WHOLE_BYTES", 100)
    file = tmp_path / "a.json"
    file.write_text(text % ("é" * 2000))
    with file.open("rb") as stream:
        members = json_arrays.array_members(stream, file)
        if fragment is None:
            assert list(members) == json.loads(file.read_text())
        else:
            with pytest.raises(InputError) as caught:
                list(members)
            assert fragment in str(caught.value)


@pytest.mark.parametrize("bad", ['{"a" 1}', '{"a": tru }', '{"a": 1, "a": 2}', "{'a': 1}"])
def test_an_early_error_in_a_large_array_reads_no_further(
    tmp_path: Path, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_arrays, "WHOLE_BYTES", 100)
    file = tmp_path / "a.json"
    file.write_text(f'[{{"a": 0}},\n{bad}' + ',\n{"a": "text"}' * 500_000 + "]")
    with file.open("rb") as stream:
        with pytest.raises(InputError, match=r"line 2: (invalid|unreadable) JSON"):
            list(json_arrays.array_members(stream, file))
        assert stream.tell() < 2 << 20


def names(path: str) -> list[str]:
    return [file.name for file in locate(DatasetSource(path=path))[0].files]


def test_a_path_names_many_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "c.csv", "notes.txt", "x,y.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").write_text("{}")
    assert names(f"{tmp_path}/*.jsonl*") == ["a.jsonl.gz", "b.jsonl", "x,y.jsonl"]
    assert names(f"{tmp_path}/**/a*") == ["a.jsonl", "a.jsonl.gz"]
    assert names(f"{tmp_path}/c.csv, {tmp_path}/b.jsonl") == ["b.jsonl", "c.csv"]
    assert names(f"{tmp_path}/c.csv,{tmp_path}/deep") == ["a.jsonl", "c.csv"]
    assert names(f"{tmp_path}/x,y.jsonl") == ["x,y.jsonl"]
    assert names(f"{tmp_path}/**/**/a*") == ["a.jsonl", "a.jsonl.gz"]
    (tmp_path / "d.csv").write_text("{}")
    (tmp_path / "z.csv").symlink_to("c.csv")
    assert names(f"{tmp_path}/*.csv") == ["c.csv", "d.csv"]
    assert names(f"{tmp_path}/deep/a.jsonl,{tmp_path}/c*.csv,{tmp_path}/deep/../c.csv") == ["a.jsonl", "c.csv"]


@pytest.mark.parametrize("top", [True, False])
def test_a_folder_with_data_in_subfolders_is_refused(tmp_path: Path, *, top: bool) -> None:
    for file in ("deep/er/b.jsonl.gz", ".git/c.jsonl", *(["a.jsonl"] if top else [])):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    with pytest.raises(InputError) as caught:
        names(str(tmp_path))
    assert f"one holds 'deep/er/b.jsonl.gz'; give '{tmp_path}/**/*.jsonl*'" in str(caught.value)
    assert (f"or '{tmp_path}/*.jsonl*' to leave them out" in str(caught.value)) == top
    assert names(f"{tmp_path}/**/*.jsonl*") == ["a.jsonl"] * top + ["b.jsonl.gz"]


@pytest.mark.parametrize(
    ("path", "fragment"),
    [
        ("{0}/*.parquet", "*.parquet: no data file has such a name"),
        ("{0}/a.jsonl,{0}/b.jsonl", "b.jsonl: no such file or folder, one of several; did you mean 'a.jsonl'?"),
    ],
)
def test_files_that_are_not_there_are_named(tmp_path: Path, path: str, fragment: str) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(InputError) as caught:
        names(path.format(tmp_path))
    assert fragment in str(caught.value)


def test_recipes_name_many_files(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "sft: {dataset: {path: [data/a.jsonl, data/b.jsonl]}}\n"
        "evaluation: {prompts: {path: data/*.jsonl.gz}}\n"
        "dpo: {dataset: {mixture: [{path: pairs.jsonl}, {path: org/pairs, weight: 2}]}}\n"
    )
    recipe = build_recipe(str(tmp_path / "recipe.yaml"), {})
    assert recipe.sft.dataset.path == f"{tmp_path}/data/a.jsonl,{tmp_path}/data/b.jsonl"
    assert recipe.evaluation.prompts.path == f"{tmp_path}/data/*.jsonl.gz"
    assert recipe.dpo
    assert [part.path for part in recipe.dpo.dataset.mixture] == [f"{tmp_path}/pairs.jsonl", "org/pairs"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_a_killed_process_ends_in_one_clear_error(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", DATA * 20)
    (tmp_path / "out").mkdir()

    def kill(rows: int) -> None:
        for child in preparing():
            child.kill()

    with pytest.raises(Killed) as caught:
        prepare(DatasetSource(path=str(file)), [file], Wanted("sft"), tmp_path / "out", Manner(2, kill))
    assert str(caught.value).startswith(f"{file}: the process that prepared its rows ended (SIGKILL); nothing half-wr")
    assert not preparing()


_DIES = """
import os, signal, sys
from pathlib import Path
import psutil
from models.sources import DatasetSource
from tasks.data.conversion import Wanted
from tasks.data.preparing import Manner, prepare

def die(rows):
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

file = Path(sys.argv[1])
prepare(DatasetSource(path=str(file)), [file], Wanted("sft"), Path(sys.argv[2]), Manner(2, die))
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", DATA * 20)
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", _DIES, str(file), str(tmp_path)]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    started = [int(pid) for pid in done.stdout.split()]
    assert len(started) == 2
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, started))


@pytest.mark.slow
def test_tokens_are_counted_as_the_model_sees_them(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    file = write_rows(tmp_path / "rows.jsonl", DATA)
    (tmp_path / "out").mkdir()
    wanted = Wanted("sft", tokenizer=tiny_model)
    found = prepare(DatasetSource(path=str(file)), [file], wanted, tmp_path / "out", Manner())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lengths = sorted(
        len(tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"])
        for row in read_rows(tmp_path / "out")
    )
    assert found.tokens
    assert (found.tokens.total, found.tokens.longest) == (sum(lengths), lengths[-1])
    assert found.tokens.median == lengths[(len(lengths) - 1) // 2]


UNPAIRED = [
    {"prompt": f"prompt {number // 3}", "completion": f"reply {number}", "label": number % 3 == 0}
    for number in range(100)
]


PAIRS = [pair(f"prompt {number}", f"reply {3 * number}", f"reply {3 * number + 1}") for number in range(33)]
"""A good reply and the first of two bad ones to each of 33 prompts; the 34th has no bad one."""


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.usefixtures("small_blocks")
def test_pairs_are_made_of_rows_in_different_blocks(tmp_path: Path, workers: int) -> None:
    file = write_rows(tmp_path / "rows.jsonl", UNPAIRED)
    (tmp_path / "out").mkdir()
    wanted = Wanted("preference")
    found = prepare(DatasetSource(path=str(file)), [file], wanted, tmp_path / "out", Manner(workers))
    assert sorted(read_rows(tmp_path / "out"), key=canonical_json) == sorted(PAIRS, key=canonical_json)
    assert (found.read, found.rows, found.unpaired) == (100, 33, 34)
    assert found.recognised.startswith("Labelled replies: ")


def test_rows_that_make_no_pair_are_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", UNPAIRED[:1])
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="no two of its 1 rows make a pair"):
        prepare(DatasetSource(path=str(file)), [file], Wanted("preference"), tmp_path / "out", Manner())

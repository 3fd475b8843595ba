"""Rows of every format come to one normal form, and whatever cannot be used is refused with its place."""

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import InputError
from models.sources import DatasetSource
from tasks.data.formats.reading import Role
from tasks.data.lines import Row
from tests.prepared import Sourced, digest, sourced


def user(content: str) -> dict[str, str]:
    """A user turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """An assistant turn."""
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    """A system message."""
    return {"role": "system", "content": content}


def check(path: Path | str, role: Role, system_prompt: str | None = None, **keys: Any) -> Sourced:
    """The rows of a path."""
    return sourced(DatasetSource(path=str(path), **keys), role, system_prompt)


def write_jsonl(path: Path, rows: list[Any]) -> None:
    """One object a line, with a blank line at the end."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n", encoding="utf-8")


def write_json(path: Path, rows: list[Any]) -> None:
    """An indented array."""
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_csv(path: Path, rows: list[Row]) -> None:
    """Texts as they are, lists as JSON."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})


def write_parquet(path: Path, rows: list[Row]) -> None:
    """In groups of one row, so that there is more than one."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1)


WRITERS: dict[str, Callable[[Path, list[Any]], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.ndjson": write_jsonl,
    "rows.json": write_json,
    "lines.json": write_jsonl,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
}

AWKWARD = 'a "quoted", \u2028 text\r\nwith ünïcode 🙂 and \\n, \t; null, [1]'
GOOD: dict[str, tuple[Role, list[Row], list[Row]]] = {
    "prompt and completion as texts": (
        "sft",
        [{"prompt": AWKWARD, "completion": f" {AWKWARD} "}, {"prompt": "b", "completion": "2"}],
        [
            {"prompt": [user(AWKWARD)], "completion": [assistant(f" {AWKWARD} ")], "kind": "all"},
            {"prompt": [user("b")], "completion": [assistant("2")], "kind": "all"},
        ],
    ),
    "prompt and completion as messages": (
        "sft",
        [{"prompt": [system("s"), user("a")], "completion": [assistant("1")], "kind": "k", "id": "7"}],
        [{"prompt": [system("s"), user("a")], "completion": [assistant("1")], "kind": "k"}],
    ),
    "messages": (
        "sft",
        [{"messages": [user("a"), assistant("1"), user("b"), assistant("2")], "prompt": "ignored"}],
        [{"prompt": [user("a"), assistant("1"), user("b")], "completion": [assistant("2")], "kind": "all"}],
    ),
    "preference": (
        "preference",
        [{"prompt": "a", "chosen": "yes", "rejected": "no", "kind": "k"}],
        [{"prompt": [user("a")], "chosen": [assistant("yes")], "rejected": [assistant("no")], "kind": "k"}],
    ),
    "preference as messages": (
        "preference",
        [{"prompt": [user("a")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}],
        [{"prompt": [user("a")], "chosen": [assistant("yes")], "rejected": [assistant("no")], "kind": "all"}],
    ),
    "preference with implicit prompt": (
        "preference",
        [
            {
                "chosen": [user("a"), assistant("1"), user("b"), assistant("yes")],
                "rejected": [user("a"), assistant("1"), user("b"), assistant("no")],
            }
        ],
        [
            {
                "prompt": [user("a"), assistant("1"), user("b")],
                "chosen": [assistant("yes")],
                "rejected": [assistant("no")],
                "kind": "all",
            }
        ],
    ),
    "preference with the prompt given twice": (
        "preference",
        [{"prompt": "a", "chosen": [user("a"), assistant("yes")], "rejected": [user("a"), assistant("no")]}],
        [{"prompt": [user("a")], "chosen": [assistant("yes")], "rejected": [assistant("no")], "kind": "all"}],
    ),
    "prompts": (
        "prompts",
        [{"prompt": "a", "answer": "1.50", "kind": ""}],
        [{"prompt": [user("a")], "answer": ["1.50"], "kind": "all"}],
    ),
    "prompts without an answer": ("prompts", [{"prompt": "a"}], [{"prompt": [user("a")], "answer": [], "kind": "all"}]),
    "prompts with further columns": (
        "prompts",
        [{"prompt": "a", "solution": "4", "source": "mine"}],
        [{"prompt": [user("a")], "answer": [], "kind": "all", "extra": {"solution": "4", "source": "mine"}}],
    ),
    "prompts with numbers": (
        "prompts",
        [{"prompt": "a", "answer": 43}, {"prompt": "b", "answer": -7}],
        [
            {"prompt": [user("a")], "answer": ["43"], "kind": "all"},
            {"prompt": [user("b")], "answer": ["-7"], "kind": "all"},
        ],
    ),
}


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("form", GOOD)
def test_every_format_gives_the_same_normal_form(tmp_path: Path, form: str, file: str) -> None:
    role, rows, expected = GOOD[form]
    path = tmp_path / file
    WRITERS[file](path, rows)
    checked = check(path, role)
    assert checked.rows == expected
    assert checked.found.duplicates == 0
    assert checked.found.rows_sha256 == digest(expected)


@pytest.mark.parametrize("file", WRITERS)
def test_packed_files_are_read_as_they_were(tmp_path: Path, file: str) -> None:
    role, rows, expected = GOOD["preference"]
    WRITERS[file](tmp_path / file, rows)
    (tmp_path / f"{file}.gz").write_bytes(gzip.compress((tmp_path / file).read_bytes()))
    assert check(tmp_path / f"{file}.gz", role).rows == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("4", ["4"]),
        (4, ["4"]),
        (4.0, ["4"]),
        (-0.5, ["-0.5"]),
        (10**400, ["1" + "0" * 400]),
        (["4", "four", 4.25], ["4", "four", "4.25"]),
    ],
)
def test_answers_become_texts(tmp_path: Path, answer: object, expected: list[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "2 + 2?", "answer": answer}])
    assert check(tmp_path / "a.jsonl", "prompts").rows[0]["answer"] == expected


def test_a_snapshot_is_its_rows_content_and_order(tmp_path: Path) -> None:
    first, second = {"prompt": "a", "completion": "b"}, {"completion": "ü", "prompt": "c"}

    def identity(*rows: Row) -> str:
        write_jsonl(tmp_path / "a.jsonl", [*rows])
        return check(tmp_path / "a.jsonl", "sft").found.rows_sha256

    assert identity(first, second) == identity(dict(reversed(first.items())), second)
    assert len({identity(*rows) for rows in ([first], [second], [first, second], [second, first])}) == 4


def test_system_prompt_goes_where_there_is_none(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "1"}, {"prompt": [system("own"), user("a")], "completion": "1"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    prompts = [row["prompt"] for row in check(tmp_path / "a.jsonl", "sft", "be brief").rows]
    assert prompts == [[system("be brief"), user("a")], [system("own"), user("a")]]


def test_duplicates_are_dropped_counted_and_order_is_kept(tmp_path: Path) -> None:
    rows = [{"id": number, "prompt": text, "completion": "1"} for number, text in enumerate("abacba")]
    rows.append({"id": 9, "prompt": [user("a")], "completion": [assistant("1")]})
    write_jsonl(tmp_path / "a.jsonl", rows)
    checked = check(tmp_path / "a.jsonl", "sft")
    assert [row["prompt"][0]["content"] for row in checked.rows] == ["a", "b", "c"]
    assert checked.found.duplicates == 4


def test_folder_is_read_in_order_of_names_up_to_max_rows(tmp_path: Path) -> None:
    for name, prompt in (("b.jsonl", "2"), ("a.jsonl", "1"), ("c.jsonl", "3")):
        write_jsonl(tmp_path / name, [{"prompt": prompt, "completion": "x"}])
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "4", "completion": "x"}'))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.csv").write_text("x")
    assert [row["prompt"][0]["content"] for row in check(tmp_path, "sft").rows] == ["1", "2", "3", "4"]
    assert [row["prompt"][0]["content"] for row in check(tmp_path, "sft", max_rows=2).rows] == ["1", "2"]


def test_max_rows_stops_before_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"broken"\n')
    assert len(check(tmp_path / "a.jsonl", "sft", max_rows=1).rows) == 1


def test_byte_order_mark_carriage_returns_and_misnamed_gzip_are_read(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n\r\n{"prompt": "c", "completion": "d"}'
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(content))
    (tmp_path / "c.jsonl.gz").write_bytes(content)
    assert len({check(tmp_path / name, "sft").found.rows_sha256 for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz")}) == 1
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfprompt,completion\r\na,b\r\n\r\nc,d\r\n")
    assert len(check(tmp_path / "a.csv", "sft").rows) == 2


def test_long_cells_are_read(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"prompt": "x" * 200_000, "completion": "1"}])
    assert len(check(tmp_path / "a.csv", "sft").rows[0]["prompt"][0]["content"]) == 200_000


SFT = '{"prompt": "a", "completion": "b"}'
BAD_VALUES: list[tuple[Role, Row | object, list[str]]] = [
    ("sft", {"prompt": "a"}, ["'completion'", "missing", "columns found: 'prompt'", "rename or add"]),
    ("sft", {"promt": "a", "completion": "b"}, ["'prompt'", "'promt', 'completion'", "did you mean 'promt'?"]),
    ("sft", {}, ["'prompt'", "missing", "columns found: none"]),
    ("sft", {"prompt": None, "completion": "b"}, ["'prompt'", "null", "fill it in"]),
    ("sft", {"prompt": " \n", "completion": "b"}, ["'prompt'", "empty", "fill it in"]),
    ("sft", {"prompt": [], "completion": "b"}, ["'prompt'", "the list is empty", "at least one message"]),
    ("sft", {"prompt": 5, "completion": "b"}, ["'prompt'", "got 5", "must be a text or a list", "write it as one"]),
    ("sft", {"prompt": "a", "completion": ""}, ["'completion'", "empty", "fill it in"]),
    ("sft", {"prompt": "a", "completion": {"role": "assistant"}}, ["'completion[0]'", "no 'content'", "fill it"]),
    ("sft", {"prompt": "a", "completion": [user("b")]}, ["'completion'", "the user's", "must be an assistant turn"]),
    ("sft", {"prompt": "a", "completion": [user("a"), assistant("b")]}, ["'completion'", "2 messages", "move"]),
    (
        "sft",
        {"prompt": [user("a"), assistant("b")], "completion": "c"},
        ["'prompt'", "assistant's", "end with a user turn"],
    ),
    ("sft", {"prompt": [system("a")], "completion": "c"}, ["'prompt'", "the system's", "add the user's turn"]),
    ("sft", {"prompt": ["a"], "completion": "c"}, ["'prompt[0]'", "got 'a'", "a message is", "write it as one"]),
    ("sft", {"prompt": [{"content": "a"}], "completion": "c"}, ["'prompt[0]'", "no 'role'", "only 'content'"]),
    (
        "sft",
        {"messages": [{"speaker": "human", "value": "a"}]},
        ["'messages[0]'", "no 'role', only 'speaker', 'value'", "rename its keys"],
    ),
    (
        "sft",
        {"prompt": [{"role": "User", "content": "a"}], "completion": "c"},
        ["'prompt[0]'", "unknown role 'User'", "system, user, assistant", "did you mean 'user'?"],
    ),
    (
        "sft",
        {"prompt": [{"role": "narrator", "content": "a"}], "completion": "c"},
        ["'prompt[0]'", "unknown role 'narrator'", "rename it or remove the row"],
    ),
    ("sft", {"prompt": [{"role": ["user"], "content": "a"}], "completion": "c"}, ["unknown role ['user']"]),
    ("sft", {"prompt": [{"role": "user"}], "completion": "c"}, ["'prompt[0]'", "no 'content'", "fill it in"]),
    ("sft", {"prompt": [user("")], "completion": "c"}, ["'prompt[0].content'", "empty"]),
    (
        "sft",
        {"prompt": [user("a"), {"role": "user", "content": None}], "completion": "c"},
        ["'prompt[1].content'", "null"],
    ),
    (
        "sft",
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}], "completion": "c"},
        ["'prompt[0].content[0]'", "a part of type 'image_url'", "only text can be trained on", "leave it out"],
    ),
    (
        "sft",
        {"messages": [user("a"), {"role": "assistant", "content": "b", "tool_calls": ["f"]}]},
        ["'messages[1].tool_calls'", "got 'f', which is no JSON", "a call is", "correct it"],
    ),
    ("sft", {"messages": None}, ["'messages'", "null"]),
    ("sft", {"messages": "a"}, ["'messages'", "got 'a'", "must be a list of"]),
    ("sft", {"messages": [user("a")]}, ["'messages'", "the user's", "must be an assistant turn"]),
    ("sft", {"messages": [assistant("a")]}, ["'messages'", "before the reply is missing", "end with a user turn"]),
    ("sft", {"prompt": "a\ud800", "completion": "b"}, ["'prompt'", r"'a\ud800'", "surrogate", "replace"]),
    ("sft", {"prompt": "a", "completion": "b", "kind": 3}, ["'kind'", "got 3", "kind is a text"]),
    ("sft", {"prompt": "a" * 9999, "completion": "c" * 9999, "kind": [1] * 9999}, ["'kind'", "[1, 1,", "...]"]),
    ("sft", [1], ["an array", "a row is a JSON object", "write it as one"]),
    ("sft", "text", ["a string", "a row is a JSON object"]),
    ("sft", None, ["the row is null", "a row is a JSON object"]),
    ("preference", {"prompt": "a", "chosen": "b"}, ["'rejected'", "missing", "'prompt', 'chosen'"]),
    ("preference", {"chosen": "b", "rejected": "c"}, ["'prompt'", "missing", "a row needs a prompt"]),
    (
        "preference",
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        ["'rejected'", "both sides are 'b'", "must differ"],
    ),
    ("preference", {"prompt": "a", "chosen": None, "rejected": "b"}, ["'chosen'", "null", "fill it in"]),
    (
        "preference",
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
        ["'rejected'", "both sides are 'b'"],
    ),
    (
        "preference",
        {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]},
        ["'chosen'", "shares the first 0", "last turn alone", "make the turns before it equal"],
    ),
    (
        "preference",
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a")]},
        ["'rejected'", "1 messages, of which the other side shares the first 1"],
    ),
    (
        "preference",
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), user("c")]},
        ["'rejected'", "the user's", "assistant turn"],
    ),
    (
        "preference",
        {"prompt": "z", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        ["'prompt'", "'z' is not what chosen and rejected begin with", "remove the column"],
    ),
    ("prompts", {"answer": "a"}, ["'prompt'", "missing", "columns found: 'answer'"]),
    ("prompts", {"prompt": "a", "answer": ["b", ""]}, ["'answer[1]'", "empty"]),
    ("prompts", {"prompt": "a", "answer": [None]}, ["'answer[0]'", "null", "a text, a finite number"]),
    ("prompts", {"prompt": "a", "answer": True}, ["'answer'", "got True"]),
    ("prompts", {"prompt": "a", "answer": float("nan")}, ["'answer'", "got nan", "finite"]),
    ("prompts", {"prompt": "a", "answer": {"text": "b"}}, ["'answer'", "got {'text'", "change it"]),
]


@pytest.mark.parametrize(("role", "value", "fragments"), BAD_VALUES)
def test_bad_row_is_refused(tmp_path: Path, role: Role, value: object, fragments: list[str]) -> None:
    good = {"prompt": "a", "completion": "b", "answer": "b", "chosen": "c", "rejected": "d"}
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (good, value)))
    message = refusal(path, role)
    assert message.startswith(f"{path}: line 2: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    assert [fragment for fragment in fragments if fragment not in message] == []


def refusal(path: Path | str, role: Role, **keys: Any) -> str:
    """Message of the error that `path` is refused with."""
    with pytest.raises(InputError) as raised:
        check(path, role, **keys)
    return str(raised.value)


BAD_FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "key twice": (
        "a.jsonl",
        b'{"prompt": "a", "completion": "b", "prompt": "c"}',
        ["a.jsonl: line 1: unreadable JSON", "the key 'prompt' is there twice", "correct it"],
    ),
    "key twice in an array": (
        "a.json",
        f'[{SFT},\n{{"prompt": "a", "completion": [{{"content": "b", "content": "c"}}]}}]'.encode(),
        ["a.json: line 2: unreadable JSON", "the key 'content' is there twice"],
    ),
    "empty": ("a.jsonl", b"", ["a.jsonl: the file holds no rows (0 bytes)", "add rows"]),
    "empty json": ("a.json", b"", ["no rows (0 bytes)"]),
    "empty csv": ("a.csv", b"", ["no rows (0 bytes)"]),
    "empty parquet": ("a.parquet", b"", ["no rows (0 bytes)"]),
    "blank lines": ("a.jsonl", b"\n\n \n", ["no rows (4 bytes)"]),
    "empty array": ("a.json", b"[]", ["no rows"]),
    "header alone": ("a.csv", b"prompt,completion\n", ["no rows"]),
    "empty gzip": ("a.jsonl.gz", gzip.compress(b""), ["no rows"]),
    "broken line": (
        "a.jsonl",
        f'{SFT}\n\n{{"prompt": "a" "completion": "b"}}\n'.encode(),
        ["a.jsonl: line 3: invalid JSON at column 16", "',' delimiter", "correct it or remove the line"],
    ),
    "array in lines": ("a.jsonl", f"[\n{SFT}\n]".encode(), ["a.jsonl: line 1: invalid JSON", "one JSON object"]),
    "deep": ("a.jsonl", b"[" * 100_000, ["a.jsonl: line 1: unreadable JSON", "recursion"]),
    "deep array": ("a.json", b"[" * 100_000, ["a.json: line 1: unreadable JSON", "recursion"]),
    "huge number": ("a.jsonl", b'{"x": ' + b"1" * 5000 + b"}", ["a.jsonl: line 1: unreadable JSON", "4300"]),
    "broken array": ("a.json", f"[{SFT},\n {SFT},]".encode(), ["a.json: line 2, column", "invalid JSON", "correct it"]),
    "object": ("a.json", b'{\n"train": []}', ["a.json: the file is one object with the keys 'train'", "an array of"]),
    "scalar": ("a.json", b"7", ["a.json: the file is a number", "an array of objects"]),
    "row no object": ("a.json", f"[{SFT}, 5]".encode(), ["a.json: row 2: the row is a number"]),
    "latin-1 lines": (
        "a.jsonl",
        f'{SFT}\n{{"prompt": "é"}}'.encode("latin-1"),
        ["a.jsonl: line 2: byte 0xe9 is not UTF-8", "iconv"],
    ),
    "latin-1 array": (
        "a.json",
        f'[{SFT},\n"é"]'.encode("latin-1"),
        ["a.json: line 2: byte 0xe9", "save the file as UTF-8"],
    ),
    "latin-1 cells": ("a.csv", "prompt,completion\na,b\né,c\n".encode("latin-1"), ["a.csv: line 3: byte 0xe9"]),
    "utf-16": ("a.jsonl", SFT.encode("utf-16"), ["a.jsonl: line 1: byte 0xff is not UTF-8"]),
    "too few cells": (
        "a.csv",
        b"prompt,completion\na,b\nc\n",
        ["a.csv: row 2: 1 cells", "2 columns", "add the missing"],
    ),
    "too many cells": ("a.csv", b"prompt,completion\na,b,c\n", ["a.csv: row 1: 3 cells", "'prompt', 'completion'"]),
    "open quote": ("a.csv", b'prompt,completion\n"a,b\n', ["a.csv: line 2: invalid CSV", "double the quotes"]),
    "header twice": ("a.csv", b"prompt,prompt\na,b\n", ["a.csv: line 1", "'prompt' twice", "rename or remove"]),
    "other separator": (
        "a.csv",
        b"prompt;completion\na;b\n",
        ["a.csv: columns found: 'prompt;completion'", "nearest is"],
    ),
    "empty cell": ("a.csv", b"prompt,completion\na,\n", ["a.csv: row 1: column 'completion'", "empty"]),
    "python in a cell": (
        "a.csv",
        b"prompt,completion\n\"[{'role': 'user', 'content': 'a'}]\",b\n",
        ["a.csv: row 1: column 'prompt'", "not JSON", "json.dumps"],
    ),
    "no parquet": ("a.parquet", b"PAR1 and then nothing", ["a.parquet: ", "fetch it again"]),
    "cut gzip": ("a.jsonl.gz", gzip.compress(SFT.encode() * 99)[:-9], ["a.jsonl.gz: cannot be read", "fetch it again"]),
    "damaged gzip": ("a.csv.gz", b"\x1f\x8b\x08" + b"x" * 40, ["a.csv.gz: cannot be read", "check that it is whole"]),
    "unknown ending": ("a.txt", b"a", ["a.txt: the ending '.txt'", "JSONL (.jsonl", "Parquet"]),
    "no ending": ("rows", b"a", ["rows: the ending ''", "JSONL"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused(tmp_path: Path, case: str) -> None:
    name, content, fragments = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path, "sft")
    assert message.startswith(str(path))
    assert [fragment for fragment in fragments if fragment not in message] == []


def test_first_three_problems_of_a_rule_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([SFT, "{", "[]", '{"prompt": "a"}', SFT, "7", '{"prompt": "a", "completion": 3}']))
    lines = refusal(path, "sft").splitlines()
    assert [line.removeprefix(f"{path}: ")[:6] for line in lines[:4]] == ["line 2", "line 3", "line 6", "line 4"]
    assert "line 7" not in "".join(lines)
    assert lines[4:] == ["… and 1 further problem in 7 rows", "by rule: wrong_type 4, missing 1"]


def test_what_ends_a_file_is_listed_before_its_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "", "completion": "a"}\n\xff\n')
    lines = refusal(tmp_path / "a.jsonl", "sft").splitlines()
    assert [line.partition("a.jsonl: ")[2][:6] for line in lines] == ["line 2", "line 1"]


def test_turns_of_either_spelling_are_read_from_csv(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for name, spoken in (("a.csv", turns), ("b.csv", [dict(reversed(turn.items())) for turn in turns])):
        write_csv(tmp_path / name, [{"conversations": spoken}])
        assert check(tmp_path / name, "sft").rows == [
            {"prompt": [user("a")], "completion": [assistant("b")], "kind": "all"}
        ]


def test_a_row_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "x": ' + "[" * 800 + "]" * 800 + "}")
    message = refusal(tmp_path / "a.jsonl", "prompts")
    assert "a.jsonl: line 2: the row cannot be converted (RecursionError" in message


@pytest.mark.parametrize(("time", "zone"), [(2**62, None), (1, "Mars/Olympus")])
def test_times_that_python_does_not_have_are_refused(tmp_path: Path, time: int, zone: str | None) -> None:
    table = pyarrow.table({"prompt": ["a"], "at": pyarrow.array([time], pyarrow.timestamp("us", zone))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write(table)
    for name in ("a.parquet", "a.arrow"):
        assert f"{name}: row 1: unreadable" in refusal(tmp_path / name, "prompts")


def test_null_in_parquet_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": None}])
    assert "a.parquet: row 2: column 'completion': got null" in refusal(tmp_path / "a.parquet", "sft")


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "sft.jsonl").write_text(SFT)
    assert "no such file or folder; did you mean 'sft.jsonl'?" in refusal(tmp_path / "stf.jsonl", "sft")
    assert "no folder" in refusal(tmp_path / "dat" / "sft.jsonl", "sft")
    assert "no such file" in refusal("sft-of-yesterday.jsonl", "sft")
    assert "cannot be read" in refusal("x" * 5000, "sft")
    (tmp_path / "data").mkdir()
    assert "holds no data file; give JSONL" in refusal(tmp_path / "data", "sft")
    (tmp_path / "a.csv").write_text("x")
    assert "mixes .csv and .jsonl ('a.csv', 'sft.jsonl')" in refusal(tmp_path, "sft")


@pytest.mark.parametrize("key", ["name", "split", "revision"])
def test_hub_keys_are_refused_for_local_files(tmp_path: Path, key: str) -> None:
    (tmp_path / "sft.jsonl").write_text(SFT)
    assert f"{key} 'test' applies to hub datasets only" in refusal(tmp_path / "sft.jsonl", "sft", **{key: "test"})


def test_hub_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": ""}])
    asked: list[object] = []

    def load_dataset(*names: str | None, **keys: str | None) -> datasets.Dataset:
        asked.append((names, keys))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(check("org/name", "sft", max_rows=1, name="main", split="test", revision="v1").rows) == 1
    assert asked == [(("org/name", "main"), {"split": "test", "revision": "v1"})]
    assert refusal("name", "sft").startswith("name (train): row 2: column 'completion'")


def test_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("no-such-organisation/no-such-rows", "sft", name="main")
    assert message.startswith("no-such-organisation/no-such-rows: there is no local file or folder of this name")
    assert "name 'main', split 'train'" in message
    assert "name a local file" in message


def test_no_heavy_library_is_imported() -> None:
    code = "import sys, tasks.data.rows; print(sorted({'torch', 'prefect', 'datasets', 'pyarrow'} & set(sys.modules)))"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ROLES: tuple[Role, ...] = get_args(Role)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TURNS = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", "x"]) | JSON_VALUES, "content": JSON_VALUES}
)
CELLS = JSON_VALUES | st.lists(TURNS, max_size=3)
COLUMNS = ["prompt", "completion", "messages", "chosen", "rejected", "answer", "kind", "further"]
ROWS = JSON_VALUES | st.fixed_dictionaries({}, optional=dict.fromkeys(COLUMNS, CELLS))
TEXTS = st.text(min_size=1).filter(lambda text: bool(text.strip()))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROWS, min_size=1, max_size=3),
    role=st.sampled_from(ROLES),
    file=st.sampled_from(["j.jsonl", "j.json"]),
)
def test_any_json_is_checked_or_refused(tmp_path: Path, rows: list[Any], role: Role, file: str) -> None:
    path = tmp_path / file
    path.write_text("\n".join(map(json.dumps, rows)) if file == "j.jsonl" else json.dumps(rows))
    try:
        checked = check(path, role)
    except InputError as error:
        assert str(path) in str(error)
        str(error).encode()
    else:
        assert checked.found.rows_sha256 == digest(checked.rows)
        assert len(checked.rows) + checked.found.duplicates == len(rows)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TEXTS, chosen=TEXTS, file=st.sampled_from(list(WRITERS)))
def test_text_is_unchanged(tmp_path: Path, prompt: str, chosen: str, file: str) -> None:
    WRITERS[file](tmp_path / file, [{"prompt": prompt, "chosen": chosen, "rejected": chosen + "."}])
    assert check(tmp_path / file, "preference").rows == [
        {
            "prompt": [user(prompt)],
            "chosen": [assistant(chosen)],
            "rejected": [assistant(chosen + ".")],
            "kind": "all",
        }
    ]

"""Every format comes to the normal form of its role, is said in one sentence, and is never guessed."""

import json
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError
from models.fingerprint import canonical_json
from models.sources import Columns, DatasetSource, FormatName
from tasks.data.formats.format import Format
from tasks.data.formats.reading import Role
from tasks.data.formats.recognition import recognise
from tasks.data.problems import RowProblem
from tasks.data.readers import Row
from tasks.data.turns import Message
from tests.forms import demonstrations, preferences, prompts
from tests.forms.broken import BROKEN
from tests.forms.choices import AMBIGUOUS, MAPPED, UNKNOWN
from tests.forms.rows import completion, pair, said, turns
from tests.prepared import Sourced, digest, sourced

QUICKSTART = Path(__file__).parents[1] / "settings" / "quickstart"
ROLES: tuple[Role, ...] = get_args(Role)
TABLES: dict[Role, dict[str, tuple[FormatName, Row, Row, list[str]]]] = {
    "sft": demonstrations.FORMS,
    "preference": preferences.FORMS,
    "prompts": prompts.FORMS,
}
FORMS = [
    pytest.param(role, *case, id=f"{role}: {name}") for role, table in TABLES.items() for name, case in table.items()
]


def source(**keys: Any) -> DatasetSource:
    """A source that asks for format or columns."""
    return DatasetSource.model_validate({"path": "rows.jsonl", **keys})


def known(rows: list[Row], role: Role, **keys: Any) -> Format:
    """The format that is recognised."""
    return recognise(rows, role, source(**keys))


def check(path: Path, role: Role, **keys: Any) -> Sourced:
    """The rows of a file."""
    return sourced(source(**keys).model_copy(update={"path": str(path)}), role)


def written(path: Path, rows: list[Row]) -> Path:
    """A file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("role", "name", "row", "normal", "fragments"), FORMS)
def test_every_format_is_recognised_and_read(
    role: Role, name: FormatName, row: Row, normal: Row, fragments: list[str]
) -> None:
    form = known([row], role)
    assert form.key == name
    assert form.convert(row) == normal
    assert [fragment for fragment in fragments if fragment not in form.sentence] == []
    assert pickle.loads(pickle.dumps(form)).convert(row) == normal
    assert known([row], role, format=name).convert(row) == normal


def test_every_format_has_an_example() -> None:
    shown = {name for table in TABLES.values() for name, *_ in table.values()}
    assert shown | {"unpaired", "reply_tree"} == set(get_args(FormatName))


def test_columns_decide_and_not_the_order_of_rows() -> None:
    rows: list[Row] = [{"question": "a", "answer": ""}, {"question": "b", "answer": "1\n#### 1"}]
    assert known(rows, "prompts").key == known(rows[::-1], "prompts").key == "gsm8k"


LATER: dict[str, tuple[Role, Row, Row, list[Message]]] = {
    "input, empty so far": (
        "sft",
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a", "input": "x", "output": "b"},
        said("a\n\nx"),
    ),
    "input, not there so far": (
        "sft",
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "x", "output": "b"},
        said("a\n\nx"),
    ),
    "input where others have a context": (
        "prompts",
        {"instruction": "a", "context": "c", "input": None},
        {"instruction": "a", "context": "", "input": "x"},
        said("a\n\nx"),
    ),
    "context": ("prompts", {"instruction": "a"}, {"instruction": "a", "context": "x"}, said("a\n\nx")),
    "history": (
        "sft",
        {"instruction": "a", "history": [], "output": "b"},
        {"instruction": "a", "history": [["x", "y"]], "output": "b"},
        said("x", "y", "a"),
    ),
    "system message": (
        "sft",
        {"conversations": turns(("human", "a"), ("gpt", "b")), "system": ""},
        {"conversations": turns(("human", "a"), ("gpt", "b")), "system": "s"},
        [{"role": "system", "content": "s"}, *said("a")],
    ),
    "system message beside a question": (
        "preference",
        {"question": "a", "chosen": "b", "rejected": "c"},
        {"question": "a", "chosen": "b", "rejected": "c", "system_prompt": "s"},
        [{"role": "system", "content": "s"}, *said("a")],
    ),
}


@pytest.mark.parametrize("case", LATER)
def test_a_column_that_is_filled_later_is_read(case: str) -> None:
    role, first, later, prompt = LATER[case]
    normal = known([first] * 100, role).convert(later)
    assert normal["prompt"] == prompt
    assert "extra" not in normal


def test_a_solution_without_its_mark_is_a_problem_wherever_it_stands() -> None:
    rows: list[Row] = [{"question": "a", "answer": "2"}, {"question": "b", "answer": "1\n#### 1"}]
    form = known(rows, "prompts")
    assert form.convert(rows[1])["answer"] == ["1"]
    with pytest.raises(RowProblem, match="no '####'"):
        form.convert(rows[0])


@pytest.mark.parametrize(("role", "row", "fragments", "remedy"), AMBIGUOUS)
def test_nothing_is_guessed(role: Role, row: Row, fragments: list[str], remedy: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the rows can be read in 2 ways") as raised:
        known([row], role)
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []
    assert known([row], role, **remedy).convert(row)


@pytest.mark.parametrize(("role", "row", "keys", "fragments"), UNKNOWN)
def test_unknown_columns_are_told_with_the_nearest(
    role: Role, row: Row, keys: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(InputError) as raised:
        known([row], role, **keys)
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []


@pytest.mark.parametrize(("role", "row", "columns", "normal"), MAPPED)
def test_a_mapping_comes_before_recognition(role: Role, row: Row, columns: dict[str, str], normal: Row) -> None:
    form = known([row], role, columns=columns)
    assert form.convert(row) == normal
    assert all(f"`{target}` is '{column}'" in form.sentence for target, column in columns.items())


def test_every_target_of_a_mapping_is_used() -> None:
    tried = {target for _, _, columns, _ in MAPPED for target in columns}
    tried |= {target for _, _, _, remedy in AMBIGUOUS for target in remedy.get("columns", {})} | {"scores"}
    assert tried == set(Columns.model_fields)


@pytest.mark.parametrize(("role", "fitting", "row", "rule", "fragments"), BROKEN)
def test_a_row_that_does_not_fit_breaks_a_rule(
    role: Role, fitting: Row, row: Row, rule: str, fragments: list[str]
) -> None:
    form = known([fitting], role)
    with pytest.raises(RowProblem) as raised:
        form.convert(row)
    assert raised.value.rule == rule
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []


LABELLED: list[Row] = [
    {"prompt": "a", "completion": "good 2", "label": True},
    {"prompt": "a", "completion": "bad 2", "label": False},
    {"prompt": "a", "completion": "good 1", "label": 1},
    {"prompt": "b", "completion": "alone", "label": True},
    {"prompt": "a", "completion": "bad 1", "label": False},
    {"prompt": "a", "completion": "bad 1", "label": False},
    {"prompt": "c", "completion": "same", "label": True},
    {"prompt": "c", "completion": "same", "label": False},
]


@pytest.mark.parametrize("step", [1, -1])
def test_labelled_replies_become_pairs_whatever_their_order(tmp_path: Path, step: int) -> None:
    checked = check(written(tmp_path / "a.jsonl", LABELLED[::step]), "preference")
    assert checked.rows == [pair("a", "good 1", "bad 1"), pair("a", "good 2", "bad 2")]
    assert (checked.found.unpaired, checked.found.duplicates) == (4, 0)
    assert "a good and a bad reply to one prompt are a pair" in checked.found.recognised


def test_labelled_conversations_become_pairs(tmp_path: Path) -> None:
    rows = [{"messages": said("a", "b", "c", end), "label": end == "good"} for end in ("good", "bad")]
    assert check(written(tmp_path / "a.jsonl", rows), "preference").rows == [pair(said("a", "b", "c"), "good", "bad")]


def test_labelled_replies_without_a_pair_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no two of its 1 rows make a pair"):
        check(written(tmp_path / "a.jsonl", LABELLED[:1]), "preference")


def node(own: str, parent: str | None, role: str, text: str, rank: int | None = None) -> Row:
    """A message of a tree, as a row."""
    return {"message_id": own, "parent_id": parent, "role": role, "text": text, "rank": rank}


FLAT = [
    node("1", None, "prompter", "a"),
    node("2", "1", "assistant", "worst", 2),
    node("3", "1", "assistant", "best", 0),
    node("4", "1", "assistant", "middle", 1),
    node("5", "3", "prompter", "and?"),
    node("6", "5", "assistant", "yes", 0),
    node("7", "5", "assistant", "no", 1),
    node("8", None, "prompter", "unanswered"),
]
BEST_AND_WORST = [pair("a", "best", "worst"), pair(said("a", "best", "and?"), "yes", "no")]


@pytest.mark.parametrize("step", [1, -1])
def test_trees_of_rows_give_the_best_and_the_worst_reply(tmp_path: Path, step: int) -> None:
    checked = check(written(tmp_path / "a.jsonl", FLAT[::step]), "preference")
    assert sorted(checked.rows, key=canonical_json) == sorted(BEST_AND_WORST, key=canonical_json)
    assert checked.found.unpaired == 4


def test_two_messages_of_one_id_are_refused_and_a_repeated_one_is_not(tmp_path: Path) -> None:
    assert check(written(tmp_path / "a.jsonl", [*FLAT, FLAT[2]]), "preference").found.unpaired == 4
    with pytest.raises(InputError, match="two messages are '3'; messages of a tree need ids of their own"):
        check(written(tmp_path / "b.jsonl", [*FLAT, {**FLAT[2], "text": "other"}]), "preference")


def test_scores_of_any_size_are_compared(tmp_path: Path) -> None:
    row = {"prompt": "a", "responses": ["b", "c"], "scores": [10**400, 1]}
    assert check(written(tmp_path / "a.jsonl", [row]), "preference").rows == [pair("a", "b", "c")]


def test_whole_trees_give_the_same(tmp_path: Path) -> None:
    def nested(own: str) -> Row:
        row = next(row for row in FLAT if row["message_id"] == own)
        replies = [nested(child["message_id"]) for child in FLAT if child["parent_id"] == own]
        return {key: row[key] for key in ("role", "text", "rank")} | {"replies": replies}

    rows = [{"message_tree_id": own, "prompt": nested(own)} for own in ("1", "8")]
    checked = check(written(tmp_path / "a.jsonl", rows), "preference")
    assert sorted(checked.rows, key=canonical_json) == sorted(BEST_AND_WORST, key=canonical_json)


def test_each_instance_of_a_self_instruct_task_is_a_row(tmp_path: Path) -> None:
    instances = [{"input": "b", "output": "c"}, {"input": "", "output": "d"}]
    rows: list[Row] = [{"instruction": "a", "instances": instances}, {"instruction": "e", "instances": instances[:1]}]
    found = check(written(tmp_path / "a.jsonl", rows), "sft")
    assert found.rows == [completion("a\n\nb", "c"), completion("a", "d"), completion("e\n\nb", "c")]
    assert found.found.read == 2
    assert [row["prompt"] for row in check(tmp_path / "a.jsonl", "prompts").rows] == [
        said("a\n\nb"), said("a"), said("e\n\nb")
    ]  # fmt: skip
    rows[1] = {"instruction": "a", "instances": [*instances, {"input": "x"}]}
    with pytest.raises(InputError, match=r"a\.jsonl: line 2, instance 3: column 'instances\.output': got null"):
        check(written(tmp_path / "a.jsonl", rows), "sft")


# The digest of each shipped file in each role that can read it, as version 0.1 gives it: checkpoints are named by it.
DIGESTS = {
    ("sft", "sft"): "e608e5adc5d7a7a4fa68d64d4537c7ea698fc37623c459c782af0b961810bcfe",
    ("sft", "prompts"): "96f9bc87c9ae4914be2bbde27b8ae477743d72c75f40fb92ab51bf014884ec77",
    ("preferences", "preference"): "2856729055d50b1ba7063e4da1e0148a33c0246a72b9eddd5a618afdc1d37178",
    ("preferences", "prompts"): "fa0893404f8a8bd723483bac07ffde308eb19be0d13e97ae763221497e0c6096",
    ("prompts", "prompts"): "493cb8bc6ff714457532bc817c9297e6393d4619cc0aedad018d6461aca40a5c",
    ("heldout", "prompts"): "56ed5fe36ea596de19638b49a7673d1a020f03030e9ac9d3613d61d9de53e60a",
    ("heldout_preferences", "preference"): "3d2e35b20e18a7c8e922da219b409d6121e5c3b64ee93356fed9fb29c7a8bbe9",
    ("heldout_preferences", "prompts"): "bff569cb6743462ad03f47fda09024cdc855b47743fa36d18816a7afc96e056e",
}


@pytest.mark.parametrize(("name", "role"), DIGESTS)
def test_the_quickstarts_rows_are_what_they_were(name: str, role: Role) -> None:
    assert check(QUICKSTART / f"{name}.jsonl", role).found.rows_sha256 == DIGESTS[name, role]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\n\nHuman: a\n\nAssistant: b", "a", "[]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = (
    "role",
    "from",
    "content",
    "value",
    "type",
    "text",
    "tool_calls",
    "name",
    "arguments",
    "weight",
    "replies",
    "rank",
)
SPEAKERS = st.sampled_from(["user", "assistant", "tool", "human", "gpt", "function_call", "prompter"])
TURNS = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, VALUES) | {"role": SPEAKERS, "from": SPEAKERS})
CELLS = VALUES | TURNS | st.lists(TURNS, max_size=3) | st.lists(st.integers(0, 3), max_size=3)
NAMES = sorted(
    {name for table in TABLES.values() for _, row, _, _ in table.values() for name in row}
    | {"kind", "label", "message_id", "parent_id", "rank", "role"}
)
ROWS = st.dictionaries(st.sampled_from(NAMES), CELLS, max_size=7)


@settings(max_examples=100)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=3),
    role=st.sampled_from(ROLES),
    name=st.sampled_from(["auto", *get_args(FormatName)]),
)
def test_no_rows_crash_the_recogniser_or_a_converter(rows: list[Row], role: Role, name: str) -> None:
    try:
        form = known(rows, role, format=name)
    except InputError as error:
        str(error).encode("utf-8", "surrogatepass")
        return
    converted = []
    for row in rows:
        try:
            converted.append(form.convert(row))
        except RowProblem as problem:
            assert problem.rule
    digest(form.combine(converted).rows if form.combine else converted)


TEXTS = st.text(min_size=1, max_size=30).filter(lambda text: bool(text.strip()) and "\n\n" not in text)
"""Without blank lines, which part the turns of a transcript and an input from its instruction."""


def spellings(asked: list[str]) -> dict[str, Row]:
    """One conversation in the words of each format that can hold it."""
    names = [("human", "gpt")[at % 2] for at in range(len(asked))]
    marks = [("Human", "Assistant")[at % 2] for at in range(len(asked))]
    parts = [
        {
            "role": turn["role"],
            "content": [{"type": "text", "text": turn["content"][:1]}, {"type": "text", "value": turn["content"][1:]}],
        }
        for turn in said(*asked)
    ]
    history = [asked[at : at + 2] for at in range(0, len(asked) - 2, 2)]
    return {
        "messages": {"messages": said(*asked)},
        "sharegpt": {"conversations": turns(*zip(names, asked, strict=True))},
        "parts": {"messages": parts},
        "alpaca": {"instruction": asked[-2], "output": asked[-1], "history": history},
        "prompt": {"prompt": said(*asked[:-1]), "completion": asked[-1]},
        "hh": {"text": "".join(f"\n\n{mark}: {text}" for mark, text in zip(marks, asked, strict=True))},
    }


@settings(max_examples=50)
@given(asked=st.lists(TEXTS, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_every_character_survives_every_spelling(asked: list[str]) -> None:
    normal = completion(said(*asked[:-1]), asked[-1])
    for name, row in spellings(asked).items():
        assert known([row], "sft").convert(row) == normal, name

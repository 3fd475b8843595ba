"""What becomes of rows that break a data rule, in files of every kind of damage, and `align data`."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from models.data_rules import Action, DataRules, Rule
from models.errors import InputError
from models.preparation import Cleaning, Prepared
from models.recipe import Recipe
from models.sources import BaseModelSource, DatasetSource, MixturePart
from tasks.core.example import render_example
from tasks.data.checking import cleaning_of, kept_apart, read_tables, wanted_rows
from tasks.data.formats.reading import Role
from tasks.data.heldout import held_out
from tasks.data.leakage import check_leakage
from tasks.data.left_out import LEFT_OUT
from tasks.data.lines import Row
from tasks.data.preparations import Preparations
from tasks.data.preparing import Manner
from tasks.data.snapshot import read_rows
from tasks.data.tokens import tokenizer_of
from tests.tiny import CHAT_TEMPLATE

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
S, T = {"role": "system", "content": "s"}, {"role": "tool", "content": "t"}
WORDS = " ".join(f"word{number}" for number in range(30))


QUOTED = " ".join(f"quoted{number}" for number in range(14))


def sft(**changes: Any) -> Row:
    return {"prompt": "q", "completion": "a"} | changes


def pair(**changes: Any) -> Row:
    return {"prompt": "q", "chosen": "good", "rejected": "bad"} | changes


def talk(*turns: Any) -> Row:
    return {"messages": list(turns)}


BROKEN: list[tuple[Role, Row | str, Rule, str]] = [
    ("sft", {"prompt": "q"}, "missing", "column 'completion': it is missing"),
    ("sft", {"completion": "a"}, "missing", "column 'prompt': it is missing"),
    ("sft", sft(prompt=None), "missing", "column 'prompt': got null"),
    ("sft", sft(completion=None), "missing", "column 'completion': got null"),
    ("sft", {}, "missing", "column 'prompt': it is missing"),
    ("prompts", '{"prompt": "q", "x": ' + "[" * 800 + "]" * 800 + "}", "wrong_type", "cannot be converted"),
    ("sft", sft(prompt=5), "wrong_type", "column 'prompt': got 5"),
    ("sft", sft(completion=True), "wrong_type", "column 'completion': got True"),
    ("sft", sft(completion=1.5), "wrong_type", "column 'completion': got 1.5"),
    ("sft", sft(prompt={"role": "user"}), "wrong_type", "column 'prompt'"),
    ("sft", sft(prompt=["q"]), "wrong_type", "column 'prompt[0]'"),
    ("sft", sft(kind=5), "wrong_type", "column 'kind'"),
    ("sft", "{", "wrong_type", "invalid JSON at column"),
    ("sft", "[1, 2]", "wrong_type", "the row is an array"),
    ("sft", '"text"', "wrong_type", "the row is a string"),
    ("sft", "null", "wrong_type", "the row is null"),
    ("sft", "7", "wrong_type", "the row is a number"),
    ("sft", '{"prompt": "q", "completion": ' + "9" * 5000 + "}", "wrong_type", "unreadable JSON"),
    ("sft", '{"prompt": "q" "completion": "a"}', "wrong_type", "invalid JSON"),
    ("sft", sft(prompt=""), "empty", "column 'prompt': the text is empty"),
    ("sft", sft(prompt=" \n\t"), "empty", "column 'prompt': the text is empty"),
    ("sft", sft(completion=""), "empty", "column 'completion': the text is empty"),
    ("sft", sft(completion="\u2003"), "empty", "column 'completion': the text is empty"),
    ("sft", sft(prompt=[]), "empty", "the list is empty"),
    ("sft", sft(prompt=[U | {"content": " "}]), "empty", "column 'prompt[0].content'"),
    ("sft", sft(prompt=[{"role": "wizard", "content": "q"}]), "roles", "unknown role 'wizard'"),
    ("sft", sft(prompt=[{"role": "usr", "content": "q"}]), "roles", "did you mean 'user'"),
    ("sft", sft(prompt=[T, U]), "roles", "a tool's result follows nothing"),
    ("sft", sft(completion=[A, A]), "roles", "2 messages where the reply should be"),
    ("sft", sft(prompt=[U | {"tool_calls": [{"name": "f", "arguments": {}}]}]), "roles", "the user's turn has"),
    ("sft", sft(prompt=[U, U]), "turn_order", "the user's turn follows the user's"),
    ("sft", sft(prompt=[U, S, U]), "turn_order", "the system's turn follows the user's"),
    ("sft", sft(prompt=[S, S, U]), "turn_order", "the system's turn follows the system's"),
    ("sft", sft(prompt=[U, A, A, U]), "turn_order", "column 'prompt[2]'"),
    ("sft", sft(prompt=[U, A]), "last_turn", "a prompt must end with a user turn"),
    ("sft", sft(prompt=[S]), "last_turn", "the last turn before the reply is the system's"),
    ("sft", sft(completion=[U]), "last_turn", "the reply must be an assistant turn"),
    ("sft", sft(completion=[A | {"weight": 0}]), "last_turn", "a weight of 0"),
    ("sft", sft(completion="half \ud83d"), "unicode", "half a surrogate pair"),
    ("sft", sft(prompt="\udc00"), "unicode", "column 'prompt'"),
    ("sft", sft(prompt=[U | {"content": "x\ud800"}]), "unicode", "column 'prompt[0].content'"),
    ("sft", sft(completion="end<|im_end|>"), "special_tokens", "'<|im_end|>'; it is a special token"),
    ("sft", sft(prompt="<|im_start|>system\nobey"), "special_tokens", "'<|im_start|>'"),
    ("sft", sft(completion="a<|endoftext|>"), "special_tokens", "column 'completion[0].content'"),
    ("sft", sft(prompt="[INST] q [/INST]"), "foreign_marks", "'[INST]'; it is a mark"),
    ("sft", sft(prompt="<<SYS>>s<</SYS>> q"), "foreign_marks", "'<<SYS>>'"),
    ("sft", sft(completion="### Response: a"), "foreign_marks", "'### Response:'"),
    ("sft", sft(completion="a<|eot_id|>"), "foreign_marks", "'<|eot_id|>'"),
    ("sft", sft(completion="a<end_of_turn>"), "foreign_marks", "'<end_of_turn>'"),
    ("sft", sft(completion="a\n\nHuman: more"), "foreign_marks", "Human:"),
    ("sft", sft(completion="long " * 200), "too_long", "tokens; its stage takes 256"),
    ("sft", sft(prompt="q 1", completion="a 1"), "duplicate", "an earlier row is the same"),
    ("sft", sft(prompt=WORDS + " more"), "near_duplicate", "mostly the same words"),
    ("preference", {"prompt": "q", "chosen": "good"}, "missing", "column 'rejected': it is missing"),
    ("preference", pair(rejected=None), "missing", "column 'rejected': got null"),
    ("preference", pair(chosen=3), "wrong_type", "column 'chosen': got 3"),
    ("preference", pair(chosen=""), "empty", "column 'chosen': the text is empty"),
    ("preference", pair(chosen="bad"), "equal_pair", "chosen and rejected must differ"),
    ("preference", pair(chosen=[A], rejected=[A]), "equal_pair", "both sides are 'a'"),
    ("preference", {"chosen": [U, A], "rejected": [S, U, A]}, "histories", "must differ in their last turn alone"),
    ("preference", {"prompt": "other", "chosen": [U, A], "rejected": [U, A | {"content": "b"}]}, "histories", "beside"),
    ("preference", pair(chosen=[U]), "last_turn", "the reply must be an assistant turn"),
    ("preference", pair(chosen="x\ud800"), "unicode", "column 'chosen'"),
    ("preference", pair(rejected="[INST]"), "foreign_marks", "column 'rejected[0].content'"),
    ("preference", pair(prompt="q 2", chosen="bad 2", rejected="good 2"), "conflict", "an earlier pair is its reverse"),
    ("preference", pair(prompt="q 3", chosen="good 3", rejected="bad 3"), "duplicate", "an earlier row is the same"),
    ("prompts", {"answer": "4"}, "missing", "column 'prompt': it is missing"),
    ("prompts", {"prompt": 5, "answer": "4"}, "wrong_type", "column 'prompt': got 5"),
    ("prompts", {"prompt": "", "answer": "4"}, "empty", "column 'prompt': the text is empty"),
    ("prompts", {"prompt": [U, A], "answer": "4"}, "last_turn", "a prompt must end with a user turn"),
    ("prompts", {"prompt": "\udfff", "answer": "4"}, "unicode", "column 'prompt'"),
]  # fmt: skip
"""A role, a row that does not fit it, the rule that it breaks, and a part of what is said of it."""
GOOD: dict[Role, list[Row]] = {
    "sft": [sft(prompt=WORDS), *(sft(prompt=f"q {number}", completion=f"a {number}") for number in range(20))],
    "preference": [pair(prompt=f"q {n}", chosen=f"good {n}", rejected=f"bad {n}") for n in range(20)],
    "prompts": [{"prompt": f"q {number}", "answer": str(number)} for number in range(20)],
}
MENDED: list[tuple[Row, Rule, str]] = [
    (sft(completion="half \ud83d"), "unicode", "half \ufffd"),
    (sft(completion="end<|im_end|>"), "special_tokens", "end"),
    (sft(completion="[INST]a[/INST]"), "foreign_marks", "a"),
    (sft(prompt=[U, A], completion="reply"), "last_turn", "reply"),
]


def write(path: Path, rows: list[Row | str]) -> Path:
    """Rows as JSON lines; texts as they are."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def prepared(path: Path, role: Role, model: Path | None = None, **rules: Any) -> tuple[Prepared, Path]:
    source = DatasetSource(path=str(path))
    limit = 256 if "too_long" in rules else None
    asked = BaseModelSource(source="folder", name=str(model)) if model else None
    cleaning = Cleaning(rules=DataRules(**rules), model=asked, max_tokens=limit)
    preparations = Preparations(path.parent / "home", Manner(workers=0))
    ready = preparations.make(source, wanted_rows(source, role, None, (), cleaning))
    return ready.prepared, ready.folder


def actions(rule: Rule) -> tuple[Action, ...]:
    """What the rule's field takes."""
    schema = DataRules.model_json_schema()["properties"][rule]
    return tuple(schema["enum"])


CASES = [
    pytest.param(role, row, rule, said, action, id=f"{rule}-{action}-{number}")
    for number, (role, row, rule, said) in enumerate(BROKEN)
    for action in actions(rule)
    if action != "fix" and (rule != "too_long" or action != "keep")
]


def test_there_are_enough_kinds_of_damage() -> None:
    assert len(BROKEN) >= 60
    assert {rule for _, _, rule, _ in BROKEN} == set(DataRules.model_fields) - {
        "tie",
        "leak",
        "near_leak",
        "max_dropped",
    }


@pytest.mark.parametrize(("role", "row", "rule", "said", "action"), CASES)
def test_a_rule_decides(
    tmp_path: Path, tiny_model: Path, role: Role, row: Row | str, rule: Rule, said: str, action: Action
) -> None:
    file = write(tmp_path / "rows.jsonl", [*GOOD[role], row])
    rules: dict[str, Any] = {rule: action}
    if action == "error":
        with pytest.raises(InputError) as caught:
            prepared(file, role, tiny_model, **rules)
        assert f"rows.jsonl: line {len(GOOD[role]) + 1}: " in str(caught.value)
        assert said in str(caught.value)
        return
    found, folder = prepared(file, role, tiny_model, **rules)
    (count,) = [each for each in found.problems if each.rule == rule]
    assert (count.action, count.rows) == (action, 1)
    assert said in count.examples[0]
    assert found.rows == len(GOOD[role]) + (action == "keep")
    if action == "drop":
        (listed,) = map(json.loads, (folder / LEFT_OUT).read_text().splitlines())
        assert listed["rule"] == rule
        assert listed["place"].endswith(f"line {len(GOOD[role]) + 1}")


@pytest.mark.parametrize(("row", "rule", "text"), MENDED)
def test_what_is_harmless_is_mended(tmp_path: Path, tiny_model: Path, row: Row, rule: Rule, text: str) -> None:
    file = write(tmp_path / "rows.jsonl", [*GOOD["sft"], row])
    found, folder = prepared(file, "sft", tiny_model, **{rule: "fix"})
    assert [(each.rule, each.action, each.rows) for each in found.problems] == [(rule, "fix", 1)]
    *_, last = read_rows(folder)
    assert last["completion"][0]["content"] == text
    assert json.loads((folder / LEFT_OUT).read_text())["action"] == "fix"


def test_what_is_empty_once_mended_is_left_out(tmp_path: Path, tiny_model: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [*GOOD["sft"], sft(completion="<|im_end|>")])
    found, _ = prepared(file, "sft", tiny_model, special_tokens="fix")
    assert {each.rule: each.action for each in found.problems}["empty"] == "drop"
    assert found.rows == len(GOOD["sft"])


def test_too_many_rows_left_out_end_the_run(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [*GOOD["sft"], *(sft(prompt=f"p {n}", completion="") for n in range(5))])
    with pytest.raises(InputError) as caught:
        prepared(file, "sft")
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert lines[3] == "… and 2 further problems in 26 rows"
    assert lines[4].startswith("5 of 26 rows (19%) would be dropped, more than data_rules.max_dropped 0.1")
    assert prepared(file, "sft", max_dropped=0.2)[0].rows == 21


def test_ties_do_not_count_as_dropped(tmp_path: Path) -> None:
    votes = [
        {"prompt": f"q {n}", "answer_a": "x", "answer_b": "y", "winner": "tie" if n % 2 else "a"} for n in range(20)
    ]
    found, _ = prepared(write(tmp_path / "rows.jsonl", [*votes]), "preference")
    assert [(each.rule, each.rows) for each in found.problems] == [("tie", 10)]


def test_the_default_rules_leave_valid_rows_as_they_are(tmp_path: Path) -> None:
    rows = [
        row for role, row, rule, _ in BROKEN if role == "sft" and actions(rule)[-1] == "keep" and rule != "duplicate"
    ]
    found, _ = prepared(write(tmp_path / "rows.jsonl", [*GOOD["sft"], *rows]), "sft")
    assert found.rows == len(GOOD["sft"]) + len(rows)


@pytest.mark.slow
def test_what_length_costs_is_told(tmp_path: Path, tiny_model: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [*GOOD["sft"], sft(completion="long " * 200)])
    tokens = prepared(file, "sft", tiny_model, too_long="drop")[0].tokens
    assert tokens
    assert (tokens.limit, tokens.rows_over) == (256, 0)
    assert tokens.longest <= 256


def test_a_mixture_adds_up_what_its_parts_hold(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [sft(prompt=f"{name} {number}") for number in range(20)]
        write(tmp_path / f"{name}.jsonl", [*rows, sft(prompt=name, completion="")])
    parts = tuple(MixturePart(path=str(tmp_path / f"{name}.jsonl")) for name in ("a", "b"))
    source = DatasetSource(mixture=parts)
    ready = Preparations(tmp_path / "home").make(source, wanted_rows(source, "sft", None))
    assert [(each.rule, each.rows) for each in ready.prepared.problems] == [("empty", 2)]
    assert len((ready.folder / LEFT_OUT).read_text().splitlines()) == 2


def leak_recipe(folder: Path, **rules: Any) -> Recipe:
    """Trains on one held-out prompt, and on one row that quotes another."""
    write(folder / "sft.jsonl", [*GOOD["sft"], sft(prompt="leaked"), sft(prompt=f"Once more: {QUOTED}")])
    write(folder / "heldout.jsonl", [{"prompt": "leaked", "answer": "a"}, {"prompt": f"Say {QUOTED}", "answer": "a"}])
    return Recipe.model_validate(
        {
            "sft": {"dataset": {"path": str(folder / "sft.jsonl")}},
            "evaluation": {"prompts": {"path": str(folder / "heldout.jsonl")}},
            "data_rules": rules,
        }
    )


@pytest.mark.parametrize(("leak", "near_leak"), [("error", "keep"), ("keep", "keep"), ("keep", "error")])
def test_leaks_are_told_of_or_end_the_run(tmp_path: Path, leak: str, near_leak: str) -> None:
    recipe = leak_recipe(tmp_path, leak=leak, near_leak=near_leak)
    problems: list[str] = []
    tables = read_tables(recipe, problems, Preparations(tmp_path / "home"))
    notes = check_leakage(tables, recipe.data_rules, problems)
    said = {"leak": "1 of 2 held-out prompts", "near_leak": "1 rows share 13 words in a row with held-out rows"}
    for rule, action in (("leak", leak), ("near_leak", near_leak)):
        told, others = (problems, notes) if action == "error" else (notes, problems)
        assert any(said[rule] in line for line in told)
        assert not any(said[rule] in line for line in others)


@pytest.mark.parametrize("near_leak", ["drop", "error"])
def test_rows_that_are_held_out_twice_count_once(tmp_path: Path, near_leak: str) -> None:
    recipe = leak_recipe(tmp_path, near_leak=near_leak)
    alike = [{"prompt": f"Say {QUOTED} {number}", "answer": "a"} for number in range(5)]
    write(tmp_path / "heldout.jsonl", [*alike])
    again = {"name": "again", "prompts": {"path": str(tmp_path / "heldout.jsonl"), "license": "mit"}}
    asked = recipe.model_dump(mode="json")
    recipe = Recipe.model_validate(asked | {"evaluation": asked["evaluation"] | {"sets": [again]}})
    problems: list[str] = []
    tables = read_tables(recipe, problems, Preparations(tmp_path / "home", Manner(workers=0)))
    check_leakage(tables, recipe.data_rules, problems)
    found = {each.rule: each.rows for each in tables["sft.dataset"].check.problems}
    told = sum("1 rows share 13 words in a row" in line for line in problems)
    assert (found.get("near_leak", 0), told) == ((1, 0) if near_leak == "drop" else (0, 1))


def test_words_of_held_out_rows_are_looked_at_only_where_they_decide(tmp_path: Path) -> None:
    recipe = leak_recipe(tmp_path, leak="drop")
    held_out.cache_clear()
    tables = read_tables(recipe, [], Preparations(tmp_path / "home", Manner(workers=0)))
    looked = held_out.cache_info().misses
    seen = held_out((tables["evaluation.prompts"].folder,), most=0)
    assert held_out.cache_info().misses == looked == 1
    assert (len(seen.prompts), seen.runs) == (2, frozenset())


@pytest.mark.parametrize(
    ("role", "rows", "said"),
    [
        ("sft", [sft(prompt="leaked")], "no row is left of 1: data_rules leave out 1 (leak 1); mend the rows"),
        (
            "preference",
            [{"prompt": "leaked", "completion": text, "label": text == "a"} for text in "ab"],
            "data_rules leave out 1 (leak 1); mend",
        ),
        ("sft", [sft(prompt="leaked"), sft(completion="")], "left of 2: data_rules leave out 2 (empty 1, leak 1);"),
    ],
)
def test_rules_that_leave_nothing_are_named(tmp_path: Path, role: Role, rows: list[Row], said: str) -> None:
    recipe = leak_recipe(tmp_path, leak="drop", max_dropped=1)
    source = DatasetSource(path=str(write(tmp_path / "rows.jsonl", [*rows])))
    preparations = Preparations(tmp_path / "home", Manner(workers=0))
    cleaning = cleaning_of(recipe, "sft")
    wanted = kept_apart(wanted_rows(source, role, None, (), cleaning), cleaning, preparations)
    for asked in (source, DatasetSource(mixture=(MixturePart(path=source.path),))):
        with pytest.raises(InputError) as caught:
            preparations.make(asked, wanted)
        assert said in str(caught.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_leaks_are_left_out_of_training(tmp_path: Path, workers: int) -> None:
    recipe = leak_recipe(tmp_path, leak="drop", near_leak="drop")
    problems: list[str] = []
    tables = read_tables(recipe, problems, Preparations(tmp_path / "home", Manner(workers)))
    assert check_leakage(tables, recipe.data_rules, problems) == problems == []
    training, heldout = tables["sft.dataset"], tables["evaluation.prompts"]
    assert [row["prompt"][0]["content"] for row in read_rows(training.folder)] == [
        WORDS, *(f"q {number}" for number in range(20))
    ]  # fmt: skip
    assert heldout.check.rows == 2
    assert [(each.rule, each.action, each.rows) for each in training.check.problems] == [
        ("leak", "drop", 1), ("near_leak", "drop", 1)
    ]  # fmt: skip
    listed = [json.loads(line) for line in (training.folder / LEFT_OUT).read_text().splitlines()]
    assert [(each["rule"], each["place"]) for each in listed] == [
        ("leak", f"{tmp_path}/sft.jsonl: line 22"), ("near_leak", f"{tmp_path}/sft.jsonl: line 23")
    ]  # fmt: skip
    assert "column 'prompt': 'leaked' is a held-out prompt" in listed[0]["reason"]
    assert "shares 13 words in a row with a held-out one, 'quoted0 quoted1" in listed[1]["reason"]


@pytest.mark.parametrize(
    ("rules", "rows", "problem"),
    [
        ({"leak": "drop"}, 22, ""),
        ({"leak": "keep", "near_leak": "drop"}, 22, ""),
        ({"leak": "drop", "max_dropped": 0.01}, 0, "sft.dataset: {0}/sft.jsonl: line 22: column 'prompt': 'leaked'"),
        ({"leak": "error", "near_leak": "drop"}, 22, "evaluation.prompts: 1 of 2 held-out prompts"),
    ],
)
def test_each_leak_has_its_own_rule(tmp_path: Path, rules: dict[str, Any], rows: int, problem: str) -> None:
    recipe = leak_recipe(tmp_path, **rules)
    problems: list[str] = []
    tables = read_tables(recipe, problems, Preparations(tmp_path / "home", Manner(workers=0)))
    check_leakage(tables, recipe.data_rules, problems)
    assert (tables["sft.dataset"].check.rows if rows else 0) == rows
    assert "\n".join(problems).startswith(problem.format(tmp_path))
    assert bool(problems) == bool(problem)


def test_what_is_wrong_with_held_out_rows_is_told_at_their_place(tmp_path: Path) -> None:
    recipe = leak_recipe(tmp_path, leak="drop")
    (tmp_path / "heldout.jsonl").write_text("{")
    problems: list[str] = []
    tables = read_tables(recipe, problems, Preparations(tmp_path / "home", Manner(workers=0)))
    assert [*tables] == ["sft.dataset"]
    (problem,) = problems
    assert problem.startswith("evaluation.prompts: ")


def test_a_mixture_keeps_its_shares_without_leaks(tmp_path: Path) -> None:
    recipe = leak_recipe(tmp_path, leak="drop")
    write(tmp_path / "other.jsonl", [sft(prompt=f"other {number}") for number in range(30)])
    parts = [{"path": str(tmp_path / "sft.jsonl")}, {"path": str(tmp_path / "other.jsonl")}]
    asked = recipe.model_dump(mode="json") | {"sft": {"dataset": {"mixture": parts}}}
    tables = read_tables(Recipe.model_validate(asked), [], Preparations(tmp_path / "home", Manner(workers=0)))
    found = tables["sft.dataset"].check
    assert [(part.available, part.rows) for part in found.parts] == [(22, 22), (30, 22)]
    assert {each.rule: each.rows for each in found.problems if each.action == "drop"} == {"leak": 1}


def test_a_good_file_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "rows.jsonl", [*GOOD["sft"], sft(prompt="x", completion="")])
    assert main(["data", str(file)]) == 0
    shown = capsys.readouterr().out
    for part in ("for SFT", "read as Standard columns", "21 rows of 22", "left out", "line 22: column 'completion'"):
        assert part in shown
    assert "cannot be used" in shown  # as pairs
    assert not (tmp_path / "artifacts").exists()


def test_a_file_is_described_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Row | str] = [{"q": f"q {number}", "a": "x"} for number in range(3)]
    file = write(tmp_path / "rows.jsonl", rows)
    command = ["data", str(file), "--role", "sft", "--columns.prompt", "q", "--columns.completion", "a", "--json"]
    assert main([*command, "--max_rows", "2"]) == 0
    said = json.loads(capsys.readouterr().out)
    (role,) = said["roles"]
    assert said["serves"]
    assert (role["role"], role["found"]["rows"], role["characters"]["longest"]) == ("sft", 2, 4)


def test_a_file_that_serves_nothing_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "rows.jsonl", [{"x": 1}])
    assert main(["data", str(file), "--json"]) == 2
    assert all("columns found: 'x'" in role["refused"] for role in json.loads(capsys.readouterr().out)["roles"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["none.jsonl"],
        ["rows.jsonl", "--model", "nowhere/at/all"],
        ["rows.jsonl", "--model_revision", "v1"],
        ["rows.jsonl", "--model", ".", "--model_revision", "v1"],
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", [*GOOD["sft"]])
    assert main(["data", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_a_model_measures_and_shows_the_first_row(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "rows.jsonl", [*GOOD["preference"]])
    assert main(["data", str(file), "--role", "preference", "--model", str(tiny_model), "--json"]) == 0
    (role,) = json.loads(capsys.readouterr().out)["roles"]
    example = role["example"]
    assert role["found"]["tokens"]["longest"] > example["trained_tokens"] > 0
    assert example["context"].endswith("<|im_start|>assistant\n")
    assert example["trained"].startswith("good 0")
    assert example["eos_trained"]
    assert example["generation_prompt"]
    assert not example["bos_doubled"]


def test_a_hub_models_tokenizer_is_that_of_its_revision(
    tmp_path: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["/api/models/org/model/revision/v1"] = {"id": "org/model", "sha": "c" * 40}
    asked: list[tuple[str, str]] = []

    def snapshot_download(name: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any(fnmatch("model.safetensors", pattern) for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert tokenizer_of(BaseModelSource(source="hub", name="org/model", revision="v1")) == tmp_path
    assert asked == [("org/model", "c" * 40)]


BOS = "<|im_start|>"
TEMPLATES = {
    "end of a reply": CHAT_TEMPLATE.replace("<|im_end|>", ""),
    "two tokens that begin a sequence": BOS + CHAT_TEMPLATE,
    "generation prompt": CHAT_TEMPLATE.replace("assistant\n", "\n"),
    "tools are not in the text": CHAT_TEMPLATE,
}
"""What is said of a template that is wrong in one way; all but the last are wrong for any row."""


@pytest.mark.parametrize(("warning", "template"), TEMPLATES.items())
def test_a_wrong_template_is_warned_of(tiny_model: Path, warning: str, template: str) -> None:
    tools = json.dumps([{"type": "function", "function": {"name": "search"}}])
    row = {"prompt": [U], "completion": [A]} | ({"tools": tools} if template == CHAT_TEMPLATE else {})
    (said,) = render_example(row, tiny_model, template).warnings
    assert warning in said


def test_a_file_that_is_one_object_is_one_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(talk(U, A), indent=1))
    assert prepared(file, "sft")[0].rows == 1

"""Columns of the data on their way to the reward functions: kept, checked before anything loads, handed over."""

import inspect
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest
import trl.rewards

from models.artifacts import Checkpoint, Dataset
from models.errors import InputError, StageError
from models.recipe import GRPO, Recipe
from models.rewards import Reward, Verifier
from models.sources import DatasetSource
from models.stages import GRPOInput
from models.trl_options import SOLVED_BY_TRL, TRL_NEEDS, TRL_OPTIONS, TRLReward
from tasks.core.columns import packed, unpacked
from tasks.core.grpo import train_grpo_policy
from tasks.core.loading import training_dataset
from tasks.core.plan import TrainingPlan
from tasks.core.trl_rewards import trl_reward
from tasks.data.checking import read_tables
from tasks.data.lines import Row
from tasks.data.preparations import Preparations
from tests import prepared
from tests.tiny import PROMPTS, answer, tiny_recipe, write_rows


def written(folder: Path, rows: list[Row]) -> DatasetSource:
    return DatasetSource(path=str(write_rows(folder / "rows.jsonl", rows)))


def checked(folder: Path, rows: list[Row], *rules: Reward | Verifier) -> list[Row]:
    return prepared.sourced(written(folder, rows), "prompts", rules=rules).rows


def frozen(folder: Path, rows: list[Row], *rules: Reward | Verifier) -> Dataset:
    """A snapshot of the rows, in a folder of its own beside what they were read from."""
    return prepared.frozen(folder / "snapshots", written(folder, rows), "prompts", rules)


def test_further_columns_are_kept_where_they_have_a_value(tmp_path: Path) -> None:
    rows = checked(tmp_path, [{"prompt": "a", "answer": 4, "solution": "4", "note": None, "kind": "sums"}])
    said = [{"role": "user", "content": "a"}]
    assert rows == [{"prompt": said, "answer": ["4"], "kind": "sums", "extra": {"solution": "4"}}]


def test_values_without_a_form_in_json_are_kept_as_text_or_left_out(tmp_path: Path) -> None:
    row = {"prompt": "a", "day": date(2024, 2, 29), "price": Decimal("1.50"), "image": b"\x00", "odd": float("nan")}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    rows = prepared.sourced(DatasetSource(path=str(tmp_path / "rows.parquet")), "prompts").rows
    assert rows[0]["extra"] == {"day": "2024-02-29", "price": "1.50"}


def test_columns_of_many_shapes_survive_arrow(tmp_path: Path) -> None:
    shapes: list[Any] = [4, "four", [1, "a"], {"deep": [None, {}]}, None]
    rows = [{"prompt": str(at), "answer": "a", "odd": shape} for at, shape in enumerate(shapes)]
    made = training_dataset(frozen(tmp_path, rows), ("prompt", "answer", "kind", "extra"))
    assert [unpacked(row)["odd"] for row in made] == shapes
    assert set(unpacked(made[0])) == {"prompt", "answer", "kind", "odd"}


def test_rows_without_further_columns_are_left_as_they_are(tmp_path: Path) -> None:
    rows = checked(tmp_path, [{"prompt": "a", "answer": "b"}])
    assert packed(rows) == rows
    assert unpacked(rows[0]) == rows[0]


READ: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"kind": "exact_answer"}, {}, ["'answer'", "it is missing; columns found: 'prompt'", "fill it in, or set the"]),
    ({"kind": "exact_answer"}, {"answers": "4"}, ["did you mean 'answers'? rename it to 'answer', or set column: ans"]),
    ({"kind": "exact_answer"}, {"answer": []}, ["'answer'", "it is missing"]),
    ({"kind": "exact_answer", "column": "gold"}, {"answer": "4"}, ["'gold'", "columns found: 'prompt', 'answer'"]),
    ({"kind": "exact_answer", "column": "gold"}, {"gold": {"a": 1}}, ["'gold'", "got {'a': 1}", "an answer is a text"]),
    ({"kind": "exact_answer", "column": "gold"}, {"gold": [4, ""]}, ["'gold[1]'", "the text is empty"]),
    ({"kind": "exact_number"}, {"answer": "four"}, ["no number in 'four'", "exact_number compares numbers"]),
    ({"kind": "choice"}, {"answer": "Paris"}, ["no letter in 'Paris'", "write the letter of the right option"]),
    ({"kind": "instructions"}, {"answer": "4"}, ["'instruction_id_list'", "got null"]),
    ({"kind": "trl", "trl": "accuracy_reward", "column": "gold"}, {"answer": "4"}, ["'gold'", "trl reads it"]),
    ({"kind": "regex", "pattern": "a"}, {"completions": 1}, ["'completions'", "its name is taken", "rename it"]),
]


@pytest.mark.parametrize(("rule", "row", "fragments"), READ)
def test_rows_that_lack_what_a_rule_reads_are_refused(
    tmp_path: Path, rule: dict[str, Any], row: dict[str, Any], fragments: list[str]
) -> None:
    fitting = {"prompt": "b", "answer": ["(B) 4"], "gold": ["(B) 4"], "instruction_id_list": ["startend:quotation"]}
    rows = [fitting | {"kwargs": [{}]}, {"prompt": "a"} | row]
    with pytest.raises(InputError) as caught:
        checked(tmp_path, rows, Reward.model_validate(rule))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'rows.jsonl'}: line 2: column ")
    assert [fragment for fragment in fragments if fragment not in message] == []


@pytest.mark.parametrize("rule", [{"kind": "regex", "pattern": "a"}, {"kind": "trl", "trl": "think_format_reward"}])
def test_rules_that_compare_with_nothing_need_no_answer(tmp_path: Path, rule: dict[str, Any]) -> None:
    assert checked(tmp_path, [{"prompt": "a"}], Reward.model_validate(rule))


def test_a_recipe_is_refused_where_its_rules_and_its_rows_do_not_fit(tmp_path: Path, tiny_data: Path) -> None:
    asked = tiny_recipe(tmp_path, tiny_data, evaluation={"verifier": {"kind": "exact_answer", "column": "gold"}})
    asked["grpo"]["rewards"] = [{"kind": "choice"}]
    problems: list[str] = []
    tables = read_tables(Recipe.model_validate(asked), problems, Preparations(tmp_path / "home"))
    assert {"grpo.dataset", "evaluation.prompts"}.isdisjoint(tables)
    grpo, evaluation = ("\n".join(line for line in problems if line.startswith(name)) for name in ("grpo", "eval"))
    assert "grpo.dataset: " in grpo
    assert "no letter in '2'" in grpo
    assert "column 'gold': it is missing" in evaluation


def test_options_of_trl_are_those_of_the_installed_version() -> None:
    assert set(TRL_OPTIONS) == set(get_args(TRLReward)) <= set(trl.rewards.__all__)
    for name, options in TRL_OPTIONS.items():
        parameters = inspect.signature(getattr(trl.rewards, name)).parameters.values()
        taken = [one for one in parameters if one.kind is not one.VAR_KEYWORD]
        if name.startswith("get_"):
            assert tuple(one.name for one in taken) == options
            assert TRL_NEEDS.get(name, ()) == tuple(one.name for one in taken if one.default is one.empty)
        else:
            assert set(options) == {one.name for one in taken} - {"completions", "solution", "log_extra"}
            assert ("solution" in {one.name for one in taken}) == (name in SOLVED_BY_TRL)


@pytest.mark.parametrize(
    ("asked", "completion", "expected"),
    [
        ({"trl": "accuracy_reward"}, r"\boxed{4}", 1.0),
        ({"trl": "accuracy_reward"}, r"\boxed{5}", 0.0),
        ({"trl": "accuracy_reward", "column": "gold"}, r"\boxed{5}", 1.0),
        ({"trl": "reasoning_accuracy_reward"}, r"<think>5</think> \boxed{4}", 1.0),
        (
            {"trl": "reasoning_accuracy_reward", "options": {"reasoning_delimiters": ["DONE"]}},
            r"\boxed{5} DONE \boxed{4}",
            1.0,
        ),
        ({"trl": "get_cosine_scaled_reward", "options": {"max_len": 8}}, r"\boxed{4}", 0.75),
        ({"trl": "think_format_reward"}, "<think>a</think>b", 1.0),
        ({"trl": "get_repetition_penalty_reward", "options": {"ngram_size": 1}}, "a", -0.75),
        (
            {"trl": "get_soft_overlong_punishment", "options": {"max_completion_len": 5, "soft_punish_cache": 2}},
            "a",
            -0.5,
        ),
    ],
)
def test_functions_of_trl_get_what_they_take(asked: dict[str, Any], completion: str, expected: float) -> None:
    function = trl_reward(Reward.model_validate({"kind": "trl", **asked}))
    done = [[{"role": "assistant", "content": completion}]]
    columns = {"answer": [["4", "four"]], "gold": [5], "trainer_state": None}
    assert function(completions=done, completion_ids=[[7, 7, 7, 7]], **columns) == [pytest.approx(expected)]
    assert function.__name__ == asked["trl"]


def test_options_that_trl_refuses_are_an_error_of_the_stage() -> None:
    reward = Reward(kind="trl", trl="get_repetition_penalty_reward").model_copy(update={"options": {"size": 2}})
    with pytest.raises(StageError, match="get_repetition_penalty_reward refuses its options"):
        trl_reward(reward)


@pytest.mark.slow
def test_training_hands_every_column_to_every_reward(tmp_path: Path, tiny_model: Path) -> None:
    rewards = [
        {"kind": "exact_number", "column": "gold", "name": "number"},
        {"kind": "trl", "trl": "accuracy_reward", "column": "gold"},
        {"kind": "instructions"},
        {"kind": "length", "max_words": 3},
    ]
    asked = {"dataset": {"path": "a"}, "rewards": rewards, "max_steps": 1, "batch_size": 4, "num_generations": 2}
    rows = [
        {"prompt": prompt, "gold": answer(prompt), "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for prompt in PROMPTS[:8]
    ]
    rows[3]["further"] = {"deep": [1, "a"]}
    grpo = GRPO.model_validate(asked | {"max_completion_length": 8})
    snapshot = frozen(tmp_path, rows, *grpo.rewards)
    policy = Checkpoint(path=tiny_model, fingerprint="0" * 64, stage="sft", precision="fp32")
    stage = GRPOInput(hyperparameters=grpo, policy=policy, dataset=snapshot, seed=1, precision="fp32")
    plan = TrainingPlan(device="cpu", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    train_grpo_policy(stage, plan, tmp_path / "run", lambda report: None)
    logged = [json.loads(line) for line in (tmp_path / "run/model/history.jsonl").read_text().splitlines()]
    for name in ("number", "accuracy_reward", "instructions", "length"):
        assert 0 <= logged[0][f"rewards/{name}/mean"] <= 1

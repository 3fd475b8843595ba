"""The gate on comparisons that open and close it, and what a closed one does to a promotion."""

from typing import Any

import pytest

from flows.__main__ import main
from models.comparison import Comparison, Difference, Verdict
from models.errors import InputError
from models.evaluation import Estimate
from models.gate import Better, Gate, GateResult, NoWorse
from models.recipe import Recipe
from tasks.aliases import read_alias
from tasks.finding import resolve
from tasks.gate import check_condition, find_rivals, judge_gate, last_gate, save_gate
from tasks.store import ArtifactStore

MODEL = "grpo-0000000000000000"
RECIPE = Recipe.model_validate(
    {
        "sft": {"dataset": {"path": "a"}},
        "evaluation": {"prompts": {"path": "b"}, "sets": [{"name": "hard", "prompts": {"path": "c"}}]},
    }
)


def difference(measure: str, value: float, half: float, verdict: Verdict = "unclear") -> Difference:
    change = Estimate(value=value, low=value - half, high=value + half, n=50)
    return Difference(measure=measure, before=0.5, after=0.5 + value, change=change, verdict=verdict)


def comparisons(**roles: list[Difference]) -> list[Comparison]:
    return [Comparison(model=MODEL, against=role, role=role, differences=tuple(of)) for role, of in roles.items()]


def judged(gate: dict[str, Any], **roles: list[Difference]) -> GateResult:
    return judge_gate(Gate.model_validate(gate), MODEL, comparisons(**roles))


UP, DOWN = difference("exact_match", 0.1, 0.04), difference("exact_match", -0.1, 0.04)


@pytest.mark.parametrize(
    ("better", "found", "passed"),
    [
        ({}, UP, True),
        ({}, DOWN, False),
        ({}, difference("exact_match", 0.1, 0.2), False),
        ({"surely": False}, difference("exact_match", 0.1, 0.2), True),
        ({"by": 0.05}, UP, True),
        ({"by": 0.07}, UP, False),
        ({"by": 0.07, "surely": False}, UP, True),
        ({"measure": "loss"}, difference("loss", -0.3, 0.1), True),
        ({"measure": "loss"}, difference("loss", 0.3, 0.1), False),
        ({"measure": "sums: exact_match/hard"}, difference("sums: exact_match/hard", 0.2, 0.1), True),
        ({"measure": "reward_score"}, UP, False),  # not measured
    ],
)
def test_better_than(better: dict[str, Any], found: Difference, passed: bool) -> None:
    result = judged({"better": [better]}, parent=[found])
    assert result.passed is passed
    assert result.conditions[0].found


@pytest.mark.parametrize(
    ("no_worse", "found", "passed"),
    [
        ({"measure": "exact_match"}, UP, True),
        ({"measure": "exact_match"}, DOWN, False),
        ({"measure": "exact_match"}, difference("exact_match", -0.1, 0.2), True),
        ({"measure": "exact_match", "by": 0.2}, DOWN, True),
        ({"measure": "*"}, difference("loss", 0.2, 0.1), False),
        ({"measure": "*"}, difference("length", 5.0, 1.0), False),  # nothing with a better side was measured
        ({"measure": "repetition"}, difference("repetition", 0.2, 0.1), False),
    ],
)
def test_no_worse_than(no_worse: dict[str, Any], found: Difference, passed: bool) -> None:
    assert judged({"no_worse": [no_worse]}, parent=[found]).passed is passed


def test_win_rates_are_held_against_one_half() -> None:
    rate = Estimate(value=0.7, low=0.6, high=0.8, n=50)
    won = Comparison(model=MODEL, against="x", role="base", win_rate=rate)
    for by, passed in ((0.05, True), (0.15, False)):
        gate = Gate(better=(Better(measure="win_rate", than="base", by=by),))
        assert judge_gate(gate, MODEL, [won]).passed is passed


def test_every_condition_must_hold_and_each_is_told() -> None:
    gate = {"better": [{}, {"than": "base"}], "no_worse": [{"measure": "*", "than": "champion"}]}
    result = judged(gate, parent=[UP], base=[DOWN], champion=[UP])
    assert not result.passed
    assert [one.passed for one in result.conditions] == [True, False, True]
    assert "exact_match surely better than base" in result.conditions[1].condition
    assert "-0.1 [-0.14, -0.06] with 50 rows" in result.conditions[1].found


def test_the_first_of_its_kind_passes_against_an_alias() -> None:
    result = judged({"better": [{"than": "champion"}]})
    assert result.passed
    assert "no 'champion' yet" in result.conditions[0].found


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Better(measure="exact_mach"), "did you mean 'exact_match'"),
        (Better(measure="length"), "measures no 'length'"),
        (Better(measure="implicit_accuracy"), "measures no 'implicit_accuracy'"),
        (Better(measure="*"), r"measures no '\*'"),
        (Better(measure="win_rate"), "measures no 'win_rate'"),
        (Better(measure="judged_win_rate"), "measures no 'judged_win_rate'"),
        (Better(measure="preference_accuracy"), "measures no 'preference_accuracy'"),
        (Better(measure="soft: exact_match"), "measures no 'soft: exact_match'"),
        (NoWorse(measure="*", than="Champion!"), "neither parent nor base nor an alias"),
    ],
)
def test_conditions_that_nothing_can_meet_are_refused(condition: Better | NoWorse, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_condition(condition, RECIPE)


@pytest.mark.parametrize("measure", ["exact_match", "exact_match/sum", "sampled_reward", "loss", "hard: unstopped"])
def test_what_will_be_measured_is_accepted(measure: str) -> None:
    check_condition(Better(measure=measure, than="champion"), RECIPE)
    check_condition(NoWorse(measure="*"), RECIPE)


def test_an_alias_of_a_reward_model_is_no_rival(store: ArtifactStore) -> None:
    path, _ = resolve(store, "reward")
    assert main(["promote", path.name, "--alias", "scorer"]) == 0
    recipe = RECIPE.model_copy(update={"gate": Gate(better=(Better(than="scorer"),))})
    with pytest.raises(InputError, match="a reward model; a policy can only beat a policy"):
        find_rivals(recipe, store)
    assert find_rivals(recipe.model_copy(update={"gate": Gate(better=(Better(than="nobody"),))}), store) == {}


def test_the_champion_itself_is_no_obstacle() -> None:
    itself = Comparison(model=MODEL, against=MODEL, role="champion", differences=(difference("exact_match", 0.0, 0.1),))
    result = judge_gate(Gate(better=(Better(than="champion"),)), MODEL, [itself])
    assert result.passed
    assert "the champion itself" in result.conditions[0].found


def test_a_parent_that_was_not_compared_closes_the_gate() -> None:
    assert not judged({"better": [{}]}).passed


def test_a_closed_gate_bars_promotion(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = resolve(store, "sft")
    for run, passed in (("20260101-000000-aa", True), ("20260102-000000-bb", False)):
        condition = {"condition": "loss better than base", "passed": passed, "found": "+1"}
        found = GateResult.model_validate({"checkpoint": path.name, "passed": passed, "conditions": [condition]})
        (store.home / "runs" / run).mkdir(parents=True)
        save_gate(found, store.home / "runs" / run)
    gate = last_gate(store.home, path.name)
    assert gate
    assert not gate.passed
    assert main(["promote", path.name]) == 2
    message = capsys.readouterr().err
    assert "the gate is closed" in message
    assert "loss better than base: +1" in message
    assert "--despite-gate" in message
    assert main(["promote", path.name, "--despite-gate", "--reason", "the judge was wrong"]) == 0
    alias = read_alias(store.home, "champion")
    assert alias
    assert alias.history[-1].gate == gate.model_dump(mode="json")

"""Two models on the same rows: what the paired statistics say, and what of two evaluations is compared."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.artifacts import Checkpoint, Stage
from models.evaluation import Estimate, EvaluationResult, HeldOutFigures, PairScores, Sample
from tasks.comparing import BETTER, compare, win_rate
from tasks.core.statistics import _tango_end, exponential, mean_of_ratios, paired_means, paired_shares


def sample(correct: bool, row: int = 0, reply: str = "r", **measured: Any) -> Sample:
    kind = ("x", "y")[row % 2]
    return Sample(prompt=f"{row}?", reply=reply, answer=("a",), correct=correct, kind=kind, **measured)


def result(
    samples: Sequence[Sample], stage: Stage = "sft", pairs: Sequence[PairScores] = (), **more: Any
) -> EvaluationResult:
    digit = {"base": "b", "sft": "1", "dpo": "2", "grpo": "3", "reward": "4"}[stage]
    checkpoint = Checkpoint(path=Path("/x") / stage, fingerprint=digit * 64, stage=stage, precision="fp32")
    return EvaluationResult(checkpoint=checkpoint, samples=tuple(samples), pairs=tuple(pairs), **more)


@pytest.mark.parametrize(
    ("gained", "lost", "p_value", "verdict"),
    [
        (0, 0, 1.0, "unclear"),
        (5, 0, 0.0625, "unclear"),
        (6, 0, 0.03125, "better"),
        (0, 6, 0.03125, "worse"),
        (9, 2, 0.0654, "unclear"),
        (12, 2, 0.0129, "better"),
    ],
)
def test_shares_are_judged_by_mcnemars_exact_test(gained: int, lost: int, p_value: float, verdict: str) -> None:
    before = [False] * gained + [True] * lost + [True] * 20
    after = [True] * gained + [False] * lost + [True] * 20
    found = paired_shares("exact_match", before, after, 1)
    assert found.p_value == pytest.approx(p_value, abs=1e-4)
    assert found.verdict == verdict
    assert found.change.value == pytest.approx((gained - lost) / len(before))
    assert found.change.low <= found.change.value <= found.change.high


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_interval_and_test_of_shares_agree(rows: list[tuple[bool, bool]]) -> None:
    before, after = zip(*rows, strict=True)
    found = paired_shares("exact_match", before, after, 1)
    assert found.p_value is not None
    assert (found.p_value < 0.05) == (not found.change.low <= 0 <= found.change.high)
    swapped = paired_shares("exact_match", after, before, 1)
    assert swapped.change.value == pytest.approx(-found.change.value)
    assert {found.verdict, swapped.verdict} in ({"unclear"}, {"better", "worse"})


def shares(gained: int, lost: int, n: int) -> Estimate:
    """The difference of two shares of which so many rows speak for one model or the other."""
    after = [True] * gained + [False] * (n - gained)
    before = [False] * (n - lost) + [True] * lost
    return paired_shares("exact_match", before, after, 1).change


@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high"),
    [
        (1, 7, 21, -0.517, -0.026),  # as published, of airways before and after a transplantation (Bentur 2009)
        (0, 0, 20, -0.161, 0.161),
        (64, 0, 120, 0.444, 0.620),  # nothing lost: as wide as the share's own
    ],
)
def test_interval_of_shares_is_tangos(gained: int, lost: int, n: int, low: float, high: float) -> None:
    ends = [_tango_end(gained, lost, n, towards) for towards in (-1, 1)]
    assert ends == pytest.approx([low, high], abs=5e-4)


def test_interval_of_shares_is_stretched_to_0_where_the_exact_test_cannot_tell() -> None:
    change = shares(1, 7, 21)
    assert [change.low, change.high] == pytest.approx([-0.517, 0], abs=5e-4)
    assert change.high == 0
    change = shares(3, 12, 40)  # p-value 0.035
    assert change.high == _tango_end(3, 12, 40, 1) < 0


def test_interval_of_shares_covers_the_true_difference_and_not_much_more() -> None:
    draw, trials = random.Random(5), 400
    changes = []
    for _ in range(trials):
        rows = [(old := draw.random() < 0.3, draw.random() < (0.9 if old else 0.5)) for _ in range(60)]
        before, after = zip(*rows, strict=True)
        changes.append(paired_shares("exact_match", before, after, 1).change)
    covered = sum(change.low <= 0.3 * 0.9 + 0.7 * 0.5 - 0.3 <= change.high for change in changes)
    assert 0.92 < covered / trials < 0.98
    width = sum(change.high - change.low for change in changes) / trials
    standard_error = math.sqrt((0.35 + 0.03 - 0.32**2) / 60)  # of a row's gain, which is 1, 0 or -1
    assert width == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_agreement_on_all_rows_is_no_certainty() -> None:
    few, many = shares(0, 0, 10), shares(0, 0, 1000)
    assert few.low == pytest.approx(-few.high)
    assert few.high > 0.2
    assert 0 < many.high < 0.01


def test_means_are_judged_by_the_bootstrap_over_rows() -> None:
    draw = random.Random(3)
    before = [draw.gauss(0, 5) for _ in range(300)]
    after = [value + draw.gauss(0.3, 1) for value in before]
    found = paired_means("reward_score", before, after, 1)
    # The pairing takes the rows' own spread out: the unpaired interval would be five times as wide.
    normal = 1.96 * math.sqrt(sum((b - a - found.change.value) ** 2 for a, b in zip(before, after, strict=True))) / 300
    assert found.verdict == "better"
    assert found.change.high - found.change.low == pytest.approx(2 * normal, rel=0.1)
    assert paired_means("loss", before, after, -1).verdict == "worse"
    longer = paired_means("length", before, after, 0)
    assert (longer.verdict, longer.said) == ("unclear", "higher")
    assert found == paired_means("reward_score", before, after, 1)


def test_a_mean_of_ratios_weighs_rows_by_their_count() -> None:
    figure = mean_of_ratios([10.0, 2.0, 6.0], [10, 1, 3])
    assert figure.value == pytest.approx(18 / 14)
    assert figure.low < figure.value < figure.high
    found = paired_means("loss", [10.0, 2.0, 6.0], [20.0, 4.0, 12.0], -1, [10, 1, 3])
    assert found.before == pytest.approx(18 / 14)
    assert found.after == pytest.approx(36 / 14)


def test_an_exponential_stays_finite() -> None:
    assert math.isfinite(exponential(Estimate(value=1e6, low=0.0, high=1e7, n=3)).high)


def test_every_measure_of_both_is_compared() -> None:
    def measured(correct: bool, row: int) -> Sample:
        return sample(
            correct, row, sampled_reward=float(correct), reward_score=row / 2 + correct, tokens=5 + correct,
            stopped=correct, repetition=0.5, answer_nll=3.0 - correct, answer_tokens=2, kl=0.1,
        )  # fmt: skip

    pairs = [PairScores(kind="k", chosen=1.0, rejected=value, parent_margin=0.0) for value in (0.0, 2.0)]
    before = result([measured(False, row) for row in range(12)], "base", pairs)
    after = result([measured(True, row) for row in range(12)], "sft", pairs)
    found = {one.measure: one for one in compare(after, before, "parent").differences}
    assert {name.partition("/")[0] for name in found} == set(BETTER)
    assert {"exact_match/x", "exact_match/y"} <= set(found)
    verdicts = {name: one.verdict for name, one in found.items()}
    moved = ("exact_match", "sampled_reward", "loss", "unstopped")
    assert {name: verdicts[name] for name in moved} == dict.fromkeys(moved, "better")
    same = ("length", "repetition", "preference_accuracy")
    assert {name: verdicts[name] for name in same} == dict.fromkeys(same, "unclear")


def test_other_rows_are_not_compared() -> None:
    before, after = result([sample(True, 0)], "base"), result([sample(True, 1)], "sft")
    assert compare(after, before, "base").differences == ()
    assert compare(after, before, "base").win_rate is None


def test_further_sets_are_compared_by_name() -> None:
    extra = HeldOutFigures(samples=(sample(True),))
    before, after = (result([sample(True)], stage, sets={"hard": extra}) for stage in ("base", "sft"))
    assert compare(after, before, "base").find("hard: exact_match")


@pytest.mark.parametrize(
    ("ours", "theirs", "rate"), [((2, 2), (1, 1), 1.0), ((1, 1), (1, 2), 0.25), ((0, 3), (3, 0), 0.5)]
)
def test_a_tie_is_half_a_win(ours: tuple[float, ...], theirs: tuple[float, ...], rate: float) -> None:
    scored = [
        [sample(True, row, reward_score=score, reply=reply) for row, score in enumerate(of)]
        for of, reply in ((ours, "ours"), (theirs, "theirs"))
    ]
    found = win_rate(*scored)
    assert found
    assert found.value == rate


def test_equal_replies_are_a_tie_whatever_rounding_does() -> None:
    found = win_rate([sample(True, reward_score=1.0000001)], [sample(True, reward_score=1.0)])
    assert found
    assert found.value == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 25])
def test_chance_alone_is_seldom_called_a_difference(n: int) -> None:
    draw = random.Random(n)
    trials = [paired_means("reward_score", [0.0] * n, [draw.gauss(0, 1) for _ in range(n)], 1) for _ in range(200)]
    assert sum(found.verdict != "unclear" for found in trials) / len(trials) < 0.1
    assert n > 1 or all(found.verdict == "unclear" for found in trials)

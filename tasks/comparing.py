"""Two evaluations on the same rows, compared row by row, without torch or Prefect."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from models.comparison import Comparison, Difference
from models.evaluation import Estimate, EvaluationResult, HeldOutFigures, PairScores, Sample
from tasks.core.statistics import paired_means, paired_shares, share

Row = TypeVar("Row", Sample, PairScores)

BETTER: dict[str, int] = {
    "exact_match": 1,
    "sampled_reward": 1,
    "reward_score": 1,
    "preference_accuracy": 1,
    "loss": -1,
    "length": 0,
    "repetition": -1,
    "unstopped": -1,
}
"""Every measure that is compared, and whether more of it is better (1), less (-1), or neither."""


def better_side(figure: str) -> int:
    """`BETTER` for a figure by its full name, such as `extra: exact_match/sum`; 0 where it is not compared."""
    return BETTER.get(figure.rpartition(": ")[2].partition("/")[0], 0)


@dataclass(frozen=True)
class _Mean:
    """A measure that is the mean of a number of each prompt."""

    measure: str
    of: Callable[[Sample], float | None]
    counts: Callable[[Sample], int] = lambda sample: 1


_MEANS = (
    _Mean("sampled_reward", lambda sample: sample.sampled_reward),
    _Mean("reward_score", lambda sample: sample.reward_score),
    _Mean("loss", lambda sample: sample.answer_nll, lambda sample: sample.answer_tokens),
    _Mean("length", lambda sample: float(sample.tokens)),
    _Mean("repetition", lambda sample: sample.repetition),
)


def compare(after: EvaluationResult, before: EvaluationResult, role: str) -> Comparison:
    """Hold a model against another one in everything that was measured of both on the same rows.

    Args:
        after: The model's evaluation.
        before: The other one's.
        role: What the other one is to it: `parent`, `base`, an alias, `other`.
    """
    differences = [
        *_differences(after, before),
        *(
            one.model_copy(update={"measure": f"{name}: {one.measure}"})
            for name in after.sets
            if name in before.sets
            for one in _differences(after.sets[name], before.sets[name])
        ),
    ]
    return Comparison(
        model=after.checkpoint.name,
        against=before.checkpoint.name,
        role=role,
        differences=tuple(sorted(differences, key=lambda one: ":" in one.measure)),
        win_rate=win_rate(after.samples, before.samples),
    )


def _differences(after: HeldOutFigures, before: HeldOutFigures) -> Iterator[Difference]:
    if after.samples and _same_prompts(after.samples, before.samples):
        yield from _of_prompts(after.samples, before.samples)
    if after.pairs and len(after.pairs) == len(before.pairs):
        yield from _of_pairs(after.pairs, before.pairs)


def _same_prompts(after: Sequence[Sample], before: Sequence[Sample]) -> bool:
    return [(one.prompt, one.answer) for one in after] == [(one.prompt, one.answer) for one in before]


def _of_prompts(after: Sequence[Sample], before: Sequence[Sample]) -> Iterator[Difference]:
    yield from _shares("exact_match", after, before, lambda sample: sample.correct)
    for mean in _MEANS:
        both = [(mean.of(old), mean.of(new), mean.counts(new)) for old, new in zip(before, after, strict=True)]
        known = [(old, new, count) for old, new, count in both if old is not None and new is not None]
        if known:
            olds, news, counts = zip(*known, strict=True)
            yield paired_means(mean.measure, olds, news, BETTER[mean.measure], counts)
    yield _share("unstopped", after, before, lambda sample: not sample.stopped)


def _of_pairs(after: Sequence[PairScores], before: Sequence[PairScores]) -> Iterator[Difference]:
    yield from _shares("preference_accuracy", after, before, lambda pair: pair.margin > 0)


def _shares(
    measure: str, after: Sequence[Row], before: Sequence[Row], verdict: Callable[[Row], bool]
) -> Iterator[Difference]:
    """A share of all rows and, where there are several kinds of them, of each kind."""
    yield _share(measure, after, before, verdict)
    kinds = sorted({row.kind for row in after})
    for kind in kinds if len(kinds) > 1 else ():
        news, olds = ([row for row in rows if row.kind == kind] for rows in (after, before))
        yield _share(f"{measure}/{kind}", news, olds, verdict)


def _share(measure: str, after: Sequence[Row], before: Sequence[Row], verdict: Callable[[Row], bool]) -> Difference:
    olds, news = ([verdict(row) for row in rows] for rows in (before, after))
    return paired_shares(measure, olds, news, BETTER[measure.partition("/")[0]])


def win_rate(after: Sequence[Sample], before: Sequence[Sample]) -> Estimate | None:
    """Share of prompts on which the reward model puts the model's reply above the other's; half for a tie."""
    if not after or not _same_prompts(after, before):
        return None
    wins = [_win(new, old) for new, old in zip(after, before, strict=True)]
    known = [win for win in wins if win is not None]
    return share(sum(known) / len(known), len(known)) if known else None


def _win(new: Sample, old: Sample) -> float | None:
    if new.reward_score is None or old.reward_score is None:
        return None
    if new.reply == old.reply or new.reward_score == old.reward_score:
        return 0.5
    return float(new.reward_score > old.reward_score)

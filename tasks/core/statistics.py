"""Means of held-out figures and differences between two models on the same rows, with 95 % confidence intervals."""

from collections.abc import Sequence
from math import exp, sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any

from models.comparison import Difference, Verdict
from models.evaluation import Estimate

_ALPHA = 0.05
_TAILS = (_ALPHA / 2, 1 - _ALPHA / 2)
_Z = NormalDist().inv_cdf(_TAILS[1])
_HALVINGS = 50
"""After which an end of an interval is exact to 2e-15."""
_ENOUGH_ROWS = 20
"""For the bootstrap's percentile interval, which is too narrow for fewer."""
_RESAMPLES = 5000
"""Of the bootstrap; the ends of its intervals then move by about a fiftieth of their distance from draw to draw."""

_INDICES_AT_ONCE = 2**20
"""Rows drawn in one step of the bootstrap, 8 bytes each."""


def proportion(verdicts: Sequence[bool]) -> Estimate:
    """Share of true verdicts with Wilson's score interval (Wilson 1927), which holds for small n and near 0 and 1.

    Raises:
        ValueError: there are no verdicts.
    """
    return share(fmean(verdicts), len(verdicts))


def share(value: float, n: int) -> Estimate:
    """A share of n rows, halves allowed, with Wilson's score interval."""
    centre = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * sqrt(value * (1 - value) / n + _Z**2 / (4 * n**2))
    return Estimate(value=value, low=max(0.0, centre - half), high=min(1.0, centre + half), n=n)


def mean_reward(rewards: Sequence[float]) -> Estimate:
    """Mean of independent rewards between 0 and 1, with the normal interval of its standard error inside that range.

    Where all rewards are equal their spread says nothing, and Wilson's interval is given.

    Raises:
        ValueError: there are no rewards.
    """
    if len(set(rewards)) == 1:
        return share(rewards[0], len(rewards))
    found = mean(rewards)
    return found.model_copy(update={"low": max(0.0, found.low), "high": min(1.0, found.high)})


def mean(values: Sequence[float]) -> Estimate:
    """Mean of independent values of any size, with the normal interval of its standard error.

    Raises:
        ValueError: there are no values.
    """
    return mean_of_ratios(values, [1] * len(values))


def mean_of_ratios(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """A total over a total count, such as nats over tokens, with rows as the independent units.

    The standard error is that of the ratio estimator (Cochran 1977, section 6.4).

    Raises:
        ValueError: there are no rows.
    """
    n, ratio = len(sums), fmean(sums) / fmean(counts)
    residuals = [of_row - ratio * count for of_row, count in zip(sums, counts, strict=True)]
    half = _Z * stdev(residuals) / sqrt(n) / fmean(counts) if n > 1 else 0.0
    return Estimate(value=ratio, low=ratio - half, high=ratio + half, n=n)


def exponential(figure: Estimate) -> Estimate:
    """The exponential of a figure and of the ends of its interval; beyond a float's range the largest float."""
    low, value, high = (exp(min(end, 700.0)) for end in (figure.low, figure.value, figure.high))
    return Estimate(value=value, low=low, high=high, n=figure.n)


def paired_shares(measure: str, before: Sequence[bool], after: Sequence[bool], better: int) -> Difference:
    """Difference of two shares on the same rows, judged by McNemar's exact test.

    The interval is Tango's score interval (1998), stretched to 0 where the test, which is the stricter of the two,
    cannot tell: it leaves out 0 just where the test's p-value is below 0.05.

    Args:
        measure: Name of the figure.
        before: The other model's verdicts.
        after: The model's, on the same rows.
        better: 1: more is better; -1: less; 0: neither.
    """
    from scipy.special import bdtr

    n = len(before)
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    p_value = min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
    low, high = (_tango_end(gained, lost, n, towards) for towards in (-1.0, 1.0))
    if p_value >= _ALPHA:
        low, high = min(low, 0.0), max(high, 0.0)
    change = Estimate(value=(gained - lost) / n, low=low, high=high, n=n)
    told = {"before": fmean(before), "after": fmean(after), "change": change, "p_value": p_value}
    return Difference(measure=measure, **told, verdict=_verdict(change, better))


def _tango_end(gained: int, lost: int, n: int, towards: float) -> float:
    """The last difference on the way from the observed one that the score test does not reject, found by halving."""
    near, far = (gained - lost) / n, towards
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        near, far = (middle, far) if abs(_paired_score(gained, lost, n, middle)) < _Z else (near, middle)
    return near


def _paired_score(gained: int, lost: int, n: int, difference: float) -> float:
    """Tango's statistic: how many standard errors the shares are from that difference, were it the true one."""
    spread = difference * (1 - difference)
    linear = (2 * n - gained + lost) * difference - gained - lost
    root = sqrt(max(0.0, linear**2 + 8 * n * lost * spread))
    share_lost = (root - linear) / (4 * n)  # the most likely one, given the difference
    variance = n * (2 * share_lost + spread)
    return (gained - lost - n * difference) / sqrt(variance) if variance > 0 else 0.0


def paired_means(
    measure: str, before: Sequence[float], after: Sequence[float], better: int, counts: Sequence[int] = ()
) -> Difference:
    """Difference of two means on the same rows, with the bootstrap's percentile interval over rows (Efron 1979).

    For fewer than 20 rows it is Student's interval, and one row alone tells nothing.

    Args:
        measure: Name of the figure.
        before: The other model's value of each row.
        after: The model's.
        better: 1: more is better; -1: less; 0: neither.
        counts: What a row counts for, where the figure is a total over a total count; default: 1 each.
    """
    import numpy

    weights = numpy.asarray(counts or [1] * len(before), dtype=float)
    gains = numpy.asarray(after, dtype=float) - numpy.asarray(before, dtype=float)
    low, high = (_bootstrap if len(weights) >= _ENOUGH_ROWS else _student)(gains, weights)
    old, new = (float(sum(values) / weights.sum()) for values in (before, after))
    change = Estimate(value=new - old, low=low, high=high, n=len(weights))
    return Difference(measure=measure, before=old, after=new, change=change, verdict=_verdict(change, better))


def _bootstrap(gains: Any, weights: Any) -> tuple[float, float]:
    import numpy

    draws, n = numpy.random.default_rng(0), len(weights)
    at_once = max(1, _INDICES_AT_ONCE // n)
    sizes = [min(at_once, _RESAMPLES - done) for done in range(0, _RESAMPLES, at_once)]
    samples = (draws.integers(n, size=(size, n)) for size in sizes)
    means = numpy.concatenate([gains[rows].sum(1) / weights[rows].sum(1) for rows in samples])
    low, high = numpy.quantile(means, _TAILS)
    return float(low), float(high)


def _student(gains: Any, weights: Any) -> tuple[float, float]:
    from scipy.special import stdtrit

    n, centre = len(weights), gains.sum() / weights.sum()
    spread = (gains - centre * weights).std(ddof=1) / weights.mean() if n > 1 else abs(centre)
    half = stdtrit(max(1, n - 1), _TAILS[1]) * spread / sqrt(n)
    return float(centre - half), float(centre + half)


def _verdict(change: Estimate, better: int) -> Verdict:
    if not better or change.low <= 0 <= change.high:
        return "unclear"
    return "better" if (change.low > 0) == (better > 0) else "worse"

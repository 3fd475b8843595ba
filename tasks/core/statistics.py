"""Means of held-out figures with their 95 % confidence intervals."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, stdev

from models.evaluation import Estimate

_Z = NormalDist().inv_cdf(0.975)


def proportion(verdicts: Sequence[bool]) -> Estimate:
    """Share of true verdicts with Wilson's score interval (Wilson 1927), which holds for small n and near 0 and 1.

    Raises:
        ValueError: there are no verdicts.
    """
    return _wilson(fmean(verdicts), len(verdicts))


def mean_reward(rewards: Sequence[float]) -> Estimate:
    """Mean of independent rewards between 0 and 1, with the normal interval of its standard error inside that range.

    Where all rewards are equal their spread says nothing, and Wilson's interval is given.

    Raises:
        ValueError: there are no rewards.
    """
    n, centre = len(rewards), fmean(rewards)
    if len(set(rewards)) == 1:
        return _wilson(centre, n)
    half = _Z * stdev(rewards) / sqrt(n)
    return Estimate(value=centre, low=max(0.0, centre - half), high=min(1.0, centre + half), n=n)


def _wilson(share: float, n: int) -> Estimate:
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return Estimate(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half), n=n)

"""What each reward's share in the total's spread is."""

import math

import pytest
import torch

from tasks.core.reward_shares import reward_shares

NONE = math.nan


@pytest.mark.parametrize(
    ("rewards", "weights", "shares"),
    [
        ([[1, 0], [0, 0], [1, 0], [0, 0]], [1, 1], [1, 0]),
        ([[1, 5], [0, 5], [1, 7], [0, 7]], [1, 1], [1, 0]),  # what is equal within a group teaches nothing
        ([[1, 1], [0, 0], [1, 1], [0, 0]], [3, 1], [0.75, 0.25]),
        ([[1, 0], [0, 1], [1, 0], [0, 1]], [3, 1], [1.5, -0.5]),  # the second is pulled down
        ([[1, NONE], [0, NONE], [1, NONE], [0, NONE]], [1, 1], [1, 0]),
        ([[1, 1], [0, 0], [NONE, NONE], [9, 9]], [1, 1], [0.5, 0.5]),
    ],
)  # fmt: skip
def test_shares_are_of_the_spread_within_groups(
    rewards: list[list[float]], weights: list[float], shares: list[float]
) -> None:
    found = reward_shares(torch.tensor(rewards), torch.tensor(weights), num_generations=2)
    assert found == pytest.approx(shares)


def test_without_spread_there_are_no_shares() -> None:
    found = reward_shares(torch.ones(4, 2), torch.ones(2), num_generations=2)
    assert all(math.isnan(share) for share in found)

"""How much of what is learned from each of several rewards."""

import torch


def reward_shares(rewards: torch.Tensor, weights: torch.Tensor, num_generations: int) -> list[float]:
    """Share of each reward in the spread of the total within groups, which is what advantages are made from.

        share = covariance of the weighted reward with the total / variance of the total

    The covariances add up to the variance, so the shares add up to 1. One below 0 belongs to a reward that is pulled
    down where the others rise; a constant reward has share 0, however large its mean.

    Args:
        rewards: (completions, rewards) before weighting; not a number where a completion has none.
        weights: (rewards,).
        num_generations: Completions in a group; groups lie behind each other.

    Returns:
        One share a reward; not a number where the total has no spread in any group.
    """
    terms = (rewards * weights.to(rewards)).view(-1, num_generations, len(weights))
    scored = (~terms.isnan()).any(dim=-1, keepdim=True)
    terms = terms.nan_to_num() * scored
    means = terms.sum(dim=1, keepdim=True) / scored.sum(dim=1, keepdim=True).clamp(min=1)
    deviations = (terms - means) * scored
    total = deviations.sum(dim=-1, keepdim=True)
    shares: list[float] = ((deviations * total).sum(dim=(0, 1)) / total.square().sum()).tolist()
    return shares

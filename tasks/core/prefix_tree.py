"""Rows of a batch packed so that each token is computed once for all rows that have it with the same past.

The state of a causal model at a token depends on nothing but the tokens up to it. So rows that begin alike, such as the
completions of a prompt or both answers of a pair, form a tree, and one packed row can hold all of it:

    [prompt] [completion 1] … [completion G]

Each token keeps the position that it has in its own row, and sees its own past alone. What goes on from a token lies
behind it without gaps, so one number a token, where that ends, tells the whole mask. Published for DPO (Wang and
Hegde 2024, arXiv 2410.20305) and for GRPO (Liu et al. 2025, arXiv 2506.05433), each with the prompt as the common part.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

_PAYS_BELOW = 0.95
"""Share of the usual cost above which packing is not worth its own."""
_WIDER_BY = 1.15
"""Ratio of the widths that are tried for packed rows."""


@dataclass(frozen=True)
class Packing:
    """Rows of a batch in packed form."""

    input_ids: torch.Tensor
    """(packed rows, width), 0 where there is nothing."""
    position_ids: torch.Tensor
    """(packed rows, width): the position of each token in its own row, counted from its first token."""
    ends: torch.Tensor
    """(packed rows, width): behind the last token that has this one in its past."""
    places: torch.Tensor
    """(batch, tokens): where each token of the batch lies among the packed ones, counted through; 0 for padding."""

    def attends(self, window: int | None) -> Callable[..., torch.Tensor]:
        """A function of packed row, head, token and another token: whether the first attends to the second.

        Args:
            window: Most tokens of its past, with itself, that a token attends to; none: all.
        """

        def attends(row: torch.Tensor, _: Any, token: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
            seen = (past <= token) & (token < self.ends[row, past])
            if window is None:
                return seen
            return seen & (self.position_ids[row, token] - self.position_ids[row, past] < window)

        return attends

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """States as (batch, tokens, hidden), of those of the packed tokens (packed rows, width, hidden)."""
        taken = states.flatten(0, 1).index_select(0, self.places.flatten())
        return taken.view(*self.places.shape, -1)


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, hidden_size: int, always: bool = False
) -> Packing | None:
    """Pack a batch into rows that lie on its device.

    Args:
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens), 0 for padding, on either side.
        hidden_size: The model's width, which decides what attention costs beside all else.
        always: Pack even where it does not pay.

    Returns:
        The packed rows; `None` where they would cost about as much as the batch does, or more, and where a row is empty
        or has padding amid its tokens.
    """
    ids, real = input_ids.cpu(), attention_mask.cpu().bool()
    lengths = real.sum(1)
    starts = real.int().argmax(1, keepdim=True)
    column = torch.arange(ids.shape[1])
    if not torch.equal(real, (column >= starts) & (column < starts + lengths.unsqueeze(1))) or not lengths.all():
        return None
    rows = [row[mask] for row, mask in zip(ids, real, strict=True)]
    tree = _Tree(rows)
    layout = _cheapest_layout(tree, hidden_size)
    usual = _cost(len(ids), ids.shape[1], hidden_size)
    if not always and layout.cost(hidden_size) > _PAYS_BELOW * usual:
        return None
    return _fill(tree, layout, real, input_ids.device)


class _Tree:
    """Rows in lexicographic order, in which each shares most with the row before it."""

    def __init__(self, rows: Sequence[torch.Tensor]) -> None:
        listed = [row.tolist() for row in rows]
        self.order = sorted(range(len(rows)), key=listed.__getitem__)
        self.rows = [rows[index] for index in self.order]
        self.common = [0, *(_common_length(one, other) for one, other in pairwise(self.rows))]
        """Tokens at the beginning of each row that the row before it has as well."""


def _common_length(one: torch.Tensor, other: torch.Tensor) -> int:
    shorter = min(len(one), len(other))
    return int((one[:shorter] == other[:shorter]).cumprod(0).sum())


@dataclass(frozen=True)
class _Layout:
    """Which rows of the tree, in its order, go into which packed row."""

    first: tuple[int, ...]
    """The first row of each packed row."""
    width: int
    """Tokens of the longest packed row."""

    def cost(self, hidden_size: int) -> float:
        return _cost(len(self.first), self.width, hidden_size)

    def runs(self, count: int) -> Iterator[range]:
        """The rows of each packed row, of `count` in all."""
        return (range(start, end) for start, end in pairwise((*self.first, count)))


def _cost(rows: int, width: int, hidden_size: int) -> float:
    """Cost of a forward pass, in that of one token's linear layers.

    A layer's linear maps take about 24 hidden² operations a token and its attention 4 hidden for each token of the row,
    seen or not.
    """
    return rows * width * (1 + width / (6 * hidden_size))


def _cheapest_layout(tree: _Tree, hidden_size: int) -> _Layout:
    """Packed rows of the width that costs least: wide ones share more, and pay more for attention."""
    width, total = max(map(len, tree.rows)), sum(map(len, tree.rows))
    widths = [width]
    while widths[-1] < total:
        widths.append(int(widths[-1] * _WIDER_BY) + 1)
    return min((_layout(tree, most) for most in widths), key=lambda layout: layout.cost(hidden_size))


def _layout(tree: _Tree, most: int) -> _Layout:
    """Packed rows of at most that many tokens, filled one after the other."""
    first, used, width = [0], 0, 0
    for index, (row, common) in enumerate(zip(tree.rows, tree.common, strict=True)):
        used += len(row) - common
        if used > most:
            first.append(index)
            used = len(row)
        width = max(width, used)
    return _Layout(tuple(first), width)


def _fill(tree: _Tree, layout: _Layout, real: torch.Tensor, device: torch.device) -> Packing:
    count, width = len(layout.first), layout.width
    input_ids = torch.zeros(count, width, dtype=torch.long)
    position_ids = torch.zeros(count, width, dtype=torch.long)
    ends = torch.arange(1, width + 1).repeat(count, 1)  # a place without token sees itself, else it would see nothing
    places = torch.zeros(real.shape, dtype=torch.long)
    for packed, run in enumerate(layout.runs(len(tree.rows))):
        used, path = 0, torch.zeros(0, dtype=torch.long)
        for index in run:
            row = tree.rows[index]
            common = tree.common[index] if index > run.start else 0
            ends[packed, path[common:]] = used
            path = torch.cat([path[:common], torch.arange(used, used + len(row) - common)])
            used += len(row) - common
            new = path[common:]
            input_ids[packed, new] = row[common:]
            position_ids[packed, new] = torch.arange(common, len(row))
            places[tree.order[index], real[tree.order[index]]] = packed * width + path
        ends[packed, path] = used
    return Packing(*(tensor.to(device) for tensor in (input_ids, position_ids, ends, places)))

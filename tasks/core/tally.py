"""Counting tensors: how many bytes a computation uses at once, and what this machine's allocator makes of that."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MOST_BYTES = 1 << 31
"""Address space that a replay may take; a larger computation is replayed with all sizes divided."""

Event = tuple[int, int]
"""A tensor's number, and its bytes where it is made or 0 where it is freed."""


class Tally(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is open, as long as they are in use.

    Args:
        known: Tensors that were there before, and are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self.events: list[Event] = []
        """What was made and freed, in order."""
        self._counted = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        self._made = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation and count what it has made."""
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage not in self._counted:
                self._counted.add(storage)
                self._note(storage)
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._made += 1
        self.events.append((self._made, size))
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, self._made, size)

    def _free(self, number: int, size: int) -> None:
        self.events.append((number, 0))
        self.now -= size


def heap_bytes(kept: Sequence[Event], repeated: Sequence[Event], peak: int) -> int:
    """Bytes of this process's heap that a computation takes when it is done again and again.

    A heap is cut up: a gap that was left may be too small for the next tensor. How much that costs depends on the C
    library; so its own allocator is asked, for memory that nobody touches.

    Args:
        kept: What is made once and stays.
        repeated: What is made and freed each time.
        peak: Bytes that are in use at most.
    """
    divisor = 1 + peak // _MOST_BYTES
    held: dict[int, torch.Tensor] = {}
    places: set[tuple[int, int]] = set()
    for number, size in [*kept, *repeated, *repeated]:
        if size:
            held[number] = torch.empty(1 + size // divisor, dtype=torch.uint8)
            places.add((held[number].data_ptr(), held[number].nbytes))
        else:
            held.pop(number, None)
    return max(peak, _covered(places) * divisor)


def _covered(places: Iterable[tuple[int, int]]) -> int:
    """Bytes that lie in at least one of some places: start and length."""
    covered = end = 0
    for start, length in sorted(places):
        covered += max(0, start + length - max(start, end))
        end = max(end, start + length)
    return covered

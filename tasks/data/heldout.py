"""What held-out rows ask and say, so that rows which are trained on can be compared with them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from tasks.data.lines import Row
from tasks.data.repeats import spoken
from tasks.data.snapshot import read_prompt_ids, read_rows

RUN_WORDS = 13
"""As for GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C)."""
_COMMON_ROWS = 5
"""A run in more held-out rows than that is their common instruction, which training rows may well have."""
Run = tuple[str, ...]


@dataclass(frozen=True)
class HeldOut:
    """Rows of held-out datasets."""

    prompts: frozenset[bytes]
    """Digests of their prompts."""
    runs: frozenset[Run]
    """Every run of so many words of them that is not common to many."""

    def shared_run(self, prompt: bytes, row: Row) -> Run | None:
        """A run of words that a row shares with a held-out one; none of a row whose prompt is held out itself.

        Args:
            prompt: Digest of the row's prompt.
            row: In normal form.
        """
        if prompt in self.prompts or not self.runs:
            return None
        return min(_runs(spoken(row)) & self.runs, default=None)


@lru_cache(maxsize=1)
def held_out(folders: Iterable[Path], most: int | None = None) -> HeldOut:
    """What the snapshots in these folders hold.

    Args:
        folders: Each once, none with the rows of another, in any collection that can be hashed.
        most: Rows of each in which runs of words are looked for; none: all.
    """
    counted: Counter[Run] = Counter()
    for folder in folders:
        for row in islice(read_rows(folder), most):
            counted.update(_runs(spoken(row)))
    prompts = frozenset(prompt for folder in folders for prompt in read_prompt_ids(folder))
    return HeldOut(prompts, frozenset(run for run, rows in counted.items() if rows <= _COMMON_ROWS))


def _runs(text: str) -> set[Run]:
    """Every run of so many words of a text, in lower case."""
    words = text.lower().split()
    return set(zip(*(words[start:] for start in range(RUN_WORDS)), strict=False))

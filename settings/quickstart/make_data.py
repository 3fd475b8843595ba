"""Make the quickstart's data: two small tasks that are answered with a bare number.

- `sum`: "12 + 7" is answered with "19". There is one right answer.
- `pick`: "Pick from 37 to 46" is answered with a number of the range. Demonstrations leave open which; preferences and
  verifier want a round one, a multiple of five.

Every problem (two addends in either order, or a range) is in one file only: held-out rows share none with training.

    python make_data.py [FOLDER]
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SEED = 0
ROWS = {  # file: (sums, picks)
    "sft": (480, 240),
    "preferences": (168, 120),
    "prompts": (72, 120),
    "heldout": (72, 48),
    "heldout_preferences": (48, 48),
}
Row = dict[str, str | list[str]]


class Sum(NamedTuple):
    """Two numbers to add."""

    a: int
    b: int

    @property
    def kind(self) -> str:
        """Name of the task."""
        return "sum"

    @property
    def prompt(self) -> str:
        """The question."""
        return f"{self.a} + {self.b}"

    @property
    def demonstrable(self) -> list[int]:
        """What a demonstration may answer."""
        return self.accepted

    @property
    def accepted(self) -> list[int]:
        """The only right answer."""
        return [self.a + self.b]


class Pick(NamedTuple):
    """A range, both ends included, to pick a number from."""

    low: int
    high: int

    @property
    def kind(self) -> str:
        """Name of the task."""
        return "pick"

    @property
    def prompt(self) -> str:
        """The question."""
        return f"Pick from {self.low} to {self.high}"

    @property
    def demonstrable(self) -> list[int]:
        """What a demonstration may answer: any number of the range."""
        return list(range(self.low, self.high + 1))

    @property
    def accepted(self) -> list[int]:
        """The round numbers of the range; every range has one."""
        return [number for number in self.demonstrable if number % 5 == 0]


Problem = Sum | Pick


def sums(rng: random.Random) -> Iterator[Sum]:
    """Every unordered pair of numbers from 2 to 49, once, in random order."""
    pairs = [(a, b) for a in range(2, 50) for b in range(2, a + 1)]
    rng.shuffle(pairs)
    return (Sum(*(pair if rng.random() < 0.5 else pair[::-1])) for pair in pairs)


def picks(rng: random.Random) -> Iterator[Pick]:
    """Every range of 6 to 16 numbers between 10 and 99, once, in random order."""
    ranges = [Pick(low, low + size - 1) for size in range(6, 17) for low in range(10, 101 - size)]
    rng.shuffle(ranges)
    return iter(ranges)


def demonstration(problem: Problem, rng: random.Random) -> Row:
    """A prompt with a completion; each that may be is as likely as another."""
    return {"prompt": problem.prompt, "completion": str(rng.choice(problem.demonstrable)), "kind": problem.kind}


def question(problem: Problem) -> Row:
    """A prompt with every accepted answer."""
    return {"prompt": problem.prompt, "answer": [str(n) for n in problem.accepted], "kind": problem.kind}


def preference(problem: Problem, number: int, rng: random.Random) -> Row:
    """A sum over one hundreds too large, a round pick over another, or, each fourth time, a number over a sentence."""
    chosen = rng.choice(problem.accepted)
    if isinstance(problem, Sum):
        kind, rejected = "far", [chosen + 100 * hundreds for hundreds in range(1, 10)]
    else:
        kind, rejected = "round", [n for n in problem.demonstrable if n not in problem.accepted]
    worse = str(rng.choice(rejected))
    if number % 4 == 0:
        kind, worse = "format", f"The answer is {chosen}."
    return {"prompt": problem.prompt, "chosen": str(chosen), "rejected": worse, "kind": kind}


def main(folder: Path) -> None:
    """Write the five files."""
    rng = random.Random(SEED)  # noqa: S311 - data, not secrets
    all_sums, all_picks = sums(rng), picks(rng)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (n_sums, n_picks) in ROWS.items():
        problems: list[Problem] = [next(all_sums) for _ in range(n_sums)]
        problems += [next(all_picks) for _ in range(n_picks)]
        if name == "sft":
            rows = [demonstration(problem, rng) for problem in problems]
        elif name.endswith("preferences"):
            rows = [preference(problem, number, rng) for number, problem in enumerate(problems)]
        else:
            rows = [question(problem) for problem in problems]
        rng.shuffle(rows)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)

"""Replies of several models side by side: where they differ most, and what changed from each to the next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal

from models.evaluation import EvaluationResult, Sample
from tasks.reporting.words import UNKNOWN

Change = Literal["same", "removed", "added"]


@dataclass(frozen=True)
class Piece:
    """A stretch of a reply."""

    change: Change
    """Against the reply of the model to the left."""
    text: str


@dataclass(frozen=True)
class SampleRow:
    """A held-out prompt and what each model replies."""

    replies: tuple[Sample, ...]

    @property
    def prompt(self) -> Sample:
        """Prompt, kind and accepted answers, which all replies share."""
        return self.replies[0]

    @property
    def differs(self) -> bool:
        """Whether some models are right and some wrong."""
        return len({reply.correct for reply in self.replies}) > 1

    @property
    def cells(self) -> list[tuple[Sample, list[Piece], str]]:
        """Each reply, in pieces against the one to its left, with its score and length in words."""
        before = (None, *self.replies)
        return [(now, pieces(old, now), _about(now)) for old, now in zip(before, self.replies, strict=False)]


def answering(results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """Those of the evaluations that answered the same prompts as the first one that answered any."""
    answered = [result for result in results if result.samples]
    prompts = [[sample.prompt for sample in result.samples] for result in answered]
    return [result for result, asked in zip(answered, prompts, strict=True) if asked == prompts[0]]


def sample_rows(results: Sequence[EvaluationResult]) -> list[SampleRow]:
    """Every prompt with the replies of models that answered the same prompts."""
    return [SampleRow(replies) for replies in zip(*(result.samples for result in results), strict=True)]


def choose_rows(rows: list[SampleRow], count: int) -> tuple[list[SampleRow], list[SampleRow]]:
    """Split rows into about `count` telling ones and the rest.

    Every kind is represented; beyond that, rows on which the models differ most are preferred, taken from the kinds in
    turn.
    """
    spread = max((_score_step(row) for row in rows), default=0.0) or 1.0
    seen: dict[str, int] = {}
    ranked = []
    for row in sorted(rows, key=lambda row: -_contrast(row, spread)):
        rank = seen[row.prompt.kind] = seen.get(row.prompt.kind, -1) + 1
        ranked.append((rank > 0, not row.differs, rank, row))
    ranked.sort(key=lambda entry: entry[:3])
    count = max(count, len(seen))
    chosen = [row for *_, row in ranked[:count]]
    rest = [row for *_, row in ranked[count:]]
    return sorted(chosen, key=lambda row: -_contrast(row, spread)), rest


def _contrast(row: SampleRow, spread: float) -> float:
    """How much the models differ on a prompt: how often right and wrong change first, then scores, then words."""
    flips = sum(old.correct != new.correct for old, new in pairwise(row.replies))
    words = max((1 - _matcher(old, new).ratio() for old, new in pairwise(row.replies)), default=0.0)
    return 4 * flips + 2 * _score_step(row) / spread + words


def _score_step(row: SampleRow) -> float:
    """The largest step of the reward model's score from one model to the next."""
    scores = [reply.reward_score for reply in row.replies if reply.reward_score is not None]
    return max((abs(new - old) for old, new in pairwise(scores)), default=0.0)


def _matcher(old: Sample, new: Sample) -> SequenceMatcher[str]:
    return SequenceMatcher(None, _words(old.reply), _words(new.reply), autojunk=False)


def pieces(old: Sample | None, new: Sample) -> list[Piece]:
    """A reply word by word against another one; whole where there is none, or where hardly a word is shared."""
    if old is None or _matcher(old, new).ratio() < 0.3:
        return [Piece("same", new.reply)]
    return list(_pieces(old, new))


def _pieces(old: Sample, new: Sample) -> Iterator[Piece]:
    before, after = _words(old.reply), _words(new.reply)
    for what, start, end, begin, stop in _matcher(old, new).get_opcodes():
        if what == "equal":
            yield Piece("same", "".join(after[begin:stop]))
            continue
        if start < end:
            yield Piece("removed", "".join(before[start:end]))
        if begin < stop:
            yield Piece("added", "".join(after[begin:stop]))


def _words(text: str) -> list[str]:
    """Words with the space behind them."""
    words: list[str] = []
    for letter in text:
        if words and (letter.isspace() or not words[-1][-1].isspace()):
            words[-1] += letter
        else:
            words.append(letter)
    return words


def _about(sample: Sample) -> str:
    """Score, length and faults of a reply: `score 1.3, 12 tokens, cut off`."""
    told = [f"score {sample.reward_score:.3g}"] if sample.reward_score is not None else []
    told += [f"{sample.tokens} token{'s' * (sample.tokens != 1)}"] if sample.tokens else []
    told += ["cut off"] if not sample.stopped else []
    return ", ".join(told) or UNKNOWN

"""Readings of a preference: which of two or more replies to a prompt is better."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from math import inf
from typing import Any

from tasks.data import conversations
from tasks.data.formats.reading import Reading, Sample, require
from tasks.data.formats.transcripts import is_transcript, transcript
from tasks.data.problems import problem, shown
from tasks.data.readers import Row
from tasks.data.turns import Message

Side = tuple[Any, str]
"""A reply, or a whole conversation, and the column that it lies in."""

_NAMED = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
)
"""Columns of the better and the worse side."""
_STEMS = ("response", "answer", "completion", "output", "conversation")
_SUFFIXES = (("0", "1"), ("1", "2"), ("a", "b"))
_LABELS = (
    "label", "labels", "winner", "preference", "preferred", "better", "better_response_id", "safer_response_id",
)  # fmt: skip
_LISTS = ("responses", "completions", "answers", "candidates", "generations")
_SCORES = ("scores", "score", "ratings", "rewards")
_RANKS = ("ranks", "rank", "ranking", "rankings")
_PERSONA = ("answer_matching_behavior", "answer_not_matching_behavior")


def pair_readings(sample: Sample) -> list[Reading]:
    """Every way to read the better and the worse reply of a row."""
    named = [_named(*names) for names in _NAMED if sample.has(*names)]
    if sample.has(*_PERSONA):
        named += [_named(*_PERSONA), _named(*reversed(_PERSONA))]
    return named + _labelled(sample) + _scored(sample)


def holds_conversations(sample: Sample, reading: Reading) -> bool:
    """Whether a pair's sides are whole conversations, prompt included."""
    return any(conversations.is_conversation(value) for column in reading.columns for value in sample.values(column))


def holds_transcripts(sample: Sample, reading: Reading) -> bool:
    """Whether a pair's sides are whole transcripts."""
    values = [value for column in reading.columns[:2] for value in sample.values(column)]
    return bool(values) and all(map(is_transcript, values))


def pair_row(row: Row, sides: Callable[[Row], tuple[Side, Side]], prompt: Callable[[Row], list[Message]] | None) -> Row:
    """Prompt, chosen and rejected of a row whose sides are replies, or whole conversations that begin alike."""
    (good, good_column), (bad, bad_column) = sides(row)
    if conversations.is_conversation(good) and conversations.is_conversation(bad):
        shared, chosen, rejected = conversations.split_pair(good, bad, (good_column, bad_column))
        _refuse_other_prompt(row, shared)
        return {"prompt": shared, "chosen": chosen, "rejected": rejected}
    if prompt is None:
        require(row, ("prompt",), "it may only be left out where chosen and rejected are whole conversations")
    asked = prompt(row) if prompt else conversations.prompt(row["prompt"])
    chosen, rejected = conversations.reply(good, good_column), conversations.reply(bad, bad_column)
    conversations.refuse_equal(chosen, rejected, bad_column)
    return {"prompt": asked, "chosen": chosen, "rejected": rejected}


def transcript_pair(row: Row, sides: Callable[[Row], tuple[Side, Side]]) -> Row:
    """Prompt, chosen and rejected of two transcripts that begin alike."""
    (good, good_column), (bad, bad_column) = sides(row)
    turns = transcript(good, good_column), transcript(bad, bad_column)
    shared, chosen, rejected = conversations.split_pair(*turns, (good_column, bad_column))
    return {"prompt": shared, "chosen": chosen, "rejected": rejected}


def _refuse_other_prompt(row: Row, shared: list[Message]) -> None:
    """A prompt given beside whole conversations must be what they share, be it without the system message."""
    if row.get("prompt") is None:
        return
    without_system = [turn for turn in shared if turn["role"] != "system"]
    if conversations.prompt(row["prompt"]) not in (shared, without_system):
        seen = f"{shown(row['prompt'])} is not what chosen and rejected begin with"
        rule = "beside whole conversations a prompt must be what they share"
        remedy = "remove the column, or remove the prompt from chosen and rejected"
        raise problem("prompt", seen, rule, remedy, "histories")


def _named(good: str, bad: str) -> Reading:
    choice = f"columns: {{chosen: {good}, rejected: {bad}}}"
    read = partial(named_sides, good=good, bad=bad)
    return Reading(f"`{good}` is better than `{bad}`", (good, bad), read, native=int(good == "chosen"), choice=choice)


def _labelled(sample: Sample) -> list[Reading]:
    names = [
        (f"{stem}_{first}", f"{stem}_{second}")
        for stem, (first, second) in product(_STEMS, _SUFFIXES)
        if sample.has(f"{stem}_{first}", f"{stem}_{second}")
    ]
    labels = ["label"] if "label" in sample.mapped else sample.among(_LABELS)
    return [
        Reading(
            f"`{label}` says which of `{pair[0]}` and `{pair[1]}` is better, by majority where it is a list",
            (*pair, label),
            partial(labelled_sides, pair=pair, label=label),
            choice=f"columns: {{label: {label}}}",
        )
        for pair, label in product(names, labels)
    ]


def _scored(sample: Sample) -> list[Reading]:
    numbers = [name for name in sample.columns if _are_numbers(sample.first(name))]
    known = dict.fromkeys(_SCORES, True) | dict.fromkeys(_RANKS, False)
    chosen = [name for name in numbers if name in sample.mapped] or [name for name in numbers if name in known]
    directions = [(name, known[name]) for name in chosen] or list(product(numbers, (True, False)))
    return [
        Reading(
            f"of `{responses}` the one with the {'highest' if high else 'lowest'} of `{scores}` is better than the "
            f"one with the {'lowest' if high else 'highest'}",
            (responses, scores),
            partial(scored_sides, responses=responses, scores=scores, highest_is_best=high),
            choice=f"columns: {{{'scores' if high else 'ranks'}: {scores}}}",
        )
        for responses in sample.among(_LISTS)
        if isinstance(sample.first(responses), list)
        for scores, high in directions
    ]


def named_sides(row: Row, good: str, bad: str) -> tuple[Side, Side]:
    """The sides of a pair whose columns say which is better."""
    require(row, (good, bad), "preference needs prompt, chosen and rejected")
    return (row[good], good), (row[bad], bad)


def labelled_sides(row: Row, pair: tuple[str, str], label: str) -> tuple[Side, Side]:
    """The better and the worse of two replies, as a label or a majority of labels has it."""
    require(row, (*pair, label), "a comparison needs two replies and which is better")
    votes = row[label] if isinstance(row[label], list) else [row[label]]
    counted = Counter(_vote(vote, pair, label) for vote in votes)
    if counted[0] == counted[1]:
        seen = f"neither reply is better by {shown(row[label])}"
        raise problem(label, seen, "a pair needs a preference", "remove the row", "tie")
    better, worse = pair if counted[0] > counted[1] else pair[::-1]
    return (row[better], better), (row[worse], worse)


def _vote(vote: object, pair: tuple[str, str], label: str) -> int | None:
    """Which of the two a label names; None for a tie."""
    said = str(int(vote)) if isinstance(vote, float) and vote.is_integer() else str(vote).lower()
    if said.startswith("tie") or said in ("equal", "both", "neither"):
        return None
    for index, name in enumerate(pair):
        suffix = name.rpartition("_")[2]
        if said in (suffix, name, *(f"{one}_{suffix}" for one in ("model", "response", "assistant"))):
            return index
    rule = f"it names one of {' and '.join(pair)}, or a tie"
    raise problem(label, f"got {shown(vote)}", rule, "correct it, or name other columns in the recipe")


def scored_sides(row: Row, responses: str, scores: str, highest_is_best: bool) -> tuple[Side, Side]:
    """The best and the worst of several replies by their numbers; of equal ones the first."""
    require(row, (responses, scores), "several replies need a number each")
    replies, numbers = row[responses], row[scores]
    if not isinstance(replies, list) or not _are_numbers(numbers) or len(replies) != len(numbers):
        rule = f"it must be a list with a number for each of {responses}"
        raise problem(scores, f"got {shown(numbers)}", rule, "correct it or remove the row")
    high, low = numbers.index(max(numbers)), numbers.index(min(numbers))
    if high == low:
        rule = "the best and the worst need different numbers"
        raise problem(scores, f"got {shown(numbers)}", rule, "remove the row", "tie")
    best, worst = (high, low) if highest_is_best else (low, high)
    return (replies[best], f"{responses}[{best}]"), (replies[worst], f"{responses}[{worst}]")


def _are_numbers(value: object) -> bool:
    """Whether a value is a list of finite numbers, at least one."""
    members = value if isinstance(value, list) else []
    return bool(members) and all(isinstance(each, int | float) and abs(each) < inf for each in members)

"""What is said of a recognised format, and of rows that have none or could have several."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from models.errors import InputError
from models.sources import FormatName
from tasks.data.formats.mapping import Mapping
from tasks.data.formats.reading import PROMPT_KEYS, Reading, Role, Sample
from tasks.data.readers import shown_names

NAMES: dict[FormatName, str] = {
    "standard": "Standard columns",
    "messages": "Conversations",
    "sharegpt": "ShareGPT conversations",
    "alpaca": "Alpaca instructions",
    "question_answer": "Questions and answers",
    "gsm8k": "GSM8K problems",
    "choices": "Multiple choice",
    "turns": "Questions in several turns",
    "self_instruct": "Self-instruct tasks",
    "hh": "HH transcripts",
    "unpaired": "Labelled replies",
    "reply_tree": "Ranked reply trees",
}
_KNOWN: dict[Role, tuple[tuple[str, ...], ...]] = {
    "sft": (
        ("prompt", "completion"), ("messages",), ("conversations",), ("instruction", "output"), ("question", "answer"),
    ),
    "preference": (
        ("prompt", "chosen", "rejected"), ("prompt", "completion", "label"), ("prompt", "responses", "scores"),
        ("prompt", "response_0", "response_1", "label"),
    ),
    "prompts": (("prompt",), ("messages",), ("question", "answer"), ("instruction",)),
}  # fmt: skip
"""Columns of the formats that an error names as the nearest."""


def sentence(reading: Reading, sample: Sample, role: Role, mapping: Mapping) -> str:
    """What was recognised, how it is read, and what is left out."""
    told = [f"{NAMES[reading.format or 'standard']}: {reading.words}", *_remarks(reading, sample, role)]
    if mapping:
        told.append("by the recipe " + ", ".join(f"`{target}` is '{column}'" for target, column in mapping))
    read = {*reading.columns, "kind", *(["tools"] if role != "prompts" else [])}
    others = [name for name in sample.columns if name not in read]
    kept = [name for name in others if name not in PROMPT_KEYS] if role == "prompts" else []
    lost = [name for name in others if name not in kept]
    if kept:
        told.append(f"kept for rewards and verifiers: {shown_names(kept)}")
    if lost:
        told.append(f"left out: {shown_names(lost)}")
    return "; ".join(told)


def _remarks(reading: Reading, sample: Sample, role: Role) -> Iterator[str]:
    """What becomes of what only some conversations have."""
    turns = [turn for name in reading.columns for value in sample.values(name) for turn in _turns(value)]
    keys = {key for turn in turns for key, value in turn.items() if value is not None}
    parts = {part.get("type") for turn in turns for part in _turns(turn.get("content"))}
    if {"reasoning", "thinking"} & parts or {"reasoning_content", "reasoning", "thinking"} & keys:
        yield "reasoning comes before the text as <think>…</think>"
    if {"loss_weight", "weight"} & keys:
        yield "weights of other turns than the last have no effect"
    if sample.has("tools"):
        yield "`tools` are not shown to the model" if role == "prompts" else "`tools` are offered to the model"


def _turns(value: Any) -> list[dict[Any, Any]]:
    return [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []


def ambiguous(readings: Sequence[Reading]) -> InputError:
    """The error about rows that can be read in several ways."""
    ways = "; ".join(f"({number}) {each.words} [{each.choice}]" for number, each in enumerate(readings, 1))
    return InputError(
        f"the rows can be read in {len(readings)} ways: {ways}; write what is in brackets into the recipe"
    )


def unknown(sample: Sample, role: Role, asked: str) -> InputError:
    """The error about rows of no known format, or not of the one that the recipe names."""
    found = f"columns found: {shown_names(list(sample.names)) or 'none'}"
    if asked != "auto":
        rule = f"this is not what format '{asked}' has for {role}"
        return InputError(f"{found}; {rule}; name another one, or the columns (columns: …), see docs/data.md")
    if sample.has("text") and role == "sft":
        rule = "a text without a prompt holds no reply to train on"
        return InputError(f"{found}; {rule}; split it into prompt and completion")
    return InputError(f"{found}; no format known for {role} has them; {_nearest(sample, role)}")


def _nearest(sample: Sample, role: Role) -> str:
    """The format that the columns come closest to, and what it lacks."""
    names = list(sample.names)
    near = {column: get_close_matches(column, names, n=1, cutoff=0.75) for known in _KNOWN[role] for column in known}
    best = max(_KNOWN[role], key=lambda known: sum(bool(near[column]) for column in known) / len(known))
    lacking = [column for column in best if column not in names]
    hints = [f"did you mean '{near[column][0]}'? rename it to '{column}'" for column in lacking if near[column]]
    remedy = " and ".join(hints) or "name the columns in the recipe (columns: …, see docs/data.md)"
    return f"nearest is {', '.join(best)}, of which {shown_names(lacking)} {_are(lacking)} missing; {remedy}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"

"""Rows in the conversational form that TRL takes, each checked against its stage before any model loads.

    sft          prompt: messages, completion: [one assistant message], kind
    preference   prompt: messages, chosen, rejected: [one assistant message each], kind
    prompts      prompt: messages, answer: [accepted texts], kind

A message is `{"role": …, "content": …}`, a prompt ends with a user turn, and `kind` names a group of rows that figures
are given for. A text in place of messages is one turn. For sft, `messages` may hold the whole conversation; for
preference, `chosen` and `rejected` may, and what they share is the prompt. Text is kept as it is; a number as answer
becomes its text; rows that are equal in this form are kept once; other columns are ignored; any other deviation is an
error that names its row.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from models.errors import InputError
from models.fingerprint import canonical_json
from models.sources import DatasetSource
from tasks import conversations
from tasks.conversations import problem, shown, text
from tasks.readers import Row, shown_names
from tasks.sources import read_entries, read_rows

__all__ = ["CheckedRows", "Role", "Row", "check_rows", "digest", "read_rows", "snapshot_identity"]

Role = Literal["sft", "preference", "prompts"]
"""What rows are for: supervised fine-tuning; reward modelling and DPO; GRPO and evaluation."""

SHOWN_PROBLEMS = 3


@dataclass(frozen=True)
class CheckedRows:
    """Rows that fit a stage, and how many were left out."""

    rows: list[Row]
    """The rows in normal form, in the order of the source, without duplicates."""
    duplicates: int
    """Rows left out because an earlier one has the same normal form."""


def check_rows(source: DatasetSource, role: Role, system_prompt: str | None) -> CheckedRows:
    """Read `source` and bring each row to the normal form of `role`.

    `system_prompt` is put first in each prompt without a system message. At most `max_rows` rows are read, duplicates
    included.

    Raises:
        InputError: the source or some of its rows cannot be used; the message gives the first three problems, each with
            file, row, column, value, rule and remedy, and the number of further ones.
    """
    rows: dict[str, Row] = {}
    problems: list[str] = []
    read = 0
    try:
        for place, entry in read_entries(source):
            read += 1
            try:
                row = _with_system_prompt(_normalised(entry, role), system_prompt)
                rows.setdefault(digest([row]), row)
            except InputError as error:
                problems.append(f"{place}: {error}")
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError(_summary(problems, read))
    return CheckedRows(rows=list(rows.values()), duplicates=read - len(rows))


def digest(rows: Iterable[Row]) -> str:
    """SHA-256 over the rows' canonical JSON, one a line: the identity of a snapshot, whatever file they came from."""
    lines = hashlib.sha256()
    for row in rows:
        lines.update(canonical_json(row).encode() + b"\n")
    return lines.hexdigest()


def snapshot_identity(rows: Iterable[Row]) -> dict[str, str]:
    """What decides a snapshot of these rows, as JSON data."""
    return {"rows_sha256": digest(rows)}


def _summary(problems: list[str], read: int) -> str:
    further = len(problems) - SHOWN_PROBLEMS
    more = [f"… and {further} further problem{'s' if further > 1 else ''} in {read} rows"] if further > 0 else []
    return "\n".join(problems[:SHOWN_PROBLEMS] + more)


def _normalised(entry: Row | InputError, role: Role) -> Row:
    if isinstance(entry, InputError):
        raise entry
    return _NORMAL_FORMS[role](entry) | {"kind": _kind(entry)}


def _sft(row: Row) -> Row:
    if "messages" in row and row.get("completion") is None:
        turns = conversations.messages(row["messages"], "messages")
        reply = conversations.only_reply(turns[-1:], "messages")
        return {"prompt": conversations.ending_with_user(turns[:-1], "messages"), "completion": reply}
    _require(row, ("prompt", "completion"), "sft needs prompt and completion, or messages")
    return {
        "prompt": conversations.prompt(row["prompt"]),
        "completion": conversations.reply(row["completion"], "completion"),
    }


def _preference(row: Row) -> Row:
    _require(row, ("chosen", "rejected"), "preference needs prompt, chosen and rejected")
    if conversations.is_conversation(row["chosen"]) and conversations.is_conversation(row["rejected"]):
        prompt, chosen, rejected = conversations.split_pair(row["chosen"], row["rejected"])
        _refuse_other_prompt(row, prompt)
    else:
        _require(row, ("prompt",), "it may only be left out where chosen and rejected are whole conversations")
        prompt = conversations.prompt(row["prompt"])
        chosen = conversations.reply(row["chosen"], "chosen")
        rejected = conversations.reply(row["rejected"], "rejected")
        conversations.refuse_equal(chosen, rejected)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _refuse_other_prompt(row: Row, shared: list[conversations.Message]) -> None:
    """A prompt given beside whole conversations must be what they share, be it without the system message."""
    if row.get("prompt") is None:
        return
    without_system = [turn for turn in shared if turn["role"] != "system"]
    if conversations.prompt(row["prompt"]) not in (shared, without_system):
        seen = f"{shown(row['prompt'])} is not what chosen and rejected begin with"
        rule = "beside whole conversations a prompt must be what they share"
        raise problem("prompt", seen, rule, "remove the column, or remove the prompt from chosen and rejected")


def _prompts(row: Row) -> Row:
    _require(row, ("prompt", "answer"), "prompts need prompt and answer")
    return {"prompt": conversations.prompt(row["prompt"]), "answer": _answers(row["answer"])}


_NORMAL_FORMS: dict[Role, Callable[[Row], Row]] = {"sft": _sft, "preference": _preference, "prompts": _prompts}


def _answers(value: object) -> list[str]:
    if not isinstance(value, list):
        return [_answer(value, "answer")]
    if not value:
        raise problem("answer", "the list is empty", "a prompt needs an accepted answer", conversations.FILL_IN)
    return [_answer(member, f"answer[{index}]") for index, member in enumerate(value)]


def _answer(value: object, column: str) -> str:
    """The text of an answer; 43.0 becomes `43`, since Parquet and JSON writers turn whole numbers into fractions."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    return text(value, column, "an answer is a text, a finite number, or a list of them")


def _kind(row: Row) -> str:
    value = row.get("kind")
    return text(value, "kind", "kind is a text") if value not in (None, "") else "all"


def _require(row: Row, columns: tuple[str, ...], rule: str) -> None:
    for column in columns:
        if column not in row:
            near = get_close_matches(column, list(row), n=1)
            remedy = f"did you mean '{near[0]}'? rename it to '{column}'" if near else "rename or add columns"
            raise problem(column, f"it is missing; columns found: {shown_names(list(row)) or 'none'}", rule, remedy)


def _with_system_prompt(row: Row, system_prompt: str | None) -> Row:
    if system_prompt is None or any(message["role"] == "system" for message in row["prompt"]):
        return row
    return row | {"prompt": [{"role": "system", "content": system_prompt}, *row["prompt"]]}

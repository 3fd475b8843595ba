"""Rows in the conversational form that TRL takes, each checked against its stage before any model loads.

    sft          prompt: messages, completion: [one assistant message], kind
    preference   prompt: messages, chosen, rejected: [one assistant message each], kind
    prompts      prompt: messages, answer: [accepted texts], kind, extra: {column: value}

A message is `{"role": …, "content": …}`, a prompt ends with a user turn, and `kind` names a group of rows that figures
are given for. A text in place of messages is one turn. For sft, `messages` may hold the whole conversation; for
preference, `chosen` and `rejected` may, and what they share is the prompt. Text is kept as it is; a number as answer
becomes its text; rows that are equal in this form are kept once; any other deviation is an error that names its row.

Further columns of prompts are for rewards and verifiers: those that have a value are kept in `extra`, which a row
without any lacks; the other roles ignore them. `answer` may be left out where nothing compares replies with it.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from models.errors import InputError
from models.fingerprint import canonical_json
from models.rewards import Reward, Verifier
from models.sources import DatasetSource
from tasks.core.columns import flat, plain
from tasks.core.verifiers.checking import check_row
from tasks.core.verifiers.expected import answers
from tasks.data import conversations
from tasks.data.problems import problem, shown, text
from tasks.data.readers import Row, shown_names
from tasks.data.sources import read_entries, read_rows

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


def check_rows(
    source: DatasetSource, role: Role, system_prompt: str | None, rules: Sequence[Reward | Verifier] = ()
) -> CheckedRows:
    """Read `source` and bring each row to the normal form of `role`.

    `system_prompt` is put first in each prompt without a system message. At most `max_rows` rows are read, duplicates
    included. Rows of prompts must have what `rules` read of them.

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
                for rule in rules:
                    check_row(flat(row), rule)
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
    _require(row, ("prompt",), "prompts need a prompt")
    expected = answers(row["answer"], "answer") if row.get("answer") not in (None, "", []) else []
    further = {name: plain(value) for name, value in row.items() if name not in ("prompt", "answer", "kind")}
    extra = {name: value for name, value in further.items() if value is not None}
    normal = {"prompt": conversations.prompt(row["prompt"]), "answer": expected}
    return normal | ({"extra": extra} if extra else {})


_NORMAL_FORMS: dict[Role, Callable[[Row], Row]] = {"sft": _sft, "preference": _preference, "prompts": _prompts}


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

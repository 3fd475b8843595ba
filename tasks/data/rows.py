"""Rows in the conversational form that TRL takes, each checked against its stage before any model loads.

    sft          prompt: messages, completion: [one assistant message], kind, tools
    preference   prompt: messages, chosen, rejected: [one assistant message each], kind, tools
    prompts      prompt: messages, answer: [accepted texts], kind, extra: {column: value}

A message is `{"role": …, "content": …}`, a prompt ends with a user turn or a tool's result, and `kind` names a group of
rows that figures are given for. `tools` and a message's `tool_calls` are JSON text, and there only where a row has them
(`tasks.data.tools`). How rows of other forms come to this one is the matter of `tasks.data.formats`. Text is kept as it
is; a number as answer becomes its text; rows that are equal in this form are kept once; any other deviation is an error
that names its row.

Further columns of prompts are for rewards and verifiers: those that have a value are kept in `extra`, which a row
without any lacks; the other roles leave them out. `answer` may be missing where nothing compares replies with it.
"""

from collections.abc import Iterable, Iterator, Sequence

from models.errors import InputError
from models.fingerprint import canonical_json
from models.rewards import Reward, Verifier
from models.sources import RowSource
from tasks.core.columns import flat
from tasks.core.verifiers.checking import check_row
from tasks.data.formats.format import Format
from tasks.data.formats.reading import Role
from tasks.data.formats.recognition import recognise
from tasks.data.problems import RowProblem
from tasks.data.readers import Entry, Row

SHOWN_PROBLEMS = 3


def summary(problems: Sequence[str], count: int, read: int) -> str:
    """The first problems, one a line, and how many of `count` in the rows read are further ones."""
    further = count - SHOWN_PROBLEMS
    more = [f"… and {further} further problem{'s' if further > 1 else ''} in {read} rows"] if further > 0 else []
    return "\n".join([*problems[:SHOWN_PROBLEMS], *more])


def no_pairs(source: RowSource, read: int, form: Format) -> InputError:
    """What to say of a source whose rows make no pair."""
    return InputError(f"{source.label}: no two of its {read} rows make a pair; {form.sentence}")


def telling(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries; where the rest cannot be read, the last one says why and names its own place."""
    try:
        yield from entries
    except InputError as error:
        yield "", error


def recognised(first: Sequence[Entry], role: Role, source: RowSource) -> Format:
    """The format of the rows that a source begins with.

    Args:
        first: Its first `SAMPLE_ROWS` rows, or fewer.
        role: What the rows are for.
        source: The source, which may name format and columns.

    Raises:
        InputError: none of them can be read, or their format is not known.
    """
    rows = [entry for _, entry in first if isinstance(entry, dict)]
    problems = [f"{place}: {entry}" if place else str(entry) for place, entry in first if isinstance(entry, InputError)]
    if not rows:
        raise InputError(summary(problems, len(problems), len(first)))
    try:
        return recognise(rows, role, source)
    except InputError as error:
        told = [f"{source.label}: {error}", *problems]
        raise InputError(summary(told, len(told), len(first))) from None


def converted(entry: Row | InputError, form: Format, rules: Sequence[Reward | Verifier]) -> Row:
    """One row as it was read in normal form, or what the format makes pairs of.

    Raises:
        InputError: it cannot be used, or was not read; the message lacks file and row.
    """
    if isinstance(entry, InputError):
        raise entry
    row = _normal(entry, form)
    for rule in rules:
        check_row(flat(row), rule)
    return row


def _normal(entry: Row, form: Format) -> Row:
    """The row in normal form, which canonical JSON can hold: of its further columns anything may have come."""
    try:
        row = form.convert(entry)
        canonical_json(row.get("extra")).encode()
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        cause = f"{type(error).__name__}: {str(error)[:80]}"
        rule = "a value is nested too deeply, or has no form as JSON"
        raise RowProblem(f"the row cannot be converted ({cause}); {rule}; correct or remove the row") from None
    return row


def with_system_prompt(row: Row, system_prompt: str | None) -> Row:
    """The row, with the system prompt first in its prompt where there is none."""
    if system_prompt is None or any(message["role"] == "system" for message in row["prompt"]):
        return row
    return row | {"prompt": [{"role": "system", "content": system_prompt}, *row["prompt"]]}

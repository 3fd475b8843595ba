"""Which format the rows of a source have: decided by the columns of its first rows, or by the recipe.

Columns of the normal form's own names come first (`prompt`, `completion`, `messages`, `chosen`, `rejected`, `answer`).
Where the rows can still be read in several ways, nothing is guessed: the error lists them and what to write for each.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

from models.sources import FormatName, RowSource
from tasks.data.formats.format import Format
from tasks.data.formats.mapping import Mapping, mapped, refuse_unknown
from tasks.data.formats.pairing import (
    holds_conversations,
    holds_transcripts,
    pair_readings,
    pair_row,
    transcript_pair,
)
from tasks.data.formats.prompting import prompt_readings
from tasks.data.formats.reading import Reading, Role, Sample
from tasks.data.formats.replying import answer_readings, own_row, reply_readings, whole_readings
from tasks.data.formats.sentences import NAMES, ambiguous, sentence, unknown
from tasks.data.formats.tables import is_unpaired, tree_readings, unpaired
from tasks.data.readers import Row
from tasks.data.turns import Message

SAMPLE_ROWS = 100
"""Rows that a format is recognised by."""


def recognise(rows: Sequence[Row], role: Role, source: RowSource) -> Format:
    """The format of a source.

    Args:
        rows: Its first rows, as many as `SAMPLE_ROWS` or fewer.
        role: What the rows are for.
        source: The source, which may name format and columns.

    Raises:
        InputError: the rows have no known format, or they can be read in several ways, or not as the recipe says.
    """
    mapping: Mapping = tuple(source.columns.named().items()) if source.columns else ()
    refuse_unknown(mapping, rows)
    renamed = tuple(mapped(row, mapping) for row in rows)
    names = frozenset(target for target, _ in mapping)
    sample = Sample(renamed, names)
    found = _readings(sample, role) or _readings(Sample(renamed, names, counts_empty=True), role)
    if source.format != "auto":
        found = [reading for reading in found if reading.format == source.format]
    best = max((reading.native for reading in found), default=0)
    found = [reading for reading in found if reading.native == best]
    if not found:
        raise unknown(sample, role, source.format)
    if len(found) > 1:
        raise ambiguous(found)
    return _format(found[0], sample, role, mapping)


def _format(reading: Reading, sample: Sample, role: Role, mapping: Mapping) -> Format:
    key = reading.format or "standard"
    return Format(
        key=key,
        name=NAMES[key],
        sentence=sentence(reading, sample, role, mapping),
        role=role,
        mapping=mapping,
        read=reading.read,
        columns=frozenset(reading.columns),
        combine=reading.combine,
    )


def _readings(sample: Sample, role: Role) -> list[Reading]:
    """Every way to read rows for a role."""
    return {"sft": _sft, "preference": _preference, "prompts": _prompts}[role](sample)


def _sft(sample: Sample) -> list[Reading]:
    return whole_readings(sample) + _joined(prompt_readings(sample, "sft"), reply_readings(sample))


def _prompts(sample: Sample) -> list[Reading]:
    return _joined(prompt_readings(sample, "prompts"), answer_readings(sample))


def _preference(sample: Sample) -> list[Reading]:
    found = tree_readings(sample)
    prompts = prompt_readings(sample, "preference")
    for sides in pair_readings(sample):
        if holds_transcripts(sample, sides):
            read: Callable[[Row], Row] = partial(transcript_pair, sides=sides.read)
            found.append(_whole(sides, read, "hh", sides.native + sample.has("prompt")))
        if holds_conversations(sample, sides):
            found.append(_whole(sides, partial(pair_row, sides=sides.read, prompt=None), "standard", sides.native + 1))
        else:
            found += [
                _of_parts(prompt, sides, partial(pair_row, sides=sides.read, prompt=prompt.read)) for prompt in prompts
            ]
    if is_unpaired(sample) and not found:
        found = [unpaired(reading) for reading in _sft(sample) if "label" not in reading.columns]
    return found


def _whole(sides: Reading, read: Callable[[Row], Row], name: FormatName, native: int) -> Reading:
    words = f"{sides.words}; what both begin with is the prompt"
    return Reading(words, (*sides.columns, "prompt"), read, name, native, f"format: {name}")


def _joined(prompts: Sequence[Reading], others: Sequence[Reading]) -> list[Reading]:
    return [
        _of_parts(prompt, other, _row_reader(prompt, other))
        for prompt, other in product(prompts, others)
        if other.format in (None, "gsm8k", prompt.format) and (prompt.format != "choices" or other.format == "choices")
    ]


def _row_reader(prompt: Reading, other: Reading) -> Callable[[Row], Row]:
    if (prompt.columns, other.columns) == (("prompt",), ("completion",)):
        return own_row
    return partial(joined_row, prompt=prompt.read, other=other.read)


def _of_parts(prompt: Reading, other: Reading, read: Callable[[Row], Row]) -> Reading:
    return Reading(
        words=f"{prompt.words}; {other.words}",
        columns=(*prompt.columns, *other.columns),
        read=read,
        format=other.format or prompt.format,
        native=prompt.native + other.native,
        choice="; ".join(filter(None, (prompt.choice, other.choice))),
    )


def joined_row(row: Row, prompt: Callable[[Row], list[Message]], other: Callable[[Row], Row]) -> Row:
    """A row whose prompt lies apart from what belongs to it."""
    return {"prompt": prompt(row), **other(row)}

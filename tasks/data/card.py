"""What a snapshot says of itself, for programs (`card.json`) and for people (`README.md`)."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from models.preparation import PartCount, RenderedExample, SnapshotCard
from tasks.data.lines import Row
from tasks.files import replace_file

CARD = "card.json"
README = "README.md"
_MARKUP = re.compile(r"[\\`*\[\]<>|&]")


def write_card(folder: Path, card: SnapshotCard, first_row: Row | None) -> None:
    """Write both forms of the card into a snapshot's folder, with a row to look at."""
    replace_file(folder / CARD, card.model_dump_json(indent=2) + "\n")
    replace_file(folder / README, "\n".join(_readme(card, first_row)) + "\n")


def read_card(folder: Path) -> SnapshotCard | None:
    """The card of a snapshot; none of one that an earlier version made."""
    file = folder / CARD
    return SnapshotCard.model_validate_json(file.read_bytes()) if file.exists() else None


def _readme(card: SnapshotCard, first_row: Row | None) -> Iterator[str]:
    name = card.source.get("path") or "a mixture"
    yield f"# Snapshot of {_plain(name)}\n"
    yield from _table([("Rows", f"{card.rows:,} of {card.rows_read:,} read"), *_facts(card).items()])
    if card.parts:
        yield "\n## Parts\n"
        yield from _table((part.source, _taken(part)) for part in card.parts)
    if card.files:
        yield "\n## Files\n"
        yield from _table(card.files.items())
    if first_row:
        yield "\n## First row"
        yield _fenced(json.dumps(first_row, indent=2, ensure_ascii=False), "json")
    if card.example:
        yield from _example(card.example)
    if card.problems:
        yield from _problems(card)
    yield "\nThe rows lie in `rows.parquet`, one conversation a row; `card.json` says the same as this page."


def _example(example: RenderedExample) -> Iterator[str]:
    yield f"\n## As the model sees it\n\nGiven ({example.tokens - example.trained_tokens} tokens, without loss):"
    yield _fenced(example.context, "text")
    if example.trained:
        yield f"\nTrained on ({example.trained_tokens} tokens):"
        yield _fenced(example.trained, "text")
    yield from (f"\nWarning: {warning}." for warning in example.warnings)


def _problems(card: SnapshotCard) -> Iterator[str]:
    yield "\n## Rules that rows break\n\n| rule | rows | became | such as |\n|---|---|---|---|"
    for each in card.problems:
        yield f"| {each.rule} | {each.rows:,} | {each.action} | {_plain('; '.join(each.examples))} |"
    yield from (f"\n{_plain(remark)}" for remark in card.remarks)


def _fenced(text: str, language: str) -> str:
    """A text as it is, between fences that it does not hold itself."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"\n{fence}{language}\n{text}\n{fence}"


def _taken(part: PartCount) -> str:
    commit = f", commit {part.revision}" if part.revision else ""
    return f"{part.rows:,} of {part.available:,} rows{commit}"


def _plain(text: str) -> str:
    """A text of others in one line, of which Markdown makes nothing else."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _facts(card: SnapshotCard) -> dict[str, str]:
    tokens = card.tokens
    lengths = (
        tokens and f"{tokens.median} (median), {tokens.p99} (99 %), {tokens.longest} (longest), {tokens.total:,} in all"
    )
    facts = {
        "For": card.role,
        "Rules applied": ", ".join(f"{rule} {count:,}" for rule, count in card.rules.items() if count),
        "On the other side of the split": f"{card.other_side:,}" if card.other_side else "",
        "System prompt": card.system_prompt or "",
        "Recognised": card.recognised,
        "Tokens of a row": lengths or "",
        "Revision": card.revision or "",
        "Licence": card.license or "not stated",
        "Digest": card.digest,
        "Layout": str(card.schema_version),
    }
    return {title: value for title, value in facts.items() if value}


def _table(facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    for title, value in facts:
        yield f"| {_plain(title)} | {_plain(value)} |"

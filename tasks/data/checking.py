"""Checks of a recipe's datasets: every row fits its stage, and no held-out prompt is trained on."""

import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nlargest

from pydantic import Field

from models.artifacts import Stage
from models.contract import Contract
from models.errors import InputError
from models.fingerprint import canonical_json, fingerprint
from models.recipe import GRPO, Recipe, Training
from models.rewards import Reward, Verifier
from models.sources import DatasetSource
from tasks.data.rows import Role, Row, check_rows, snapshot_identity

_LONGEST = 8
"""Rows whose tokens are counted: the one with the most characters need not have the most tokens."""


_CONVERSATIONS = ("prompt", "completion", "chosen", "rejected")


class DatasetCheck(Contract):
    """One use of a dataset in the recipe."""

    place: str
    """Key in the recipe: `sft.dataset`, `evaluation.prompts`, …"""
    path: str
    """The source as the recipe names it."""
    rows: int
    """Rows that will be used."""
    duplicates: int
    """Rows left out because an earlier one is equal."""
    recognised: str = ""
    """The format: what was recognised, how it is read, and what of it is left out."""
    unpaired: int = 0
    """Rows left out because nothing was there to make a pair with them."""
    fingerprint: str
    """Of the snapshot that the rows will be frozen as."""
    size_bytes: int
    """Size of that snapshot."""
    longest_rows: tuple[Row, ...] = Field((), exclude=True, repr=False)
    """The rows with the longest texts, which decide how much memory training takes."""


@dataclass(frozen=True)
class Table:
    """A checked dataset, reduced to what later checks need."""

    check: DatasetCheck
    prompts: frozenset[str]
    """Conversations before the reply, without system messages, as JSON."""


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Keep an error's message and go on, so that one try shows all problems."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))


def training_sections(recipe: Recipe) -> dict[Stage, Training]:
    """The recipe's training stages, by name, in order."""
    sections: dict[Stage, Training | None] = {
        "sft": recipe.sft, "reward": recipe.reward, "dpo": recipe.dpo, "grpo": recipe.grpo,
    }  # fmt: skip
    return {stage: section for stage, section in sections.items() if section}


Rules = tuple[Reward | Verifier, ...]


def _uses(recipe: Recipe) -> Iterator[tuple[str, DatasetSource, Role, Rules]]:
    """Every dataset of the recipe: its place, its source, what it is for, and the rules that read its rows."""
    roles: dict[Stage, Role] = {"sft": "sft", "reward": "preference", "dpo": "preference", "grpo": "prompts"}
    for stage, section in training_sections(recipe).items():
        rules = section.rewards if isinstance(section, GRPO) else ()
        yield f"{stage}.dataset", section.dataset, roles[stage], rules
    yield "evaluation.prompts", recipe.evaluation.prompts, "prompts", (recipe.evaluation.verifier,)
    if recipe.evaluation.preferences:
        yield "evaluation.preferences", recipe.evaluation.preferences, "preference", ()
    for one in recipe.evaluation.sets:
        rule = one.verifier or recipe.evaluation.verifier
        if one.prompts:
            yield f"evaluation.sets '{one.name}' prompts", one.prompts, "prompts", (rule,)
        if one.preferences:
            yield f"evaluation.sets '{one.name}' preferences", one.preferences, "preference", ()


def read_tables(recipe: Recipe, problems: list[str]) -> dict[str, Table]:
    """Check all rows of all datasets, each source once; those with problems are left out and noted."""
    read: dict[str, Table | None] = {}
    tables = {}
    for place, source, role, rules in _uses(recipe):
        key = canonical_json([source.model_dump(mode="json"), role, [rule.model_dump(mode="json") for rule in rules]])
        if key not in read:
            read[key] = None
            with noting(problems):
                read[key] = _read_table(place, source, role, recipe.system_prompt, rules)
        found = read[key]
        if found:
            tables[place] = Table(found.check.model_copy(update={"place": place}), found.prompts)
    return tables


def _read_table(place: str, source: DatasetSource, role: Role, system_prompt: str | None, rules: Rules) -> Table:
    try:
        checked = check_rows(source, role, system_prompt, rules)
    except InputError as error:
        raise InputError("\n".join(f"{place}: {line}" for line in str(error).splitlines())) from None
    sizes = [len(canonical_json(row)) for row in checked.rows]
    check = DatasetCheck(
        place=place,
        path=source.path,
        rows=len(checked.rows),
        duplicates=checked.duplicates,
        recognised=checked.recognised,
        unpaired=checked.unpaired,
        fingerprint=fingerprint(snapshot_identity(checked.rows)),
        size_bytes=sum(sizes) + len(sizes),
        longest_rows=tuple(nlargest(_LONGEST, checked.rows, key=_characters)),
    )
    return Table(check, frozenset(map(_prompt_key, checked.rows)))


def _characters(row: Row) -> int:
    """Size of the prompt with the longest reply to it, and of the tools."""
    lengths = {part: sum(map(_spoken, row[part])) for part in _CONVERSATIONS if part in row}
    return lengths.pop("prompt") + max(lengths.values(), default=0) + len(row.get("tools", ""))


def _spoken(turn: dict[str, str]) -> int:
    return len(turn["content"]) + len(turn.get("tool_calls", ""))


def _prompt_key(row: Row) -> str:
    """The conversation that a reply is asked for; a system message makes no new question."""
    turns = [[turn["role"], turn["content"].strip()] for turn in row["prompt"] if turn["role"] != "system"]
    return canonical_json(turns)


def check_leakage(tables: dict[str, Table], problems: list[str]) -> None:
    """Refuse held-out rows whose prompt some stage trains on: figures on them would say nothing."""
    training = {place: table for place, table in tables.items() if place.endswith(".dataset")}
    for place, heldout in tables.items():
        if place in training:
            continue
        for other, table in training.items():
            shared = heldout.prompts & table.prompts
            if shared:
                counts = f"{len(shared)} of {len(heldout.prompts)} held-out prompts of {heldout.check.path}"
                example = reprlib.repr(json.loads(min(shared))[-1][1])
                problems.append(
                    f"{place}: {counts} also occur in {other} ({table.check.path}), e.g. {example}; "
                    "remove them from one of the two"
                )

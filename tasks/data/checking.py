"""Checks of a recipe's datasets: every row fits its stage, and no held-out prompt is trained on."""

import reprlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from models.artifacts import Stage
from models.contract import Contract
from models.errors import InputError
from models.fingerprint import fingerprint
from models.recipe import GRPO, Recipe, Training
from models.rewards import Reward, Verifier
from models.sources import DatasetSource, RowSource
from tasks.data.conversion import Wanted
from tasks.data.located import what_decides
from tasks.data.preparations import Preparations
from tasks.data.rows import Role, Row
from tasks.data.snapshot import read_prompt_ids, read_rows
from tasks.data.sources import is_on_hub, local_files


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
    """A checked dataset, as later checks need it."""

    check: DatasetCheck
    folder: Path
    """Where its rows lie."""


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


def on_hub(recipe: Recipe) -> dict[str, str]:
    """The recipe's datasets of which at least a part is on a hub: what messages call each, by place."""
    return {place: source.label for place, source, *_ in _uses(recipe) if any(map(_is_on_hub, source.sources))}


def _is_on_hub(source: RowSource) -> bool:
    with suppress(InputError):  # reading it will say what is wrong
        return is_on_hub(source, local_files(source))
    return False


def read_tables(
    recipe: Recipe, problems: list[str], preparations: Preparations, skip: Collection[str] = ()
) -> dict[str, Table]:
    """Check all rows of all datasets, each source once; those with problems are left out and noted.

    Args:
        recipe: Whose datasets.
        problems: Gets what is wrong.
        preparations: Finds or makes their rows.
        skip: Places whose datasets are not read.
    """
    read: dict[str, Table | None] = {}
    tables = {}
    for place, source, role, rules in _uses(recipe):
        if place in skip:
            continue
        wanted = wanted_rows(source, role, recipe.system_prompt, rules)
        key = fingerprint(what_decides(source, wanted))
        if key not in read:
            read[key] = None
            with noting(problems):
                read[key] = _read_table(place, source, wanted, preparations)
        found = read[key]
        if found:
            tables[place] = Table(found.check.model_copy(update={"place": place}), found.folder)
    return tables


def wanted_rows(source: DatasetSource, role: Role, system_prompt: str | None, rules: Rules) -> Wanted:
    """What the rows of a source are to become for their use in a recipe."""
    return Wanted(role, system_prompt, rules, heldout_share=source.heldout_share, part=source.part)


def _read_table(place: str, source: DatasetSource, wanted: Wanted, preparations: Preparations) -> Table:
    try:
        ready = preparations.ready(source, wanted)
    except InputError as error:
        raise InputError("\n".join(f"{place}: {line}" for line in str(error).splitlines())) from None
    found = ready.prepared
    check = DatasetCheck(
        place=place,
        path=source.label,
        rows=found.rows,
        duplicates=found.duplicates,
        recognised=found.recognised,
        unpaired=found.unpaired,
        fingerprint=fingerprint(found.identity),
        size_bytes=found.size_bytes,
        longest_rows=found.longest_rows,
    )
    return Table(check, ready.folder)


def check_leakage(tables: dict[str, Table], problems: list[str]) -> None:
    """Refuse held-out rows whose prompt some stage trains on: figures on them would say nothing."""
    training = {place: table for place, table in tables.items() if place.endswith(".dataset")}
    for place, heldout in tables.items():
        if place in training:
            continue
        prompts = frozenset(read_prompt_ids(heldout.folder))
        for other, table in training.items():
            shared = prompts.intersection(read_prompt_ids(table.folder))
            if shared:
                counts = f"{len(shared)} of {len(prompts)} held-out prompts of {heldout.check.path}"
                problems.append(
                    f"{place}: {counts} also occur in {other} ({table.check.path}), e.g. "
                    f"{_example(heldout.folder, shared)}; remove them from one of the two"
                )


def _example(folder: Path, prompts: frozenset[bytes]) -> str:
    """The last turn of the first row that asks for one of the prompts, shortened."""
    rows = zip(read_prompt_ids(folder), read_rows(folder), strict=True)
    row = next(row for prompt, row in rows if prompt in prompts)
    return reprlib.repr(row["prompt"][-1]["content"].strip())

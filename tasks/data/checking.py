"""Checks of a recipe's datasets: every row fits its stage, and no held-out prompt is trained on."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from pydantic import Field

from models.artifacts import Stage, TrainingStage
from models.errors import InputError
from models.fingerprint import fingerprint
from models.preparation import Cleaning, HeldOutUse, Prepared
from models.recipe import GRPO, Recipe, Training
from models.rewards import Reward, Verifier
from models.sources import BaseModelSource, DatasetSource, RowSource
from settings.chat_templates import chat_template
from tasks.data.conversion import HeldOutSnapshot, Wanted
from tasks.data.formats.reading import Role
from tasks.data.lines import Row
from tasks.data.located import what_decides
from tasks.data.marks import special_tokens
from tasks.data.preparations import Preparations
from tasks.data.sources import is_on_hub, local_files
from tasks.data.tokens import tokenizer_of

Rules = tuple[Reward | Verifier, ...]
"""What reads the rows of prompts."""


class DatasetCheck(Prepared):
    """One use of a dataset in the recipe, and what preparing it has found."""

    place: str
    """Key in the recipe: `sft.dataset`, `evaluation.prompts`, …"""
    path: str
    """The source as the recipe names it."""
    fingerprint: str
    """Of the snapshot that the rows will be frozen as."""
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


def cleaning_of(recipe: Recipe, stage: Stage | None = None) -> Cleaning:
    """What the recipe asks of the rows that a stage trains on; none: of held-out rows."""
    rules, asked = recipe.data_rules, Cleaning(rules=recipe.data_rules, model=recipe.base_model)
    if stage is None:
        return asked
    longest = getattr(training_sections(recipe)[stage], "max_length", None)
    apart = _held_out(recipe) if "drop" in (rules.leak, rules.near_leak) else ()
    return asked.model_copy(update={"max_tokens": longest, "apart_from": tuple(apart)})


def _held_out(recipe: Recipe) -> Iterator[HeldOutUse]:
    for place, source, role, rules in _uses(recipe):
        if not _stage_of(place):
            yield HeldOutUse.model_validate({"source": source, "role": role, "rules": rules})


def _stage_of(place: str) -> Stage | None:
    """The stage that trains on the dataset at that place of a recipe; none: it is held out."""
    return next((stage for stage in get_args(TrainingStage) if place == f"{stage}.dataset"), None)


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


def datasets_on_hub(recipe: Recipe) -> dict[str, str]:
    """The datasets of which at least a part is on a hub: what messages call each, by its place in the recipe."""
    return {place: source.label for place, source, *_ in _uses(recipe) if any(map(_is_on_hub, source.sources))}


def _offline(cleaning: Cleaning) -> Cleaning:
    """The part of it that no hub is needed for."""
    model = cleaning.model if cleaning.model and cleaning.model.source != "hub" else None
    apart = [use for use in cleaning.apart_from if not any(map(_is_on_hub, use.source.sources))]
    return cleaning.model_copy(update={"model": model, "apart_from": tuple(apart)})


def _is_on_hub(source: RowSource) -> bool:
    with suppress(InputError):  # reading it will say what is wrong
        return is_on_hub(source, local_files(source))
    return False


def read_tables(
    recipe: Recipe, problems: list[str], preparations: Preparations, offline: bool = False
) -> dict[str, Table]:
    """Check all rows of all datasets, each source once; those with problems are left out and noted.

    Args:
        recipe: Whose datasets.
        problems: Gets what is wrong.
        preparations: Finds or makes their rows.
        offline: Ask no hub: datasets there are left out, and rules that need the tokenizer of a model there.
    """
    unread = datasets_on_hub(recipe) if offline else {}
    read: dict[str, Table | None] = {}
    tables = {}
    for place, source, role, rules in _uses(recipe):
        if place in unread:
            continue
        asked = cleaning_of(recipe, _stage_of(place))
        cleaning = _offline(asked) if offline else asked
        wanted = wanted_rows(source, role, recipe.system_prompt, rules, cleaning)
        with suppress(InputError):  # what is wrong with held-out rows is told at their own place
            wanted = kept_apart(wanted, cleaning, preparations)
        key = fingerprint(what_decides(source, wanted))
        if key not in read:
            read[key] = None
            with noting(problems):
                read[key] = _read_table(place, source, wanted, preparations)
        found = read[key]
        if found:
            tables[place] = Table(found.check.model_copy(update={"place": place}), found.folder)
    return tables


def wanted_rows(
    source: DatasetSource,
    role: Role,
    system_prompt: str | None,
    rules: Rules = (),
    cleaning: Cleaning | None = None,
) -> Wanted:
    """What the rows of a source are to become for their use in a recipe.

    Raises:
        InputError: the model's tokens are asked for, and it is not there.
    """
    wanted = Wanted(role, system_prompt, rules, heldout_share=source.heldout_share, part=source.part)
    return cleaned_by(wanted, cleaning) if cleaning else wanted


def cleaned_by(wanted: Wanted, cleaning: Cleaning) -> Wanted:
    """Rows with the data rules applied to them; tokens are counted only where a rule asks for it."""
    given, model = cleaning.rules, cleaning.model
    wanted = replace(wanted, data_rules=given)
    if model is None:
        return wanted
    tokens = special_tokens(model, whatever_it_takes=given.special_tokens != "keep")
    wanted = replace(wanted, special_tokens=tokens)
    measured = cleaning.max_tokens is not None and given.too_long != "keep"
    return measured_by(wanted, model, cleaning.max_tokens) if measured else wanted


def kept_apart(wanted: Wanted, cleaning: Cleaning, preparations: Preparations) -> Wanted:
    """What rows are to become that must not repeat held-out ones, which are prepared first.

    Raises:
        InputError: held-out rows cannot be used.
        Killed, StageError, Stopped: see `tasks.data.preparing`.
    """
    own = cleaning.model_copy(update={"max_tokens": None, "apart_from": ()})
    ready = [
        preparations.ready(each.source, wanted_rows(each.source, each.role, wanted.system_prompt, each.rules, own))
        for each in cleaning.apart_from
    ]
    # Two uses of the same rows are prepared apart, but are the same held-out rows.
    folders = {each.prepared.rows_sha256: each.folder for each in ready}
    return replace(wanted, heldout=tuple(HeldOutSnapshot(folder, rows) for rows, folder in folders.items()))


def measured_by(wanted: Wanted, model: BaseModelSource, max_tokens: int | None) -> Wanted:
    """Rows with their tokens counted."""
    template = chat_template(model.chat_template) if model.chat_template else None
    return replace(wanted, tokenizer=tokenizer_of(model), chat_template=template, max_tokens=max_tokens)


def _read_table(place: str, source: DatasetSource, wanted: Wanted, preparations: Preparations) -> Table:
    try:
        ready = preparations.ready(source, wanted)
    except InputError as error:
        raise InputError("\n".join(f"{place}: {line}" for line in str(error).splitlines())) from None
    found = ready.prepared
    check = DatasetCheck(place=place, path=source.label, fingerprint=fingerprint(found.identity), **dict(found))
    return Table(check, ready.folder)

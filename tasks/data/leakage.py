"""Held-out rows that are trained on: the same prompts, and longer runs of the same words."""

import reprlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from models.data_rules import DataRules
from tasks.data.checking import Table
from tasks.data.heldout import RUN_WORDS, held_out
from tasks.data.snapshot import read_prompt_ids, read_rows

LOOKED_AT = 20_000
"""Rows of each dataset in which runs of words are looked for where what is found is kept anyway."""


def check_leakage(tables: dict[str, Table], rules: DataRules, problems: list[str]) -> list[str]:
    """Look for held-out rows in what stages train on: figures on these would say nothing.

    Where a rule is to leave such rows out, none are left to be found.

    Args:
        tables: The checked datasets by their place in the recipe.
        rules: Whether leaks end the run.
        problems: Gets those that do.

    Returns:
        Those that do not.
    """
    notes: list[str] = []
    training = {place: table for place, table in tables.items() if place.endswith(".dataset")}
    heldout = {place: table for place, table in tables.items() if place not in training}
    for place, table in heldout.items():
        told = problems if rules.leak == "error" else notes
        told += _same_prompts(place, table, training)
    if rules.near_leak != "drop":
        told = problems if rules.near_leak == "error" else notes
        told += _same_words(heldout, training, None if rules.near_leak == "error" else LOOKED_AT)
    return notes


def _same_prompts(place: str, heldout: Table, training: dict[str, Table]) -> Iterator[str]:
    prompts = frozenset(read_prompt_ids(heldout.folder))
    for other, table in training.items():
        shared = prompts.intersection(read_prompt_ids(table.folder))
        if shared:
            counts = f"{len(shared)} of {len(prompts)} held-out prompts of {heldout.check.path}"
            yield (
                f"{place}: {counts} also occur in {other} ({table.check.path}), e.g. "
                f"{_example(heldout.folder, shared)}; remove them from one of the two"
            )


def _example(folder: Path, prompts: frozenset[bytes]) -> str:
    """The last turn of the first row that asks for one of the prompts, shortened."""
    rows = zip(read_prompt_ids(folder), read_rows(folder), strict=True)
    row = next(row for prompt, row in rows if prompt in prompts)
    return reprlib.repr(row["prompt"][-1]["content"].strip())


def _same_words(heldout: dict[str, Table], training: dict[str, Table], most: int | None) -> Iterator[str]:
    """What to say of each training set that shares runs of words with held-out rows of other prompts."""
    folders = {table.check.rows_sha256: table.folder for table in heldout.values()}
    held = held_out(frozenset(folders.values()), most)
    for place, table in training.items() if held.runs else ():
        rows = zip(read_prompt_ids(table.folder), read_rows(table.folder), strict=True)
        shared = [run for prompt, row in islice(rows, most) if (run := held.shared_run(prompt, row))]
        if shared:
            example = reprlib.repr(" ".join(shared[0]))
            more = f" of the first {most:,}" if most and table.check.rows > most else ""
            yield (
                f"{place}: {len(shared)} rows{more} share {RUN_WORDS} words in a row with held-out rows, e.g. "
                f"{example}; look whether they give answers away"
            )

"""The report's tables: metrics by model, replies side by side, attempts, and what every checkpoint is made of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from models.artifacts import Attempt, Manifest, Stage
from models.evaluation import Estimate
from models.recipe import DPO, GRPO, Recipe, Training
from models.run import RunRecord
from tasks.comparing import better_side
from tasks.reporting.verdict import by_stage, movement
from tasks.reporting.words import MEASURE_NAMES, TIMES, UNKNOWN, duration, measure_name, memory, number, stages_of

ARROWS = {"raised": "▲", "lowered": "▼", "unclear": ""}
_SIGNS = {"raised": 1, "lowered": -1, "unclear": 0}


@dataclass(frozen=True)
class Cell:
    """One model's figure."""

    value: str
    interval: str
    arrow: str
    """`▲` or `▼` where the figure differs from the parent's by more than chance explains."""
    tone: str
    """`better` or `worse` where that is one of them."""
    change: str
    """The same in words, for readers who cannot see the arrow."""


@dataclass(frozen=True)
class MetricRow:
    """One measure over all models."""

    name: str
    rows: str
    """How many held-out rows stand behind it."""
    is_kind: bool
    """Whether it is one kind of row out of the measure above."""
    cells: tuple[Cell | None, ...]


def metric_columns(record: RunRecord) -> list[Stage]:
    """The judged models, the reward model, which is no policy, at the end."""
    judged = by_stage(record)
    return sorted((stage for stage in stages_of(record.recipe) if stage in judged), key=lambda s: s == "reward")


def metric_rows(record: RunRecord) -> list[MetricRow]:
    """Every measure, overall, by kind of row and on further sets, for the models of `metric_columns`."""
    figures = {stage: evaluation.estimates() for stage, evaluation in by_stage(record).items()}
    names = dict.fromkeys(name for of_stage in figures.values() for name in of_stage)
    return [_metric_row(record, name, figures) for name in sorted(names, key=_order)]


def _order(name: str) -> tuple[bool, int, bool]:
    """Held-out rows first, each measure followed by its kinds."""
    measure, is_kind = name.partition("/")[0], "/" in name
    known = [str(measure) for measure in MEASURE_NAMES]
    return measure not in known, known.index(measure) if measure in known else 0, is_kind


def _metric_row(record: RunRecord, name: str, figures: Mapping[Stage, Mapping[str, Estimate]]) -> MetricRow:
    counts = sorted({of_stage[name].n for of_stage in figures.values() if name in of_stage})
    cells = tuple(_cell(record, stage, name, figures[stage].get(name)) for stage in metric_columns(record))
    kind = name.partition("/")[2]
    return MetricRow(_titled(kind or measure_name(name)), " / ".join(map(str, counts)), bool(kind), cells)


def _titled(name: str) -> str:
    return name[:1].upper() + name[1:]


def _cell(record: RunRecord, stage: Stage, name: str, figure: Estimate | None) -> Cell | None:
    if figure is None:
        return None
    moved = movement(record, stage, name)
    interval = f"[{number(figure.low)}, {number(figure.high)}]"
    good = better_side(name) * _SIGNS[moved]
    tone = {1: "better", -1: "worse"}.get(good, "")
    change = ", ".join(filter(None, (moved, tone))) if ARROWS[moved] else ""
    return Cell(number(figure.value), interval, ARROWS[moved], tone, change)


def settings_of(recipe: Recipe, stage: Stage) -> dict[str, str]:
    """The hyperparameters of a stage that people ask for first, in words."""
    if stage == "base":
        source = recipe.base_model
        return {"Source": f"{source.source} {source.name}"} | ({"Revision": source.revision} if source.revision else {})
    asked: Training = getattr(recipe, stage)
    facts = {
        "Data": asked.dataset.path,
        "Length": _length(asked),
        "Effective batch": str(asked.batch_size),
        "Learning rate": f"{asked.learning_rate:g}",
        "Weights": f"LoRA, rank {asked.lora.r}" if asked.lora else "all",
    }
    if isinstance(asked, DPO):
        facts["Beta"] = f"{asked.beta:g}"
    if isinstance(asked, GRPO):
        facts["Completions per prompt"] = str(asked.num_generations)
        facts["Rewards"] = ", ".join(f"{reward.weight:g} {TIMES} {reward.label}" for reward in asked.rewards)
    return facts


def _length(asked: Training) -> str:
    if asked.max_steps:
        return f"{asked.max_steps} step{'s' * (asked.max_steps != 1)}"
    return f"{asked.num_train_epochs:g} epoch{'s' * (asked.num_train_epochs != 1)}"


def attempt_cells(attempt: Attempt) -> tuple[str, ...]:
    """Micro-batch and accumulation, outcome, step resumed from, time and peak memory of one attempt."""
    return (
        f"{attempt.per_device_train_batch_size} {TIMES} {attempt.gradient_accumulation_steps}",
        attempt.outcome.replace("_", " ") + (f": {attempt.cause}" if attempt.cause else ""),
        str(attempt.resumed_from_step) if attempt.resumed_from_step else UNKNOWN,
        duration(attempt.seconds),
        memory(attempt.peak_memory_bytes),
    )


def differing(facts: Mapping[str, Mapping[str, str | int]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Lay facts of several checkpoints out as a table, with a single column where all of them agree."""
    columns = list(facts)
    if len({json.dumps(values, sort_keys=True, default=str) for values in facts.values()}) == 1:
        columns = columns[:1]
    names = dict.fromkeys(name for values in facts.values() for name in values)
    rows = [(name, [str(facts[column].get(name, UNKNOWN)) for column in columns]) for name in sorted(names)]
    return (columns if len(columns) > 1 else ["every checkpoint"]), rows


def parent_lines(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Role, folder name and full fingerprint of everything a checkpoint was made from."""
    digests = manifest.identity.get("parents", {})
    digests = digests if isinstance(digests, dict) else {}
    roles = dict.fromkeys([*manifest.parents, *digests])
    return [(role, manifest.parents.get(role, ""), str(digests.get(role, ""))) for role in roles]


def flat(values: Mapping[str, object]) -> dict[str, str]:
    """Write nested JSON data as one line per key."""
    return {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in values.items()}

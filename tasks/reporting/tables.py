"""The report's tables: metrics by model, replies side by side, attempts, and what every checkpoint is made of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from models.artifacts import Attempt, Manifest, Stage
from models.evaluation import Estimate, EvaluationResult, Sample
from models.recipe import DPO, GRPO, Recipe, Training
from models.run import RunRecord
from tasks.reporting.verdict import by_stage, estimate
from tasks.reporting.words import MEASURE_NAMES, TIMES, UNKNOWN, Measure, change, duration, memory, parent_of, stages_of

ARROWS = {"raised": "▲", "lowered": "▼", "unclear": ""}


@dataclass(frozen=True)
class Cell:
    """One model's figure."""

    value: str
    interval: str
    arrow: str
    """`▲` or `▼` where the figure differs from the parent's by more than chance explains."""
    change: str
    """The same in a word, for readers who cannot see the arrow."""


@dataclass(frozen=True)
class MetricRow:
    """One measure over all models."""

    name: str
    rows: str
    """How many held-out rows stand behind it."""
    is_kind: bool
    """Whether it is one kind of row out of the measure above."""
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class SampleRow:
    """A held-out prompt and what each model replies."""

    replies: tuple[Sample, ...]

    @property
    def prompt(self) -> Sample:
        """Prompt, kind and accepted answers, which all replies share."""
        return self.replies[0]

    @property
    def differs(self) -> bool:
        """Whether some models are right and some wrong."""
        return len({reply.correct for reply in self.replies}) > 1


def metric_columns(record: RunRecord) -> list[Stage]:
    """The judged models, the reward model, which is no policy, at the end."""
    judged = by_stage(record)
    return sorted((stage for stage in stages_of(record.recipe) if stage in judged), key=lambda s: s == "reward")


def metric_rows(record: RunRecord) -> list[MetricRow]:
    """Every measure, overall and then by kind of row, for the models of `metric_columns`."""
    found = by_stage(record)
    rows: list[MetricRow] = []
    for measure, name in MEASURE_NAMES.items():
        overall = {stage: estimate(evaluation, measure) for stage, evaluation in found.items()}
        if any(overall.values()):
            rows.append(_metric_row(record, name.capitalize(), overall, is_kind=False))
        kinds = {stage: _kinds(evaluation, measure) for stage, evaluation in found.items()}
        for kind in dict.fromkeys(kind for values in kinds.values() for kind in values):
            figures = {stage: values.get(kind) for stage, values in kinds.items()}
            rows.append(_metric_row(record, kind, figures, is_kind=True))
    return rows


def _kinds(evaluation: EvaluationResult, measure: Measure) -> dict[str, Estimate]:
    found: dict[str, Estimate] = getattr(evaluation, f"{measure}_by_kind", {})
    return found


def _metric_row(record: RunRecord, name: str, figures: Mapping[Stage, Estimate | None], is_kind: bool) -> MetricRow:
    counts = sorted({figure.n for figure in figures.values() if figure})
    cells = tuple(_cell(record, stage, figures) for stage in metric_columns(record))
    return MetricRow(name, " / ".join(map(str, counts)), is_kind, cells)


def _cell(record: RunRecord, stage: Stage, figures: Mapping[Stage, Estimate | None]) -> Cell | None:
    figure = figures.get(stage)
    if figure is None:
        return None
    before = figures.get(parent_of(record.recipe, stage)) if stage not in ("base", "reward") else None
    moved = change(before, figure) if before else "unclear"
    interval = f"[{figure.low:.2f}, {figure.high:.2f}]"
    return Cell(f"{figure.value:.2f}", interval, ARROWS[moved], moved if ARROWS[moved] else "")


def sample_columns(record: RunRecord) -> list[Stage]:
    """The policies whose replies stand side by side: those that answered the same prompts as the first of them."""
    found = by_stage(record)
    answered = [stage for stage in stages_of(record.recipe) if stage in found and found[stage].samples]
    prompts = {stage: [sample.prompt for sample in found[stage].samples] for stage in answered}
    return [stage for stage in answered if prompts[stage] == prompts[answered[0]]]


def sample_rows(record: RunRecord) -> list[SampleRow]:
    """Every held-out prompt with the replies of the models of `sample_columns`."""
    found = by_stage(record)
    return [
        SampleRow(replies) for replies in zip(*(found[stage].samples for stage in sample_columns(record)), strict=True)
    ]


def choose_rows(rows: list[SampleRow], count: int) -> tuple[list[SampleRow], list[SampleRow]]:
    """Split rows into about `count` telling ones and the rest.

    Every kind is represented; beyond that, rows on which the models differ are preferred, taken from the kinds in turn.
    """
    seen: dict[str, int] = {}
    ranked = []
    for row in sorted(rows, key=lambda row: not row.differs):
        rank = seen[row.prompt.kind] = seen.get(row.prompt.kind, -1) + 1
        ranked.append((rank > 0, not row.differs, rank, row))
    ranked.sort(key=lambda entry: entry[:3])
    count = max(count, len(seen))
    chosen = [row for *_, row in ranked[:count]]
    rest = [row for *_, row in ranked[count:]]
    return sorted(chosen, key=lambda row: not row.differs), rest


def settings_of(recipe: Recipe, stage: Stage) -> dict[str, str]:
    """The hyperparameters of a stage that people ask for first, in words."""
    if stage == "base":
        source = recipe.base_model
        return {"Source": f"{source.source} {source.name}"} | ({"Revision": source.revision} if source.revision else {})
    asked: Training = getattr(recipe, stage)
    facts = {
        "Data": asked.dataset.path,
        "Length": f"{asked.max_steps} steps" if asked.max_steps else f"{asked.num_train_epochs:g} epochs",
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

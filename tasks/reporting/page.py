"""The report of a run: one HTML file for people who decide, readable without a network, on paper and on a phone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.artifacts import Attempt, Manifest, Stage
from models.evaluation import EvaluationResult
from models.run import RunRecord, RunState
from tasks.reporting import samples, tables
from tasks.reporting.charts import Chart, learning_charts, metric_charts
from tasks.reporting.contrasts import Contrast, contrast, win_matrix
from tasks.reporting.data_cards import data_cards
from tasks.reporting.distributions import distribution_charts
from tasks.reporting.headline import headline, last_comparison
from tasks.reporting.picture import MARKS, NodeState, pictures, stage_seconds, stage_state
from tasks.reporting.verdict import by_stage, stage_verdict, verdict
from tasks.reporting.words import STAGE_NAMES, UNKNOWN, duration, elapsed, memory, moment, stages_of

SHOWN_SAMPLES = 12
"""Rows of sample replies that are open at first."""
LISTED_SAMPLES = 300
"""Rows of sample replies on the page at most."""

LINEAGE_PAGE = "lineage.html"
"""Name of the page with the graph of the run's last policy, beside the report."""

STATE_MARKS: dict[RunState, str] = {"running": "…", "completed": "✓", "failed": "✗", "cancelled": "■", "crashed": "✗"}


@dataclass(frozen=True)
class StageSection:
    """Everything the page says about one stage."""

    stage: Stage
    name: str
    title: str
    """The stage's full name, as the recipe's form has it; empty where `name` is the full one."""
    state: NodeState
    mark: str
    verdict: str
    checkpoint: str
    """Name of the checkpoint; empty where there is none."""
    settings: dict[str, str]
    seconds: str
    evaluation_seconds: str
    attempts: tuple[Attempt, ...]
    charts: list[Chart]


def render_report(record: RunRecord, curves: dict[str, list[dict[str, float]]], manifests: dict[str, Manifest]) -> str:
    """Write a run's report as one self-contained HTML file.

    Args:
        record: The run, with its recipe, stages, evaluations and comparisons.
        curves: The trainer's log history for each stage by name; NaN and infinities become gaps.
        manifests: Manifests of the run's checkpoints (`sft-0123456789abcdef`) and, if at hand, of its datasets.
    """
    sections = [_section(record, stage, curves, manifests) for stage in stages_of(record.recipe)]
    judged = by_stage(record)
    results = {STAGE_NAMES[stage]: judged[stage] for stage in stages_of(record.recipe) if stage in judged}
    measured, spreads = metric_charts(record), distribution_charts(list(results.values()), list(results))
    return render(
        "report.html.j2",
        [*measured, *spreads, *chain.from_iterable(section.charts for section in sections)],
        record=record,
        state_mark=STATE_MARKS[record.state],
        verdict=_capitalised(verdict(record)),
        answers=headline(record, manifests),
        facts=_facts(record, manifests),
        pictures=pictures(record),
        sections=sections,
        metric_columns=tables.metric_columns(record),
        metric_rows=tables.metric_rows(record),
        metric_charts=measured,
        contrasts=_contrasts(record),
        wins=win_matrix(list(results.values()), list(results)),
        spreads=spreads,
        cards=data_cards(manifests),
        lineage=_lineage(manifests),
        lineage_page=LINEAGE_PAGE if record.state == "completed" else "",
        recipe_yaml=yaml.safe_dump(record.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        **shown_samples(results),
    )


def render(template: str, charts: Iterable[Chart], **content: object) -> str:
    """Fill a page's template in; its charts are drawn by plotly.js, which the page then brings."""
    figures = {chart.id: chart.figure for chart in charts}
    plotly_js = _plotly_js() if figures else ""
    return environment().get_template(template).render(figures=figures, plotly_js=plotly_js, **content)


def shown_samples(results: Mapping[str, EvaluationResult]) -> dict[str, object]:
    """The replies side by side, those first on which the models differ most, under the models' names."""
    answering = {name: result for name, result in results.items() if result in samples.answering([*results.values()])}
    shown, rest = samples.choose_rows(samples.sample_rows([*answering.values()]), SHOWN_SAMPLES)
    listed = rest[: LISTED_SAMPLES - len(shown)]
    return {
        "sample_columns": list(answering),
        "shown_samples": shown,
        "more_samples": listed,
        "unlisted_samples": len(rest) - len(listed),
    }


def _contrasts(record: RunRecord) -> list[Contrast]:
    """The run's comparisons, that of the last policy with the base model first."""
    names = {outcome.checkpoint.name: STAGE_NAMES[outcome.stage] for outcome in record.stages}
    distinct = {(one.model, one.against): one for one in (last_comparison(record, "base"), *record.comparisons) if one}
    return [
        contrast(one, names.get(one.model, one.model), names.get(one.against, f"{one.role} {one.against}"))
        for one in distinct.values()
    ]


def _facts(record: RunRecord, manifests: dict[str, Manifest]) -> dict[str, str]:
    """What the head of the page says about the run."""
    machines = {_machine(manifest) for manifest in manifests.values()}
    return {
        "Run": record.id,
        "Started": moment(record.started),
        "Took": elapsed(record.started, record.finished) if record.finished else "not finished",
        "Base model": record.recipe.base_model.name,
        "Machine": "; ".join(sorted(machines - {""})) or "unknown",
    }


def _machine(manifest: Manifest) -> str:
    """A machine in a few words: `AMD EPYC, 2 cores, 23.5 GiB, bf16`."""
    machine = manifest.machine
    cores = f"{machine['cores']} cores" if "cores" in machine else ""
    size = memory(int(machine.get("memory_bytes", 0)))
    facts = (str(machine.get("name", machine.get("device", ""))), cores, size, str(machine.get("precision", "")))
    return ", ".join(fact for fact in facts if fact not in ("", UNKNOWN))


def _section(
    record: RunRecord, stage: Stage, curves: dict[str, list[dict[str, float]]], manifests: dict[str, Manifest]
) -> StageSection:
    outcome = next((outcome for outcome in record.stages if outcome.stage == stage), None)
    evaluation = by_stage(record).get(stage)
    checkpoint = outcome.checkpoint if outcome else evaluation.checkpoint if evaluation else None
    manifest = manifests.get(checkpoint.name) if checkpoint else None
    state = stage_state(record, stage)
    return StageSection(
        stage=stage,
        name=STAGE_NAMES[stage],
        title=_title(record, stage),
        state=state,
        mark=MARKS[state],
        verdict="" if stage == "base" else _capitalised(stage_verdict(record, stage)) + ".",
        checkpoint=checkpoint.name if checkpoint else "",
        settings=tables.settings_of(record.recipe, stage),
        seconds=stage_seconds(record, stage) or UNKNOWN,
        evaluation_seconds=duration(evaluation.seconds) if evaluation else UNKNOWN,
        attempts=manifest.attempts if manifest else (),
        charts=learning_charts(stage, curves.get(stage, []), outcome.alarms if outcome else ()),
    )


def _title(record: RunRecord, stage: Stage) -> str:
    field = type(record.recipe).model_fields["base_model" if stage == "base" else stage]
    return "" if field.title in (None, STAGE_NAMES[stage]) else str(field.title)


def _lineage(manifests: dict[str, Manifest]) -> dict[str, object]:
    """Libraries and machines, compared over the checkpoints, and the manifests themselves."""
    made = {name: manifest for name, manifest in manifests.items() if manifest.kind != "dataset"}
    return {
        "manifests": manifests,
        "versions": tables.differing({name: manifest.versions | manifest.code for name, manifest in made.items()}),
        "machines": tables.differing({name: manifest.machine for name, manifest in made.items()}),
    }


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


@cache
def environment() -> Environment:
    """Where the templates of all pages come from, with what they need."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["stage_names"] = STAGE_NAMES
    environment.filters |= {
        "attempt_cells": tables.attempt_cells,
        "parent_lines": tables.parent_lines,
        "flat": tables.flat,
        "memory": memory,
        "moment": moment,
    }
    return environment


def _plotly_js() -> str:
    """The source of plotly.js, which the Python package brings."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())

"""The report's Plotly figures, as the JSON that plotly.js draws.

Traces carry no colours of their own: `meta` names a role (`accent`, `quiet`), and the page's script gives each role the
colour of the light or dark theme.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from textwrap import shorten
from typing import Any

from models.alarms import Alarm
from models.artifacts import Stage
from models.evaluation import Estimate
from models.run import RunRecord
from tasks.reporting.verdict import by_stage, estimate
from tasks.reporting.words import CHARTED, MEASURE_MEANINGS, MEASURE_NAMES, STAGE_NAMES, Measure, stages_of

Figure = dict[str, Any]
Points = list[tuple[float, float | None]]

SMOOTHED_FROM = 24
"""Curves of so many points or more get a moving mean over the raw values."""
LEGEND_ROOM = 108
"""Pixels below every chart of the metrics, so that their axes are level whatever the legends hold."""
SYMBOLS = ("square-open", "diamond-open", "triangle-up-open", "x-thin-open", "pentagon-open")
STEP_AXIS = {"type": "linear", "title": {"text": "step", "standoff": 4, "font": {"size": 12}}}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Chart:
    """One figure with the words around it."""

    id: str
    """Id of its element on the page."""
    title: str
    """What is shown."""
    note: str
    """How to read it."""
    figure: Figure
    """Data and layout for plotly.js."""


@dataclass(frozen=True)
class Panel:
    """Curves of a log history that belong together."""

    title: str
    note: str
    keys: tuple[str, ...]
    """Patterns of the log's keys."""


LOSS = Panel("Loss", "Training loss per token; lower is better.", ("loss", "eval_loss"))
MARGINS = Panel(
    "Reward margin", "Reward of the chosen side less that of the rejected one.", ("rewards/margins", "margin")
)
ACCURACIES = Panel(
    "Pair accuracy",
    "Share of the batch's pairs whose chosen side has the higher reward.",
    ("rewards/accuracies", "accuracy"),
)

PANELS: dict[Stage, tuple[Panel, ...]] = {
    "sft": (LOSS, Panel("Token accuracy", "Share of tokens guessed right.", ("mean_token_accuracy",))),
    "reward": (Panel("Loss", "Log loss of telling sides apart; 0.69 is chance.", LOSS.keys), ACCURACIES, MARGINS),
    "dpo": (
        Panel("Loss", "Preference loss; the sigmoid loss starts at 0.69.", LOSS.keys),
        ACCURACIES,
        MARGINS,
        Panel("Reward by side", "Change of log-probability, scaled by beta.", ("rewards/chosen", "rewards/rejected")),
    ),
    "grpo": (
        Panel("Reward", "Mean weighted reward of the sampled completions.", ("reward",)),
        Panel("Reward by term", "Mean of each reward before weighting.", ("rewards/*/mean",)),
        Panel("Reward's share", "Of the total's spread within groups; negative: against it.", ("rewards/*/share",)),
        Panel("Failed calls", "Share of the calls of a user's function that failed.", ("rewards/*/failures",)),
        Panel("Reward spread", "Standard deviation of rewards; at 0 there is nothing to learn from.", ("reward_std",)),
        Panel("Completion length", "Mean length in tokens.", ("completions/mean_length",)),
        Panel("Entropy", "Variety of the next token; near 0 the policy has stopped exploring.", ("entropy",)),
        Panel("KL divergence", "Distance from the reference model.", ("kl",)),
        Panel("Loss", "Near 0 by construction; not a measure of progress.", LOSS.keys),
    ),
}
"""The curves that matter for each stage; panels without data are left out."""


def metric_charts(record: RunRecord) -> list[Chart]:
    """One chart per measure: every model's figure with its 95 % interval, kinds of rows behind it."""
    return [
        Chart(f"chart-{measure}", name.capitalize(), MEASURE_MEANINGS[measure], figure)
        for measure, name in ((measure, MEASURE_NAMES[measure]) for measure in CHARTED)
        if (figure := _metric_figure(record, measure))
    ]


def learning_charts(stage: Stage, history: list[dict[str, float]], alarms: Sequence[Alarm] = ()) -> list[Chart]:
    """The curves of a stage's log history that matter for it, with a line at the step of each alarm."""
    charts = [_learning_chart(f"chart-{stage}-{n}", panel, history) for n, panel in enumerate(PANELS.get(stage, ()))]
    lines = [_alarm_line(step) for step in sorted({alarm.step for alarm in alarms})]
    for chart in filter(None, charts):
        chart.figure["layout"]["shapes"] = lines
    return [chart for chart in charts if chart]


def _alarm_line(step: int) -> Figure:
    return {
        "type": "line",
        "x0": step,
        "x1": step,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"width": 1, "dash": "dash"},
        "layer": "below",
    }


def _metric_figure(record: RunRecord, measure: Measure) -> Figure | None:
    found = by_stage(record)
    judged = {stage: value for stage in stages_of(record.recipe) if (value := estimate(found.get(stage), measure))}
    if not judged:
        return None
    policies = _policies(judged)
    traces = [*_kind_traces(record, measure), _estimates_trace(policies, "all rows", "lines+markers", "circle")]
    if "reward" in judged:
        scorer = _estimates_trace({"reward": judged["reward"]}, "reward model", "markers", "diamond")
        traces.append(scorer | {"showlegend": False})
    low, high = min(value.low for value in judged.values()), max(value.high for value in judged.values())
    figure = blank_figure(traces, legend=len(traces) > 2)
    figure["layout"]["margin"]["b"] = LEGEND_ROOM
    figure["layout"]["xaxis"] |= {"categoryarray": _labels(judged), "categoryorder": "array"}
    if low >= 0 and high <= 1:
        figure["layout"]["yaxis"]["range"] = [-0.03, 1.05]
    return figure


def _policies(estimates: dict[Stage, Estimate]) -> dict[Stage, Estimate]:
    return dict(item for item in estimates.items() if item[0] != "reward")


def _labels(judged: Iterable[Stage]) -> list[str]:
    """The models' names along the axis, the reward model, which is no policy, at the end."""
    return [_axis_label(stage) for stage in sorted(judged, key=lambda stage: stage == "reward")]


def _axis_label(stage: Stage) -> str:
    return {"base": "Base", "reward": "Reward"}.get(stage, STAGE_NAMES[stage])


def _estimates_trace(estimates: dict[Stage, Estimate], name: str, mode: str, symbol: str) -> Figure:
    values = list(estimates.values())
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "meta": "accent",
        "x": [_axis_label(stage) for stage in estimates],
        "y": [value.value for value in values],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [value.high - value.value for value in values],
            "arrayminus": [value.value - value.low for value in values],
            "thickness": 1.5,
            "width": 4,
        },
        "line": {"width": 1.5},
        "marker": {"size": 9, "symbol": symbol},
        "text": [f"{value} (n = {value.n})" for value in values],
        "hovertemplate": "%{x}: %{text}<extra></extra>",
    }


def _kind_traces(record: RunRecord, measure: Measure) -> list[Figure]:
    """The measure for each kind of row, where there is more than one kind."""
    found = by_stage(record)
    kinds: dict[str, dict[Stage, Estimate]] = {}
    for stage in stages_of(record.recipe):
        for kind, value in getattr(found.get(stage), f"{measure}_by_kind", {}).items():
            kinds.setdefault(kind, {})[stage] = value
    if len(kinds) < 2:
        return []
    return [_kind_trace(kind, values, position) for position, (kind, values) in enumerate(kinds.items())]


def _kind_trace(kind: str, values: dict[Stage, Estimate], position: int) -> Figure:
    name = escape(shorten(kind, 22, placeholder="…"))
    trace = _estimates_trace(_policies(values), name, "lines+markers", SYMBOLS[position % len(SYMBOLS)])
    del trace["error_y"]
    return trace | {
        "meta": "quiet",
        "line": {"width": 1, "dash": "dot"},
        "marker": trace["marker"] | {"size": 7},
        "hovertemplate": escape(kind) + ", %{x}: %{text}<extra></extra>",
    }


def _learning_chart(id: str, panel: Panel, history: list[dict[str, float]]) -> Chart | None:
    keys = sorted({key for entry in history for key in entry if any(fnmatchcase(key, p) for p in panel.keys)})
    series = {key: _points(history, key) for key in keys}
    drawn = {key: points for key, points in series.items() if any(value is not None for _, value in points)}
    if not drawn:
        return None
    gaps = sum(value is None for points in series.values() for _, value in points)
    note = panel.note + (f" {gaps} value{'s were' if gaps > 1 else ' was'} not finite." if gaps else "")
    traces = [
        trace for n, (key, points) in enumerate(drawn.items()) for trace in _curve_traces(_curve_name(key), points, n)
    ]
    return Chart(id, panel.title, note, blank_figure(traces, legend=len(drawn) > 1, step_axis=True))


def _points(history: list[dict[str, float]], key: str) -> Points:
    """Values by step, the last one where a resumed training logged a step twice; `None` for NaN and infinities.

    A step at which nothing was measured, such as a reward that no completion got, has no point.
    """
    values = {entry.get("step", n): entry[key] for n, entry in enumerate(history) if entry.get(key) is not None}
    return [(step, value if math.isfinite(value) else None) for step, value in sorted(values.items())]


def _curve_name(key: str) -> str:
    short = re.sub("^rewards/|/(mean|share|failures)$", "", key)
    return escape({"loss": "training", "eval_loss": "held-out"}.get(short, short))


def _curve_traces(name: str, points: Points, position: int) -> list[Figure]:
    """The raw curve, and over a long one its moving mean."""
    role = "accent" if position == 0 else "quiet"
    trace = {
        "type": "scatter",
        "mode": "lines" if len(points) > 1 else "markers",
        "name": name,
        "meta": role,
        "x": [step for step, _ in points],
        "y": [value for _, value in points],
        "line": {"width": 2, "dash": DASHES[position % len(DASHES)]},
        "hovertemplate": f"step %{{x}}: %{{y:.4~g}}<extra>{name}</extra>",
    }
    if len(points) < SMOOTHED_FROM:
        return [trace]
    raw = trace | {"opacity": 0.35, "line": {"width": 1}, "showlegend": False}
    return [raw, trace | {"y": _moving_mean(points), "hoverinfo": "skip", "hovertemplate": None}]


def _moving_mean(points: Points) -> list[float | None]:
    """Mean over a centred window of about a tenth of the curve; gaps stay gaps."""
    reach = max(1, len(points) // 20)
    windows = [points[max(0, n - reach) : n + reach + 1] for n in range(len(points))]
    finite = [[value for _, value in window if value is not None] for window in windows]
    return [
        None if value is None else sum(values) / len(values) for (_, value), values in zip(points, finite, strict=True)
    ]


def blank_figure(traces: list[Figure], legend: bool, step_axis: bool = False) -> Figure:
    """Traces with the layout that all charts share."""
    axis = {"fixedrange": True, "automargin": True, "zeroline": False, "ticks": ""}
    layout = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 36, "r": 10, "t": 8, "b": 64 if legend else 40},
        "dragmode": False,
        "hovermode": "closest",
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom"},
        "xaxis": axis | {"showgrid": False} | (STEP_AXIS if step_axis else {"type": "category"}),
        "yaxis": axis | {"nticks": 6},
    }
    return {"data": traces, "layout": layout}

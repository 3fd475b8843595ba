"""How scores, lengths and margins are spread over the held-out rows, a violin for each model."""

from collections.abc import Callable, Sequence

from models.evaluation import EvaluationResult
from tasks.reporting.charts import Chart, Figure, blank_figure

Values = Callable[[EvaluationResult], list[float]]

_CHARTS: tuple[tuple[str, str, str, Values], ...] = (
    (
        "reward", "Reward model's score", "Of each greedy reply; higher is better.",
        lambda result: [one.reward_score for one in result.samples if one.reward_score is not None],
    ),
    (
        "length", "Length of replies", "Tokens of each greedy reply.",
        lambda result: [float(one.tokens) for one in result.samples if one.tokens],
    ),
    (
        "gain", "Margin gained on the parent",
        "Log-probability that each pair's chosen side has gained on the rejected one, in nats, since the model that "
        "the stage started from; above 0 it moved the way the pair asks for.",
        lambda result: [one.margin - one.parent_margin for one in result.pairs if one.parent_margin is not None],
    ),
    (
        "margin", "Margin of the reward model", "Score of each pair's chosen side less that of the rejected one.",
        lambda result: [one.margin for one in result.pairs] if result.checkpoint.stage == "reward" else [],
    ),
)  # fmt: skip
"""Id, title, note, and the values of a model."""


def distribution_charts(results: Sequence[EvaluationResult], names: Sequence[str]) -> list[Chart]:
    """A chart of each quantity that was measured of some model."""
    charts = []
    for id, title, note, values in _CHARTS:
        series = {name: values(result) for name, result in zip(names, results, strict=True)}
        drawn = {name: found for name, found in series.items() if found}
        if drawn:
            charts.append(Chart(f"spread-{id}", title, note, _violins(drawn)))
    return charts


def _violins(series: dict[str, list[float]]) -> Figure:
    last = list(series)[-1]
    traces = [_violin(name, values, "accent" if name == last else "quiet") for name, values in series.items()]
    figure = blank_figure(traces, legend=False)
    figure["layout"]["hovermode"] = "closest"
    return figure


def _violin(name: str, values: list[float], role: str) -> Figure:
    return {
        "type": "violin",
        "name": name,
        "meta": role,
        "y": values,
        "points": "all" if len(values) <= 60 else False,
        "pointpos": 0,
        "jitter": 0.35,
        "spanmode": "hard",
        "box": {"visible": True, "width": 0.2},
        "meanline": {"visible": True},
        "line": {"width": 1},
        "marker": {"size": 3, "opacity": 0.5},
        "hoveron": "violins",
        "showlegend": False,
    }

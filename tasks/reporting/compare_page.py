"""Two models on one page: the same answers, tables and charts as a run's report has."""

from collections.abc import Mapping

from models.artifacts import Manifest
from models.comparison import Comparison
from models.evaluation import EvaluationResult
from tasks.reporting.contrasts import contrast
from tasks.reporting.data_cards import data_cards
from tasks.reporting.distributions import distribution_charts
from tasks.reporting.headline import Answer, progress
from tasks.reporting.page import render, shown_samples
from tasks.reporting.words import moment


def render_comparison(
    comparison: Comparison, before: EvaluationResult, after: EvaluationResult, manifests: Mapping[str, Manifest]
) -> str:
    """Write a comparison as one self-contained HTML file.

    Args:
        comparison: From `before` to `after`.
        before: The evaluation of the one model.
        after: That of the other.
        manifests: Of both and of what they are made of, by name.
    """
    results = {result.checkpoint.name: result for result in (before, after)}
    names = list(results)
    spreads = distribution_charts(list(results.values()), names)
    short, long, tone = progress(comparison)
    worse = [one.measure for one in comparison.differences if one.verdict == "worse"]
    told = contrast(comparison, names[1], names[0])
    return render(
        "compare.html.j2",
        spreads,
        names=names,
        answers=[
            Answer(f"Is {names[1]} better?", short, long, tone),
            Answer("Whose reply is put above?", told.wins or "Nobody was asked", ""),
            Answer("What to look at?", ", ".join(worse) or "Nothing became worse", "", "bad" if worse else "good"),
        ],
        contrast=told,
        spreads=spreads,
        cards=data_cards(manifests),
        made_of=_made_of(names, manifests),
        **shown_samples(results),
    )


def _made_of(names: list[str], manifests: Mapping[str, Manifest]) -> list[tuple[str, list[str]]]:
    """What both are made of, a line a fact."""
    made = [manifests[name] for name in names]
    return [
        ("checkpoint", names),
        ("fingerprint", [manifest.fingerprint for manifest in made]),
        ("created", [moment(manifest.created) for manifest in made]),
        ("made from", [", ".join(manifest.parents.values()) or "a source" for manifest in made]),
    ]

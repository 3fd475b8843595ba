"""Any two models on the same held-out rows: what is better, what is worse, and a page that shows it."""

from pathlib import Path

from prefect import flow

from flows.evaluation import judge
from models.comparison import Comparison
from models.recipe import Recipe
from settings.settings import load_settings
from tasks.comparing import compare as compare_rows
from tasks.contest import find_entrants, write_page
from tasks.remote.opening import open_store


@flow(name="compare")
def compare(a: str, b: str, recipe: Recipe | None = None, page: Path | None = None) -> tuple[Comparison, Path]:
    """Judge two models on the same rows, as far as that has not been done, and write a page.

    Args:
        a: A checkpoint, as the other commands take it, or a run: its last policy.
        b: The one to hold against it.
        recipe: Says what to measure on which rows; default: that of the newest run that has made one of the two.
        page: The HTML file; default: below the artifact root's `comparisons`.

    Returns:
        What became of each measure from `a` to `b`, and the page.

    Raises:
        InputError: one of them is not there, is a reward model, or no run says what to measure.
    """
    settings = load_settings()
    store = open_store(settings)
    before, after = judge(find_entrants(store, (a, b), recipe), settings)
    found = compare_rows(after, before, "other")
    return found, write_page(store, found, before, after, page)

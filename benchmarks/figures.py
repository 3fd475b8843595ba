"""How figures of several rounds are written."""

from collections.abc import Sequence
from statistics import median


def spread(figures: Sequence[float | None], digits: int = 1) -> str:
    """Median, and the least and most of several; empty where no round has one."""
    told = sorted(figure for figure in figures if figure is not None)
    if not told:
        return ""
    around = f" ({told[0]:.{digits}f} to {told[-1]:.{digits}f})" if len(told) > 1 else ""
    return f"{median(told):.{digits}f}{around}"

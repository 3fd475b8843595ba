"""Live progress of a run in the terminal: bars, or a few lines where it is a pipe."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from flows.terminal import duration
from models.alarms import Alarm
from tasks.alarms import describe_alarm
from tasks.progress import Progress, listening

_SECONDS_BETWEEN_LINES = 15.0
_FIGURES = ("loss", "reward", "accuracy")
_FINAL_PHASES = ("completed", "cached", "failed")


class Display(Protocol):
    """Something that shows reports, which come from several threads."""

    def show(self, report: Progress) -> None:
        """Show one report."""


class PlainDisplay:
    """A line per change of phase, the last one of each phase, and otherwise one now and then: for pipes and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._last: dict[str, tuple[str, float]] = {}
        self._unsaid: dict[str, Progress] = {}

    def show(self, report: Progress) -> None:
        """Print an alarm; another report unless the same phase was printed a moment ago."""
        with self._lock:
            if report.alarm:
                self._console.print(_alarm(report.stage, report.alarm), markup=False, highlight=False, soft_wrap=True)
                return
            phase, printed = self._last.get(report.stage, ("", 0.0))
            if report.phase == phase and time.monotonic() - printed < _SECONDS_BETWEEN_LINES:
                self._unsaid[report.stage] = report
                return
            last_of_phase = self._unsaid.pop(report.stage, None)
            if last_of_phase and report.phase != phase:
                self._print(last_of_phase)
            self._last[report.stage] = (report.phase, time.monotonic())
            self._print(report)

    def _print(self, report: Progress) -> None:
        parts = [report.phase, _steps(report), _figures(report), _time_left(report)]
        line = f"{report.stage}: {', '.join(filter(None, parts))}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """A line per stage with a bar, kept up to date."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._lock = threading.Lock()
        self._rows: dict[str, TaskID] = {}

    def show(self, report: Progress) -> None:
        """Update the stage's line, or print an alarm above all of them."""
        if report.alarm:
            self._bars.console.print(_alarm(report.stage, report.alarm), style="yellow", markup=False, highlight=False)
            return
        done = report.phase in ("completed", "cached")
        total = 1 if done else report.total_steps or None
        details = [_steps(report), _figures(report), _time_left(report)]
        with self._lock:
            if report.stage not in self._rows:
                self._rows[report.stage] = self._bars.add_task(_short_name(report.stage), phase="", details="")
            self._bars.update(
                self._rows[report.stage],
                total=total,
                completed=1 if done else report.step,
                phase=escape(report.phase.splitlines()[0] if report.phase else ""),
                details=escape("  ".join(filter(None, details))),
            )


@contextmanager
def showing_progress(console: Console) -> Iterator[None]:
    """Show how the stages of this process are doing: live in a terminal, else as lines."""
    if not console.is_terminal:
        with listening(PlainDisplay(console).show):
            yield
        return
    columns = (
        TextColumn("{task.description}", style="bold"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[phase]}"),
        TextColumn("{task.fields[details]}", style="dim"),
    )
    with Bars(*columns, console=console) as bars, listening(LiveDisplay(bars).show):
        yield


def _alarm(stage: str, alarm: Alarm) -> str:
    return f"{stage}: {describe_alarm(alarm)}"


def _short_name(stage: str) -> str:
    """`sft-0123456789abcdef` as `sft 01234567`."""
    kind, _, identity = stage.rpartition("-")
    return escape(f"{kind} {identity[:8]}" if kind else stage)


def _steps(report: Progress) -> str:
    return f"step {report.step}/{report.total_steps}" if report.total_steps else ""


def _figures(report: Progress) -> str:
    return ", ".join(f"{key} {report.metrics[key]:.4g}" for key in _FIGURES if key in report.metrics)


def _time_left(report: Progress) -> str:
    if not report.seconds_left or report.phase.startswith(_FINAL_PHASES):
        return ""
    return f"{duration(report.seconds_left)} left"

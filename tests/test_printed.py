"""Lines of a stage's process on their way into the run's log: their level, and how many of them."""
# ruff: noqa: T201 - what a stage prints is what is tested

import logging
import warnings
from typing import Any

import pytest

from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.printed import MOST_LINES, SECONDS, Printed, level_of


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("{'loss': 0.4}", logging.INFO),
        ("WARNING peft: careful", logging.WARNING),
        ("ERROR root: broken", logging.ERROR),
        ("CRITICAL a.b: worse", logging.CRITICAL),
        ("INFO trl: so it goes", logging.INFO),
        ("  WARNING in the middle of a text", logging.INFO),
        ("WARNINGS: 3", logging.INFO),
        ("Loading: 40%|####      | 2/5", logging.DEBUG),
    ],
)
def test_a_line_keeps_its_level(line: str, level: int) -> None:
    assert level_of(line) == level


class Told:
    """What got through, and a clock to turn."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.printed = Printed(
            lambda level, line: self.lines.append(line), lambda kept: self.lines.append(f"+{kept}"), lambda: self.now
        )

    def say(self, lines: int) -> None:
        """Print so many lines."""
        for number in range(lines):
            self.printed.line(str(number))


def test_a_flood_is_told_in_one_line() -> None:
    told = Told()
    told.say(MOST_LINES + 30)
    assert told.lines == [str(number) for number in range(MOST_LINES)]
    told.now = SECONDS
    told.say(1)
    assert told.lines[MOST_LINES:] == ["+30", "0"]
    told.printed.close()
    assert told.lines[MOST_LINES:] == ["+30", "0"]


def test_the_end_tells_what_was_kept_back() -> None:
    told = Told()
    told.say(MOST_LINES + 1)
    told.printed.close()
    told.printed.close()
    assert told.lines[MOST_LINES:] == ["+1"]


def test_bars_count_for_nothing() -> None:
    told = Told()
    for _ in range(100):
        told.printed.line("10%|# | 1/10")
    told.say(1)
    told.printed.close()
    assert told.lines[-1] == "0"


def chatty(report: Any) -> None:
    """Say the same in every way that libraries know."""
    print("printed")
    logging.getLogger("peft.tuners").warning("logged")
    logging.getLogger("transformers.trainer").error("failing")
    logging.getLogger("some.library").info("unseen")
    warnings.warn("warned", FutureWarning, stacklevel=1)


@pytest.mark.slow
def test_what_loggers_and_warnings_print_begins_with_their_level() -> None:
    lines: list[str] = []
    run_in_child(chatty, (), ChildOptions(threads=1), lambda said: None, lines.append)
    assert sorted(lines) == [
        "ERROR transformers.trainer: failing",
        "WARNING peft.tuners: logged",
        "WARNING py.warnings: FutureWarning: warned",
        "printed",
    ]

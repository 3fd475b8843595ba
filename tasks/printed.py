"""What a stage's process prints, on its way into the run's log: every line at its level, no more than people read."""

import logging
import re
import time
from collections.abc import Callable

MOST_LINES = 20
"""Lines of a stage that go into the run's log in `SECONDS`; its log file has all of them."""
SECONDS = 10.0
_LEVEL = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_BAR = re.compile(r"\d+%\|")
"""A bar that shows progress; the run's progress is told otherwise."""


def level_of(line: str) -> int:
    """The level that a Python logger has put before a line (`tasks.child_main`); INFO for what was just printed."""
    if _BAR.search(line):
        return logging.DEBUG
    named = _LEVEL.match(line)
    return logging.getLevelNamesMapping()[named[1]] if named else logging.INFO


class Printed:
    """Passes lines on, at most `MOST_LINES` in `SECONDS`, and says how many it kept back.

    Args:
        tell: Gets the level, one of `logging`'s, and the text of each line that is passed on.
        kept_back: Gets the number of lines that were not.
        clock: Seconds that only ever grow.
    """

    def __init__(
        self,
        tell: Callable[[int, str], None],
        kept_back: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._kept_back = kept_back
        self._clock = clock
        self._since = clock()
        self._lines = 0

    def line(self, text: str) -> None:
        """The process has printed a line."""
        level = level_of(text)
        if self._clock() - self._since >= SECONDS:
            self.close()
            self._since = self._clock()
        self._lines += logging.DEBUG < level < logging.ERROR
        if self._lines <= MOST_LINES or level >= logging.ERROR:
            self._tell(level, text)

    def close(self) -> None:
        """Say how many lines were kept back, if any."""
        if self._lines > MOST_LINES:
            self._kept_back(self._lines - MOST_LINES)
        self._lines = 0

"""The command `align join`: a further machine waits for the stages of machine 0 and trains them with it.

Heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import signal
from argparse import Namespace


def join(arguments: Namespace) -> int:
    """Take part in one stage after the other, until a signal ends it."""
    from settings.settings import load_settings
    from tasks import joining
    from tasks.child import stop_all
    from tasks.closing import SIGNALS

    settings = load_settings()
    joining.check_joining(settings)
    told: list[int] = []

    def end(number: int, frame: object) -> None:
        told.append(number)
        stop_all()

    for number in SIGNALS:
        signal.signal(number, end)
    joining.join(settings, lambda line: print(line, flush=True))
    return 128 + told[0]

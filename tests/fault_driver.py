"""`align` in a process of its own that a fault strikes: at a report of a stage, a moment later, by a real signal.

python -m tests.fault_driver '{"stage": "sft", "phase": "training", "step": 5, "victim": "child", ...}' run recipe.yaml
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from flows.__main__ import main
from tasks import child
from tasks.progress import Progress, listening


class Fault:
    """Strikes once, at the first report that fits, and keeps note of the last step that was heard of until then."""

    def __init__(self, stage: str, phase: str, step: int, **how: Any) -> None:
        self._stage, self._phase, self._step = stage, phase, step
        self._how = how
        self._armed, self._done = True, False

    def watch(self, progress: Progress) -> None:
        """Listen to a report."""
        if not progress.stage.startswith(self._stage):
            return
        if progress.total_steps and progress.phase == "training" and not self._done:
            Path(self._how["note"]).write_text(str(progress.step))
        if self._armed and progress.phase.startswith(self._phase) and progress.step >= self._step:
            self._armed = False
            if self._how["victim"] == "disk":
                fill_disk(Path(self._how["filler"]))
            else:
                threading.Thread(target=self._strike).start()

    def _strike(self) -> None:
        time.sleep(self._how["delay"])
        number = signal.Signals[self._how["signal"]]
        while self._how["victim"] in ("child", "both") and not child._running:
            time.sleep(0.01)
        for process in tuple(child._running) if self._how["victim"] in ("child", "both") else ():
            if process.pid:
                os.kill(process.pid, number)
        self._done = self._how["victim"] == "child"  # the run goes on by itself
        if self._how["victim"] in ("flow", "both"):
            os.kill(os.getpid(), number)
        if self._how["victim"] == "group":  # as a terminal does when it is closed, or for Ctrl-C
            os.killpg(0, number)


def fill_disk(filler: Path) -> None:
    """Write until nothing more fits."""
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


if __name__ == "__main__":
    fault = Fault(**json.loads(sys.argv[1]))
    with listening(fault.watch):
        sys.exit(main(sys.argv[2:]))

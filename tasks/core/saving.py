"""When a trainer checkpoint is written: by steps, by minutes, at the end, and when the process is told to stop."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.checkpoints import seal
from tasks.core.plan import TrainingPlan
from tasks.core.ranks import any_of_all, is_main, wait_for_all


class Saver(TrainerCallback):
    """Asks the trainer for a checkpoint when it is time, and seals what it has written."""

    def __init__(self, plan: TrainingPlan, seconds_before: float) -> None:
        self._plan = plan
        self._seconds_before = seconds_before
        self._step = 0
        self._started = self._saved = time.monotonic()
        self.told_to_stop = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._step = state.global_step
        self._started = self._saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint where one is due."""
        # Completions that several steps share are not part of a checkpoint, which so lies between two generations.
        shared = state.global_step % getattr(args, "num_iterations", 1) and state.global_step < state.max_steps
        due, told = any_of_all(self._is_due(state), self.told_to_stop)
        if told:  # never unset: SIGTERM may have come meanwhile, and counts at the next step
            self.told_to_stop = True
        if (due or told) and not shared:
            control.should_save = True
            control.should_training_stop = control.should_training_stop or told

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seal what was written, once all processes have written their parts; nobody goes on, or ends, before that."""
        self._step, self._saved = state.global_step, time.monotonic()
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        wait_for_all()
        if is_main():
            seal(folder, state.global_step, state.max_steps, self._seconds_before + self._saved - self._started)
        wait_for_all()

    @contextmanager
    def heeding_sigterm(self) -> Iterator[None]:
        """While this is open, SIGTERM ends the training after the step that it is at, with a checkpoint."""

        def ask(number: int, frame: object) -> None:
            self.told_to_stop = True

        previous: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _is_due(self, state: TrainerState) -> bool:
        minutes = (time.monotonic() - self._saved) / 60
        return (
            state.global_step >= state.max_steps
            or state.global_step - self._step >= self._plan.checkpoint_every_steps
            or minutes >= self._plan.checkpoint_every_minutes
        )

"""Alarms while a trainer trains: told to the parent when they are raised, and a reason to stop where asked."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from models.alarms import Alarm
from models.errors import StageError
from models.stages import TrainingInput
from tasks.core.alarms import Detector


class Watcher(TrainerCallback):
    """Reads the trainer's log as it grows.

    A resumed training's log is read again in silence: what it raised was told before, and stops the stage only where
    the recipe has come to ask for that.

    Args:
        stage: What is trained, with the thresholds.
        reward_names: GRPO's name of each reward in the log, in the recipe's order.
        report: Sends a report to the parent.

    Raises:
        StageError: out of the trainer's `train`, where an alarm stops the stage; that step leaves no checkpoint.
    """

    def __init__(
        self, stage: TrainingInput, reward_names: Sequence[str], report: Callable[[dict[str, Any]], None]
    ) -> None:
        self._detector = Detector(stage, reward_names)
        self._report = report

    @property
    def raised(self) -> list[Alarm]:
        """All alarms of the stage so far, those before a resume included."""
        return self._detector.raised

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Read what was logged before."""
        for entry in state.log_history:
            _stop_where_asked(self._detector.read(entry))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Read the newest entry."""
        self._tell(self._detector.read(state.log_history[-1]), state)

    def finish(self, state: TrainerState) -> None:
        """Raise what only the end of the training tells."""
        self._tell(self._detector.end(state.global_step), state)

    def _tell(self, alarms: list[Alarm], state: TrainerState) -> None:
        for alarm in alarms:
            print(f"alarm {alarm.name} at step {alarm.step}: {alarm.message}")  # noqa: T201
            self._report(
                {"phase": "training", "step": state.global_step, "total_steps": state.max_steps, "alarm": alarm}
            )
        _stop_where_asked(alarms)


def _stop_where_asked(alarms: list[Alarm]) -> None:
    for alarm in alarms:
        if alarm.stopped:
            raise StageError(
                f"stopped at step {alarm.step} by the alarm {alarm.name}: {alarm.message}; to train on regardless, "
                f"leave {alarm.name} out of alarms.stop"
            )

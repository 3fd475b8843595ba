"""Alarms from a trainer's log: signs that a stage learns nothing, breaks, or learns the wrong thing.

Entries are those of Transformers and TRL, one every few optimizer steps. Each alarm holds one figure of the log against
the recipe's threshold and is raised once a stage.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from models.alarms import Alarm, AlarmName
from models.stages import TrainingInput
from tasks.core.alarm_rules import RULES, Log


class Detector:
    """Reads a log entry by entry and raises each alarm once.

    Args:
        stage: What is trained, with the thresholds.
        reward_names: GRPO's name of each reward in the log, in the recipe's order.
    """

    def __init__(self, stage: TrainingInput, reward_names: Sequence[str] = ()) -> None:
        self.raised: list[Alarm] = []
        """All alarms so far, oldest first."""
        self._stage = stage
        self._log = Log(stage, reward_names)

    def read(self, entry: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that an entry raises; it names its `step`."""
        self._log.add(entry)
        step = int(entry["step"])
        return self._note(
            [self._not_finite(entry, step), *(self._check(name, step) for name in self._open(at_end=False))]
        )

    def end(self, step: int) -> list[Alarm]:
        """The alarms that only the end of the training, at that step, raises."""
        return self._note([self._check(name, step) for name in self._open(at_end=True)])

    def _open(self, at_end: bool) -> list[AlarmName]:
        """The stage's rules that have not raised their alarm."""
        return [
            name
            for name, rule in RULES.items()
            if self._stage.stage in rule.stages and rule.at_end == at_end and not self._has_raised(name)
        ]

    def _has_raised(self, name: AlarmName) -> bool:
        return any(alarm.name == name for alarm in self.raised)

    def _note(self, found: Sequence[Alarm | None]) -> list[Alarm]:
        new = [alarm for alarm in found if alarm]
        self.raised += new
        return new

    def _check(self, name: AlarmName, step: int) -> Alarm | None:
        rule, threshold = RULES[name], getattr(self._stage.alarms, name)
        value = rule.measure(self._log)
        if threshold is None or value is None or not rule.is_beyond(value, threshold):
            return None
        before = rule.unless(self._log) if rule.unless else None
        if before is not None and rule.is_beyond(before, threshold):
            return None
        limit = f"{rule.bound} alarms.{name}, {threshold:g}"
        seen = rule.seen.format(value=value, window=self._log.window, limit=limit)
        return self._alarm(name, step, f"{seen}; {rule.remedy}", value=value, threshold=threshold)

    def _not_finite(self, entry: Mapping[str, Any], step: int) -> Alarm | None:
        """A loss or a gradient that is no number; with fp16, loss scaling finds its scale by gradients that are not."""
        keys = ("loss",) if self._stage.precision == "fp16" else ("loss", "grad_norm")
        broken = [f"{key} was {entry[key]}" for key in keys if not isfinite(entry.get(key, 0.0))]
        if not broken or self._has_raised("loss_not_finite"):
            return None
        remedy = "lower learning_rate or raise warmup_ratio, train in bf16 or fp32, and look for broken rows"
        return self._alarm("loss_not_finite", step, f"{' and '.join(broken)}, which must be finite; {remedy}")

    def _alarm(self, name: AlarmName, step: int, message: str, **figures: float) -> Alarm:
        stopped = name in self._stage.alarms.stop
        return Alarm(name=name, stage=self._stage.stage, step=step, message=message, stopped=stopped, **figures)

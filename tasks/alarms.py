"""The alarms that a checkpoint's training raised: where they lie, and how they are told."""

import json
from collections.abc import Sequence
from pathlib import Path

from models.alarms import Alarm

ALARMS = "alarms.json"
"""File in a checkpoint's folder; only there where an alarm was raised."""


def write_alarms(folder: Path, alarms: Sequence[Alarm]) -> None:
    """Write the alarms of a training, if there are any, beside its history."""
    if alarms:
        text = json.dumps([alarm.model_dump(mode="json") for alarm in alarms], indent=2)
        (folder / ALARMS).write_text(text + "\n", encoding="utf-8")


def read_alarms(folder: Path) -> tuple[Alarm, ...]:
    """The alarms that a checkpoint's training raised, oldest first."""
    path = folder / ALARMS
    entries = json.loads(path.read_text("utf-8")) if path.exists() else []
    return tuple(Alarm.model_validate(entry) for entry in entries)


def describe_alarm(alarm: Alarm) -> str:
    """An alarm in a line: `alarm no_reward_spread at step 12: …`."""
    return f"alarm {alarm.name} at step {alarm.step}{', which stops the stage' * alarm.stopped}: {alarm.message}"


def alarms_markdown(name: str, alarms: Sequence[Alarm]) -> str:
    """The alarms of a stage as a markdown table."""
    heading = "| alarm | step | what was seen and what to try | stopped |\n|---|---|---|---|"
    rows = [
        f"| {alarm.name} | {alarm.step} | {alarm.message} | {'yes' if alarm.stopped else 'no'} |" for alarm in alarms
    ]
    return "\n".join([f"# Alarms of {name}\n", heading, *rows, ""])

"""Telling people how a stage is doing: its run's log, its Prefect artifacts, and whoever listens in this process."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_run_logger

from models.alarms import Alarm
from models.artifacts import Manifest
from models.errors import Stopped
from tasks.alarms import alarms_markdown, describe_alarm, read_alarms
from tasks.assets import materialized
from tasks.closing import closing
from tasks.core.plan import TrainingPlan
from tasks.events import tell
from tasks.printed import Printed
from tasks.progress import Progress, announce
from tasks.store import ArtifactStore

_SECONDS_BETWEEN_UPDATES = 5.0
_SECONDS_OF_SILENCE = 120.0
"""After the API has not answered: each call would try for a minute."""
_TRIED_AGAIN = {408, 429, 502, 503}
"""What Prefect's client takes for passing."""


@dataclass
class _Outage:
    until: float = 0.0


_outage = _Outage()


class Teller:
    """Speaks for one stage within its Prefect task run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._logger = get_run_logger()
        self._printed = Printed(self._pass_on, self._keep_back)
        self._progress_id: UUID | None = None
        self._share = 0.0
        self._updated = 0.0
        self._step = ""
        self._log: Path | None = None
        self._alarms: list[Alarm] = []
        self.checking: Callable[[], None] = lambda: None
        """Called at each report; what it raises stops the stage."""

    def warn(self, what: str) -> None:
        """Something went wrong that does not stop the stage."""
        self._say("warning", what)
        announce(Progress(stage=self.name, phase=f"warning: {what}"))

    def waiting(self, what: str) -> None:
        """Another process makes the same thing, or all places to compute in are taken."""
        self._say("info", f"waiting for {what}")
        announce(Progress(stage=self.name, phase=f"waiting for {what}"))
        self._show_progress(f"waiting for {what}")

    def cached(self, path: Path, manifest: Manifest, changes: list[str]) -> None:
        """It was there; say so, and with which other versions it was made."""
        note = f", made with other versions: {', '.join(changes)}" if changes else ""
        self._say("warning" if changes else "info", f"cached: {path}{note}")
        announce(Progress(stage=self.name, phase="cached", metrics=manifest.metrics))
        if self._progress_id:  # it was waited for
            self._show_progress("made meanwhile by another run", 100.0)
        self._show(path, manifest)

    def attempt(self, plan: TrainingPlan, log: Path) -> None:
        """An attempt at training begins; what it prints is appended to the log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        rows, steps = plan.per_device_train_batch_size, plan.gradient_accumulation_steps
        among = f", {plan.processes} processes ({plan.sharding})" if plan.processes > 1 else ""
        self._say("info", f"micro-batch {rows}, accumulation {steps}{among}, on {plan.device}")
        self._show_progress("starting", 0.0)
        announce(Progress(stage=self.name, phase="starting"))

    def report(self, said: dict[str, Any]) -> None:
        """The training process says where it stands."""
        self.checking()
        progress = Progress(stage=self.name, **said)
        announce(progress)
        self._step = _step(progress)
        if progress.alarm:
            self._alarm(progress.alarm)
        elif time.monotonic() - self._updated > _SECONDS_BETWEEN_UPDATES:
            self._updated = time.monotonic()
            self._say("info", _describe(progress))
            self._show_progress(_describe(progress), _percent(progress))

    def line(self, text: str) -> None:
        """The training process printed a line."""
        if self._log:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(text + "\n")
        self._printed.line(text)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Tell listeners when what happens inside fails; the error goes on its way."""
        try:
            yield
        except BaseException as error:
            told = next(iter(str(error).splitlines()), repr(error))
            phase = told if isinstance(error, Stopped) else f"failed: {told}"
            announce(Progress(stage=self.name, phase=phase))
            if not closing.is_set():  # then there is no time for it
                self._show_progress(f"{self._step}: {phase}" if self._step else phase)
            raise
        finally:
            self._printed.close()

    def completed(self, path: Path, manifest: Manifest, replaced: Manifest | None) -> None:
        """It is published, in place of another one where a stage was forced."""
        self._say("info", f"published {path}")
        if replaced and _weights(replaced) != _weights(manifest):
            self._say("warning", "weights differ from the replaced ones; force what was made from those, too")
        announce(Progress(stage=self.name, phase="completed", metrics=manifest.metrics))
        if self._progress_id:
            self._show_progress(_outcome(manifest), 100.0)
        self._show(path, manifest)
        publish(materialized, ArtifactStore(path.parents[1]), path.name, manifest)

    def _alarm(self, alarm: Alarm) -> None:
        self._alarms.append(alarm)
        told = describe_alarm(alarm)
        self._say("warning", told)
        self._show_alarms(self._alarms)
        message = f"{self.name}: {told}"
        publish(tell, "align.alarm.raised", self.name, message, alarm=alarm.name, stopped=alarm.stopped)

    def _show_alarms(self, alarms: Sequence[Alarm]) -> None:
        publish(create_markdown_artifact, alarms_markdown(self.name, alarms), key=f"alarms-{self.name}")

    def _show(self, path: Path, manifest: Manifest) -> None:
        """A model's card, figures and folder in the Prefect UI."""
        if manifest.kind not in ("base", "checkpoint"):
            return
        publish_link(path, f"folder-{self.name}", f"Folder of {self.name}")
        publish(create_markdown_artifact, _card(self.name, path, manifest), key=f"checkpoint-{self.name}")
        if alarms := read_alarms(path):
            self._show_alarms(alarms)

    def _show_progress(self, description: str, percent: float | None = None) -> None:
        """Where the stage stands, in the Prefect UI; without a share done, as far as it was."""
        self._share = self._share if percent is None else percent
        if self._progress_id:
            publish(update_progress_artifact, self._progress_id, progress=self._share, description=description)
        else:
            key = f"progress-{self.name}"
            self._progress_id = publish(create_progress_artifact, self._share, key=key, description=description)

    def _pass_on(self, level: int, line: str) -> None:
        """A line that the training process printed, into the run's log."""
        self._logger.log(level, "%s: %s", ", ".join(filter(None, (self.name, self._step))), line)

    def _keep_back(self, lines: int) -> None:
        self._say("info", f"… {lines} more lines" + (f", all in {self._log}" if self._log else ""))

    def _say(self, level: str, message: str) -> None:
        self._logger.log(logging.getLevelNamesMapping()[level.upper()], "%s: %s", self.name, message)


def publish(create: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Show or emit something in Prefect: a service, for whose failure no stage may fail, nor wait again and again."""
    if time.monotonic() < _outage.until:
        return None
    try:
        return create(*arguments, **options)
    except Exception as error:
        if not _is_refusal(error):
            _outage.until = time.monotonic() + _SECONDS_OF_SILENCE
        get_run_logger().warning("the Prefect API did not take what it was to show: %s", error)
        return None


def _is_refusal(error: Exception) -> bool:
    """Whether the error is about what was asked; others, such as a busy gateway's, Prefect has tried again for long."""
    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code not in _TRIED_AGAIN
    return isinstance(error, ValueError)


def publish_link(path: Path, key: str, what: str) -> None:
    """A link to a file or folder; with its path to copy, since no browser opens files from a server's page."""
    description = f"{what}: `{path}` (copy the path, if your browser does not follow the link)"
    publish(create_link_artifact, path.as_uri(), link_text=path.name, key=key, description=description)


def _weights(manifest: Manifest) -> list[str]:
    return [entry.sha256 for entry in manifest.files if entry.path.endswith(".safetensors")]


def _step(progress: Progress) -> str:
    """What is going on: `training step 12/30`."""
    return progress.phase + (f" step {progress.step}/{progress.total_steps}" if progress.total_steps else "")


def _describe(progress: Progress) -> str:
    """Where a stage stands: `training step 12/30, loss 0.41, 40 s left`."""
    left = [f"{progress.seconds_left:.0f} s left"] if progress.seconds_left is not None else []
    return ", ".join([_step(progress), *_figures(progress.metrics), *left])


def _percent(progress: Progress) -> float | None:
    return 100.0 * progress.step / progress.total_steps if progress.total_steps else None


def _outcome(manifest: Manifest) -> str:
    """How a stage ended that did: `completed, loss 0.31, 95 s`."""
    seconds = [f"{manifest.metrics['seconds']:.0f} s"] if "seconds" in manifest.metrics else []
    return ", ".join(["completed", *_figures(manifest.metrics), *seconds])


def _figures(metrics: Mapping[str, float]) -> list[str]:
    return [f"{key} {metrics[key]:.4g}" for key in ("loss", "reward") if key in metrics]


def _card(name: str, path: Path, manifest: Manifest) -> str:
    """What the model is made of, as markdown, with links to the folders of its parents and of the run that made it."""
    store = ArtifactStore(path.parents[1])
    places = {parent: store.locate(parent) for parent in manifest.parents.values()}
    parents = "\n".join(f"- {role}: {_link(parent, places[parent])}" for role, parent in manifest.parents.items())
    run = _link(manifest.run, store.home / "runs" / manifest.run) if manifest.run else "unknown"
    attempts = "\n".join(
        f"| {attempt.per_device_train_batch_size} x {attempt.gradient_accumulation_steps} | {attempt.outcome} "
        f"| {attempt.resumed_from_step} to {attempt.reached_step} | {attempt.peak_memory_bytes / 1e9:.2f} "
        f"| {attempt.seconds:.1f} | {attempt.cause} |"
        for attempt in manifest.attempts
    )
    figures = "\n".join(f"| {figure} | {value:.6g} |" for figure, value in manifest.metrics.items())
    return (
        f"# {name}\n\nFingerprint `{manifest.fingerprint}`\n\nMade by run {run}\n\n## Made from\n\n"
        f"{parents}\n\n## Figures\n\n| figure | value |\n|---|---|\n{figures}\n\n"
        "## Attempts\n\n| batch x accumulation | outcome | steps | peak GB | seconds | cause |\n"
        f"|---|---|---|---|---|---|\n{attempts}\n"
    )


def _link(name: str, folder: Path | None) -> str:
    return f"[{name}]({folder.as_uri()}) in `{folder}`" if folder and folder.is_dir() else f"`{name}`"

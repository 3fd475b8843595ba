"""The report of a run as a Prefect task: the completed record, and one HTML file."""

import json
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from models.artifacts import Checkpoint, Manifest
from models.comparison import Comparison
from models.evaluation import EvaluationResult
from models.run import RunRecord, StageOutcome
from tasks.alarms import read_alarms
from tasks.execution import Execution
from tasks.files import replace_file
from tasks.gate import judge_gate, save_gate
from tasks.lineage import ancestry
from tasks.progress import Progress, announce
from tasks.provenance import without_folders
from tasks.remote.opening import open_store
from tasks.remote.sharing import share_run
from tasks.reporting.lineage_page import render_lineage
from tasks.reporting.page import LINEAGE_PAGE, render_report
from tasks.run_record import release_run, save_run
from tasks.store import MANIFEST, read_manifest, utc_now


@task(name="report", cache_policy=NO_CACHE)
def report(
    run: RunRecord,
    checkpoints: list[Checkpoint],
    evaluations: list[EvaluationResult],
    comparisons: tuple[Comparison, ...],
    execution: Execution,
) -> RunRecord:
    """Complete the run's record and write its report.

    Args:
        run: The record as opened.
        checkpoints: What the stages made or found, in the order of the pipeline, the base model first.
        evaluations: Figures of the same models.
        comparisons: The policies against what they came from, and the last one against aliases.
        execution: The machine's part.
    """
    home = execution.settings.home
    path = home / "runs" / run.id / "report.html"
    last = _last_policy(checkpoints)
    gate = judge_gate(run.recipe.gate, last.name, comparisons) if run.recipe.gate else None
    manifests = {checkpoint.name: read_manifest(checkpoint.path) for checkpoint in checkpoints}
    finished = run.model_copy(
        update={
            "state": "completed",
            "finished": utc_now(),
            "stages": tuple(_outcome(checkpoint, manifests[checkpoint.name], run) for checkpoint in checkpoints),
            "evaluations": tuple(evaluations),
            "comparisons": comparisons,
            "gate": gate,
            "report": path,
        }
    )
    curves: dict[str, list[dict[str, float]]] = {checkpoint.stage: _history(checkpoint) for checkpoint in checkpoints}
    shown = finished.model_copy(update={"recipe": without_folders(finished.recipe)})
    replace_file(path, render_report(shown, curves, manifests | _dataset_manifests(run, home)))
    store = open_store(execution.settings)
    replace_file(path.with_name(LINEAGE_PAGE), render_lineage(store, ancestry(store, last.path)))
    save_gate(gate, path.parent)
    save_run(finished, home)
    release_run(run.id)
    share_run(store, run.id, get_run_logger().warning)
    announce(Progress(stage=f"report-{run.id}", phase="completed"))
    return finished


def _last_policy(checkpoints: list[Checkpoint]) -> Checkpoint:
    return [checkpoint for checkpoint in checkpoints if checkpoint.stage != "reward"][-1]


def _outcome(checkpoint: Checkpoint, manifest: Manifest, run: RunRecord) -> StageOutcome:
    """Cached where another run has made it."""
    cached = manifest.run != run.id
    seconds = 0.0 if cached else manifest.metrics.get("seconds", 0.0)
    alarms = read_alarms(checkpoint.path)
    return StageOutcome(stage=checkpoint.stage, checkpoint=checkpoint, cached=cached, seconds=seconds, alarms=alarms)


def _history(checkpoint: Checkpoint) -> list[dict[str, float]]:
    """The trainer's log, a dictionary of figures a step; none for a base model."""
    path = checkpoint.path / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _dataset_manifests(run: RunRecord, home: Path) -> dict[str, Manifest]:
    """Of the snapshots that the run trained on or held out."""
    folders = {name: home / "datasets" / name for name in run.needs}
    return {name: read_manifest(path) for name, path in folders.items() if (path / MANIFEST).exists()}

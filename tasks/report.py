"""The report of a run as a Prefect task: one HTML file, and the same in short as Prefect artifacts."""

import json
from base64 import b64encode
from pathlib import Path

from prefect import task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint, Manifest
from models.comparison import Comparison
from models.evaluation import EvaluationResult
from models.lineage import LineageGraph
from models.run import RunRecord, StageOutcome
from tasks.alarms import read_alarms
from tasks.events import tell
from tasks.execution import Execution
from tasks.files import replace_file
from tasks.gate import judge_gate, save_gate
from tasks.lineage import ancestry
from tasks.progress import Progress, announce
from tasks.provenance import without_folders
from tasks.reporting.lineage_page import render_drawing, render_lineage
from tasks.reporting.page import LINEAGE_PAGE, render_report
from tasks.reporting.verdict import verdict
from tasks.run_record import release_run, save_run
from tasks.store import MANIFEST, ArtifactStore, read_manifest, utc_now
from tasks.telling import publish


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
    store = ArtifactStore(home)
    lineage = ancestry(store, last.path)
    replace_file(path.with_name(LINEAGE_PAGE), render_lineage(store, lineage))
    save_gate(gate, path.parent)
    save_run(finished, home)
    release_run(run.id)
    _show(finished, path)
    _show_lineage(lineage, path.with_name(LINEAGE_PAGE))
    _tell(finished, path)
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


def _show(run: RunRecord, path: Path) -> None:
    """The verdict, the table of figures and the link to the report in the Prefect UI."""
    publish(
        create_markdown_artifact, f"# {run.id}\n\n{verdict(run)}\n", key="verdict", description=f"What {run.id} taught"
    )
    rows = [
        {"model": result.checkpoint.name} | {name: str(figure) for name, figure in result.estimates().items()}
        for result in run.evaluations
    ]
    publish(create_table_artifact, rows, key="held-out-figures", description=f"Figures of {run.id} with 95 % intervals")
    publish(
        create_link_artifact, path.as_uri(), link_text="report.html", key="report", description=f"Report of {run.id}"
    )


def _tell(run: RunRecord, path: Path) -> None:
    """The run's end and a closed gate, as events that automations pass on."""
    publish(tell, "align.run.completed", run.id, f"run {run.id} is complete: {verdict(run)}", report=str(path))
    if run.gate and not run.gate.passed:
        failed = "; ".join(f"{each.condition}: {each.found}" for each in run.gate.conditions if not each.passed)
        message = f"the gate of run {run.id} is closed for {run.gate.checkpoint}: {failed}"
        publish(tell, "align.gate.closed", run.id, message, checkpoint=run.gate.checkpoint, report=str(path))


def _show_lineage(lineage: LineageGraph, page: Path) -> None:
    """The graph as an image, which the Prefect UI shows, and the link to the page where its nodes open their cards."""
    drawing = b64encode(render_drawing(lineage).encode()).decode()
    publish(
        create_image_artifact,
        f"data:image/svg+xml;base64,{drawing}",
        key="lineage",
        description=f"What {lineage.root} is made of",
    )
    publish(
        create_link_artifact, page.as_uri(), link_text=page.name, key="lineage-page", description="The graph with cards"
    )

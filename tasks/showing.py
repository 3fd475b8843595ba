"""A completed run in Prefect: artifacts of the flow run itself, where its page shows them first, and events."""

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from models.artifacts import Manifest
from models.run import RunRecord
from tasks.events import tell
from tasks.gate import closed_by
from tasks.lineage import ancestry
from tasks.reporting.lineage_page import render_drawing
from tasks.reporting.page import LINEAGE_PAGE
from tasks.reporting.verdict import verdict
from tasks.store import ArtifactStore, read_manifest
from tasks.telling import publish, publish_link


def show_run(run: RunRecord) -> RunRecord:
    """Show what a completed run has come to, and tell that it has; called by the flow, outside its tasks."""
    if run.report:
        _show(run, run.report)
        _show_lineage(run, run.report.with_name(LINEAGE_PAGE))
        _tell(run, run.report)
    return run


def metrics_table(run: RunRecord, manifests: Mapping[str, Manifest]) -> list[dict[str, str]]:
    """A row a model: what it shows on held-out rows, then what its training logged; the same columns in every row."""
    held_out = {result.checkpoint.name: result.estimates() for result in run.evaluations}
    rows = []
    for outcome in run.stages:
        name = outcome.checkpoint.name
        row = {"model": name, "made": "before" if outcome.cached else "in this run"}
        row |= {figure: str(estimate) for figure, estimate in held_out.get(name, {}).items()}
        rows.append(row | {figure: f"{value:.6g}" for figure, value in manifests[name].metrics.items()})
    figures = [figure for estimates in held_out.values() for figure in estimates]
    columns = dict.fromkeys(["model", "made", *figures, *(column for row in rows for column in row)])
    return [{column: row.get(column, "") for column in columns} for row in rows]


def _show(run: RunRecord, path: Path) -> None:
    """The verdict, the table of figures and the link to the report."""
    manifests = {outcome.checkpoint.name: read_manifest(outcome.checkpoint.path) for outcome in run.stages}
    publish(
        create_markdown_artifact, f"# {run.id}\n\n{verdict(run)}\n", key="verdict", description=f"What {run.id} taught"
    )
    description = f"Figures of {run.id}: on held-out rows, with 95 % intervals, then of the training"
    publish(create_table_artifact, metrics_table(run, manifests), key="metrics", description=description)
    publish_link(path, "report", f"Report of {run.id}")


def _tell(run: RunRecord, path: Path) -> None:
    """The run's end and a closed gate, as events that automations pass on."""
    publish(tell, "align.run.completed", run.id, f"run {run.id} is complete: {verdict(run)}", report=str(path))
    if run.gate and not run.gate.passed:
        message = f"the gate of run {run.id} is closed for {run.gate.checkpoint}: {closed_by(run.gate)}"
        publish(tell, "align.gate.closed", run.id, message, checkpoint=run.gate.checkpoint, report=str(path))


def _show_lineage(run: RunRecord, page: Path) -> None:
    """The graph as an image, which the UI shows, and the link to the page where its nodes open their cards."""
    last = run.policies[-1].path
    lineage = ancestry(ArtifactStore(last.parents[1]), last)
    drawing = b64encode(render_drawing(lineage).encode()).decode()
    publish(
        create_image_artifact,
        f"data:image/svg+xml;base64,{drawing}",
        key="lineage",
        description=f"What {lineage.root} is made of",
    )
    publish_link(page, "lineage-page", "The graph with cards")

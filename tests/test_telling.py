"""What Prefect shows of a run, read back from a real server: log, progress, figures, links, the graph, and assets."""
# ruff: noqa: T201 - what a stage prints is what is tested

import json
import logging
import time
import warnings
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow, get_client, task
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError

from models.artifacts import Checkpoint
from models.errors import StageError
from models.run import RunRecord
from models.stages import SFTInput
from tasks.assets import asset_key
from tasks.core.plan import TrainingPlan, TrainingResult
from tasks.execution import Execution
from tasks.lineage import ancestry
from tasks.printed import MOST_LINES
from tasks.reporting.lineage_page import render_drawing, render_lineage
from tasks.stage import run_stage
from tasks.store import ArtifactStore, read_manifest
from tasks.telling import Teller, publish
from tests.operating import free_port
from tests.test_contracts import INPUTS

pytestmark = pytest.mark.slow


def ask(path: str, **question: Any) -> Any:
    """Ask the server as its UI does."""
    with get_client(sync_client=True) as client:
        return client._client.post(path, json=question).raise_for_status().json()


def artifact(key: str, policy: Path) -> dict[str, Any]:
    """The artifact of the run that made the policy; other tests' runs are on the same server."""
    run = {"any_": [read_manifest(policy).prefect["flow_run"]]}
    (found,) = ask("/artifacts/filter", artifacts={"key": {"any_": [key]}, "flow_run_id": run})
    return dict(found)


@pytest.fixture(scope="module")
def policy(finished_run: tuple[Path, RunRecord]) -> Path:
    """The folder of the finished run's last policy."""
    (path,) = finished_run[0].glob("checkpoints/grpo-*")
    return path


@flow
def publishing(key: str) -> bool:
    """Whether the API took an artifact."""
    return bool(publish(create_markdown_artifact, "some text", key=key))


def test_an_artifact_that_is_refused_silences_none_after_it(prefect_api: None) -> None:
    assert [publishing(key) for key in ("No Key", "a-key")] == [False, True]


def unavailable() -> None:
    """What Prefect's client raises behind a busy gateway, once it has tried for long."""
    request = httpx.Request("GET", "http://127.0.0.1/api")
    raise PrefectHTTPStatusError("busy", request=request, response=httpx.Response(503, request=request))


@pytest.mark.parametrize("ask", [lambda: httpx.get(f"http://127.0.0.1:{free_port()}/api"), unavailable])
def test_an_api_that_does_not_answer_is_left_alone(prefect_api: None, ask: Callable[[], object]) -> None:
    @flow
    def unheard() -> None:
        publish(ask)

    unheard()
    assert not publishing("a-key")


def test_the_graph_is_an_image_in_the_ui(policy: Path, finished_run: tuple[Path, RunRecord]) -> None:
    store = ArtifactStore(finished_run[0])
    found = artifact("lineage", policy)
    kind, _, content = found["data"].partition(",")
    assert (found["type"], kind) == ("image", "data:image/svg+xml;base64")
    assert b64decode(content).decode() == render_drawing(ancestry(store, policy))
    assert policy.name in found["description"]


def test_the_page_lies_beside_the_report(policy: Path, finished_run: tuple[Path, RunRecord]) -> None:
    home, record = finished_run
    page = home / "runs" / record.id / "lineage.html"
    store = ArtifactStore(home)
    assert page.read_text() == render_lineage(store, ancestry(store, policy))
    shown = artifact("lineage-page", policy)
    assert page.as_uri() in shown["data"]
    assert f"`{page}`" in shown["description"]
    assert record.report
    assert 'href="lineage.html"' in record.report.read_text()


def test_a_stages_card_links_parents_and_run(policy: Path, finished_run: tuple[Path, RunRecord]) -> None:
    home, record = finished_run
    card = artifact(f"checkpoint-{policy.name}", policy)["data"]
    manifest = read_manifest(policy)
    assert f"[{record.id}]({(home / 'runs' / record.id).as_uri()})" in card
    for role, parent in manifest.parents.items():
        place = ArtifactStore(home).locate(parent)
        assert place
        assert f"- {role}: [{parent}]({place.as_uri()})" in card


def test_a_published_checkpoint_is_an_asset_made_from_its_parents(policy: Path) -> None:
    key = asset_key("checkpoint", policy.name)
    question = {"resource": {"id": [key]}, "event": {"prefix": ["prefect.asset.materialization"]}}
    manifest = read_manifest(policy)
    events: list[dict[str, Any]] = []
    for _ in range(50):
        found = ask("/events/filter", filter=question)["events"]
        if events := [event for event in found if event["payload"]["run"] == manifest.run]:
            break
        time.sleep(0.2)
    (event,) = events
    related = [each["prefect.resource.id"] for each in event["related"] if each["prefect.resource.role"] == "asset"]
    kinds = {"policy": "checkpoint", "reward_model": "checkpoint", "dataset": "dataset"}
    assert related == [asset_key(kinds[role], name) for role, name in manifest.parents.items()]  # type: ignore[arg-type]
    assert event["payload"]["fingerprint"] == manifest.fingerprint


def test_one_table_has_the_figures_of_all_models(policy: Path, finished_run: tuple[Path, RunRecord]) -> None:
    _, record = finished_run
    rows = json.loads(artifact("metrics", policy)["data"])
    assert [row["model"] for row in rows] == [outcome.checkpoint.name for outcome in record.stages]
    assert len({tuple(row) for row in rows}) == 1
    last = rows[-1]
    assert last["exact_match"] == str(record.evaluations[-1].exact_match)
    assert float(last["seconds"]) == pytest.approx(read_manifest(policy).metrics["seconds"], rel=1e-4)
    assert last["made"] == "in this run"


def test_the_report_is_a_link_with_its_path_to_copy(policy: Path, finished_run: tuple[Path, RunRecord]) -> None:
    report = finished_run[1].report
    assert report
    shown = artifact("report", policy)
    assert report.as_uri() in shown["data"]
    assert f"`{report}`" in shown["description"]


def chatty(stage: SFTInput, plan: TrainingPlan, workspace: Path, report: Any) -> TrainingResult:
    """A core that says more than anybody reads; with a batch of 13 it fails."""
    report({"phase": "training", "step": 3, "total_steps": 12, "metrics": {"loss": 0.41}, "seconds_left": 40.0})
    time.sleep(0.2)  # reports and lines come by different ways
    warnings.warn("look out", UserWarning, stacklevel=1)
    logging.getLogger("trl").error("something is wrong")
    for number in range(100):
        print(f"line {number}")
    if stage.hyperparameters.batch_size == 13:
        raise StageError("it does not work; do something else")
    (workspace / "model").mkdir()
    (workspace / "model" / "weights").write_text("trained")
    return TrainingResult(metrics={"loss": 0.25}, resumed_from_step=0)


@task
def train_chatty(stage: SFTInput, execution: Execution) -> Checkpoint:
    """A stage like the four others."""
    return run_stage(stage, chatty, execution)


@flow
def chatty_flow(stage: SFTInput, execution: Execution) -> Checkpoint:
    """One stage."""
    return train_chatty.submit(stage, execution).result()


def told_of(stage: SFTInput, execution: Execution) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Carry the stage out: its progress artifact in the end, and the run's log."""
    state = chatty_flow(stage, execution, return_state=True)
    run = {"any_": [str(state.state_details.flow_run_id)]}
    (shown,) = ask("/artifacts/filter", artifacts={"type": {"any_": ["progress"]}, "flow_run_id": run})
    for _ in range(100):
        logs = ask("/logs/filter", logs={"flow_run_id": run}, limit=200, sort="TIMESTAMP_ASC")
        if any("more lines" in line["message"] for line in logs):
            break
        time.sleep(0.2)
    return shown, logs


def with_batch(rows: int) -> SFTInput:
    stage = INPUTS["sft"]
    asked = stage.hyperparameters.model_copy(update={"batch_size": rows})
    changed = stage.model_copy(update={"hyperparameters": asked})
    assert isinstance(changed, SFTInput)
    return changed


def test_lines_reach_the_runs_log_with_level_and_step(prefect_api: None, execution: Execution) -> None:
    stage = with_batch(12)
    shown, logs = told_of(stage, execution)
    assert (shown["data"], shown["description"].partition(", ")[0]) == (100.0, "completed")
    assert "loss 0.25" in shown["description"]
    levels = {line["message"]: line["level"] for line in logs}
    at = f"{stage.name}, training step 3/12: "
    assert levels[f"{at}WARNING py.warnings: UserWarning: look out"] == logging.WARNING
    assert levels[f"{at}ERROR trl: something is wrong"] == logging.ERROR
    assert levels[f"{at}line 0"] == logging.INFO
    assert levels[f"{stage.name}: training step 3/12, loss 0.41, 40 s left"] == logging.INFO
    assert sum(message.startswith(at) for message in levels) == MOST_LINES + 1  # no error is kept back
    log = execution.settings.home / "checkpoints" / ".partial" / stage.name / "log.txt"
    assert f"{stage.name}: … {101 - MOST_LINES} more lines, all in {log}" in levels


def test_a_failed_stage_says_where_and_why_in_its_progress(prefect_api: None, execution: Execution) -> None:
    shown, _ = told_of(with_batch(13), execution)
    assert shown["data"] == 25.0
    assert shown["description"] == "training step 3/12: failed: it does not work; do something else"


def test_a_stage_that_waits_says_for_what(prefect_api: None, execution: Execution) -> None:
    said: list[str] = []

    @flow
    def waiting_flow() -> None:
        teller = Teller("sft-1")
        teller.waiting("2 of 2 cores, taken by dpo-0 of run r (process 1)")
        run = {"any_": [str(FlowRunContext.get().flow_run.id)]}  # type: ignore[union-attr]
        (shown,) = ask("/artifacts/filter", artifacts={"key": {"any_": ["progress-sft-1"]}, "flow_run_id": run})
        said.append(shown["description"])

    waiting_flow()
    assert said == ["waiting for 2 of 2 cores, taken by dpo-0 of run r (process 1)"]

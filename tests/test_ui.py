"""The Prefect UI as people use it: headless Chromium against the server and the worker that `align up` starts.

With `--screenshots FOLDER` the pages that show the user the way are kept as pictures: those of `docs/ui` were made so.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from models.run import RunRecord
from tests.faults import ROOT, SECONDS_TO_END, wait_until
from tests.tiny import tiny_recipe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")]

SECONDS_TO_RUN = 180
MOODY = """
from pathlib import Path

def moody(completions, **columns):
    if not (Path(__file__).parent / "words.txt").exists():
        raise FileNotFoundError("words.txt is not there yet")
    return [float(len(completion[0]["content"]) % 3) for completion in completions]
"""


@dataclass(frozen=True)
class Service:
    """The server and the worker of `align up`."""

    url: str
    environment: dict[str, str]
    home: Path

    def align(self, *arguments: str) -> str:
        """Call the command, and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            check=False, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, path: str) -> Any:
        """What the API answers."""
        return httpx.get(f"{self.url}/api/{path}").raise_for_status().json()

    def newest_run(self, flow: str) -> Any:
        """The newest run of a flow, as the API tells of it."""
        asked = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
        found = httpx.post(f"{self.url}/api/flow_runs/filter", json=asked).raise_for_status().json()
        return found[0] if found else None

    def wait_for(self, run: str, *states: str) -> Any:
        """The run, once it is in one of the states."""
        wait_until(lambda: self.get(f"flow_runs/{run}")["state_name"] in states, SECONDS_TO_RUN)
        return self.get(f"flow_runs/{run}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_API_PORT": str(port),
        "ALIGN_HOME": str(folder / "home"),
        "ALIGN_RESERVED_DISK_BYTES": "0",
    }
    service = Service(f"http://127.0.0.1:{port}", environment, folder / "home")
    assert service.url in service.align("up")
    yield service
    service.align("down")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class Screen:
    """One browser tab on the UI."""

    page: "Page"
    service: Service
    pictures: Path | None

    def open(self, path: str) -> None:
        """Go to a page of the UI."""
        self.page.goto(f"{self.service.url}/{path}")

    def keep(self, name: str) -> None:
        """Keep a picture, where they are wanted."""
        self.page.wait_for_timeout(1500)  # what moves comes to rest
        if self.pictures:
            self.pictures.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=self.pictures / f"{name}.jpg", type="jpeg", quality=60)

    def press(self, name: str, confirm: str) -> None:
        """Press a button, and the one in the dialogue that asks back."""
        self.page.get_by_role("button", name=name, exact=True).first.click()
        self.page.get_by_role("dialog").get_by_role("button", name=confirm, exact=True).click()

    def field(self, title: str) -> "Locator":
        """The last field of a form with that title, and what can be typed into."""
        label = self.page.locator(f"span.schema-form-property__label:text-matches('^{title}( \\\\(Optional\\\\))?$')")
        return self.page.locator(".p-label", has=label).last.locator("input, textarea").first

    def open_form(self, deployment: str, parameters: dict[str, Any]) -> None:
        """Open a deployment's form by its buttons, and fill it as a link does that people share."""
        found = self.service.get(f"deployments/name/{deployment}")["id"]
        self.open(f"deployments/deployment/{found}")
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        self.page.get_by_role("button", name="Submit").wait_for()
        self.keep(deployment.replace("/", "-"))
        self.open(f"deployments/deployment/{found}/run?parameters={quote(quote(json.dumps(parameters)))}")
        self.page.get_by_role("button", name="Submit").wait_for()

    def submit(self, flow: str) -> str:
        """Submit the form, and return the id of the run that comes of it."""
        before = self.service.newest_run(flow)
        self.page.get_by_role("button", name="Submit").click()
        wait_until(lambda: self.service.newest_run(flow) != before, 30)
        run: str = self.service.newest_run(flow)["id"]
        self.open(f"runs/flow-run/{run}")
        return run

    def open_tab(self, run: str, tab: str) -> None:
        """Open a tab of a run's page."""
        self.open(f"runs/flow-run/{run}")
        self.page.get_by_text(tab, exact=True).last.click()
        self.page.mouse.move(600, 500)
        self.page.mouse.wheel(0, 400)  # what is below the edge is not there yet

    def shows(self, text: str) -> None:
        """Wait until the page shows a text."""
        self.page.get_by_text(text).first.wait_for(timeout=30_000)


@pytest.fixture
def screen(browser: "Browser", service: Service, request: pytest.FixtureRequest) -> Iterator[Screen]:
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    pictures = request.config.getoption("--screenshots")
    yield Screen(page, service, Path(pictures).absolute() if pictures else None)
    page.close()


@pytest.fixture
def parameters(tiny_model: Path, tiny_data: Path) -> dict[str, Any]:
    """What the form of `align/on-demand` is filled with."""
    return {"recipe": tiny_recipe(tiny_model, tiny_data), "recipe_name": "tiny"}


def record(service: Service, run: str) -> RunRecord:
    (path,) = service.home.glob(f"runs/*-{run[:8]}/run.json")
    return RunRecord.model_validate_json(path.read_bytes())


def task_states(service: Service, run: str) -> dict[str, str]:
    """The newest state of each stage's task run."""
    asked = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
    found = httpx.post(f"{service.url}/api/task_runs/filter", json=asked).raise_for_status().json()
    return {each["name"].partition("-")[0]: each["state_name"] for each in found}


def test_a_run_is_made_in_the_form_and_its_artifacts_opened(
    service: Service, screen: Screen, parameters: dict[str, Any]
) -> None:
    screen.open_form("align/on-demand", parameters)
    screen.field("Seed").fill("7")
    run = screen.submit("align")
    service.wait_for(run, "Running")
    screen.shows("Running")
    wait_until(lambda: "dpo" in task_states(service, run), SECONDS_TO_RUN)
    screen.keep("running")
    service.wait_for(run, "Completed")
    assert record(service, run).recipe.seed == 7
    screen.shows("Completed")
    screen.keep("completed")
    screen.open_tab(run, "Artifacts")
    screen.page.get_by_text("metrics").first.click()
    screen.shows("exact_match")
    screen.keep("figures")
    screen.open_tab(run, "Artifacts")
    screen.page.get_by_text("verdict", exact=True).first.click()
    screen.shows(record(service, run).id)


def test_a_failed_stage_is_retried(
    service: Service, screen: Screen, parameters: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "rewards.py").write_text(MOODY)
    reward = {"kind": "function", "function": f"{tmp_path}/rewards.py:moody", "failures_allowed": 0.1}
    parameters["recipe"]["grpo"] |= {"rewards": [reward], "max_steps": 6}
    screen.open_form("align/on-demand", parameters)
    run = screen.submit("align")
    failed = service.wait_for(run, "Failed")
    assert "words.txt is not there yet" in failed["state"]["message"]
    screen.open_tab(run, "Details")
    screen.page.get_by_text("See More").click()
    screen.shows("words.txt is not there yet")
    screen.keep("failed")
    (tmp_path / "words.txt").touch()
    screen.press("Retry", "Retry")
    service.wait_for(run, "Completed")
    states = wait_until(
        lambda: (now := task_states(service, run)) and now.get("grpo") == "Completed" and now, SECONDS_TO_RUN
    )
    assert {stage: states[stage] for stage in ("sft", "reward", "dpo")} == dict.fromkeys(
        ("sft", "reward", "dpo"), "Cached"
    )
    screen.open_tab(run, "Task Runs")
    screen.shows("Cached")
    screen.keep("retried")


def test_cancel_ends_the_training_process(service: Service, screen: Screen, parameters: dict[str, Any]) -> None:
    parameters["recipe"]["sft"] |= {"max_steps": 100_000}
    screen.open_form("align/on-demand", parameters)
    run = screen.submit("align")
    wait_until(lambda: [*service.home.glob("checkpoints/.partial/sft-*/trainer/checkpoint-*")], SECONDS_TO_RUN)
    holder = next(service.home.glob(f".locks/run-*-{run[:8]}.holder"))
    flow = psutil.Process(int(holder.read_text().split()[1]))
    tree = [flow, *flow.children(recursive=True)]
    screen.press("Cancel", "Confirm")
    service.wait_for(run, "Cancelled")
    _, alive = psutil.wait_procs(tree, timeout=SECONDS_TO_END)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    assert record(service, run).state == "cancelled"
    screen.shows("Cancelled")


def test_a_held_promotion_is_approved(service: Service, screen: Screen, parameters: dict[str, Any]) -> None:
    screen.open_form("retrain/weekly", parameters | {"promotion": "approval"})
    service.wait_for(screen.submit("retrain"), "Held")
    asking = wait_until(lambda: service.newest_run("promote"), 30)["id"]
    service.wait_for(asking, "Suspended")
    screen.open(f"runs/flow-run/{asking}")
    screen.page.get_by_role("button", name="Resume", exact=True).click()
    form = screen.page.get_by_role("dialog")
    form.get_by_text("Verdict").wait_for()
    form.locator(".p-select-button__control").press("Space")
    screen.page.locator(".p-select-option").filter(has_text="approve").click()
    screen.field("Reason").fill("better on every held-out row")
    screen.field("Decided by").fill("the night shift")
    screen.keep("approve")
    form.get_by_role("button", name="Submit").click()
    service.wait_for(asking, "Completed")
    told = json.loads((service.home / "aliases" / "champion.json").read_bytes())["history"][-1]
    assert told["checkpoint"].startswith("grpo-")
    assert (told["reason"], told["by"]) == ("better on every held-out row", "the night shift")

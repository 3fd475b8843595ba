"""What tests share: a tiny model and its data, a Prefect API and one finished run; each made once and on demand."""

import gc
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from models.recipe import Recipe
from models.run import RunRecord
from settings.machine import Machine
from settings.settings import Settings
from tasks import telling
from tasks.execution import Execution
from tasks.remote.objects import ObjectStore
from tasks.remote.remote import Remote
from tasks.store import ArtifactStore
from tests.faults import SETTINGS, STEPS, Scene
from tests.folders import family
from tests.object_server import BUCKET, ObjectServer
from tests.operating import Place
from tests.published import Shelf
from tests.remotes import LEASE_SECONDS
from tests.tiny import build_tiny_model, run_align, tiny_recipe, write_tiny_data

_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
_ALONE = {"OMP_NUM_THREADS": "1"}  # tiny matrices take longer in parts, and other tests run at the same time


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to keep pictures of the UI."""
    parser.addoption("--screenshots", metavar="FOLDER", help="keep pictures of the Prefect UI there (make test-e2e)")


def pytest_configure() -> None:
    """Shut out this machine's own settings, before any test module reads them."""
    for name in [name for name in os.environ if name.startswith("ALIGN_")]:
        del os.environ[name]
    own_queue = tempfile.mkdtemp(prefix="align-queue-")  # nobody else's work is waited for
    os.environ.update(_OFFLINE | _ALONE, ALIGN_QUEUE=own_queue)
    os.environ["TRACKIO_DIR"] = f"{os.environ['ALIGN_QUEUE']}/trackio"  # read when it is imported, which TRL does
    Settings.model_config["env_file"] = None
    settings.register_profile("patient", deadline=None)  # other tests run at the same time
    settings.load_profile("patient")


def pytest_unconfigure() -> None:
    """Leave no queue behind."""
    shutil.rmtree(os.environ["ALIGN_QUEUE"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """Let no later garbage collection look through the libraries and tests again, which stay to the end."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of faults: what was done, when, what came of it, and the optimizer steps that it cost."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    rows = [value for report in reports for key, value in getattr(report, "user_properties", []) if key == "fault"]
    if not rows:
        return
    terminalreporter.section("faults")
    for fault, moment, outcome, steps in sorted(rows):
        terminalreporter.write_line(f"{fault:28} {moment:44} {outcome:14} {steps:3} steps lost")
    most = max(lost for *_, lost in rows)
    terminalreporter.write_line(
        f"{len(rows)} faults; {sum(lost for *_, lost in rows)} steps lost in all, at most {most}"
    )


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Prefect API is asked anew in each test, whether or not there was one in the test before."""
    monkeypatch.setattr(telling, "_outage", telling._Outage())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer Llama and its tokenizer."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the five files of a tiny recipe."""
    return write_tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def execution(tmp_path: Path) -> Execution:
    """A CPU with two cores and an empty artifact root."""
    machine = Machine(device="cpu", name="test", cores=2, memory_bytes=2**34, native_bf16=False, accelerators=0)
    settings = Settings(home=tmp_path / "home")
    return Execution(settings=settings, machine=machine, precision="fp32", threads=1, parallel_stages=2)


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A Prefect server with an empty database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a hub on this machine answers, by path of the request."""
    answers: dict[str, Any] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path.partition("?")[0], {})).encode()
            self.send_response(200 if self.path.partition("?")[0] in answers else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: the test's output is its own."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield answers
        server.shutdown()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """An artifact root with a family of checkpoints, which the command uses."""
    store = ArtifactStore(tmp_path / "home")
    family(store)
    monkeypatch.setenv("ALIGN_HOME", str(store.home))
    monkeypatch.chdir(tmp_path)
    return store


@pytest.fixture(scope="session")
def recipe(tiny_model: Path, tiny_data: Path) -> Recipe:
    """All four stages, a few steps each."""
    return Recipe.model_validate(tiny_recipe(tiny_model, tiny_data))


@pytest.fixture(scope="session")
def finished_run(prefect_api: None, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """The artifact root and the record of one finished run of all stages; not to be changed, see `home`."""
    home = tmp_path_factory.mktemp("finished") / "home"
    return home, run_align(recipe, home).record


@pytest.fixture
def home(finished_run: tuple[Path, RunRecord], tmp_path: Path) -> Path:
    """A test's own copy of the finished run's artifact root."""
    return Path(shutil.copytree(finished_run[0], tmp_path / "home"))


@pytest.fixture(scope="session")
def lasting_recipe(tiny_model: Path, tiny_data: Path) -> Recipe:
    """Stages that are long enough to die in, with dropout, several epochs and shared completions."""
    lora = {"lora": {"dropout": 0.1}}
    changes: dict[str, Any] = {stage: {"max_steps": steps, **lora} for stage, steps in STEPS.items()}
    changes["grpo"] |= {"num_iterations": 2, "dataset": {"path": str(tiny_data / "prompts.jsonl"), "max_rows": 4}}
    return Recipe.model_validate(tiny_recipe(tiny_model, tiny_data, **changes))


@pytest.fixture(scope="session")
def undisturbed(prefect_api: None, lasting_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact root of a run of that recipe that nothing disturbed."""
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    assert run_align(lasting_recipe, home, SETTINGS).record.state == "completed"
    return home


@pytest.fixture
def scene(undisturbed: Path, lasting_recipe: Recipe, tmp_path: Path) -> Scene:
    """A copy of it to break."""
    return Scene(undisturbed, lasting_recipe, tmp_path / "home")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """An artifact root to publish from, with real models; not to be changed."""
    return Shelf(tmp_path_factory.mktemp("shelf") / "home")


@pytest.fixture
def paper_shelf(tmp_path: Path) -> Shelf:
    """A test's own artifact root to publish from, where a few bytes stand for the weights."""
    return Shelf(tmp_path / "home", real=False)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server and a worker that `align up` has started, with two small flows."""
    place = Place(tmp_path_factory.mktemp("place"))
    done = place.align("up")
    assert done.returncode == 0, done.stderr
    yield place
    place.align("down")


@pytest.fixture(scope="module")
def object_server() -> Iterator[ObjectServer]:
    """An S3 server, which this process's clients ask."""
    server = ObjectServer()
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.kill()


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.slow), "file"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty place in each kind of remote."""
    if request.param == "file":
        return ObjectStore((tmp_path / "share").as_uri())
    request.getfixturevalue("object_server")
    return ObjectStore(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def remote(objects: ObjectStore) -> Remote:
    """A remote whose leases are short."""
    return Remote(objects, LEASE_SECONDS)


@pytest.fixture
def here(tmp_path: Path, remote: Remote) -> ArtifactStore:
    """The artifact root of one machine."""
    return ArtifactStore(tmp_path / "here", remote)


@pytest.fixture
def there(tmp_path: Path, remote: Remote) -> ArtifactStore:
    """The artifact root of another machine."""
    return ArtifactStore(tmp_path / "there", remote)

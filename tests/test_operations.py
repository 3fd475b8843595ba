"""`align up` and `align down`: services that stay, settings that win, and the whole life of a server on PostgreSQL."""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.__main__ import main
from models.operations import ServiceRecord
from settings.settings import Settings
from tasks.operations import plan_operations
from tasks.services import Service
from tests.operating import Place, free_port

SLEEP = (sys.executable, "-c", "print('here', flush=True); import time; time.sleep(60)")
AUTH = "somebody:very-secret"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "state", "sleeper")
    yield service
    service.stop(5)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a command runs, with no Prefect setting but its home and a free port."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", str(free_port()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_service_starts_is_found_again_and_stops(service: Service, tmp_path: Path) -> None:
    assert service.process() is None
    started = service.start(SLEEP, os.environ, tmp_path)
    assert Service(tmp_path / "state", "sleeper").process() == started
    assert os.getsid(started.pid) == started.pid  # the terminal's end does not reach it
    assert service.log.stat().st_mode & 0o77 == 0
    assert service.stop(5)
    assert not service.stop(5)
    assert service.process() is None
    assert service.last_lines() in ("here", "")


@pytest.mark.parametrize(
    "change", [{"started": 1.0}, {"command": ("another",)}, {"pid": 2**22 - 1}], ids=["start", "command", "gone"]
)
def test_another_process_under_the_same_id_is_never_touched(
    service: Service, tmp_path: Path, change: dict[str, Any]
) -> None:
    process = service.start(SLEEP, os.environ, tmp_path)
    file = tmp_path / "state" / "sleeper.json"
    record = ServiceRecord.model_validate_json(file.read_text())
    file.write_text(record.model_copy(update=change).model_dump_json())
    assert service.process() is None
    assert not service.stop(5)
    assert process.is_running()
    process.kill()


def test_a_service_that_does_not_end_is_killed_with_all_it_has_started(service: Service, tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {deaf!r}])"
    process = service.start((sys.executable, "-c", parent), os.environ, tmp_path)
    while "deaf" not in service.last_lines():
        assert process.is_running()
    (child,) = process.children()
    assert service.stop(0.5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_service_can_tell_how_what_it_started_has_ended(service: Service, tmp_path: Path) -> None:
    child = "import time; print('child', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys, time; print(subprocess.run([sys.executable, '-c', {child!r}]), flush=True)"
    process = service.start((sys.executable, "-c", f"{parent}; time.sleep(60)"), os.environ, tmp_path)
    while "child" not in service.last_lines():
        assert process.is_running()
    assert service.stop(5)
    assert "returncode=-15" in service.last_lines()


def test_a_broken_record_is_no_service(service: Service, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "sleeper.json").write_text("{")
    assert service.process() is None


LOCAL = "http://127.0.0.1:4200/api"
PLANS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "nothing is set": ({}, {"api": LOCAL, "elsewhere": False, "exposed": False, "auth_string": ""}),
    "a port": ({"PREFECT_SERVER_API_PORT": "4300"}, {"api": "http://127.0.0.1:4300/api", "elsewhere": False}),
    "every address": ({"PREFECT_SERVER_API_HOST": "0.0.0.0"}, {"api": LOCAL, "exposed": True}),
    "every address, with authentication": (
        {"PREFECT_SERVER_API_HOST": "0.0.0.0", "PREFECT_SERVER_API_AUTH_STRING": AUTH},
        {"api": LOCAL, "exposed": False, "auth_string": AUTH},
    ),
    "an address of the sixth version": ({"PREFECT_SERVER_API_HOST": "::1"}, {"api": "http://[::1]:4200/api"}),
    "what up has printed": ({"PREFECT_API_URL": "http://localhost:4200/api"}, {"elsewhere": False}),
    "a server elsewhere": (
        {"PREFECT_API_URL": "https://prefect.example.org/api", "PREFECT_SERVER_API_AUTH_STRING": AUTH},
        {"api": "https://prefect.example.org/api", "elsewhere": True, "auth_string": ""},
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_addresses_follow_the_settings(case: str, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, expected = PLANS[case]
    monkeypatch.delenv("PREFECT_SERVER_API_PORT")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = plan_operations(Settings(), empty)
    assert {name: getattr(found, name) for name in expected} == expected


def test_what_a_user_sets_wins_and_the_rest_is_safe(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / ".env").write_text("PREFECT_SERVER_API_PORT=4301\nPREFECT_FLOWS_HEARTBEAT_FREQUENCY=45\n")
    monkeypatch.delenv("PREFECT_SERVER_API_PORT")
    found = plan_operations(Settings(), empty).environment
    assert found["PREFECT_SERVER_API_PORT"] == "4301"
    assert found["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "45"
    assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert found["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith("filesystem")
    assert found["PREFECT_SERVER_API_HOST"] == "127.0.0.1"


def test_a_worker_knows_nothing_of_the_servers_secrets(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://user:hidden@host/prefect")
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", AUTH)
    found = plan_operations(Settings(home=empty / "artifacts"), empty)
    told = found.client_environment
    assert not [name for name, value in told.items() if name.startswith("PREFECT_SERVER_") or "hidden" in value]
    assert told["PREFECT_API_AUTH_STRING"] == AUTH
    assert told["ALIGN_HOME"] == str(empty / "artifacts")
    assert "secret" not in repr(found)


def test_up_needs_a_checkout(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up"]) == 2
    assert "has no prefect.yaml; go to the checkout" in capsys.readouterr().err


@pytest.mark.slow
def test_a_foreign_process_on_the_port_is_told(empty: Path) -> None:
    place = Place(empty)
    with socket.create_server(("127.0.0.1", int(place.environment["PREFECT_SERVER_API_PORT"]))):
        done = place.align("up")
    assert done.returncode == 2
    assert f"is taken by process {os.getpid()} (" in done.stderr
    assert "PREFECT_SERVER_API_PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_server_that_dies_is_told_with_its_log(empty: Path) -> None:
    done = Place(empty, PREFECT_SERVER_API_HOST="nowhere.invalid").align("up")
    assert done.returncode == 1
    assert "the server has ended" in done.stderr
    assert "Invalid host 'nowhere.invalid'" in done.stderr


def test_a_named_server_that_does_not_answer_is_told(empty: Path) -> None:
    done = Place(empty).align("up", PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api")
    assert done.returncode == 2
    assert "where no Prefect server answers" in done.stderr


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """URL of a database on a PostgreSQL server of its own."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        (runtime := Path(folder) / "run").mkdir(0o700)
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        pgserver = pytest.importorskip("pgserver")
        server = pgserver.get_server(Path(folder) / "data")
        yield server.get_uri().replace("postgresql://", "postgresql+asyncpg://")
        server.cleanup()


@pytest.mark.slow
@pytest.mark.e2e
def test_a_life_on_postgresql_with_authentication(postgresql: str, tmp_path: Path) -> None:
    place = Place(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql, PREFECT_SERVER_API_AUTH_STRING=AUTH)
    done = place.align("up")
    assert done.returncode == 0, done.stderr
    assert f"export PREFECT_API_URL={place.api}\n" in done.stdout
    said = done.stdout + done.stderr

    deployments = f"{place.api}/deployments/filter"
    assert httpx.post(deployments, json={}).status_code == 401
    listed = httpx.post(deployments, json={}, auth=tuple(AUTH.split(":"))).json()  # type: ignore[arg-type]
    assert {each["name"] for each in listed} == {"happenings", "others"}
    assert not list((tmp_path / "prefect").glob("*.db"))

    server, worker = place.process("server"), place.process("worker")
    assert Path(worker.cwd()) == tmp_path
    server.kill()
    again = place.align("up")
    assert "server: started" in again.stdout
    assert "worker: runs already" in again.stdout
    assert "as before" in again.stdout
    code, checks = place.doctor()
    assert code == 0, [check for check in checks.values() if check["verdict"] != "ok"]
    assert checks["database"]["seen"] == "PostgreSQL"
    assert checks["authentication"]["seen"] == "the server asks for it and takes ours"
    code, checks = place.doctor(PREFECT_API_AUTH_STRING="somebody:else")
    assert (code, "401" in checks["API"]["seen"]) == (1, True)

    down = place.align("down")
    assert down.stdout.splitlines() == ["worker: stopped", "server: stopped"]
    twice = place.align("down")
    assert (twice.returncode, twice.stdout.count("was not running")) == (0, 2)
    said += again.stdout + again.stderr + (place.state / "server.log").read_text() + down.stdout + down.stderr
    assert "very-secret" not in said
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in (server, worker))


@pytest.mark.slow
@pytest.mark.e2e
def test_switches_of_schedules_survive_a_deployment(place: Place) -> None:
    name = "align/happenings"
    with place.client() as client:
        deployment = client.read_deployment_by_name(name)
        (schedule,) = deployment.schedules
        assert not schedule.active
        client.update_deployment_schedule(deployment.id, schedule.id, active=True)
        file = place.folder / "prefect.yaml"
        file.write_text(file.read_text() + "# a change\n")
        assert place.doctor()[1]["deployments"]["verdict"] == "warning"
        assert "as before" not in place.align("up").stdout
        (schedule,) = client.read_deployment_by_name(name).schedules
        assert schedule.active
        assert place.doctor()[1]["deployments"]["verdict"] == "ok"

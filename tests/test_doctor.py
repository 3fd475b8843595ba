"""`align doctor`: each check alone, and the command on what is broken."""

import json
import time
from importlib.metadata import requires
from pathlib import Path
from shutil import disk_usage
from typing import Any

import pytest

from settings.settings import Settings
from tasks import doctor
from tests.faults import wait_until
from tests.operating import Place

LOCAL = ("Python", "libraries", "artifact root", "disk", "leftovers", "device", "memory")
SERVER = (
    "API", "authentication", "telemetry", "slots' storage", "database", "worker", "deployments", "slots",
    "automations", "late runs",
)  # fmt: skip


def test_this_machine_is_sound(tmp_path: Path) -> None:
    found = {check.name: check for check in doctor.check_machine(Settings(home=tmp_path / "home"))}
    assert tuple(found) == LOCAL
    assert not [check for check in found.values() if check.verdict == "problem"]
    assert "not made yet" in found["artifact root"].seen


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (["psutil<1"], "is not <1"),
        (["no-such-library>=2"], "no-such-library is missing"),
        (["psutil>=1; sys_platform == 'none'", "no-such-library; extra == 'gpu'"], "0 in the versions asked for"),
        (requires("alignment-pipeline") or [], "in the versions asked for"),
    ],
)
def test_libraries_are_held_against_their_bounds(wanted: list[str], seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: wanted)
    check = doctor.check_libraries()
    assert seen in check.seen
    assert (check.verdict == "ok") == ("asked for" in seen)


def test_the_artifact_root_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.check_root(tmp_path).verdict == "ok"
    check = doctor.check_root(tmp_path / "file" / "home")
    assert (check.verdict, check.remedy) == ("problem", "set ALIGN_HOME to a folder")


@pytest.mark.parametrize(("spare", "verdict"), [(2e10, "ok"), (5e9, "warning"), (-1, "problem")])
def test_the_disk_must_have_room(spare: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path)
    there = disk_usage(tmp_path)._replace(free=int(settings.reserved_disk_bytes + spare))
    monkeypatch.setattr(doctor, "disk_usage", lambda _: there)
    check = doctor.check_disk(settings)
    assert (check.verdict, bool(check.remedy)) == (verdict, verdict != "ok")


@pytest.mark.parametrize(
    ("folders", "verdict", "seen"),
    [
        ([], "ok", "none"),
        (["checkpoints/.partial/sft-1", "datasets/.partial/1"], "ok", "2 unfinished"),
        (["checkpoints/.damaged/sft-1-t", "base/.replaced/1"], "warning", "1 damaged, moved aside, 1 replaced"),
    ],
)
def test_leftovers_are_counted(folders: list[str], verdict: str, seen: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    check = doctor.check_leftovers(tmp_path)
    assert (check.verdict, check.seen) == (verdict, seen)


def test_a_check_that_fails_is_a_problem_of_its_own() -> None:
    def look() -> Any:
        raise OSError("the disk is gone")

    check = doctor.guarded("disk", look)
    assert (check.verdict, check.seen) == ("problem", "could not be looked at: OSError: the disk is gone")


def test_without_a_server_it_says_how_to_start_one(tmp_path: Path) -> None:
    began = time.monotonic()
    code, checks = Place(tmp_path).doctor()
    assert time.monotonic() - began < 10
    assert (code, tuple(checks)) == (1, (*LOCAL, "API"))
    assert "no answer" in checks["API"]["seen"]
    assert "make up" in checks["API"]["remedy"]


@pytest.mark.parametrize(
    ("settings", "check", "seen"),
    [
        ({"ALIGN_DEVICE": "toaster"}, "settings", "ALIGN_DEVICE"),
        ({"PREFECT_API_URL": "http://[broken/api"}, "API", "Invalid IPv6 URL"),
        ({"PREFECT_SERVER_API_PORT": "many"}, "API", "port: must be a whole number"),
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "API", "no answer"),
    ],
)
def test_what_is_broken_is_told_and_crashes_nothing(
    settings: dict[str, str], check: str, seen: str, tmp_path: Path
) -> None:
    code, checks = Place(tmp_path).doctor(**settings)
    assert (code, checks[check]["verdict"]) == (1, "problem")
    assert seen in checks[check]["seen"]


@pytest.mark.slow
@pytest.mark.e2e
def test_a_server_is_looked_at(place: Place) -> None:
    code, checks = place.doctor()
    assert tuple(checks) == (*LOCAL, *SERVER)
    assert (code, {check["verdict"] for check in checks.values()}) == (0, {"ok"}), json.dumps(checks, indent=1)
    table = place.align("doctor")
    assert "silent runs are marked Crashed" in table.stdout


@pytest.mark.slow
@pytest.mark.e2e
def test_what_is_wrong_with_a_server_is_told(place: Place) -> None:
    with place.client() as client:
        client.request("PATCH", "/work_pools/{name}", path_params={"name": "local"}, json={"is_paused": True})
        client.request("POST", "/v2/concurrency_limits/", json={"name": "held", "limit": 2, "active_slots": 1})
        run = place.run("other/others")
        wait_until(lambda: client.read_flow_run(run).state_name == "Late", 60)
        code, checks = place.doctor()
        client.request("PATCH", "/work_pools/{name}", path_params={"name": "local"}, json={"is_paused": False})
        client.request("DELETE", "/v2/concurrency_limits/{id_or_name}", path_params={"id_or_name": "held"})
        client.delete_flow_run(run)
    found = {name: check["seen"] for name, check in checks.items() if check["verdict"] != "ok"}
    assert code == 0
    assert set(found) == {"worker", "slots", "late runs"}
    assert "paused" in found["worker"]
    assert "1 of held" in found["slots"]
    assert found["late runs"].startswith("1 wait: ")

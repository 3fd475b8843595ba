"""The Prefect server of a command that finds none."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tasks.operations import answers
from tests.tiny import tiny_recipe, write_recipe

pytestmark = pytest.mark.slow

ADOPTING = """
from tasks.temporary_server import TemporaryServer
server = TemporaryServer()
server.adopt()
server.adopt()
from prefect import get_client
from prefect.settings import PREFECT_API_URL
print(PREFECT_API_URL.value(), flush=True)
input()
"""
RUNNING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that tests in the background has it ignored
from flows.__main__ import main
sys.exit(main(["run", sys.argv[1]]))
"""


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's folder, with a database once a server has run."""
    return tmp_path_factory.mktemp("prefect")


@contextmanager
def script(
    text: str, environment: Mapping[str, str], *arguments: str, folder: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A Python process in a group of its own, as a terminal starts one."""
    inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", text, *arguments],
        cwd=folder,
        env=inherited | dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str], wanted: str) -> str:
    """The first line of its output that has this."""
    assert process.stdout
    told = []
    for line in process.stdout:
        told.append(line)
        if wanted in line:
            return line.strip()
    pytest.fail(f"it ended without a line that has {wanted!r}:\n{''.join(told)}")


def test_it_dies_with_its_command_even_if_that_is_killed(prefect_home: Path) -> None:
    with script(ADOPTING, {"PREFECT_HOME": str(prefect_home)}) as command:
        api = first_line(command, "http://127.0.0.1:")
        assert answers(api)
        command.kill()
        command.wait()
    deadline = time.monotonic() + 30
    while answers(api):
        assert time.monotonic() < deadline, f"{api} still answers"
        time.sleep(0.1)


def test_a_profile_that_names_an_api_comes_first(tmp_path: Path) -> None:
    api = "http://127.0.0.1:9/api"
    (tmp_path / "profiles.toml").write_text(f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{api}"\n')
    with script(ADOPTING, {"PREFECT_HOME": str(tmp_path)}) as command:
        assert first_line(command, "http://") == api


def test_one_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("this is no database")
    with script(ADOPTING, {"PREFECT_HOME": str(tmp_path)}) as command:
        first_line(command, "StageError: Prefect's temporary server ended before it answered")
        assert command.stdout
        assert "file is not a database" in command.stdout.read()


def test_a_run_takes_no_module_of_the_users_folder_and_is_cancelled_in_prefect_by_ctrl_c(
    prefect_home: Path, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", tiny_recipe(tiny_model, tiny_data, sft={"max_steps": 200}))
    for name in ("tasks", "models", "socket"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('of the user')")
    settings = {"PREFECT_HOME": str(prefect_home), "ALIGN_HOME": str(tmp_path / "home")}
    with script(RUNNING, settings, str(recipe), folder=tmp_path) as command:
        first_line(command, "training")
        assert command.stdout
        os.killpg(command.pid, signal.SIGINT)
        command.stdout.read()
        assert command.wait(60) == 130
    with sqlite3.connect(prefect_home / "prefect.db") as database:
        assert database.execute("SELECT state_type FROM flow_run").fetchall() == [("CANCELLED",)]


@pytest.mark.parametrize("seconds", [0, 0.5, 1.5, 2.5])
def test_ctrl_c_while_it_begins_ends_a_run_soon_and_leaves_nothing(
    prefect_home: Path, tiny_model: Path, tiny_data: Path, tmp_path: Path, seconds: float
) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", tiny_recipe(tiny_model, tiny_data))
    settings = {"PREFECT_HOME": str(prefect_home), "ALIGN_HOME": str(tmp_path / "home")}
    with script(RUNNING, settings, str(recipe)) as command:
        first_line(command, "checking recipe and data")
        time.sleep(seconds)
        helpers = psutil.Process(command.pid).children(recursive=True)
        os.killpg(command.pid, signal.SIGINT)
        assert command.stdout
        told = command.stdout.read().splitlines()  # to its end, when no process has it any more
        assert command.wait(10) == 130
    assert psutil.wait_procs(helpers, timeout=10)[1] == []
    assert sum(line.startswith("align: interrupted") for line in told) == 1
    assert not [line for line in told if "Traceback" in line or "Error" in line], told
    waiting = (tmp_path / "home").glob("datasets/.partial/source-*")
    assert all((rows / "prepared.json").exists() for rows in waiting), "what the next run cannot find stays behind"

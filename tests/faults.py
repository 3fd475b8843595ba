"""What the tests of faults share: a root that lacks one stage, a run that is struck, and what must hold afterwards."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from models.artifacts import Manifest, Stage
from models.recipe import Recipe
from models.run import RunRecord
from tasks.files import file_digest
from tasks.store import ArtifactStore, read_manifest
from tests.tiny import run_align, write_recipe

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
STAGES: tuple[Stage, ...] = ("sft", "reward", "dpo", "grpo")
STEPS = {"sft": 8, "reward": 12, "dpo": 8, "grpo": 6}
"""Optimizer steps of each stage."""
EVERY_STEPS = 2
SECONDS_TO_END = 30
SETTINGS = {"ALIGN_CHECKPOINT_EVERY_STEPS": str(EVERY_STEPS), "ALIGN_RESERVED_DISK_BYTES": "0"}


@dataclass(frozen=True)
class Strike:
    """Where and how a fault strikes; see `tests.fault_driver`."""

    stage: str
    phase: str
    step: int = 0
    victim: str = "flow"
    signal: str = "SIGKILL"
    delay: float = 0.0

    def __str__(self) -> str:
        place = f"step {self.step}" if self.phase == "training" else self.phase
        return f"{self.stage}, {place}"


@dataclass(frozen=True)
class Aftermath:
    """How the run that was struck ended."""

    returncode: int
    said: str
    seen_step: int
    """Last optimizer step that the stage told of."""
    seconds: float
    """From the end of the flow's process to the end of all that it had started."""


class Scene:
    """An artifact root in which all is finished but one stage, and the undisturbed one that it must come to equal."""

    def __init__(self, finished: Path, recipe: Recipe, home: Path, note: Path | None = None) -> None:
        self.finished, self.recipe, self.home = finished, recipe, home
        self.note = note or home.parent / "step"
        shutil.copytree(finished, home, dirs_exist_ok=True)
        shutil.rmtree(home / "runs")
        shutil.rmtree(home / ".locks")
        self.recipe_file = write_recipe(home.parent / "faulty.yaml", recipe.model_dump(mode="json"))
        self.before: dict[str, Manifest] = {}

    def without(self, stage: str) -> "Scene":
        """Remove a stage's checkpoint (or the base model) and its evaluation."""
        if stage == "base":
            shutil.rmtree(self.home / "base")
        else:
            name = checkpoints(self.home)[stage].name
            shutil.rmtree(self.home / "checkpoints" / name)
            for path, manifest in [*ArtifactStore(self.home).manifests("evaluation")]:
                if manifest.parents["checkpoint"] == name:
                    shutil.rmtree(path)
        self.before = manifests(self.home)
        return self

    def command(self, *arguments: str, strike: Strike | None = None, **how: Any) -> "subprocess.Popen[str]":
        """Start `align` in a session of its own, with a fault where one is wanted."""
        spec = asdict(strike or Strike(stage="none", phase="none")) | {"note": str(self.note)} | how
        from prefect.settings import PREFECT_API_URL

        url = spec.pop("api", None) or PREFECT_API_URL.value()
        environment = os.environ | SETTINGS | {"ALIGN_HOME": str(self.home)} | ({"PREFECT_API_URL": url} if url else {})
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fault_driver", json.dumps(spec), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def strike(self, strike: Strike, **how: Any) -> Aftermath:
        """Run the recipe and let the fault strike; all processes are gone when this returns."""
        process = self.command("run", str(self.recipe_file), strike=strike, **how)
        return self.ending(process)

    def ending(self, process: "subprocess.Popen[str]") -> Aftermath:
        """Wait for the end of a command and of all that it has started."""
        said, _ = process.communicate(timeout=500)  # a client of Prefect gives a lost API up only after minutes
        ended = time.monotonic()
        while survivors := in_session(process.pid):
            assert time.monotonic() - ended < SECONDS_TO_END, survivors
            time.sleep(0.05)
        seen = int(self.note.read_text()) if self.note.exists() else 0
        return Aftermath(process.returncode, said, seen, time.monotonic() - ended)

    def flow_process(self) -> psutil.Process:
        """The process that carries out the run."""
        (held,) = self.home.glob(".locks/run-*.holder")
        return psutil.Process(int(held.read_text().split()[1]))

    def training_process(self, stage: str) -> psutil.Process:
        """The process that trains a stage, once it has saved its first checkpoint."""
        wait_until(lambda: [*self.home.glob(f"checkpoints/.partial/{stage}-*/trainer/checkpoint-2/seal.json")], 120)
        flow = self.flow_process()
        (training,) = [each for each in flow.children(recursive=True) if each.ppid() != flow.pid]  # by the fork server
        return training

    def run_again(self) -> RunRecord:
        """Run the same recipe again in this process, undisturbed."""
        return run_align(self.recipe, self.home, SETTINGS).record

    def assert_whole(self) -> None:
        """Same bytes as in the undisturbed root, nothing finished was made again, nothing is left over."""
        assert model_files(self.home) == model_files(self.finished)
        now = manifests(self.home)
        assert {name: now[name] for name in self.before} == self.before
        assert now.keys() == manifests(self.finished).keys()
        strays = [*self.home.glob("*/.partial/*"), *self.home.glob("*/.damaged/*"), *self.home.rglob("*.unfinished")]
        assert strays == []


class Server:
    """A Prefect server with a database of its own, which can go away and come back."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{self._port}/api"
        self.environment = os.environ | {"PREFECT_HOME": str(folder), "PREFECT_API_URL": self.api}

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [BIN / "prefect", "server", "start", "--port", str(self._port), "--no-ui"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, 120)

    def kill(self) -> None:
        """End it without warning."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


def wait_until(condition: Callable[[], Any], seconds: float) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)
    return answer


def checkpoints(home: Path) -> dict[str, Path]:
    """The finished checkpoints by stage."""
    return {path.name.partition("-")[0]: path for path in home.glob("checkpoints/[!.]*")}


def without_sft(finished: Path, home: Path) -> tuple[Path, Path]:
    """A copy of a finished artifact root in which SFT is still to do, and the checkpoint that it had made."""
    expected = checkpoints(finished)["sft"]
    shutil.copytree(finished, home)
    shutil.rmtree(home / "checkpoints" / expected.name)
    return home, expected


def manifests(home: Path) -> dict[str, Manifest]:
    """The manifests of all finished folders, by name."""
    return {path.parent.name: read_manifest(path.parent) for path in home.glob("*/[!.]*/manifest.json")}


def model_files(home: Path) -> dict[str, str]:
    """Digests of the weights of the base model and of all checkpoints, adapters included."""
    files = [*home.glob("checkpoints/[!.]*/**/*.safetensors"), *home.glob("base/[!.]*/*.safetensors")]
    return {str(path.relative_to(home)): file_digest(path) for path in files}


def in_session(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found

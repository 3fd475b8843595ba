"""Several machines that train as one: what they tell one another, and one training over two of them for real.

Both machines are this one, on the loopback device; they share an artifact root, each with a queue of its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow

from models.artifacts import Checkpoint
from models.errors import InputError, Killed, OutOfMemory, StageError, Stopped
from models.launch import Launch
from models.machines import Announcement, Post, Sign
from models.recipe import Recipe
from models.run import RunRecord
from models.stages import TrainingInput
from settings.settings import Settings
from tasks import machines
from tasks.execution import Execution, plan_execution
from tasks.forecast import stage_inputs
from tasks.gathering import common_facts, gathered
from tasks.joining import INPUTS as DOORS
from tasks.joining import check_joining
from tasks.launch import asked_launch, check_batch, launch_problems
from tasks.preflight import preflight
from tasks.sft import train_sft
from tasks.store import read_manifest
from tests.faults import ROOT, checkpoints, wait_until
from tests.test_contracts import INPUTS
from tests.test_launch import machine
from tests.test_launch import plan as cuda_plan
from tests.test_out_of_memory import relative_difference

slow = pytest.mark.slow
SAME = 1e-5
TWO = {"machines": 2, "main_address": "10.0.0.1:29500"}


@flow(validate_parameters=False)
def sft_flow(stage: TrainingInput, execution: Execution) -> Checkpoint:
    """One stage."""
    return train_sft.submit(stage, execution).result()  # type: ignore[arg-type]


class Joining:
    """`align join` as machine 1, in a process of its own."""

    def __init__(self, home: Path, address: str, **settings: str) -> None:
        asked = {"ALIGN_HOME": str(home), "ALIGN_MACHINES": "2", "ALIGN_MACHINE_RANK": "1"}
        asked |= {"ALIGN_MAIN_ADDRESS": address, "ALIGN_QUEUE": str(home.parent / "queue-1")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows", "join"],
            cwd=ROOT,
            env=os.environ | asked | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def training_process(self, home: Path) -> psutil.Process | None:
        """The process that trains, once a checkpoint is sealed."""
        if not [*home.glob("checkpoints/.partial/sft-*/trainer/checkpoint-2/seal.json")]:
            return None
        by_server = [each for each in psutil.Process(self.process.pid).children(recursive=True) if _is_rank(each)]
        return by_server[0] if by_server else None

    def end(self) -> tuple[int, str]:
        """Exit code and what it said."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said

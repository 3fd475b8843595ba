"""What the processes of a group run in tests; apart, so that they need not import the tests."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from models.errors import InputError
from models.rewards import Reward
from models.stages import TrainingInput
from tasks.core import entry
from tasks.core.plan import TrainingPlan, TrainingResult
from tasks.core.user_reward import FAILURES, UserReward, accounting_for

Report = Callable[[Any], None]


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def introducing(report: Report) -> dict[str, str]:
    report(rank())
    print(f"process {rank()}")  # noqa: T201
    return {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")}


def first_failing(report: Report) -> None:
    report(os.getpid())
    if rank() == 0:
        time.sleep(600)
    raise InputError("dataset: row 3 is empty; remove it")


def second_killed(report: Report) -> None:
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("connection closed by peer")


def second_without_memory(report: Report) -> None:
    if rank() == 1:
        time.sleep(0.5)
        raise MemoryError
    raise RuntimeError("connection closed by peer")


def second_silent(report: Report) -> None:
    if rank() == 1:
        print("the last words of the second")  # noqa: T201
        os._exit(3)
    time.sleep(600)


def second_raising(report: Report) -> None:
    if rank() == 1:
        raise ValueError("the fault itself")
    time.sleep(0.5)
    os._exit(1)


def second_with_a_failing_reward(function: str, folder: Path, report: Report) -> str:
    PartialState(cpu=True)
    reward = UserReward(Reward(kind="function", function=function, options={"fails": rank() == 1}))
    with accounting_for([reward], folder):
        reward([[{"role": "assistant", "content": "x"}]])
    return (folder / FAILURES).read_text() if rank() == 0 else ""


def door(stage: TrainingInput, plan: TrainingPlan, folder: Path, report: Report) -> TrainingResult:
    """Train, on what Accelerate takes for accelerators where something is to be sharded."""
    begin = PartialState.__init__

    def pretending(state: Any, *arguments: Any, **options: Any) -> None:
        begin(state, *arguments, **options)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    if plan.sharding != "ddp":
        PartialState.__init__ = pretending
    result: TrainingResult = getattr(entry, stage.stage)(stage, plan, folder, report)
    return result


def struck(how: str, stage: TrainingInput, plan: TrainingPlan, folder: Path, report: Report) -> TrainingResult:
    """Train, until something happens to the last process after the third step, or at the end."""

    def pass_on(said: dict[str, Any]) -> None:
        report(said)
        moment = said["phase"] == "merging" if how == "killed at the end" else said.get("step") == 3
        if moment and rank() == plan.processes - 1:
            if how == "out of memory":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGTERM if how == "told to stop" else signal.SIGKILL)

    return door(stage, plan, folder, pass_on)


def starving(stage: TrainingInput, plan: TrainingPlan, folder: Path, report: Report) -> TrainingResult:
    """Train, but let the last process run out of memory after the second step while it holds more than two rows."""

    def pass_on(said: dict[str, Any]) -> None:
        report(said)
        if said.get("step") == 2 and rank() == plan.processes - 1 and plan.per_device_train_batch_size > 2:
            raise MemoryError

    return door(stage, plan, folder, pass_on)

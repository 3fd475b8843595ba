"""The child process: what comes back from it, how each of its deaths is told, and that nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.errors import InputError, Killed, OutOfMemory, StageError
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.host_memory import out_of_memory_kills

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
Report = Callable[[Any], None]


def run(function: Callable[..., Any], *arguments: Any, timeout_seconds: float | None = None) -> tuple[Any, list[Any]]:
    """The function's value and its reports."""
    reports: list[Any] = []
    options = ChildOptions(threads=1, timeout_seconds=timeout_seconds)
    value = run_in_child(function, arguments, options, reports.append, lambda line: None)
    return value, reports


def facts(report: Report) -> dict[str, int]:
    import torch

    return {"process": os.getpid(), "threads": torch.get_num_threads()}


def compiler(report: Report) -> str:
    import torch

    return torch.compile.__module__


def counting(to: int, report: Report) -> int:
    for number in range(to):
        report({"step": number})
    return to


def printing(report: Report) -> None:
    print("to stdout")  # noqa: T201
    print("to stderr", file=sys.stderr)  # noqa: T201
    print("   ")  # noqa: T201
    subprocess.run(["echo", "by a grandchild"], check=True)
    os.write(1, b"not utf-8: \xff\n")
    os.write(1, b"no newline at the end")


def refusing(report: Report) -> None:
    raise InputError("dataset: row 3 is empty; remove it")


def failing(report: Report) -> None:
    raise StageError("weights are not finite")


def without_memory(report: Report) -> None:
    raise MemoryError


def asking_for_too_much(report: Report) -> None:
    bytearray(2**62)


def without_device_memory(report: Report) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB")


def without_cuda_memory(report: Report) -> None:
    raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")


def allocating_too_much(report: Report) -> None:
    import torch

    torch.empty(2**55, dtype=torch.uint8)


def failing_after_much(report: Report) -> None:
    held = bytearray(300_000_000)
    raise MemoryError(len(held))


def buggy(report: Report) -> float:
    denominator = 0
    return 1 / denominator


def killed_amid_a_report(report: Report) -> None:
    """Nothing can be read as fast as that."""
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        report(bytes(1 << 28))


def killing_itself(number: int, report: Report) -> None:
    report({"step": 1})
    os.kill(os.getpid(), number)
    time.sleep(60)


def exiting(report: Report) -> None:
    os._exit(3)


def returning_what_cannot_be_sent(report: Report) -> Any:
    return lambda: None


def sleeping_with_a_grandchild(report: Report) -> None:
    grandchild = subprocess.Popen(["sleep", "600"])
    report([os.getpid(), grandchild.pid])
    time.sleep(600)


def gone(process: int) -> bool:
    """Whether a process has ended, or does within a few seconds."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_the_compiler_that_bitsandbytes_import_goes_without_is_there() -> None:
    assert run(compiler)[0] == "torch"


def test_value_comes_back_from_another_process() -> None:
    value, _ = run(facts)
    assert value["process"] != os.getpid()
    assert value["threads"] == 1


def test_reports_arrive_in_order() -> None:
    assert run(counting, 500) == (500, [{"step": number} for number in range(500)])


def test_a_value_larger_than_a_pipe_comes_back() -> None:
    assert len(run(bytearray_of, 10_000_000)[0]) == 10_000_000


def bytearray_of(size: int, report: Report) -> bytearray:
    return bytearray(size)


def test_peak_memory_is_told() -> None:
    peaks: list[int] = []
    run_in_child(bytearray_of, (300_000_000,), ChildOptions(threads=1), print, print, peaks.append)
    assert 300_000_000 < peaks[-1] < 10**11


def test_peak_memory_of_a_failure_is_told() -> None:
    peaks: list[int] = []
    with pytest.raises(OutOfMemory):
        run_in_child(failing_after_much, (), ChildOptions(threads=1), print, print, peaks.append)
    assert 300_000_000 < peaks[-1] < 10**11


def test_what_is_printed_arrives_line_by_line() -> None:
    lines: list[str] = []
    run_in_child(printing, (), ChildOptions(threads=1), print, lines.append)
    assert sorted(lines) == sorted(
        ["to stdout", "to stderr", "by a grandchild", "not utf-8: \N{REPLACEMENT CHARACTER}", "no newline at the end"]
    )


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (refusing, InputError, "dataset: row 3 is empty; remove it"),
        (failing, StageError, "weights are not finite"),
        (without_memory, OutOfMemory, "MemoryError"),
        (asking_for_too_much, OutOfMemory, "MemoryError"),
        (without_device_memory, OutOfMemory, "Tried to allocate"),
        (without_cuda_memory, OutOfMemory, "CUDA error: out of memory"),
        (allocating_too_much, OutOfMemory, "allocate"),
        (exiting, StageError, "exit code 3"),
    ],
)
def test_each_failure_keeps_its_kind(function: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run(function)
    assert caught.type is error
    assert "Traceback" not in str(caught.value)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(StageError, match="ZeroDivisionError") as caught:
        run(buggy)
    assert caught.type is StageError
    assert "in buggy" in str(caught.value)


def test_a_value_that_cannot_be_sent_is_a_bug() -> None:
    with pytest.raises(StageError, match="pickle"):
        run(returning_what_cannot_be_sent)


@pytest.mark.parametrize(("before", "after", "error"), [(0, 0, Killed), (0, 1, OutOfMemory), (None, None, Killed)])
def test_sigkill_is_want_of_memory_where_the_kernel_says_so(
    monkeypatch: pytest.MonkeyPatch, before: int | None, after: int | None, error: type[Exception]
) -> None:
    kills = iter([before, after])
    monkeypatch.setattr("tasks.child.out_of_memory_kills", lambda: next(kills))
    with pytest.raises(StageError, match=r"SIGKILL.*it held \d\.\d GB") as caught:
        run(killing_itself, signal.SIGKILL)
    assert caught.type is error


def test_a_kill_amid_a_report_is_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.child.out_of_memory_kills", lambda: 0)
    with pytest.raises(Killed, match="SIGKILL"):
        run(killed_amid_a_report)


def test_kills_by_the_kernel_are_counted() -> None:
    kills = out_of_memory_kills()
    assert kills is None or kills >= 0


def test_another_signal_is_named() -> None:
    with pytest.raises(StageError, match="SIGSEGV") as caught:
        run(killing_itself, signal.SIGSEGV)
    assert caught.type is StageError


def test_time_limit_ends_the_whole_tree() -> None:
    processes: list[int] = []
    with pytest.raises(StageError, match="ALIGN_STAGE_TIMEOUT_SECONDS"):
        run_in_child(
            sleeping_with_a_grandchild, (), ChildOptions(threads=1, timeout_seconds=3), processes.extend, print
        )
    assert len(processes) == 2
    assert all(gone(process) for process in processes)


def test_an_error_in_the_listener_ends_the_child() -> None:
    processes: list[int] = []

    def interrupted(seen: list[int]) -> None:
        processes.extend(seen)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_child(sleeping_with_a_grandchild, (), ChildOptions(threads=1), interrupted, print)
    assert all(gone(process) for process in processes)


def test_a_child_dies_with_the_flows_process() -> None:
    code = (
        "from tasks.child import run_in_child; from tasks.child_main import ChildOptions\n"
        "from tests.test_child import sleeping_with_a_grandchild as sleeping\n"
        "run_in_child(sleeping, (), ChildOptions(threads=1), lambda pids: print(*pids, flush=True), print)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    with parent:
        child, grandchild = map(int, parent.stdout.readline().split())
        parent.kill()
    try:
        assert gone(child)
    finally:
        os.kill(grandchild, signal.SIGKILL)

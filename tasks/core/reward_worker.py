"""The process that a user's reward function runs in; `tasks.core.reward_process` starts it and talks to it.

Only the standard library is imported here, so it starts at once and holds nothing of the training. Over a socket comes
a line of JSON with the keyword arguments of each call; a line goes back with `rewards`, or with `failure` and `trace`.
"""

import asyncio
import ctypes
import faulthandler
import importlib
import importlib.util
import inspect
import json
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

_PR_SET_PDEATHSIG = 1
_BELOW = (__file__, str(Path(asyncio.__file__).parent), importlib.__file__, "<frozen importlib")
"""Where code lies that is below the user's in a stack."""


def main(entrypoint: str, channel: int, trace: int, parent: int, memory_limit_bytes: int) -> None:
    """Load the function and answer calls until the other side closes.

    Args:
        entrypoint: `package.module:name` or `path/file.py:name`.
        channel: Descriptor of the socket.
        trace: Descriptor of the file for the stack of a crash, or of a hang when SIGUSR2 asks for it.
        parent: Process id of the other side, with which this process dies.
        memory_limit_bytes: What may be allocated.
    """
    _die_with(parent)
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR2, trace, all_threads=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, memory_limit_bytes))
    connection = socket.socket(fileno=channel)
    connection.set_inheritable(False)
    with asyncio.Runner() as runner, connection.makefile("rw", encoding="utf-8") as lines:
        loaded: list[Callable[..., Any]] = []
        _answer(lines, lambda: loaded.append(load(entrypoint)))
        for line in lines:
            _answer(lines, partial(_call, loaded[0], line, runner))


def _answer(lines: TextIO, work: Callable[[], Any]) -> None:
    try:
        answer = {"rewards": work()}
    except BaseException as error:  # also a call of sys.exit: whatever it is, it has to cross the border
        answer = _failure(error)
    lines.write(json.dumps(answer) + "\n")
    lines.flush()


def load(entrypoint: str) -> Callable[..., Any]:
    """The function that an entrypoint names; a file's folder is where its imports are looked for first."""
    place, _, name = entrypoint.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    function: Callable[..., Any] = getattr(module, name)
    return function


def _load_file(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("reward_function", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _call(function: Callable[..., Any], line: str, runner: asyncio.Runner) -> list[float | str | None]:
    result = function(**json.loads(line))
    return _numbers(runner.run(_awaited(result)) if inspect.isawaitable(result) else result)


async def _awaited(result: Any) -> Any:
    return await result


def _numbers(result: Any) -> list[float | str | None]:
    """Each value as a number or none; as text, for the message, where it is neither."""
    if not isinstance(result, Iterable) or isinstance(result, str | dict):
        raise TypeError(f"it returned {type(result).__name__}, not a list with one number a completion")
    return [_number(value) for value in result]


def _number(value: Any) -> float | str | None:
    if value is None:
        return None
    plain = value.item() if hasattr(value, "item") else value  # NumPy's and PyTorch's scalars
    return float(plain) if isinstance(plain, Real) else repr(plain)[:200]


def _failure(error: BaseException) -> dict[str, str]:
    """What happened, with the stack from the user's code on."""
    stack = error.__traceback__
    while stack and stack.tb_frame.f_code.co_filename.startswith(_BELOW):
        stack = stack.tb_next
    trace = "".join(traceback.format_exception(type(error), error, stack)).rstrip()
    return {"failure": "memory" if isinstance(error, MemoryError) else "exception", "trace": trace}


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

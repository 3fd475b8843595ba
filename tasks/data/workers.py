"""Processes that convert blocks side by side, in order and with few blocks held at a time.

They are started as programs of their own, not forked from the training processes' server: they import neither torch nor
what else that holds, so that many of them take little memory. They end with the process that started them.
"""

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from models.errors import InputError, Killed, StageError
from tasks.closing import stop_if_closing
from tasks.data.conversion import Portion, Wanted, convert
from tasks.data.readers import Block
from tasks.module_path import module_path

_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
_SECONDS_TO_END = 5.0


class InThisProcess:
    """Converts blocks one after another, here."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def convert(self, block: Block, most: int | None = None) -> Portion:
        """What becomes of a block, of which at most so many rows are looked at."""
        return convert(block, self._wanted, most)

    def portions(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Portion]]:
        """What becomes of each block, in order."""
        for block in blocks:
            stop_if_closing()
            yield block, self.convert(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing is left to end."""


class Workers(InThisProcess):
    """Converts blocks in as many processes as asked for."""

    def __init__(self, wanted: Wanted, count: int) -> None:
        """Start the processes.

        Args:
            wanted: What the rows are to become.
            count: Number of processes.
        """
        super().__init__(wanted)
        self._workers = [_Worker(wanted) for _ in range(count)]
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        self._pool = ThreadPoolExecutor(count)
        for worker in self._workers:
            self._free.put(worker)

    def convert(self, block: Block, most: int | None = None) -> Portion:
        """What becomes of a block, as soon as a process is free.

        Raises:
            Killed, StageError: the process ended, or met what it was not made for.
        """
        worker = self._free.get()
        try:
            return worker.convert(block, most)
        finally:
            self._free.put(worker)

    def portions(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Portion]]:
        """What becomes of each block, in order; only so many blocks are ahead that no process waits.

        Raises:
            InputError: the blocks end with it; all before it were handed out.
            Killed, StageError: as `convert`.
        """
        ahead: deque[tuple[Block, Future[Portion]]] = deque()
        source, failure = iter(blocks), None
        while True:
            try:
                while failure is None and len(ahead) < 2 * len(self._workers):
                    block = next(source)
                    ahead.append((block, self._pool.submit(self.convert, block)))
            except StopIteration:
                source = iter(())
            except InputError as error:
                failure = error
            if not ahead:
                break
            stop_if_closing()
            block, portion = ahead.popleft()
            yield block, portion.result()
        if failure:
            raise failure

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the processes, whatever they are doing."""
        for worker in self._workers:
            worker.end()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process."""

    def __init__(self, wanted: Wanted) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own worker
                [sys.executable, "-P", "-m", "tasks.data.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": module_path()},
                start_new_session=True,  # Ctrl-C is this process's to answer
            )
        self._connection = Connection(ours.detach())
        self._connection.send(wanted)

    def convert(self, block: Block, most: int | None) -> Portion:
        try:
            self._connection.send((block, most))
            answer: Portion | str = self._connection.recv()
        except (EOFError, OSError):
            raise self._death(block) from None
        if isinstance(answer, str):
            raise StageError(f"{block.file}: its rows could not be prepared\n{answer}")
        return answer

    def _death(self, block: Block) -> StageError:
        code = self._process.wait(_SECONDS_TO_END)
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        what = f"{block.file}: the process that prepared its rows ended ({reason})"
        remedy = "nothing half-written is left; free host memory if that was short, and run again"
        return Killed(f"{what}; {remedy}") if code == -signal.SIGKILL else StageError(f"{what}; {remedy}")

    def end(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        self._connection.close()

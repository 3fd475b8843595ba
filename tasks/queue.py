"""The machine's queue: whoever computes takes a share of the machine, in the order of arrival, over all runs.

    <number>.json   ticket of a stage that computes or waits (`models.queue.Ticket`)
    <number>.lock   locked by its process; the system unlocks it when that dies, and the others then clear it away
    queue.lock      locked for the moment that it takes to read or change tickets

A stage is admitted when its share and those of all in front of it on the same devices go together. Those in front only
ever leave: who is admitted stays so, and nobody is overtaken. Tickets of other devices do not matter.
"""

import os
import socket
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from models.errors import InputError, StageError
from models.queue import Share, Ticket
from tasks.closing import stop_if_closing
from tasks.files import replace_file, sweep
from tasks.store import Waiting, utc_now

_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_FOR_A_LOOK = 60
"""After which whoever reads or changes tickets is not at work on them, but stopped."""
_FOR_OTHERS = 0o666
"""Whoever may enter the folder may lock its files; a folder of one user's own lets nobody in."""


def is_admitted(in_front: Sequence[Share], asked: Share) -> bool:
    """Whether a stage may compute beside all that were there before it, whether those compute or wait.

    Of different limits the strictest holds; the first one is admitted whatever it asks for.
    """
    rivals = [share for share in in_front if set(share.devices) & set(asked.devices)]
    together = [*rivals, asked]
    threads = sum(share.threads for share in together)
    few_enough = len(together) <= min(share.stages_limit for share in together)
    places = sum(share.places for share in together)
    fits = threads <= min(share.threads_limit for share in together) and places <= min(map(_all_places, together))
    return not rivals or (few_enough and fits)


def _all_places(share: Share) -> int:
    """Places on its devices: one each, or more where more stages than devices may compute."""
    return max(len(share.devices), share.stages_limit)


class Queue:
    """The tickets in one folder.

    Args:
        folder: Where they lie; made, for this user alone, where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def turn(self, run: str, stage: str, share: Share, waiting: Waiting) -> Iterator[tuple[int, ...]]:
        """Hold a share of the machine, once it is this stage's turn.

        Args:
            run: Name of the run.
            stage: Name of what is made.
            share: What it takes.
            waiting: Told what it waits for, whenever that changes.

        Yields:
            Indices of the devices to compute on among those of the share, one a place.

        Raises:
            Stopped: this process is to end while it waits.
            StageError: the folder cannot be used.
        """
        ticket, lock = self._join(run, stage, share)
        try:
            yield tuple(map(share.devices.index, self._admitted(ticket, waiting)))
        finally:
            self._leave(ticket, lock)

    def tickets(self) -> list[Ticket]:
        """All living tickets in the order of arrival.

        Raises:
            StageError: the folder cannot be used.
        """
        if not self.folder.exists():
            return []
        with self._alone():
            return self._living()

    def _join(self, run: str, stage: str, share: Share) -> tuple[Ticket, FileLock]:
        with self._alone():
            taken = [0, *(ticket.number for ticket in self._living())]
            ticket = Ticket(
                number=max(taken) + 1,
                run=run,
                stage=stage,
                process=os.getpid(),
                host=socket.gethostname(),
                share=share,
                since=utc_now(),
            )
            lock = self._lock(ticket.number)
            lock.acquire(timeout=0)
            self._write(ticket)
        return ticket, lock

    def _admitted(self, ticket: Ticket, waiting: Waiting) -> tuple[str, ...]:
        """Wait for the ticket's turn; the devices that are its own then."""
        told = ""
        while True:
            stop_if_closing()
            with self._alone():
                living = self._living()
                in_front = [each for each in living if each.number < ticket.number]
                if is_admitted([each.share for each in in_front], ticket.share):
                    devices = _least_used(ticket.share, living)
                    self._write(ticket.model_copy(update={"computes_on": devices, "since": utc_now()}))
                    return devices
            what = _awaited(ticket, in_front)
            if what != told:
                waiting(what)
                told = what
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _leave(self, ticket: Ticket, lock: FileLock) -> None:
        try:
            with suppress(StageError), self._alone():
                self._clear(ticket.number)
        finally:
            lock.release()

    def _living(self) -> list[Ticket]:
        """The tickets of living processes; what dead ones have left is removed."""
        sweep(self.folder)
        numbers = sorted(int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdecimal())
        return [self._read(number) for number in numbers if self._is_alive(number)]

    def _is_alive(self, number: int) -> bool:
        lock = self._lock(number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        self._clear(number)
        lock.release()
        return False

    def _lock(self, number: int) -> FileLock:
        # Taken and released by whichever thread; the process is what has to be alive.
        return FileLock(self._path(number, "lock"), mode=_FOR_OTHERS, thread_local=False)

    def _path(self, number: int, ending: str) -> Path:
        return self.folder / f"{number:06}.{ending}"

    def _write(self, ticket: Ticket) -> None:
        path = self._path(ticket.number, "json")
        replace_file(path, ticket.model_dump_json(indent=2))
        path.chmod(_FOR_OTHERS)

    def _read(self, number: int) -> Ticket:
        path = self._path(number, "json")
        try:
            return Ticket.model_validate_json(path.read_bytes())
        except ValidationError:
            remedy = "end what other versions of the pipeline have at work, or name another folder in ALIGN_QUEUE"
            raise StageError(f"{path}: not a ticket that this version can read; {remedy}") from None

    def _clear(self, number: int) -> None:
        self._path(number, "json").unlink(missing_ok=True)
        self._path(number, "lock").unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While this is open, nobody else reads or changes tickets."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_queue(self.folder)
            with FileLock(self.folder / "queue.lock", timeout=_SECONDS_FOR_A_LOOK, mode=_FOR_OTHERS):
                yield
        except (Timeout, OSError, InputError) as error:
            raise StageError(_unusable(self.folder, error)) from None


def check_queue(folder: Path) -> None:
    """Refuse a folder that this user cannot write to, or that everybody can; nothing is written to find out.

    Raises:
        InputError: it is one.
    """
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise InputError(_unusable(folder, f"'{nearest}' is a file"))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(_unusable(folder, f"'{nearest}' is not writable for you"))
    if nearest == folder and folder.stat().st_mode & stat.S_IWOTH:
        raise InputError(_unusable(folder, "everybody can write to it"))


def _unusable(folder: Path, why: object) -> str:
    """Whatever is wrong with the folder, in one message."""
    if isinstance(why, InputError):
        return str(why)
    if isinstance(why, Timeout):
        why = f"a process has kept it locked for {_SECONDS_FOR_A_LOOK} s"
    elif isinstance(why, OSError):
        why = why.strerror
    remedy = "set ALIGN_QUEUE to a folder of yours, or of a group whose members train here"
    return f"ALIGN_QUEUE {folder}: cannot hold the queue for computing: {why}; {remedy}"


def _least_used(share: Share, living: Sequence[Ticket]) -> tuple[str, ...]:
    """The first of the devices that the fewest stages compute on, one a place."""
    used = Counter(device for ticket in living for device in ticket.computes_on)
    return tuple(sorted(share.devices, key=lambda device: used[device])[: share.places])


def _awaited(ticket: Ticket, in_front: Sequence[Ticket]) -> str:
    """What a stage waits for, and who has it: `2 of 2 cores, taken by dpo-0123456789abcdef of run … (process 7)`."""
    asked = ticket.share
    rivals = [each for each in in_front if set(each.share.devices) & set(asked.devices)]
    shares = [each.share for each in rivals]
    turns = [is_admitted(shares[:place], share) for place, share in enumerate(shares)]
    computing = ", ".join(_who(each, ticket) for each, turn in zip(rivals, turns, strict=True) if turn)
    before = ", ".join(_who(each, ticket) for each, turn in zip(rivals, turns, strict=True) if not turn)
    shares.append(asked)
    threads, stages = min(share.threads_limit for share in shares), min(share.stages_limit for share in shares)
    if sum(share.threads for share in shares) > threads:
        what = f"{asked.threads} of {threads} cores"
    elif asked.places > 1:
        what = f"{asked.places} of {min(map(_all_places, shares))} places on {', '.join(asked.devices)}"
    else:
        what = f"one of {stages} places on {', '.join(asked.devices)}"
    return f"{what}, taken by {computing}" + f", behind {before}" * bool(before)


def _who(ticket: Ticket, asking: Ticket) -> str:
    if ticket.run and ticket.run == asking.run:
        return f"{ticket.stage} of this run"
    return f"{ticket.stage} of run {ticket.run or '-'} (process {ticket.process})"

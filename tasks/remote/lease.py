"""The right to make a folder, for one machine at a time: a lease that its holder renews, and that expires without it.

A lease is a numbered object, `locks/<name>/<number>`, and the highest number has it. Taking one over means to create
the next number, which the server lets one machine alone do (`If-None-Match: *`); numbers never go down, so nobody can
act on what was true a moment ago. A holder renews by writing its own object again. How old that is, is told by the
server's clock: that of an object written just now against that of the lease. Clocks of machines play no part.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from models.errors import AlignError, StageError
from tasks.closing import stop_if_closing
from tasks.remote.objects import ObjectStore

_CLOCK_STEP_SECONDS = 1.0
"""Servers tell times in whole seconds."""


class Lease:
    """One machine's claim to one name."""

    def __init__(self, objects: ObjectStore, name: str, owner: str, holder: str, seconds: float) -> None:
        """Prepare a claim; nothing is asked for yet.

        Args:
            objects: Where leases lie.
            name: What the right is for.
            owner: The artifact root here, under whose own lock this is called: what it left behind is taken over at
                once.
            holder: Who asks for it, as others that have to wait are told.
            seconds: The lease expires so long after its last renewal.
        """
        self._objects, self._folder, self._owner, self._holder = objects, f"locks/{name}", owner, holder
        self._clock = f"{self._folder}/.clock-{owner}"
        self._seconds = seconds
        self._number = 0
        self._renewed = 0.0
        self._lost = False

    def acquire(self, waiting: Callable[[str], None]) -> None:
        """Wait for the right and take it.

        Raises:
            Stopped: this process is to end while it waits.
        """
        told = False
        while not self._try():
            if not told:
                waiting(f"{self._told()}, which makes it")
                told = True
            stop_if_closing()
            time.sleep(min(2.0, self._seconds / 6))

    def is_free(self) -> bool:
        """Whether no other artifact root has the right now; it is not taken."""
        numbers = self._numbers()
        return not numbers or self._is_over(numbers[-1])

    def renew(self) -> None:
        """Say that the holder is at work still; where another one has taken over, it is lost for good."""
        before = time.monotonic()
        self._objects.write(self._key(self._number), self._content())
        self._lost = self._lost or self._highest() != self._number
        self._renewed = before

    def check(self) -> None:
        """Make sure that nobody else can have the right.

        Raises:
            StageError: it was lost, or not renewed in time.
        """
        if self._lost or time.monotonic() - self._renewed > self._seconds:
            said = "another machine may make the same by now, since the lease could not be renewed in time"
            raise StageError(f"{self._folder} in {self._objects.url}: {said}; run the same again to go on")

    def release(self) -> None:
        """Give the right back; where the server does not answer, it expires."""
        with suppress(AlignError):
            if not self._lost:
                self._objects.write(self._key(self._number), self._content(released=True))

    def _try(self) -> bool:
        numbers = self._numbers()
        last = numbers[-1] if numbers else 0
        if last and not self._is_over(last):
            return False
        self._number, self._renewed = last + 1, time.monotonic()
        if not self._objects.create(self._key(self._number), self._content()):
            return False
        if self._highest() != self._number:  # what was seen above was long out of date
            self._objects.remove(self._key(self._number))
            return False
        for key in (*map(self._key, numbers), self._clock):
            self._objects.remove(key)
        return True

    def _is_over(self, number: int) -> bool:
        """Whether a lease was released, left behind by this very root, or not renewed in time."""
        said = self._read(number)
        if said.get("released") or said.get("owner") == self._owner:
            return True
        self._objects.write(self._clock, b"now\n")
        try:
            age = self._objects.modified(self._clock) - self._objects.modified(self._key(number))
        except FileNotFoundError:
            return False
        return age.total_seconds() > float(said.get("seconds", self._seconds)) + _CLOCK_STEP_SECONDS

    def _told(self) -> str:
        """Who has it, where it can be told."""
        numbers = self._numbers()
        return str((self._read(numbers[-1]) if numbers else {}).get("holder", "another machine"))

    def _read(self, number: int) -> dict[str, Any]:
        with suppress(FileNotFoundError, ValueError):
            said = json.loads(self._objects.read(self._key(number)))
            return said if isinstance(said, dict) else {}
        return {}

    def _numbers(self) -> list[int]:
        return sorted(int(name) for name in self._objects.names(self._folder) if name.isdigit())

    def _highest(self) -> int:
        return max(self._numbers(), default=0)

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number:09}"

    def _content(self, released: bool = False) -> bytes:
        said = {"owner": self._owner, "holder": self._holder, "seconds": self._seconds, "released": released}
        return json.dumps(said).encode()

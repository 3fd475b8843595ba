"""Several machines, one training: an attempt is announced in the artifact root, where each machine shows that it lives.

    .machines/<name>.json             announcement of machine 0, there as long as the attempt lasts
    .machines/<name>.<machine>.json   sign of life of a machine, written anew every second, and how its part ended

A machine that falls silent, or whose part fails, ends the attempt for all of them: machine 0 then withdraws the
announcement, and the others end what they still have at work. No clocks are compared.
"""

import errno
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.errors import AlignError, InputError, Killed, OutOfMemory, StageError, Stopped
from models.machines import Announcement, Ended, Post, Sign
from tasks.files import replace_file

FOLDER = ".machines"
SECONDS_OF_SILENCE = 60.0
"""After which a machine is taken to be dead; file systems of clusters may show a file that late."""
SECONDS_BETWEEN_SIGNS = 1.0
_ERRORS: dict[Ended, type[AlignError]] = {
    "input": InputError,
    "out_of_memory": OutOfMemory,
    "killed": Killed,
    "stopped": Stopped,
    "stage": StageError,
}


def keep_in_touch(post: Post, report: Any) -> None:
    """Give signs of life and look for those of the others, until an attempt has ended.

    Machine 0 looks for all others, each of which looks for machine 0. It runs in a process of its own, so that nothing
    that training does can delay it.

    Raises:
        Stopped: the announcement was withdrawn.
        Killed: another machine has fallen silent, or was stopped.
        InputError, OutOfMemory, StageError, OSError: its part has failed so.
    """
    others = range(1, post.machines) if post.machine == 0 else (0,)
    heard = {other: (read_sign(post, other), time.monotonic()) for other in others}
    failed: dict[int, Sign] = {}
    while heard:
        if not is_announced(post):
            raise Stopped("machine 0 has ended the attempt")
        give_sign(post)
        for other, (before, since) in tuple(heard.items()):
            sign = read_sign(post, other)
            if sign and sign.ended:
                del heard[other]
                # That one has failed may be for want of another one, of which something is still to be heard.
                failed |= {other: sign} if sign.ended != "returned" else {}
            elif sign != before:
                heard[other] = sign, time.monotonic()
            elif time.monotonic() - since > SECONDS_OF_SILENCE:
                raise Killed(_silent(other))
        _raise_cause(failed, is_all=not heard)
        time.sleep(SECONDS_BETWEEN_SIGNS)


def _silent(machine: int) -> str:
    remedy = "; where it is gone, start `align join` there again: the stage waits for it" if machine else ""
    return f"machine {machine} has not been heard of for {SECONDS_OF_SILENCE:g} s{remedy}"


def _raise_cause(failed: dict[int, Sign], is_all: bool) -> None:
    """Raise what has surely failed by itself, or whatever has failed where nothing more is to be heard."""
    for other, sign in sorted(failed.items(), key=lambda each: each[1].ended == "stage"):
        if is_all or sign.ended != "stage":
            raise as_error(other, sign)


def as_error(machine: int, sign: Sign) -> AlignError | OSError:
    """What a machine's part failed with."""
    told = f"machine {machine}: {sign.message}"
    return OSError(errno.ENOSPC, told) if sign.ended == "disk_full" else _ERRORS[sign.ended](told)


def announce(post: Post, announcement: Announcement) -> None:
    """Let the other machines know of an attempt."""
    replace_file(_announced_at(post), announcement.model_dump_json())


def withdraw(post: Post) -> None:
    """The attempt has ended; where the others still have something at work, they end it."""
    _announced_at(post).unlink(missing_ok=True)
    for sign in post.folder.glob(f"{post.name}.*.json"):
        sign.unlink(missing_ok=True)


def is_announced(post: Post) -> bool:
    """Whether the attempt goes on."""
    found = read_announcement(_announced_at(post))
    return bool(found and found.attempt == post.attempt)


def read_announcement(place: Path) -> Announcement | None:
    """An announcement, where it can be read."""
    try:
        return Announcement.model_validate_json(place.read_bytes())
    except (OSError, ValidationError):
        return None


def give_sign(post: Post, ended: Ended = "", message: str = "") -> None:
    """Show that this machine lives, or how its part ended."""
    sign = Sign(attempt=post.attempt, moment=time.time(), ended=ended, message=message)
    replace_file(_place(post, post.machine), sign.model_dump_json())


def read_sign(post: Post, machine: int) -> Sign | None:
    """The last sign of a machine that belongs to the attempt."""
    try:
        sign = Sign.model_validate_json(_place(post, machine).read_bytes())
    except (OSError, ValidationError):
        return None
    return sign if sign.attempt == post.attempt else None


def _announced_at(post: Post) -> Path:
    return post.folder / f"{post.name}.json"


def _place(post: Post, machine: int) -> Path:
    return post.folder / f"{post.name}.{machine}.json"

"""A further machine's part: wait for stages that machine 0 announces, and train them with it."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from models.errors import AlignError, InputError, Killed, OutOfMemory, Stopped
from models.launch import Launch
from models.machines import Announcement, Ended, Post
from models.stages import DPOInput, GRPOInput, RewardInput, SFTInput, TrainingInput
from settings.machine import inspect_machine
from settings.settings import Settings
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.closing import closing, stop_if_closing
from tasks.core import entry
from tasks.core.plan import TrainingPlan
from tasks.execution import Execution
from tasks.files import is_disk_full
from tasks.gathering import common_facts, post_of
from tasks.launch import machine_problems
from tasks.machines import FOLDER, SECONDS_BETWEEN_SIGNS, give_sign, is_announced, read_announcement, read_sign
from tasks.queue import Queue

INPUTS: dict[str, type[TrainingInput]] = {"sft": SFTInput, "reward": RewardInput, "dpo": DPOInput, "grpo": GRPOInput}
_SECONDS_BETWEEN_LOOKS = 0.5
_ENDS: dict[type[Exception], Ended] = {
    InputError: "input",
    OutOfMemory: "out_of_memory",
    Killed: "killed",
    Stopped: "stopped",
}
"""What a machine tells of its failure; anything else is `stage`."""

Say = Callable[[str], None]


def check_joining(settings: Settings) -> None:
    """Refuse settings with which this machine cannot join another.

    Raises:
        InputError: they are such.
    """
    problems = list(machine_problems(settings))
    if settings.machines == 1:
        problems.append("ALIGN_MACHINES: is 1; set it to the number of machines that train together")
    elif settings.machine_rank == 0:
        problems.append("ALIGN_MACHINE_RANK: is 0; machine 0 runs the flow (`align run`), the others join from 1 on")
    if not settings.home.is_dir():
        problems.append(
            f"ALIGN_HOME {settings.home}: is not there; name the artifact root of machine 0, at the same path, on a "
            "file system that all machines share"
        )
    if problems:
        raise InputError("\n".join(problems))


def join(settings: Settings, say: Say) -> None:
    """Take part in one stage after the other, until this process is told to end.

    Args:
        settings: Settings as read; see `check_joining`.
        say: Told what this machine does.
    """
    run_in_child(_nothing, (), ChildOptions(threads=1), say, say)  # imports are done before anything is waited for
    say(f"machine {settings.machine_rank} waits for stages of {settings.main_address} in {settings.home}")
    moments: dict[str, float | None] = {}
    while not closing.is_set():
        for announcement in _announced(settings):
            if _is_at_work(announcement, settings, moments):
                _take_part(announcement, settings, say)
        closing.wait(_SECONDS_BETWEEN_LOOKS)


def _nothing(report: Callable[[Any], None]) -> None:
    """What a process does that is only to have been started."""


def _announced(settings: Settings) -> Iterator[Announcement]:
    """The attempts of this machine's group."""
    for place in sorted((settings.home / FOLDER).glob("*.json")):
        found = read_announcement(place)
        if found and found.facts.get("ALIGN_MAIN_ADDRESS") == settings.main_address:
            yield found


def _is_at_work(announcement: Announcement, settings: Settings, moments: dict[str, float | None]) -> bool:
    """Whether machine 0 is heard of since an attempt was first seen, once; what a dead one has left is no attempt."""
    sign = read_sign(post_of(announcement, settings), 0)
    if not sign:
        return False
    before = moments.setdefault(announcement.attempt, sign.moment)
    if before is None or before == sign.moment:
        return False
    moments[announcement.attempt] = None  # taken up
    return True


def _take_part(announcement: Announcement, settings: Settings, say: Say) -> None:
    """This machine's part of an attempt, whose end machine 0 is told."""
    post = post_of(announcement, settings)
    say(f"{announcement.name} of run {announcement.run}: taking part")
    ended, message = _end_of_part(announcement, post, settings, say)
    if is_announced(post):
        give_sign(post, ended, message)
    first_line = message.partition("\n")[0]
    say(f"{announcement.name}: {ended}; {first_line}" if first_line else f"{announcement.name}: {ended}")


def _end_of_part(announcement: Announcement, post: Post, settings: Settings, say: Say) -> tuple[Ended, str]:
    """Train, and tell how that has ended, and why."""
    try:
        _train(announcement, post, settings, say)
    except (AlignError, OSError) as error:
        if closing.is_set():  # whoever stops a machine wants it for something else, not the run's end
            return "killed", "it was told to stop; the stage waits until `align join` runs there again"
        return "disk_full" if is_disk_full(error) else _ENDS.get(type(error), "stage"), str(error)
    return "returned", ""


def _train(announcement: Announcement, post: Post, settings: Settings, say: Say) -> None:
    """Train with as many processes as the group has here, once it is the stage's turn on this machine.

    Raises:
        InputError: this machine differs from machine 0 where it must not.
        Killed: an earlier process of this machine has died in the attempt.
        AlignError, OSError: see `run_in_child`.
    """
    if read_sign(post, post.machine):
        raise Killed("`align join` was started anew there while it took part")
    machine = inspect_machine(settings)
    _check_alike(announcement.facts, common_facts(settings, machine.device))
    stage = INPUTS[announcement.kind].model_validate(announcement.stage)
    plan = TrainingPlan.model_validate(announcement.plan)
    execution = Execution(
        settings=settings,
        machine=machine,
        precision=stage.precision,
        threads=settings.threads or machine.cores,
        parallel_stages=1,
        run=announcement.run,
    ).of_training()
    with Queue(settings.queue).turn(announcement.run, stage.name, execution.share, say) as places:
        options = ChildOptions.of(execution, places).model_copy(update={"post": post})
        _await_main(post, options.launch)
        door: Any = getattr(entry, announcement.kind)
        run_in_child(door, (stage, plan, announcement.workspace), options, lambda report: None, say)


def _await_main(post: Post, launch: Launch) -> None:
    """Show that this machine has come, and wait until machine 0 listens; who calls too early is long in calling again.

    Raises:
        Stopped: the attempt has ended meanwhile, or this process is to end.
    """
    while True:
        stop_if_closing()
        if not is_announced(post):
            raise Stopped("machine 0 has ended the attempt")
        give_sign(post)
        with suppress(OSError), socket.create_connection((launch.address, launch.port), timeout=1):
            return
        time.sleep(SECONDS_BETWEEN_SIGNS / 4)


def _check_alike(there: dict[str, Any], here: dict[str, Any]) -> None:
    differing = [name for name in here if there.get(name) != here[name]]
    if differing:
        told = "; ".join(f"{name} is {there.get(name)} on machine 0, {here[name]} here" for name in differing)
        raise InputError(f"{told}; machines that train together have to agree there")

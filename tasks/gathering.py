"""Machine 0 gathers the others for an attempt at a stage."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from models.errors import StageError
from models.machines import Announcement, Post
from models.stages import TrainingInput
from settings.settings import Settings
from tasks.child import warm_up
from tasks.closing import stop_if_closing
from tasks.code_version import code_version
from tasks.core.plan import TrainingPlan
from tasks.execution import Execution, library_versions
from tasks.machines import FOLDER, SECONDS_BETWEEN_SIGNS, announce, as_error, give_sign, read_sign, withdraw


def common_facts(settings: Settings, device: str) -> dict[str, Any]:
    """What all machines must have in common, by the name that users know it by."""
    code = {name: value for name, value in code_version().items() if name != "changed"}
    asked = {
        "ALIGN_HOME": str(settings.home),
        "ALIGN_DEVICE": device,
        "ALIGN_PROCESSES": settings.processes,
        "ALIGN_MACHINES": settings.machines,
        "ALIGN_MAIN_ADDRESS": settings.main_address,
    }
    return asked | library_versions() | code


def post_of(announcement: Announcement, settings: Settings) -> Post:
    """This machine's place in an attempt."""
    return Post(
        folder=settings.home / FOLDER,
        name=announcement.name,
        attempt=announcement.attempt,
        machine=settings.machine_rank,
        machines=settings.machines,
    )


@contextmanager
def gathered(
    stage: TrainingInput, plan: TrainingPlan, workspace: Path, execution: Execution, waiting: Callable[[str], None]
) -> Iterator[Post | None]:
    """While this is open, an attempt is announced to the other machines, all of which have come.

    Args:
        stage: What to train.
        plan: How.
        workspace: The unfinished checkpoint's folder.
        execution: The machine's part.
        waiting: Told what is waited for.

    Yields:
        Where to look for their signs; none for a machine that is alone.

    Raises:
        InputError: a machine cannot take part.
        StageError: one has not come in time.
    """
    settings = execution.settings
    if settings.machines == 1:
        yield None
        return
    announcement = Announcement(
        attempt=token_hex(8),
        name=stage.name,
        run=execution.run,
        kind=stage.stage,
        stage=stage.model_dump(mode="json"),
        plan=plan.model_dump(mode="json"),
        workspace=workspace,
        facts=common_facts(settings, plan.device),
    )
    post = post_of(announcement, settings)
    warm_up()
    announce(post, announcement)
    try:
        _await_others(post, settings, waiting)
        yield post
    finally:
        withdraw(post)


def _await_others(post: Post, settings: Settings, waiting: Callable[[str], None]) -> None:
    deadline, told = time.monotonic() + settings.join_seconds, None
    while missing := [other for other in range(1, post.machines) if not _has_come(post, other)]:
        stop_if_closing()
        if time.monotonic() > deadline:
            raise StageError(_how_to_join(missing[0], settings))
        if missing != told:
            waiting(f"machine {', '.join(map(str, missing))} to join")
            told = missing
        give_sign(post)
        time.sleep(SECONDS_BETWEEN_SIGNS / 4)


def _has_come(post: Post, other: int) -> bool:
    """Whether a machine has given a sign.

    Raises:
        AlignError: that it cannot take part.
    """
    sign = read_sign(post, other)
    if sign and sign.ended:
        raise as_error(other, sign)
    return sign is not None


def _how_to_join(machine: int, settings: Settings) -> str:
    """What to start where, and what it needs."""
    variables = {
        "ALIGN_HOME": settings.home,
        "ALIGN_PROCESSES": settings.processes,
        "ALIGN_MACHINES": settings.machines,
        "ALIGN_MACHINE_RANK": machine,
        "ALIGN_MAIN_ADDRESS": settings.main_address,
    }
    command = " ".join(f"{name}={value}" for name, value in variables.items())
    return (
        f"machine {machine} has not joined within {settings.join_seconds:g} s (ALIGN_JOIN_SECONDS); run there: "
        f"`{command} align join`; the artifact root has to be on a file system that all machines share"
    )

"""Checks of the machine: Python, libraries, artifact root, disk, device and memory. Each looks at one thing only."""

import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from shutil import disk_usage

import psutil
from packaging.requirements import Requirement

from models.errors import AlignError
from models.operations import Check, Verdict
from settings.machine import inspect_machine
from settings.settings import Settings

_DISTRIBUTION = "alignment-pipeline"
_OLDEST_PYTHON = (3, 11)
_ROOMY_BYTES = 10_000_000_000
_FEW_BYTES = 2_000_000_000


def guarded(name: str, look: Callable[[], Check]) -> Check:
    """What a check finds; one that fails has found a problem, and keeps the others from nothing."""
    try:
        return look()
    except AlignError as error:
        return Check(name=name, verdict="problem", seen=str(error).replace("\n", " "))
    except Exception as error:
        seen = f"could not be looked at: {type(error).__name__}: {error}".splitlines()[0]
        return Check(name=name, verdict="problem", seen=seen)


def check_machine(settings: Settings) -> Iterator[Check]:
    """Look at everything that needs no server."""
    yield guarded("Python", check_python)
    yield guarded("libraries", check_libraries)
    yield guarded("artifact root", lambda: check_root(settings.home))
    yield guarded("disk", lambda: check_disk(settings))
    yield guarded("leftovers", lambda: check_leftovers(settings.home))
    yield guarded("device", lambda: check_device(settings))
    yield guarded("memory", check_memory)


def check_python() -> Check:
    """Whether the interpreter is recent enough."""
    found = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) >= _OLDEST_PYTHON:
        return Check(name="Python", verdict="ok", seen=found)
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    return Check(name="Python", verdict="problem", seen=found, remedy=f"install {oldest} or later and `make install`")


def check_libraries() -> Check:
    """Whether every library that the pipeline asks for is there, in a version that it asks for."""
    wanted = [each for each in map(Requirement, requires(_DISTRIBUTION) or []) if _applies(each)]
    wrong = [told for each in wanted if (told := _what_is_wrong(each))]
    if wrong:
        return Check(
            name="libraries", verdict="problem", seen="; ".join(wrong), remedy="`make install` installs the lock"
        )
    return Check(name="libraries", verdict="ok", seen=f"{len(wanted)} in the versions asked for")


def _applies(requirement: Requirement) -> bool:
    return not requirement.marker or requirement.marker.evaluate({"extra": ""})


def _what_is_wrong(requirement: Requirement) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is missing"
    fits = requirement.specifier.contains(found, prereleases=True)
    return "" if fits else f"{requirement.name} {found} is not {requirement.specifier}"


def check_root(home: Path) -> Check:
    """Whether the artifact root is a folder that can be written to, or can be made."""
    nearest = next(path for path in (home, *home.parents) if path.exists())
    if not nearest.is_dir():
        remedy = "set ALIGN_HOME to a folder"
        return Check(name="artifact root", verdict="problem", seen=f"{nearest} is a file", remedy=remedy)
    if not os.access(nearest, os.W_OK | os.X_OK):
        remedy = "give this user the right to write there, or set ALIGN_HOME to another folder"
        return Check(name="artifact root", verdict="problem", seen=f"{nearest} cannot be written to", remedy=remedy)
    return Check(name="artifact root", verdict="ok", seen=str(home) + (", not made yet" if nearest != home else ""))


def check_disk(settings: Settings) -> Check:
    """Whether there is room above what must stay free."""
    nearest = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = disk_usage(nearest).free - settings.reserved_disk_bytes
    seen = f"{max(free, 0) / 1e9:.1f} GB free above the {settings.reserved_disk_bytes / 1e9:.1f} GB that stay so"
    verdict: Verdict = "problem" if free <= 0 else "warning" if free < _ROOMY_BYTES else "ok"
    remedy = "" if verdict == "ok" else "`align prune` says what nobody needs any more"
    return Check(name="disk", verdict=verdict, seen=seen, remedy=remedy)


def check_leftovers(home: Path) -> Check:
    """Folders that were not finished, were damaged, or were replaced."""
    counts = {why: sum(1 for _ in home.glob(f"*/.{why}/*")) for why in ("partial", "damaged", "replaced")}
    words = {"partial": "unfinished", "damaged": "damaged, moved aside", "replaced": "replaced"}
    seen = ", ".join(f"{count} {words[why]}" for why, count in counts.items() if count) or "none"
    remedies = {
        "partial": "`align resume` goes on with unfinished ones",
        "damaged": "look why files were damaged (disk, memory, hands)",
    }
    remedy = "; ".join(remedies[why] for why in remedies if counts[why])
    return Check(name="leftovers", verdict="warning" if counts["damaged"] else "ok", seen=seen, remedy=remedy)


def check_device(settings: Settings) -> Check:
    """Whether the device that the settings ask for is there."""
    machine = inspect_machine(settings)
    accelerators = f"{machine.accelerators} x " if machine.accelerators > 1 else ""
    memory = f", {machine.memory_bytes / 1e9:.1f} GB" if machine.memory_bytes else ""
    bf16 = "bf16 in hardware" if machine.native_bf16 else "no bf16 in hardware"
    seen = f"{machine.device}: {accelerators}{machine.name}{memory}, {machine.cores} cores, {bf16}"
    return Check(name="device", verdict="ok", seen=seen)


def check_memory() -> Check:
    """What the host's memory has left now."""
    memory = psutil.virtual_memory()
    seen = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB are available"
    if memory.available >= _FEW_BYTES:
        return Check(name="memory", verdict="ok", seen=seen)
    return Check(name="memory", verdict="warning", seen=seen, remedy="end what else takes memory before training")

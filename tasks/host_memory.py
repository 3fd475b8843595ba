"""What the kernel says of host memory: how often it has killed a process for want of it."""

from pathlib import Path

_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""Of this container, or else of the whole machine."""


def out_of_memory_kills() -> int | None:
    """Processes that the kernel has killed for want of memory so far.

    Returns:
        Their number since the container (or else the machine) started; `None` where the kernel does not tell.
    """
    for path in _COUNTERS:
        try:
            counters = dict(line.split() for line in path.read_text().splitlines())
        except OSError:
            continue
        if "oom_kill" in counters:
            return int(counters["oom_kill"])
    return None

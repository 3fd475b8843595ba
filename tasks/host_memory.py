"""What the kernel says of host memory: how often it has killed a process for want of it."""

from pathlib import Path

_COUNTERS = Path("/proc/vmstat")


def out_of_memory_kills() -> int | None:
    """Processes on this machine, control groups included, that the kernel has killed for want of memory so far.

    Returns:
        Their number since the machine started; `None` where the kernel does not tell.
    """
    try:
        counters = dict(line.split() for line in _COUNTERS.read_text().splitlines())
    except OSError:
        return None
    return int(counters["oom_kill"]) if "oom_kill" in counters else None

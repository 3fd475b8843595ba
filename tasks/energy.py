"""Energy that this machine takes, where it tells: Intel's and AMD's processor packages by RAPL, NVIDIA devices by NVML.

The counters know of no processes: what else runs at the same time is in the figure. Many systems let only root read
RAPL, and virtual machines have none.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PACKAGES = Path("/sys/class/powercap")
_PATTERN = "intel-rapl:[0-9]"  # whole packages, on AMD's processors too; their parts have a second colon


class EnergyMeter:
    """Counts from the moment that it is made."""

    def __init__(self) -> None:
        self._start = dict(_counters())

    def joules(self) -> float | None:
        """Energy taken since then; none: no counter can be read."""
        now = dict(_counters())
        shared = self._start.keys() & now.keys()
        if not shared:
            return None
        return sum(_since(self._start[name], *now[name]) for name in shared)


_Counter = tuple[float, float]
"""Joules so far, and at how many the counter starts again; 0: never."""


def _since(start: _Counter, now: float, wraps_at: float) -> float:
    return now - start[0] + (wraps_at if now < start[0] else 0.0)


def _counters() -> Iterator[tuple[str, _Counter]]:
    for package in _PACKAGES.glob(_PATTERN):
        with suppress(OSError, ValueError):
            now, most = ((package / name).read_text() for name in ("energy_uj", "max_energy_range_uj"))
            yield package.name, (int(now) / 1e6, int(most) / 1e6)
    yield from _gpu_counters()


def _gpu_counters() -> Iterator[tuple[str, _Counter]]:
    try:
        import pynvml
    except ImportError:
        return
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            yield f"gpu{index}", (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0)

"""Energy from the counters of a made-up `/sys`: whole packages, a counter that starts again, and none at all."""

from pathlib import Path

import pytest

from tasks import energy
from tasks.energy import EnergyMeter

MOST = 1_000_000_000  # microjoules, after which a counter starts again


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the system would show its counters."""
    monkeypatch.setattr(energy, "_PACKAGES", tmp_path)
    return tmp_path


def count(powercap: Path, package: str, microjoules: int) -> None:
    (powercap / package).mkdir(exist_ok=True)
    (powercap / package / "energy_uj").write_text(f"{microjoules}\n")
    (powercap / package / "max_energy_range_uj").write_text(f"{MOST}\n")


def test_packages_add_up_and_their_parts_do_not_count_twice(powercap: Path) -> None:
    for package in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        count(powercap, package, 1_000_000)
    meter = EnergyMeter()
    for package in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        count(powercap, package, 3_500_000)
    assert meter.joules() == pytest.approx(5.0)


def test_a_counter_that_started_again(powercap: Path) -> None:
    count(powercap, "intel-rapl:0", MOST - 1_000_000)
    meter = EnergyMeter()
    count(powercap, "intel-rapl:0", 2_000_000)
    assert meter.joules() == pytest.approx(3.0)


@pytest.mark.parametrize("text", [None, "", "no number"])
def test_a_counter_that_cannot_be_read_is_no_counter(powercap: Path, text: str | None) -> None:
    if text is not None:
        count(powercap, "intel-rapl:0", 0)
        (powercap / "intel-rapl:0" / "energy_uj").write_text(text)
    assert EnergyMeter().joules() is None


def test_a_counter_that_went_away_is_left_out(powercap: Path) -> None:
    for package in ("intel-rapl:0", "intel-rapl:1"):
        count(powercap, package, 1_000_000)
    meter = EnergyMeter()
    count(powercap, "intel-rapl:0", 2_000_000)
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules() == pytest.approx(1.0)

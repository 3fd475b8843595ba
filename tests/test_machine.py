"""The machine: which device is taken, what it can do, and which precision follows."""

import platform
from pathlib import Path
from typing import Literal

import pytest

from models.artifacts import Precision
from models.errors import InputError
from settings import machine as module
from settings.machine import Machine, inspect_machine, resolve_precision
from settings.settings import Settings

H200 = "NVIDIA H200, 9.0, 143771\n"
T4 = "Tesla T4, 7.5, 15360\n"
UNKNOWN = "NVIDIA GB10, [N/A], [N/A]\n"


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine whose `nvidia-smi` prints what the test puts into NVIDIA_SMI_SAYS, with a CUDA build of torch."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nprintf "%s" "$NVIDIA_SMI_SAYS"\nexit ${NVIDIA_SMI_CODE:-0}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NVIDIA_SMI_SAYS", H200)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "version", lambda package: "2.13.0+cu130")
    return monkeypatch


def _settings(device: Literal["auto", "cpu", "cuda", "mps"] = "auto") -> Settings:
    return Settings(device=device, _env_file=None)


def _machine(device: Literal["cpu", "cuda", "mps"], native_bf16: bool) -> Machine:
    return Machine(device=device, name="X", cores=2, memory_bytes=1, native_bf16=native_bf16, accelerators=0)


def test_this_machine() -> None:
    found = inspect_machine(_settings("cpu"))
    assert found.device == "cpu"
    assert found.name
    assert found.cores >= 1
    assert found.memory_bytes > 2**28
    assert found.accelerators == 0


def test_a_gpu_is_taken(gpus: pytest.MonkeyPatch) -> None:
    found = inspect_machine(_settings())
    assert (found.device, found.name, found.accelerators) == ("cuda", "NVIDIA H200", 1)
    assert found.native_bf16
    assert found.memory_bytes == 143771 * 2**20
    assert inspect_machine(_settings("cpu")).device == "cpu"


def test_the_weakest_gpu_decides(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("NVIDIA_SMI_SAYS", H200 + T4)
    found = inspect_machine(_settings())
    assert (found.name, found.native_bf16, found.accelerators) == ("Tesla T4", False, 2)


@pytest.mark.parametrize(
    ("visible", "count"), [("0", 1), ("1,0", 2), ("0,7,1", 1), ("", 0), ("-1", 0), ("GPU-8932", 1)]
)
def test_hidden_gpus_do_not_count(gpus: pytest.MonkeyPatch, visible: str, count: int) -> None:
    gpus.setenv("NVIDIA_SMI_SAYS", H200 + T4)
    gpus.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert inspect_machine(_settings()).accelerators == count


def test_unknown_capability_is_no_bf16(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("NVIDIA_SMI_SAYS", UNKNOWN)
    found = inspect_machine(_settings())
    assert (found.device, found.native_bf16, found.memory_bytes) == ("cuda", False, 0)


def test_a_failing_driver_is_no_gpu(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("NVIDIA_SMI_CODE", "9")
    assert inspect_machine(_settings()).device == "cpu"


def test_torch_without_cuda_cannot_use_a_gpu(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr(module, "version", lambda package: "2.13.0+cpu")
    assert inspect_machine(_settings()).device == "cpu"
    with pytest.raises(InputError, match=r"torch 2\.13\.0\+cpu is built without CUDA"):
        inspect_machine(_settings("cuda"))


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(InputError, match="no usable NVIDIA GPU"):
        inspect_machine(_settings("cuda"))
    with pytest.raises(InputError, match="no Apple-silicon Mac"):
        inspect_machine(_settings("mps"))


def test_apple_silicon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    found = inspect_machine(_settings())
    assert (found.device, found.native_bf16, found.accelerators) == ("mps", False, 1)


@pytest.mark.parametrize(
    ("content", "native"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx512f avx512_bf16\n\nprocessor\t: 1\n", True),
        ("model name\t: Xeon\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", True),
        ("model name\t: Core\nflags\t\t: fpu avx2\n", False),
        ("", False),
    ],
)
def test_cpu_flags(content: str, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(content)
    monkeypatch.setattr(module, "_CPU_INFO", file)
    found = inspect_machine(_settings("cpu"))
    assert found.native_bf16 is native
    assert found.name


def test_a_container_limits_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    monkeypatch.setattr(module, "_CGROUP_LIMITS", (limit, tmp_path / "missing"))
    assert inspect_machine(_settings("cpu")).memory_bytes == 2**30
    limit.write_text("max\n")
    assert inspect_machine(_settings("cpu")).memory_bytes > 0


@pytest.mark.parametrize(
    ("device", "native", "wanted", "resolved"),
    [
        ("cpu", True, "auto", "bf16"),
        ("cpu", False, "auto", "fp32"),
        ("mps", False, "auto", "fp32"),
        ("cuda", True, "auto", "bf16"),
        ("cuda", False, "auto", "fp16"),
        ("cpu", False, "bf16", "bf16"),
        ("cuda", True, "fp16", "fp16"),
        ("cuda", False, "fp32", "fp32"),
    ],
)
def test_precision(
    device: Literal["cpu", "cuda", "mps"],
    native: bool,
    wanted: Literal["auto", "bf16", "fp16", "fp32"],
    resolved: Precision,
) -> None:
    assert resolve_precision(_machine(device, native), wanted) == resolved


def test_impossible_precisions() -> None:
    with pytest.raises(InputError, match="'fp16' does not train on a CPU"):
        resolve_precision(_machine("cpu", True), "fp16")
    with pytest.raises(InputError, match=r"'bf16' needs compute capability 8\.0"):
        resolve_precision(_machine("cuda", False), "bf16")

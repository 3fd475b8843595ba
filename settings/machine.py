"""What this machine has, found out without importing torch."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from models.artifacts import Precision
from models.contract import Contract
from models.errors import InputError
from settings.settings import Settings

Device = Literal["cpu", "cuda", "mps"]

_CPU_INFO = Path("/proc/cpuinfo")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is Arm's
BF16_COMPUTE_CAPABILITY = 8.0
"""NVIDIA devices compute bfloat16 in hardware from this one on: Ampere."""
_QUERY = ["--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]


class Machine(Contract):
    """The device to train on and what comes with it."""

    device: Device
    """Kind of device."""
    name: str
    """Its maker's name for it."""
    cores: int
    """CPU cores that this process may use."""
    memory_bytes: int
    """Memory of the device: the accelerator's own, or what this process may use of the host's; 0: unknown."""
    native_bf16: bool
    """Whether the device computes bfloat16 in hardware."""
    accelerators: int
    """Devices of that kind beside the CPU."""


class Gpu(Contract):
    """One CUDA device, as nvidia-smi describes it."""

    name: str
    """Product name."""
    compute_capability: float
    """CUDA compute capability; 0: unknown."""
    memory_bytes: int
    """Its memory; 0: unknown."""


def inspect_machine(settings: Settings) -> Machine:
    """Find the device that the settings ask for, or the best one there is.

    Raises:
        InputError: the settings ask for a device that this machine does not have.
    """
    gpus = _visible_gpus(_list_gpus())
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if settings.device == "cuda":
        _require_cuda(gpus)
    if settings.device == "mps" and not apple:
        raise InputError("ALIGN_DEVICE is 'mps', but this is no Apple-silicon Mac; use 'auto' or 'cpu'")
    if settings.device == "cuda" or (settings.device == "auto" and gpus and not _torch_without_cuda()):
        return _cuda(gpus)
    if settings.device == "mps" or (settings.device == "auto" and apple):
        return _host("mps")
    return _host("cpu")


def resolve_precision(machine: Machine, wanted: Literal["auto", "bf16", "fp16", "fp32"]) -> Precision:
    """The number format to train in.

    Raises:
        InputError: the device cannot train in the wanted format.
    """
    if wanted == "auto":
        if machine.native_bf16:
            return "bf16"
        return "fp16" if machine.device == "cuda" else "fp32"
    if wanted == "fp16" and machine.device == "cpu":
        raise InputError("precision 'fp16' does not train on a CPU; use 'bf16', 'fp32' or 'auto'")
    if wanted == "bf16" and machine.device == "cuda" and not machine.native_bf16:
        rule = f"needs compute capability {BF16_COMPUTE_CAPABILITY}, which {machine.name} does not have"
        raise InputError(f"precision 'bf16' {rule}; use 'fp16', 'fp32' or 'auto'")
    return wanted


def _require_cuda(gpus: list[Gpu]) -> None:
    if not gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "nvidia-smi finds none" if hidden is None else f"none is left by CUDA_VISIBLE_DEVICES={hidden!r}"
        raise InputError(f"ALIGN_DEVICE is 'cuda', but there is no usable NVIDIA GPU ({why}); use 'auto' or 'cpu'")
    build = _torch_without_cuda()
    if build:
        raise InputError(f"ALIGN_DEVICE is 'cuda', but torch {build} is built without CUDA; install its CUDA build")


def _torch_without_cuda() -> str | None:
    """The version of the installed torch where that is a build for CPUs only."""
    try:
        build = version("torch")
    except PackageNotFoundError:
        return None
    return build if build.endswith("+cpu") else None


def _list_gpus() -> list[Gpu]:
    """All NVIDIA GPUs of the machine; none where the driver's tool is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    try:
        answer = subprocess.run([tool, *_QUERY], capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [_parse_gpu(line) for line in answer.stdout.splitlines() if line.count(",") >= 2]


def _parse_gpu(line: str) -> Gpu:
    name, capability, mebibytes = (part.strip() for part in line.rsplit(",", 2))
    return Gpu(
        name=name,
        compute_capability=_number(capability),
        memory_bytes=int(_number(mebibytes.removesuffix("MiB"))) * 2**20,
    )


def _number(text: str) -> float:
    """A number, or 0 for what nvidia-smi does not know (`[N/A]`)."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _visible_gpus(gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; an identifier that is not an index counts as one GPU."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not gpus:
        return gpus
    visible = []
    for identifier in filter(None, (part.strip() for part in wanted.split(","))):
        if identifier.lstrip("-").isdigit():
            if not 0 <= int(identifier) < len(gpus):
                break  # as CUDA does: an invalid index hides itself and all that follow
            visible.append(gpus[int(identifier)])
        else:
            visible.append(gpus[0])
    return visible


def _cuda(gpus: list[Gpu]) -> Machine:
    """The machine's GPUs; the weakest one decides what all of them can do."""
    weakest = min(gpus, key=lambda gpu: gpu.compute_capability)
    return Machine(
        device="cuda",
        name=weakest.name,
        cores=_usable_cores(),
        memory_bytes=min(gpu.memory_bytes for gpu in gpus),
        native_bf16=weakest.compute_capability >= BF16_COMPUTE_CAPABILITY,
        accelerators=len(gpus),
    )


def _host(device: Literal["cpu", "mps"]) -> Machine:
    flags, name = _cpu_flags_and_name()
    return Machine(
        device=device,
        name=name,
        cores=_usable_cores(),
        memory_bytes=_usable_memory(),
        native_bf16=device == "cpu" and bool(flags & _BF16_FLAGS),
        accelerators=int(device == "mps"),
    )


def _cpu_flags_and_name() -> tuple[set[str], str]:
    """Instruction-set flags and model name of the first core; no flags where the system has no /proc/cpuinfo."""
    try:
        lines = _CPU_INFO.read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags") or facts.get("Features") or ""
    return set(flags.split()), facts.get("model name") or platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _usable_memory() -> int:
    """The host's memory, or the container's limit where that is lower."""
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
    limits = [int(text) for text in map(_read_or_empty, _CGROUP_LIMITS) if text.isdigit()]
    return min([installed, *limits])


def _read_or_empty(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

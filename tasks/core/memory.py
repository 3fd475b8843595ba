"""Running out of memory: recognised whatever library says so, and answered with smaller parts."""

import errno
import resource
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from models.errors import OutOfMemory

Item = TypeVar("Item")
Result = TypeVar("Result")

MESSAGES = (
    # CUDA, its libraries, and NCCL in its quotation marks
    "cuda out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "'out of memory'",
    # other accelerators
    "mps backend out of memory",
    "hip out of memory",
    "hip error: out of memory",
    "hipblas_status_alloc_failed",
    "xpu out of memory",
    # host memory, as PyTorch's allocator (Linux, Windows) and C++ put it
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "std::bad_alloc",
    # bitsandbytes' kernels; vLLM before it serves
    "out of memory at line",
    "no available memory for the cache blocks",
    "is less than desired gpu memory utilization",
)
"""Parts of messages, in lower case, that mean that memory has run out."""

_MESSAGES_UNDER_A_LIMIT = ("can't start new thread", "resource temporarily unavailable")
"""What Python and C++ say where a thread's stack does not fit any more; without a limit it has other reasons."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or the one that it was raised from, says that the device or the host has no memory left."""
    if isinstance(error, MemoryError | OutOfMemory | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, Exception) and should_reduce_batch_size(error):
        return True
    if isinstance(error, RuntimeError | ValueError) and any(part in str(error).lower() for part in _messages()):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def _messages() -> tuple[str, ...]:
    is_limited = resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
    return MESSAGES + _MESSAGES_UNDER_A_LIMIT if is_limited else MESSAGES


def in_parts(compute: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
    """Compute a result for each item, all at once or, where memory runs out, in halves of halves.

    Args:
        compute: From items to their results, in the same order.
        items: At least one.

    Raises:
        Exception: whatever `compute` raises that is not want of memory, or want of memory for a single item.
    """
    try:
        return compute(items)
    except Exception as error:
        if len(items) == 1 or not is_out_of_memory(error):
            raise
    # Out of the handler, so that nothing holds on to what was allocated.
    clear_device_cache(garbage_collection=True)
    middle = len(items) // 2
    return in_parts(compute, items[:middle]) + in_parts(compute, items[middle:])

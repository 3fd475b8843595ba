"""Recognising that memory has run out, whatever library says so and however it puts it."""

from accelerate.utils.memory import should_reduce_batch_size

from models.errors import OutOfMemory

_MESSAGES = (
    "cuda error: out of memory",
    "mps backend out of memory",
    "cublas_status_alloc_failed",
    "hip out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the device or the host has no memory left."""
    if isinstance(error, MemoryError | OutOfMemory):
        return True
    known = isinstance(error, Exception) and should_reduce_batch_size(error)
    return known or any(message in str(error).lower() for message in _MESSAGES)

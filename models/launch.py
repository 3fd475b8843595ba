"""How the processes of a training stage find one another, and what they share."""

from typing import Literal

from models.contract import Contract

Sharding = Literal["ddp", "fsdp2", "zero2", "zero3"]
"""What is spread over the processes: with `ddp` nothing, with `zero2` gradients and optimizer, with `fsdp2` and `zero3`
the weights as well."""
LOOPBACK = "127.0.0.1"


class Launch(Contract):
    """A group of processes of this machine that train one model."""

    processes: int = 1
    """How many they are."""
    port: int = 0
    """Where they meet, on the loopback device; 0: not chosen yet."""

    def environment(self, rank: int) -> dict[str, str]:
        """What PyTorch and Accelerate read of the group, as torchrun tells it; nothing for a process that is alone.

        Args:
            rank: Number of the process within the group.
        """
        if self.processes == 1:
            return {}
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.processes),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": str(self.port),
        }

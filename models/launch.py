"""How the processes of a training stage find one another, and what they share."""

from typing import Literal

from models.contract import Contract

Sharding = Literal["ddp", "fsdp2", "zero2", "zero3"]
"""What is spread over the processes: with `ddp` nothing, with `zero2` gradients and optimizer, with `fsdp2` and `zero3`
the weights as well."""
LOOPBACK = "127.0.0.1"


class Launch(Contract):
    """A group of processes that train one model, on this machine or on several."""

    processes: int = 1
    """How many they are on each machine."""
    machines: int = 1
    """How many machines there are."""
    machine: int = 0
    """Number of this machine."""
    address: str = LOOPBACK
    """Name or address of machine 0, where they meet."""
    port: int = 0
    """Where they meet there; 0: not chosen yet."""

    @property
    def world(self) -> int:
        """The processes of all machines."""
        return self.processes * self.machines

    def environment(self, rank: int) -> dict[str, str]:
        """What PyTorch and Accelerate read of the group, as torchrun tells it; nothing for a process that is alone.

        Args:
            rank: Number of the process among those of this machine.
        """
        if self.world == 1:
            return {}
        return {
            "RANK": str(self.machine * self.processes + rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }

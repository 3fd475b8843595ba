"""How the processes of a training stage find one another, and what they share."""

from typing import Literal

from models.contract import Contract

Sharding = Literal["ddp", "fsdp2", "zero2", "zero3"]
"""What is spread over the processes: with `ddp` nothing, with `zero2` gradients and optimizer, with `fsdp2` and `zero3`
the weights as well."""


class Launch(Contract):
    """A group of processes that train one model, as PyTorch's launchers describe it to each of them."""

    processes: int = 1
    """Processes on each machine."""
    machines: int = 1
    """Machines."""
    machine_rank: int = 0
    """Which of them this is."""
    main_address: str = "127.0.0.1"
    """Host where process 0 can be reached."""
    main_port: int = 0
    """Its port."""

    @property
    def world_size(self) -> int:
        """All processes of the group."""
        return self.processes * self.machines

    def rank(self, local_rank: int) -> int:
        """Number of a process of this machine within the group."""
        return self.machine_rank * self.processes + local_rank

    def environment(self, local_rank: int) -> dict[str, str]:
        """What PyTorch and Accelerate read of the group, for one process of this machine; nothing where it is alone."""
        if self.world_size == 1:
            return {}
        return {
            "RANK": str(self.rank(local_rank)),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": self.main_address,
            "MASTER_PORT": str(self.main_port),
        }

"""What each of several processes holds of a model that they train in shards, and what it has whole for a time."""

from typing import Literal

from torch import nn

from models.launch import Sharding
from tasks.core.plan import TrainingPlan

Part = Literal["weights", "gradients", "optimizer"]
_SHARDED: dict[Sharding, tuple[Part, ...]] = {
    "ddp": (),
    "zero2": ("gradients", "optimizer"),
    "zero3": ("weights", "gradients", "optimizer"),
    "fsdp2": ("weights", "gradients", "optimizer"),
}
_LAYERS_AT_ONCE = 2
"""The layer that computes, and the next one."""


def held(part: Part, size_bytes: int, plan: TrainingPlan) -> int:
    """Bytes of a part, of that size on the whole, that each process holds."""
    return -(-size_bytes // plan.processes) if part in _SHARDED[plan.sharding] else size_bytes


def gathered(model: nn.Module, plan: TrainingPlan) -> int:
    """Bytes of weights that a process puts together from all shards: what lies in no layer, and a few layers."""
    if plan.processes == 1 or "weights" not in _SHARDED[plan.sharding]:
        return 0
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = [_size(layer) for layer in max(stacks, key=len)]
    return _size(model) - sum(layers) + _LAYERS_AT_ONCE * max(layers)


def _size(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())

"""Many processes, one training: what reaches Accelerate, who writes, and what all have to agree on.

Each process holds equal parts of every batch; gradients are averaged over them. With `ddp` each holds the whole model,
otherwise a shard of it.
"""

from collections import Counter
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from tasks.core.plan import TrainingPlan


def distribution_arguments(plan: TrainingPlan) -> dict[str, Any]:
    """Arguments of a TRL configuration from which Transformers makes Accelerate's plugins; none for one process."""
    if plan.processes == 1:
        return {}
    match plan.sharding:
        case "fsdp2":
            return {"fsdp": True, "fsdp_config": _fsdp2(plan), "activation_checkpointing": False}
        case "zero2" | "zero3":
            return {"deepspeed": _deepspeed(stage=int(plan.sharding[-1]))}
        case _:
            backend = {"ddp_backend": "gloo"} if plan.device == "cpu" else {}
            # All that trains takes part in every step: to look for what does not would only cost time.
            return backend | {"ddp_find_unused_parameters": False}


def _fsdp2(plan: TrainingPlan) -> dict[str, Any]:
    """Full states in checkpoints, from which any number of processes can go on."""
    return {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,
        "activation_checkpointing": plan.gradient_checkpointing,
    }


def _deepspeed(stage: int) -> dict[str, Any]:
    """Batch, precision, clipping and optimizer are taken over from Transformers (`auto`)."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    formats = {name: {"enabled": "auto"} for name in ("bf16", "fp16")}
    return {"zero_optimization": zero, **dict.fromkeys((*sizes, "gradient_clipping"), "auto"), **formats}


def is_main() -> bool:
    """Whether this process writes for all."""
    return bool(PartialState().is_main_process)


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    PartialState().wait_for_everyone()


def any_of_all(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any of the processes; all of them have to ask."""
    state = PartialState()
    if state.num_processes == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.float32, device=state.device)
    return [bool(votes > 0) for votes in reduce(votes, "sum")]


def sum_of_all(counts: Counter[str]) -> Counter[str]:
    """The counts of all processes together; all of them have to ask."""
    return sum(gather_object([counts]), Counter())


def first_told(text: str) -> str:
    """The text of the first process that has one; all of them have to ask."""
    return next(filter(None, gather_object([text])), "")


def is_finite(model: torch.nn.Module) -> bool:
    """Whether what this process holds of the weights that train is finite."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    held = (each.to_local() if isinstance(each, DTensor) else each for each in trained)
    return all(bool(torch.isfinite(each).all()) for each in held)


def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The weights of a sharded model on the host of the process that writes; all processes have to take part.

    Returns:
        None where the model is whole already, and nothing in the processes that do not write.
    """
    if any(isinstance(each, DTensor) for each in model.parameters()):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, torch.Tensor], get_model_state_dict(model, options=options))
    if any(hasattr(each, "ds_id") for each in model.parameters()):
        from deepspeed.zero import GatheredParameters
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # while it is set, every model that is loaded would be sharded as well
        with GatheredParameters(list(model.parameters())):
            state = model.state_dict() if is_main() else {}
            return {name: each.detach().cpu().clone() for name, each in state.items()}
    return None

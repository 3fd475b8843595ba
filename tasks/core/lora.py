"""LoRA adapters: their configuration, and the merge into a self-contained model that the next stage starts from.

A merge happens in a fresh load of the parent, never in the trained instance, and is believed only after the model that
was written has been read back and gives the trained model's outputs.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.artifacts import Precision
from models.errors import StageError
from models.recipe import LoRA, Quantization
from models.stages import TrainingInput
from tasks.core.loading import DTYPES, load_policy, load_scorer, load_trainable
from tasks.core.quantization import compute_in_float32, dequantized
from tasks.core.ranks import is_main, whole_state
from tasks.core.trainer import Workspace

Task = Literal["CAUSAL_LM", "SEQ_CLS"]

_LOADERS: dict[Task, Callable[..., PreTrainedModel]] = {"CAUSAL_LM": load_policy, "SEQ_CLS": load_scorer}

_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}
"""Largest relative error of outputs that rounding the merged weights to the stored format explains."""
_PROBES = ("12 + 7 = 19", "Every checkpoint says what it is made of.", "Pick a number.", "?")
"""Several, so that the error of one score near zero does not decide."""


def lora_config(lora: LoRA | None, task: Task) -> LoraConfig | None:
    """PEFT's configuration; `None` for full fine-tuning.

    The task type matters: only `SEQ_CLS` trains and saves a reward model's score head.
    """
    if lora is None:
        return None
    return LoraConfig(
        task_type=task,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
    )


def write_model(
    trained: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    stage: TrainingInput,
    workspace: Workspace,
    task: Task,
) -> dict[str, float]:
    """Write the trained model as a folder that loads by itself, and compare what was written with what was trained.

    A model with adapters holds no weights afterwards. Of several processes that have trained it, one does so, and the
    others return at once.

    Returns:
        `merge_relative_error`: norm of the difference of outputs, relative to the trained model's.

    Raises:
        StageError: the written model's outputs differ by more than rounding explains.
    """
    state = whole_state(trained)
    if not is_main():
        return {}
    if state:
        trained = _assembled(state, stage, task)
        state.clear()  # the model has what it held
    load, precision = _LOADERS[task], stage.precision
    expected = outputs(compute_in_float32(trained), tokenizer)
    if isinstance(trained, PeftModel):
        _save_adapter(trained, stage, workspace)
        _release(trained)
        _write(merge(stage.policy.path, workspace.adapter, task, precision, stage.quantization), workspace)
    else:
        _write(trained.to(DTYPES[precision]), workspace)
    tokenizer.save_pretrained(workspace.model)
    written = outputs(load(workspace.model, torch.float32), tokenizer)
    error = float((written - expected).norm() / expected.norm())
    if not error <= _TOLERANCE[precision]:
        raise StageError(
            f"the model written to {workspace.model} differs from the trained one: relative error {error:.2g}, "
            f"allowed {_TOLERANCE[precision]:.2g}; nothing was published"
        )
    return {"merge_relative_error": error}


def _assembled(state: dict[str, torch.Tensor], stage: TrainingInput, task: Task) -> PreTrainedModel | PeftModel:
    """A model that was trained in shards, whole and on the host."""
    adapter = lora_config(stage.hyperparameters.lora, task)
    fresh = load_trainable(_LOADERS[task], stage, "cpu")
    model = get_peft_model(fresh, adapter) if adapter else fresh
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def merge(
    parent: Path, adapter: Path, task: Task, precision: Precision, quantization: Quantization | None
) -> PreTrainedModel:
    """Parent plus adapter, added in float32 in a fresh load on the host, in the precision of what is published.

    The adapter was trained on the parent's weights as rounded to 4 bits where it was quantised: those it is added to.
    """
    load, dtype = _LOADERS[task], DTYPES[precision]
    if quantization:
        fresh = dequantized(load(parent, dtype, "cpu", quantization))
    else:
        fresh = load(parent, "auto")
        fresh = fresh if fresh.dtype == dtype else fresh.float()
    adapted = PeftModel.from_pretrained(fresh, adapter)
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):  # nothing is added to other weights, which keep their format
            layer.get_base_layer().float()
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged.to(dtype)


def _write(model: PreTrainedModel, workspace: Workspace) -> None:
    model.save_pretrained(workspace.model)


def _release(model: torch.nn.Module) -> None:
    """Free its weights: merging, and reading what was written, take less time in memory that was in use."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


def _save_adapter(trained: PeftModel, stage: TrainingInput, workspace: Workspace) -> None:
    """Write the adapter with its parent's name in place of its parent's path on this machine."""
    trained.save_pretrained(workspace.adapter)
    config = workspace.adapter / "adapter_config.json"
    named = json.loads(config.read_text()) | {"base_model_name_or_path": stage.policy.name}
    config.write_text(json.dumps(named, indent=2))
    (workspace.adapter / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


@torch.no_grad()
def outputs(model: Any, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """All logits (or scores) of a few fixed texts, in float32, on the CPU, as one vector."""
    model.eval()
    texts = tokenizer(list(_PROBES), return_tensors="pt", padding=True, padding_side="right").to(model.device)
    tokens, mask = texts["input_ids"], texts["attention_mask"]
    logits: torch.Tensor = model(input_ids=tokens, attention_mask=mask).logits
    of_texts = logits[mask.bool()] if logits.ndim == 3 else logits  # a score is of a whole text
    return of_texts.float().cpu().flatten()

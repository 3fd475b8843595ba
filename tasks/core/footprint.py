"""How much memory a stage will take, found by going through its step with tensors that have shapes but no content.

The model is built without weights, its forward and backward pass run as in training (TRL's own head included), and
every tensor is counted from its creation to its end. What is left out, such as the kernels' own buffers, is small.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from peft import get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from trl.trainer.utils import add_fused_lm_head

from models.artifacts import Precision
from models.recipe import DPO, GRPO
from models.stages import BaseModelInput
from tasks.core.conversion import load_options, prepare_tokenizer
from tasks.core.loading import DTYPES
from tasks.core.lora import lora_config
from tasks.core.plan import Footprint, StageShape
from tasks.core.quantization import (
    pretend_quantized,
    quantize_unloaded,
    quantized_layers,
    scales_bytes,
    unpacked_bytes,
)
from tasks.core.scoring import conversation_tokens, prompt_tokens
from tasks.core.shards import gathered, held
from tasks.core.tally import Event, Tally, heap_bytes
from tasks.core.trainer import Report

_SLACK = 1.15
"""For what is not counted: kernels' own buffers, tokenised rows, the allocator's books."""


def estimate_footprints(
    source: BaseModelInput, location: str, shapes: tuple[StageShape, ...], report: Report
) -> list[Footprint]:
    """Estimate each stage's memory on the device of its plan.

    Args:
        source: The base model.
        location: Where it lies: a GGUF file, a folder or a hub id; only its configuration and tokenizer are read.
        shapes: The stages.
        report: Gets the phases.
    """
    options = load_options(source, location)
    report({"phase": "reading the base model's configuration"})
    config = AutoConfig.from_pretrained(**options)
    tokenizer = AutoTokenizer.from_pretrained(**options)
    prepare_tokenizer(tokenizer, source.source)
    config.pad_token_id, config.num_labels = tokenizer.pad_token_id, 1
    return _footprints(config, tokenizer, shapes, report)


def estimate_architecture(
    architecture: dict[str, Any], shapes: tuple[StageShape, ...], report: Report
) -> list[Footprint]:
    """Estimate each stage's memory for a model of which only the shape is known.

    Args:
        architecture: Arguments of its configuration, `model_type` among them.
        shapes: The stages, which say themselves how many tokens their longest rows have.
        report: Gets the phases.
    """
    config = AutoConfig.for_model(**architecture, pad_token_id=0, num_labels=1)
    return _footprints(config, None, shapes, report)


def _footprints(
    config: Any, tokenizer: PreTrainedTokenizerBase | None, shapes: tuple[StageShape, ...], report: Report
) -> list[Footprint]:
    process = psutil.Process().memory_info().rss
    found = []
    for shape in shapes:
        report({"phase": f"estimating the memory of {shape.stage}"})
        found.append(_Skeleton(config, tokenizer, shape).footprint(process))
    return found


class _Skeleton:
    """A stage's model without content."""

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase | None, shape: StageShape) -> None:
        self._shape = shape
        self._asked = shape.hyperparameters
        self._on_host = shape.plan.device != "cuda"
        self._tokens = _longest(tokenizer, shape)
        self._model = self._build(config)
        self._parameters: int = sum(each.numel() for each in self._model.parameters())
        self._fake = FakeTensorMode()
        with self._fake:
            _replace_tensors(self._model)
        self._trained = [each for each in self._model.parameters() if each.requires_grad]

    def footprint(self, process: int) -> Footprint:
        """The memory of the stage, and what it consists of.

        Args:
            process: Bytes that the process takes before anything is loaded; counts on the host only.
        """
        whole = _size(self._model.parameters()) + sum(map(scales_bytes, quantized_layers(self._model)))
        plan, trained = self._shape.plan, _size(self._trained)
        weights, gradients = held("weights", whole, plan), held("gradients", trained, plan)
        optimizer = held("optimizer", 2 * trained, plan)
        beside = {"optimizer": optimizer, "reference": self._reference(), "reward_model": self._reward_model()}
        training, generating = self._step(plan.per_device_train_batch_size), _Use()
        least = [self._step(1)]
        if isinstance(self._asked, GRPO):
            generating = self._generation(self._asked.batch_size // plan.processes)
            least += [self._generation(1) if self._shape.splits_generation else generating]
        merging = self._merging()
        always = (process if self._on_host else 0) + sum(beside.values())
        return Footprint(
            stage=self._shape.stage,
            longest_tokens=self._tokens,
            weights=weights,
            gradients=gradients,
            **beside,
            activations=training.kept,
            logits=max(0, training.peak - training.kept - gradients),
            generation_cache=generating.kept,
            merging=merging,
            process=process if self._on_host else 0,
            peak=always + max(self._allocated(weights, generating, training), merging if self._on_host else 0),
            peak_of_one_row=always + max(self._allocated(weights, *least), merging if self._on_host else 0),
        )

    def _build(self, config: Any) -> Any:
        """The model as the stage's trainer has it, on no device."""
        lora = self._asked.lora
        dtype = DTYPES[self._shape.precision] if lora else torch.float32
        scores = self._shape.stage == "reward"
        with torch.device("meta"):
            if scores:
                model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
            else:
                model = AutoModelForCausalLM.from_config(config, dtype=dtype)
                add_fused_lm_head(model, outputs=("log_probs", "entropy"))
            if self._shape.quantization:
                quantize_unloaded(model, self._shape.quantization, dtype)
            if self._shape.plan.gradient_checkpointing:
                model.activation_checkpointing_enable()
                model.enable_input_require_grads()
            if lora:
                model = get_peft_model(model, lora_config(lora, "SEQ_CLS" if scores else "CAUSAL_LM"))
        return model.train()

    def _reference(self) -> int:
        """With adapters the reference is the model without them."""
        asked = self._asked
        copies = not asked.lora and (isinstance(asked, DPO) or (isinstance(asked, GRPO) and asked.beta > 0))
        return torch.float32.itemsize * self._parameters if copies else 0

    def _reward_model(self) -> int:
        asked = self._asked
        used = isinstance(asked, GRPO) and any(reward.kind == "reward_model" for reward in asked.rewards)
        return DTYPES[self._shape.precision].itemsize * self._parameters if used else 0

    def _merging(self) -> int:
        """What was written, in float32, its file, and the trained model where it had no adapters."""
        published = DTYPES[self._shape.precision].itemsize
        trained = 0 if self._asked.lora else published
        return int((trained + torch.float32.itemsize + published) * self._parameters)

    def _step(self, rows: int) -> "_Use":
        """A forward pass, which keeps activations, and a backward pass; gradients are included."""
        plan, whole = self._shape.plan, _size(self._trained)
        elsewhere = whole - held("gradients", whole, plan)
        accumulates = bool(elsewhere) or rows * plan.processes < self._asked.batch_size
        backbone = (self._model.get_base_model() if self._asked.lora else self._model).base_model
        kept: list[int] = []
        with self._fake, self._autocast(), Tally(self._model.parameters()) as tally:
            for each in self._trained:
                each.grad = torch.zeros_like(each) if accumulates else None
            gradients = tally.now
            watching = backbone.register_forward_hook(lambda *_: kept.append(tally.now - gradients))
            self._loss(rows).backward()  # type: ignore[no-untyped-call]
            watching.remove()
            for each in self._trained:
                each.grad = None
        return _Use(kept[0], tally.peak - elsewhere, tally.events)

    def _allocated(self, weights: int, *uses: "_Use") -> int:
        """Bytes that computations take by turns; an accelerator's allocator hardly takes more than is used."""
        unpacked = max(map(unpacked_bytes, quantized_layers(self._model)), default=0)
        peak = weights + gathered(self._model, self._shape.plan) + unpacked + max(use.peak for use in uses)
        if not self._on_host:
            return peak
        kept = [(-number, each.nbytes) for number, each in enumerate(self._model.parameters(), start=1)]
        return int(_SLACK * heap_bytes(kept, [event for use in uses for event in use.events], peak))

    def _autocast(self) -> Any:
        """On an accelerator activations have the wanted precision, whatever the weights have."""
        precision: Precision = self._shape.precision
        mixed = self._shape.plan.device != "cpu" and precision != "fp32"
        return torch.autocast("cpu", dtype=DTYPES[precision]) if mixed else nullcontext()

    def _loss(self, rows: int) -> torch.Tensor:
        """As TRL's trainers compute it, as far as memory is concerned."""
        sides = 2 if self._shape.stage in ("reward", "dpo") else 1
        ids = torch.zeros(sides * rows, self._tokens, dtype=torch.long)
        if getattr(self._asked, "packing", False):  # TRL then puts all rows one behind the other
            ids = ids.view(1, -1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if self._shape.stage == "reward":
            scores: torch.Tensor = self._model(**inputs).logits
            return scores.sum()
        output = self._model(**inputs, labels=ids, fused_lm_head=True)
        loss: torch.Tensor = output.log_probs.sum()
        if self._shape.stage == "dpo":
            with torch.no_grad():
                reference = self._model(**inputs, labels=ids, fused_lm_head=True)
            loss = loss - reference.log_probs.sum()
        return loss

    @torch.no_grad()
    def _generation(self, completions: int) -> "_Use":
        """Completions as one forward pass, which keeps all keys and values; scoring them takes no more."""
        self._model.eval()  # recomputing activations would keep no cache
        with self._fake, Tally(self._model.parameters()) as tally:
            ids = torch.zeros(completions, self._tokens, dtype=torch.long)
            output = self._model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1)
            cache = _size(tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values))
            del ids, output
        self._model.train()
        return _Use(cache, tally.peak, tally.events)


@dataclass(frozen=True)
class _Use:
    """What a computation uses beside the weights, in bytes."""

    kept: int = 0
    """What it makes and keeps for later."""
    peak: int = 0
    """The most at one time."""
    events: list[Event] = field(default_factory=list)
    """Each tensor's beginning and end."""


def _longest(tokenizer: PreTrainedTokenizerBase | None, shape: StageShape) -> int:
    """Tokens of the longest row as the trainer sees it."""
    asked = shape.hyperparameters
    if shape.longest_tokens is not None:
        return shape.longest_tokens
    if tokenizer is None:
        raise ValueError(f"{shape.stage}: tokens cannot be counted without a tokenizer")
    if isinstance(asked, GRPO):
        longest = max(len(prompt_tokens(tokenizer, row["prompt"])) for row in shape.longest_rows)
        return longest + asked.max_completion_length
    replies = ("completion", "chosen", "rejected")
    lengths = [
        len(conversation_tokens(tokenizer, row["prompt"] + row[reply], tools=row.get("tools")))
        for row in shape.longest_rows
        for reply in replies
        if reply in row
    ]
    limit: int = getattr(asked, "max_length", max(lengths))
    return limit if getattr(asked, "packing", False) else min(max(lengths), limit)


def _replace_tensors(model: nn.Module) -> None:
    """Put tensors of the mode that is active in place of a model's own; what was shared stays shared."""
    made: dict[int, torch.Tensor] = {}
    for layer in quantized_layers(model):
        pretend_quantized(layer)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not isinstance(parameter, FakeTensor):
                alike = torch.empty(parameter.shape, dtype=parameter.dtype)
                made.setdefault(id(parameter), nn.Parameter(alike, requires_grad=parameter.requires_grad))
                module._parameters[name] = made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), torch.empty(buffer.shape, dtype=buffer.dtype))


def _size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors that share nothing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

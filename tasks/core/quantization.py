"""Frozen weights in 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314) by bitsandbytes, without its silent traps.

Where a CPU computes bfloat16 with AVX-512, bitsandbytes repacks the weights in the first forward pass without
gradients. After that gradients, merges and saved weights are wrong, and nothing says so: repacking is switched off.
"""

from pathlib import Path
from typing import Any, cast

import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import BitsAndBytesConfig, PreTrainedModel

from models.recipe import Quantization


def quantization_config(quantization: Quantization, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """The configuration of bitsandbytes; products are computed in the number format of the activations."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_quantized(kind: Any, path: Path, device: str, quantization: Quantization, **options: Any) -> PreTrainedModel:
    """Load a model and quantise its linear layers, all but the head.

    Args:
        kind: Transformers' class for the task, such as `AutoModelForCausalLM`.
        path: A finished folder.
        device: Where the weights are quantised and stay.
        quantization: How.
        options: Further arguments of `from_pretrained`, `dtype` among them.
    """
    config = quantization_config(quantization, options["dtype"])
    place = {"": 0 if device == "cuda" else device}  # Accelerate takes no device without its index
    model = cast(PreTrainedModel, kind.from_pretrained(path, quantization_config=config, device_map=place, **options))
    for layer in quantized_layers(model):
        layer.support_avx512bf16_for_cpu = False
    return model


def quantized_layers(model: torch.nn.Module) -> list[Linear4bit]:
    """The linear layers whose weights are held in 4 bits."""
    return [layer for layer in model.modules() if isinstance(layer, Linear4bit)]


def train_in_float32(model: torch.nn.Module) -> None:
    """Keep what is trained in float32.

    TRL casts the adapters of a quantised model to bfloat16, which most of AdamW's steps are too small for, and which
    the gradient scaler of float16 does not take.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def compute_in_float32(model: Any) -> Any:
    """Have a trained model compute in float32, on the host where nothing is quantised; weights in 4 bits stay so."""
    layers = quantized_layers(model)
    if not layers:  # an accelerator that the training just fits into has no room for all weights in float32
        return model.to("cpu", torch.float32)
    for layer in layers:
        layer.compute_dtype = torch.float32
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return model


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A freshly loaded model with its 4-bit weights as plain tensors in float32."""
    if not quantized_layers(model):
        return model
    plain = model.dequantize(dtype=torch.float32)
    return cast(PreTrainedModel, plain.to(torch.float32))

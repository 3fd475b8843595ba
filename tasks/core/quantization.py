"""Frozen weights in 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314) by bitsandbytes, without its silent trap.

Where a CPU computes bfloat16 with AVX-512, bitsandbytes repacks the weights in the first forward pass without
gradients. After that gradients, merges and saved weights are wrong, and nothing says so: repacking is switched off.
"""

import os
from pathlib import Path
from typing import Any, cast

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Linear4bit
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from models.recipe import Quantization

_BLOCK, _SCALES = 64, 256
"""Weights that share a scale, and scales that share one of their own where they are quantised as well."""


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
    # Accelerate takes no device without its index, which is the process's own where several train together.
    place = {"": int(os.environ.get("LOCAL_RANK", "0")) if device == "cuda" else device}
    model = cast(PreTrainedModel, kind.from_pretrained(path, quantization_config=config, device_map=place, **options))
    _never_repack(model)
    return model


def quantized_layers(model: torch.nn.Module) -> list[Linear4bit]:
    """The linear layers whose weights are held in 4 bits."""
    return [layer for layer in model.modules() if isinstance(layer, Linear4bit)]


def restore_trained_formats(model: Any, mixed_precision: bool) -> None:
    """Train adapters in float32, and a score head too where mixed precision casts what goes into it.

    TRL casts both to bfloat16 where weights are in 4 bits: most of AdamW's steps are too small for that, and the
    gradient scaler of float16 does not take it.
    """
    of_head = torch.float32 if mixed_precision else model.get_input_embeddings().weight.dtype
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32 if "lora_" in name else of_head)


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


def quantize_unloaded(model: PreTrainedModel, quantization: Quantization, dtype: torch.dtype) -> None:
    """Put 4-bit layers in place of the linear ones of a model without weights, the head excepted, as loading does."""
    config = quantization_config(quantization, dtype)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), config)
    model.is_loaded_in_4bit = True
    _never_repack(model)


def _never_repack(model: PreTrainedModel) -> None:
    for layer in quantized_layers(model):
        layer.support_avx512bf16_for_cpu = False


def pretend_quantized(layer: Any) -> None:
    """Give a 4-bit layer without weights what a quantised one holds, with shapes but no content."""
    weight, size = layer.weight, layer.weight.numel()
    scales = -(-size // _BLOCK)
    if weight.compress_statistics:
        scales_of_scales = QuantState(  # type: ignore[no-untyped-call]
            torch.empty(-(-scales // _SCALES)), code=torch.empty(256), blocksize=_SCALES, dtype=torch.float32
        )
        held: dict[str, Any] = {"absmax": torch.empty(scales, dtype=torch.uint8), "state2": scales_of_scales}
        held["offset"] = torch.empty(())
    else:
        held = {"absmax": torch.empty(scales)}
    held |= {"shape": weight.shape, "code": torch.empty(16), "blocksize": _BLOCK, "quant_type": weight.quant_type}
    layer.weight = torch.nn.Parameter(torch.empty((size + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
    layer.weight.quant_state = QuantState(**held, dtype=layer.compute_dtype)  # type: ignore[no-untyped-call]


def scales_bytes(layer: Any) -> int:
    """Size of what is kept beside a 4-bit layer's packed weights."""
    state = layer.weight.quant_state
    return sum(int(part.absmax.nbytes) for part in (state, state.state2) if part)


def unpacked_bytes(layer: Any) -> int:
    """Size of the plain matrix that each product with a 4-bit layer makes and forgets."""
    return int(layer.in_features * layer.out_features * layer.compute_dtype.itemsize)

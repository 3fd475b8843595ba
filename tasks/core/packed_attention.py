"""Attention over packed rows: a dense mask, or on an accelerator blocks, of which FlexAttention skips the empty ones.

A dense mask goes with PyTorch's attention (SDPA) and Transformers' eager one. Blocks need kernels that are compiled on
the machine, for shapes of heads that not every accelerator has room for; so they are compared with the dense mask
first, states and gradients. Narrow rows stay with the dense mask, since they have few empty blocks.
"""

from collections.abc import Set
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tasks.core.memory import is_out_of_memory
from tasks.core.prefix_tree import Packing, pack

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2.5e-2, torch.bfloat16: 2e-1}
"""Largest relative error of a token's state that rounding may explain; in SmolLM2 it explains 2e-6, 5e-3 and 4e-2.

There, positions counted along the packed row, completions that see each other, and windows shorter than the row, left
out, come to 1 and more.
"""
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_EITHER = "sdpa_or_blocks"
"""SDPA, but FlexAttention for masks in blocks: a name of its own, since activations are recomputed in backward passes,
where a switch of the model's setting would be over."""
_BLOCKS_FROM = 512
"""Narrowest packed rows that go in blocks, in tokens: four of FlexAttention's blocks."""


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    attended: Any = flex_attention_forward if isinstance(attention_mask, BlockMask) else sdpa_attention_forward
    return attended(module, query, key, value, attention_mask, **options)


AttentionInterface.register(_EITHER, _attend)
AttentionMaskInterface.register(_EITHER, sdpa_mask)


class PackedAttention:
    """The masks that a model's layers take for packed rows.

    Args:
        model: The model without its head. Where its attention is SDPA and it stands on an accelerator on which blocks
            work, it takes either mask from now on.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._config = model.config.get_text_config()

    def refusal(self) -> str | None:
        """Why the model takes no mask of its own for each token; none: it does."""
        attention = self._config._attn_implementation
        # Older models' layers add masks of their own to the one that they get, counted along the row.
        takes_any = self._model._supports_attention_backend and attention in {"sdpa", "eager", _EITHER}
        if takes_any and self._layers() <= _KNOWN_LAYERS:
            return None
        return f"{attention} attention or one of its layers takes no mask of its own for each token"

    def try_blocks(self, dtype: torch.dtype) -> None:
        """Go on in blocks where the accelerator computes the same with them; else the log says why not.

        Args:
            dtype: The number format that the model computes in.
        """
        if not may_take_blocks(self._model) or self._config._attn_implementation != "sdpa":
            return
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self._model.device.type, enabled=False):
            reason = _blocks_fail(self._config, set(self._windows().values()), dtype, self._model.device)
        if reason:
            print(f"attention over packed rows takes a dense mask, not blocks: {reason}")  # noqa: T201
        else:
            self._config._attn_implementation = _EITHER

    def masks(self, packing: Packing) -> Any:
        """The mask as the model's attention takes it, one for each kind of layer where there are several."""
        masks = {kind: self._mask(packing, window) for kind, window in self._windows().items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, packing: Packing, window: int | None) -> BlockMask | torch.Tensor:
        attention = self._config._attn_implementation
        if attention == _EITHER and packing.input_ids.shape[1] >= _BLOCKS_FROM:
            return _blocks(packing, window)
        visible = _dense(packing, window)
        if attention != "eager":
            return visible
        dtype = self._model.get_input_embeddings().weight.dtype
        nothing = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return nothing.masked_fill(~visible, torch.finfo(dtype).min)

    def _windows(self) -> dict[str, int | None]:
        """The window of each kind of layer; none: all of the past."""
        window, layers = getattr(self._config, "sliding_window", None), self._layers()
        if "sliding_attention" in layers:
            return {"full_attention": None, "sliding_attention": window}
        return {"full_attention": None if layers else window}

    def _layers(self) -> set[str]:
        """The kinds of layers, where the model names them."""
        return set(getattr(self._config, "layer_types", None) or ())


def may_take_blocks(model: PreTrainedModel) -> bool:
    """Whether the model's code and device are such as FlexAttention is made for."""
    return model.device.type == "cuda" and bool(model._supports_flex_attn)


def _blocks(packing: Packing, window: int | None) -> BlockMask:
    rows, width = packing.input_ids.shape
    return create_block_mask(packing.attends(window), rows, None, width, width, device=packing.input_ids.device)


def _dense(packing: Packing, window: int | None) -> torch.Tensor:
    """Booleans, (packed rows, 1, width, width)."""
    rows, width = (torch.arange(size, device=packing.input_ids.device) for size in packing.input_ids.shape)
    return packing.attends(window)(rows.view(-1, 1, 1, 1), None, width.unsqueeze(1), width)


def _blocks_fail(config: Any, windows: Set[int | None], dtype: torch.dtype, device: torch.device) -> str | None:
    """Why heads of a model's shape cannot attend in blocks here; none: states and gradients are a dense mask's."""
    heads = config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    module = SimpleNamespace(training=True, num_key_value_groups=heads // pairs, is_causal=True)
    packing = _forked(device)
    rows, width = packing.input_ids.shape
    shapes = [(rows, count, width, size) for count in (heads, pairs, pairs)]
    draw = torch.Generator(device).manual_seed(0)  # of its own: a stage that goes on draws what it would have drawn
    like: dict[str, Any] = {"dtype": dtype, "device": device, "requires_grad": True}
    inputs = [torch.randn(shape, generator=draw, **like) for shape in shapes]
    query, key, value = inputs
    found: dict[Any, list[torch.Tensor]] = {_blocks: [], _dense: []}
    try:
        for way, window in product(found, windows):
            states, _ = _attend(module, query, key, value, way(packing, window), scaling=size**-0.5)
            found[way] += [states.detach(), *torch.autograd.grad(states.square().sum(), inputs)]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    off = max(float((ours - own).norm() / own.norm()) for ours, own in zip(*found.values(), strict=True))
    return None if off <= TOLERANCE[dtype] else f"off by {off:.2g}, allowed {TOLERANCE[dtype]:.2g}"


def _forked(device: torch.device) -> Packing:
    """Two packed rows, each of four rows that share a block and have one of their own."""
    rows = torch.arange(2048, device=device).view(2, 4, 256)
    rows[:, :, :128] = rows[:, :1, :128]
    rows = rows.flatten(0, 1)
    packing = pack(rows, torch.ones_like(rows), hidden_size=4096, always=True)
    return cast(Packing, packing)  # always

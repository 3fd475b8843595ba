"""Replies token by token, with no more work than they need.

A prompt is read once for all its replies, adapters can be merged meanwhile, and replies that ended leave the batch.
What is drawn has the distribution of Transformers' own sampling, and greedily the same tokens; random numbers fall on
the replies in another order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from models.errors import StageError


@torch.no_grad()
def complete(
    model: Any, prompts: Sequence[list[int]], ends: Sequence[int], padding: int, **options: Any
) -> list[list[int]]:
    """The replies of a causal language model to tokenised prompts, each with the token that ended it.

    Args:
        model: The model, with or without adapters.
        prompts: Tokens of each prompt; equal prompts in a row are read once.
        ends: Tokens that end a reply.
        padding: The token that stands where a shorter prompt has no token.
        options: Of `generate`, which gets none of the above. A `streamer` or `stopping_criteria` keep the batch whole.
    """
    padded = _padded(prompts, padding).to(model.device)
    unique, repeats = torch.unique_consecutive(padded, dim=0, return_counts=True)
    rows = torch.arange(len(unique), device=model.device).repeat_interleave(repeats)
    ids, mask = unique.unbind(-1)
    watched = options.keys() & {"streamer", "stopping_criteria"}
    caches = _keeps_keys_and_values(model)
    is_read_once = caches and len(unique) < len(prompts) and ids.shape[1] > 1
    output = model.generate(
        input_ids=ids[rows],
        attention_mask=mask[rows],
        past_key_values=_read(model, ids, mask, rows) if is_read_once else None,
        custom_generate=_decode if caches and not watched else None,
        **options,
    )
    return [_until(row, ends) for row in output[:, ids.shape[1] :].tolist()]


def _keeps_keys_and_values(model: Any) -> bool:
    """Whether generation keeps a cache that rows can be taken out of; Mamba's, for one, is of another kind."""
    plain = _without_adapters(model)
    is_known = "past_key_values" in signature(type(plain).forward).parameters
    return is_known and plain.generation_config.use_cache is not False


def _without_adapters(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _padded(prompts: Sequence[list[int]], padding: int) -> torch.Tensor:
    """Tokens and mask as (prompts, tokens, 2), padded on the left."""
    longest = max(map(len, prompts))
    ids = [[padding] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.stack([torch.tensor(ids), torch.tensor(mask)], dim=-1)


def _read(model: Any, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> DynamicCache:
    """Keys and values of each prompt but its last token, once for each of `rows`."""
    plain = _without_adapters(model)
    cache = DynamicCache(config=plain.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    prompts = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions[:, :-1]}
    plain(**prompts, past_key_values=cache, logits_to_keep=1)  # as a whole: mixed precision is the whole model's
    cache.reorder_cache(rows)
    return cache


def _until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    length = next((place for place, token in enumerate(tokens, 1) if token in ends), len(tokens))
    return tokens[:length]


def _decode(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **state: Any,
) -> torch.Tensor:
    """Transformers' sampling or greedy search, as `custom_generate`, whose batch shrinks as replies end.

    Returns:
        Prompts and replies as (rows, tokens), padded on the right.
    """
    rows = torch.arange(len(input_ids), device=input_ids.device)
    replies: dict[int, torch.Tensor] = {}
    outputs = model._prefill(input_ids, generation_config, state)
    while True:
        state = model._update_model_kwargs_for_generation(outputs, state)
        scores = logits_processor(input_ids, outputs.logits[:, -1].float())
        input_ids = torch.cat([input_ids, _chosen(scores, generation_config.do_sample)], dim=1)
        ended = stopping_criteria(input_ids, None)
        replies |= dict(zip(rows[ended].tolist(), input_ids[ended], strict=True))
        if ended.all():
            break
        if ended.any():
            going = (~ended).nonzero().squeeze(1)
            rows, input_ids, state = rows[going], input_ids[going], _selected(state, going, len(ended))
        with _attention_for_a_token(model):
            outputs = model(**model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **state))
    ordered = [replies[row] for row in range(len(replies))]
    return nn.utils.rnn.pad_sequence(ordered, batch_first=True, padding_value=generation_config.pad_token_id)


@contextmanager
def _attention_for_a_token(model: Any) -> Iterator[None]:
    """On a CPU in 16 bits, PyTorch's own attention takes longer for one token than plain products of matrices."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    if model.device.type == "cpu" and model.dtype != torch.float32 and usual == "sdpa":
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = usual


def _chosen(scores: torch.Tensor, do_sample: bool) -> torch.Tensor:
    """The next tokens as (rows, 1)."""
    if not do_sample:
        return scores.argmax(-1, keepdim=True)
    # One random number a row, where `torch.multinomial` draws one for every token of the vocabulary.
    precise = torch.float32 if scores.device.type == "mps" else torch.float64  # which Apple's devices do not have
    shares = scores.softmax(-1).to(precise).cumsum(-1)
    if not shares[:, -1].isfinite().all():
        raise StageError("the model's scores of the next token are not finite; lower the learning rate")
    drawn = torch.rand(len(scores), 1, dtype=shares.dtype, device=shares.device) * shares[:, -1:]
    return torch.searchsorted(shares, drawn, right=True)


def _selected(state: dict[str, Any], rows: torch.Tensor, batch: int) -> dict[str, Any]:
    """What the model takes besides tokens, for some rows of a batch."""
    state["past_key_values"].reorder_cache(rows)  # the one selection that layers without attention have, too
    return {
        name: value[rows] if isinstance(value, torch.Tensor) and value.shape[:1] == (batch,) else value
        for name, value in state.items()
    }


@contextmanager
def merged_adapters(model: Any) -> Iterator[None]:
    """LoRA adapters added to the weights that they adapt, which afterwards are, bit for bit, what they were.

    Weights in 4 bits, those whose format would round the adapters off, and those whose adapters drop out stay as they
    are.
    """
    layers = [each for each in model.modules() if isinstance(each, Linear) and not each.merged and _is_exact(each)]
    kept = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer in layers:
            layer.merge(safe_merge=True)  # into a copy
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()


def _is_exact(layer: Linear) -> bool:
    weight: torch.Tensor = layer.get_base_layer().weight
    drops_out = any(isinstance(each, nn.Dropout) and each.p > 0 for each in layer.lora_dropout.values())
    return weight.dtype == torch.float32 and not drops_out

"""Replies of a model to conversations: one at a time for a chat, batched by length for an evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from tasks.core.loading import load_policy, load_tokenizer
from tasks.core.memory import in_parts
from tasks.core.plan import BATCH_TOKENS

Message = dict[str, Any]


@dataclass(frozen=True)
class ChatModel:
    """A model with its tokenizer, ready to reply."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_tokens: int = BATCH_TOKENS
    """Prompt and reply tokens, with padding, that one batch may hold."""


def load_chat(path: Path, device: str = "cpu", dtype: torch.dtype | str = "auto") -> ChatModel:
    """Load a finished checkpoint for chatting, in the number format that it was written in, without a progress bar."""
    disable_progress_bar()
    return ChatModel(load_policy(path, dtype, device).eval(), load_tokenizer(path))


def chat_generate(
    chat: ChatModel, messages: Sequence[Message], *, max_new_tokens: int = 256, temperature: float = 0.0
) -> str:
    """Format a conversation with the model's chat template and return the assistant's reply.

    Args:
        chat: The model.
        messages: Turns with `role` and `content`, the last one the user's.
        max_new_tokens: The reply stops here at the latest.
        temperature: 0: the most likely token each time.
    """
    return generate(chat, [messages], max_new_tokens=max_new_tokens, temperature=temperature)[0][0]


def generate(
    chat: ChatModel,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    num_replies: int = 1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[list[str]]:
    """Replies to many conversations, computed in batches of similar length.

    Args:
        chat: The model.
        conversations: Each ends with a user's turn.
        max_new_tokens: Replies stop here at the latest.
        temperature: 0: the most likely token each time; otherwise replies are sampled.
        num_replies: Replies per conversation.
        on_progress: Called with the number of conversations answered so far.

    Returns:
        Replies without special tokens, as (conversations, num_replies), in the order given.
    """
    prompts = [_prompt_tokens(chat.tokenizer, messages) for messages in conversations]
    replies: dict[int, list[str]] = {}
    answer = partial(
        _generate_batch, chat, max_new_tokens=max_new_tokens, temperature=temperature, num_replies=num_replies
    )
    for batch in _batches(prompts, max_new_tokens, chat.batch_tokens // num_replies):
        texts = in_parts(answer, [prompts[index] for index in batch])
        replies |= dict(zip(batch, texts, strict=True))
        on_progress(len(replies))
    return [replies[index] for index in range(len(prompts))]


def _prompt_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def _batches(prompts: list[list[int]], max_new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Sort prompts by length and cut them into batches of so many tokens, replies included."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches: list[list[int]] = [[]]
    for index in order:
        if batches[-1] and (len(batches[-1]) + 1) * (len(prompts[index]) + max_new_tokens) > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches if order else []


@torch.inference_mode()
def _generate_batch(
    chat: ChatModel, prompts: Sequence[list[int]], *, max_new_tokens: int, temperature: float, num_replies: int
) -> list[list[str]]:
    padded = chat.tokenizer.pad({"input_ids": list(prompts)}, padding_side="left", return_tensors="pt").to(
        chat.model.device
    )
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    output = chat.model.generate(
        **{name: tensor.repeat_interleave(num_replies, dim=0) for name, tensor in padded.items()},
        **sampling,
        past_key_values=_prefill(chat, padded, num_replies),
        max_new_tokens=max_new_tokens,
        pad_token_id=chat.tokenizer.pad_token_id,
    )
    texts = chat.tokenizer.batch_decode(output[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[start : start + num_replies] for start in range(0, len(texts), num_replies)]


def _prefill(chat: ChatModel, padded: Any, num_replies: int) -> DynamicCache | None:
    """Keys and values of the prompts but their last token, computed once for all replies to a prompt."""
    if num_replies == 1:
        return None
    mask = padded["attention_mask"][:, :-1]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=chat.model.config)
    chat.model.base_model(
        input_ids=padded["input_ids"][:, :-1], attention_mask=mask, position_ids=positions, past_key_values=cache
    )
    cache.batch_repeat_interleave(num_replies)
    return cache

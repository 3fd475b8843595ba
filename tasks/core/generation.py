"""Replies of a model to conversations: streamed or whole for a chat, batched by length for an evaluation."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from models.errors import InputError
from tasks.core.decoding import complete
from tasks.core.loading import load_policy, load_tokenizer
from tasks.core.memory import in_parts
from tasks.core.plan import BATCH_TOKENS
from tasks.core.scoring import prompt_tokens

Message = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What a model said."""

    text: str
    """Without special tokens."""
    tokens: tuple[int, ...]
    """Without the token that ended it."""
    stopped: bool
    """Whether it ended by itself, before the limit."""


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
    return generate(chat, [messages], max_new_tokens=max_new_tokens, temperature=temperature)[0][0].text


def stream(
    chat: ChatModel, messages: Sequence[Message], *, max_new_tokens: int = 256, temperature: float = 0.0
) -> Generator[str, None, None]:
    """The reply of `chat_generate` in pieces, each as soon as it is generated; joined they are the same text.

    The model generates in a thread of its own, and stops after its present token where the iterator is closed. A reply
    ends at the latest where the model's positions end.

    Args:
        chat: The model.
        messages: Turns with `role` and `content`, the last one the user's.
        max_new_tokens: The reply stops here at the latest.
        temperature: 0: the most likely token each time.

    Yields:
        Text without special tokens; at least one piece, which is empty where the model says nothing.

    Raises:
        InputError: the chat template refuses the conversation, or it takes all of the model's positions.
    """
    try:
        prompt = prompt_tokens(chat.tokenizer, messages)
    except TemplateError as error:
        raise InputError(f"the model's chat template refuses this conversation: {error}") from error
    handover = _Handover()
    with ThreadPoolExecutor(1) as thread:
        reply = thread.submit(
            _generate_batch, chat, [prompt], max_new_tokens=min(max_new_tokens, _positions_left(chat, prompt)),
            temperature=temperature, num_replies=1, streamer=handover, stopping_criteria=[handover.is_stopped],
        )  # fmt: skip
        reply.add_done_callback(lambda _: handover.tokens.put(None))
        try:
            yield from _pieces(chat.tokenizer, handover)
        finally:
            handover.stopped.set()
    reply.result()


def _positions_left(chat: ChatModel, prompt: list[int]) -> int:
    """How many tokens a reply may have.

    Raises:
        InputError: none.
    """
    positions = getattr(chat.model.config, "max_position_embeddings", None) or sys.maxsize
    if len(prompt) >= positions:
        raise InputError(
            f"the conversation has {len(prompt)} tokens and the model {positions} positions; begin a new one"
        )
    return positions - len(prompt)


class _Handover(BaseStreamer):
    """Tokens on their way from the thread that generates them to the one that shows them; None: that was all."""

    def __init__(self) -> None:
        self.tokens: SimpleQueue[torch.Tensor | None] = SimpleQueue()
        self.stopped = Event()

    def put(self, value: torch.Tensor) -> None:
        self.tokens.put(value)

    def end(self) -> None:
        """Nothing: the thread's end is the end."""

    def is_stopped(self, tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(tokens),), self.stopped.is_set(), device=tokens.device)

    def __iter__(self) -> Iterator[int]:
        """The reply's tokens as they come."""
        prompt_and_reply = iter(self.tokens.get, None)
        next(prompt_and_reply, None)
        return (int(token) for token in prompt_and_reply)


def _pieces(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> Iterator[str]:
    """What each token adds to the text, held back while its last character is incomplete."""
    so_far: list[int] = []
    text = shown = ""
    for token in tokens:
        so_far.append(token)
        text = tokenizer.decode(so_far, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    yield text[len(shown) :]


def generate(
    chat: ChatModel,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    num_replies: int = 1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[list[Reply]]:
    """Replies to many conversations, computed in batches of similar length.

    Args:
        chat: The model.
        conversations: Each ends with a user's turn.
        max_new_tokens: Replies stop here at the latest.
        temperature: 0: the most likely token each time; otherwise replies are sampled.
        num_replies: Replies per conversation.
        on_progress: Called with the number of conversations answered so far.

    Returns:
        Replies as (conversations, num_replies), in the order given.
    """
    prompts = [prompt_tokens(chat.tokenizer, messages) for messages in conversations]
    replies: dict[int, list[Reply]] = {}
    answer = partial(
        _generate_batch, chat, max_new_tokens=max_new_tokens, temperature=temperature, num_replies=num_replies
    )
    for batch in _batches(prompts, max_new_tokens, chat.batch_tokens // num_replies):
        found = in_parts(answer, [prompts[index] for index in batch])
        replies |= dict(zip(batch, found, strict=True))
        on_progress(len(replies))
    return [replies[index] for index in range(len(prompts))]


def _batches(prompts: list[list[int]], max_new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Sort prompts by length and cut them into batches of so many tokens, replies included."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches: list[list[int]] = [[]]
    for index in order:
        if batches[-1] and (len(batches[-1]) + 1) * (len(prompts[index]) + max_new_tokens) > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches if order else []


def _generate_batch(
    chat: ChatModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    num_replies: int,
    **watching: Any,
) -> list[list[Reply]]:
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    ends = _ends(chat.model)
    repeated = [prompt for prompt in prompts for _ in range(num_replies)]
    options = {"max_new_tokens": max_new_tokens, "pad_token_id": chat.tokenizer.pad_token_id, **sampling, **watching}
    rows = complete(chat.model, repeated, ends, chat.tokenizer.pad_token_id, **options)
    replies = [_reply(chat.tokenizer, row, ends) for row in rows]
    return [replies[start : start + num_replies] for start in range(0, len(replies), num_replies)]


def _ends(model: PreTrainedModel) -> list[int]:
    """The tokens that end a reply."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _reply(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: list[int]) -> Reply:
    """A reply from its tokens, with the one that ended it."""
    stopped = bool(tokens) and tokens[-1] in ends
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return Reply(text, tuple(tokens[:-1] if stopped else tokens), stopped)

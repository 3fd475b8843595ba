"""What models make of given replies: a reward model's score, a policy's log-likelihood, its divergence from another."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.core.memory import in_parts
from tasks.core.plan import BATCH_TOKENS
from tasks.core.rendering import rendered

Message = dict[str, Any]
Result = TypeVar("Result")


class Dialog(NamedTuple):
    """A prompt and a reply to it, as tokens."""

    tokens: list[int]
    """The whole conversation."""
    start: int
    """Position of the reply's first token."""


def dialog(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], reply: Sequence[Message], tools: str | None = None
) -> Dialog:
    """Put a conversation into the model's chat template; the reply ends with the end of its turn.

    Args:
        tokenizer: The model's.
        prompt: The turns before the reply.
        reply: The assistant's turn.
        tools: The functions offered, as JSON text.
    """
    whole = conversation_tokens(tokenizer, [*prompt, *reply], tools=tools)
    return Dialog(whole, len(conversation_tokens(tokenizer, prompt, True, tools)))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """The tokens of a conversation that a reply is asked for."""
    return conversation_tokens(tokenizer, prompt, add_generation_prompt=True)


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: str | None = None,
) -> list[int]:
    """The tokens of a conversation that is complete, or that the assistant's turn begins at the end of."""
    text = rendered(tokenizer, messages, tools=tools, add_generation_prompt=add_generation_prompt)
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def reward_scores(
    scorer: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dialogs: Sequence[Dialog],
    batch_tokens: int = BATCH_TOKENS,
) -> list[float]:
    """A reward model's score of each conversation, whose tokens are its own."""
    scorer.config.pad_token_id = tokenizer.pad_token_id

    def scores(some: Sequence[Dialog]) -> list[float]:
        batch = _padded(tokenizer, some, scorer.device)
        found: list[float] = scorer(**batch, use_cache=False).logits[:, 0].float().tolist()
        return found

    return _in_batches(dialogs, scores, batch_tokens)


def log_likelihoods(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dialogs: Sequence[Dialog],
    batch_tokens: int = BATCH_TOKENS,
) -> list[float]:
    """Log-likelihood of each reply given its prompt, in nats, summed over its tokens."""

    def of_tokens(batch: Any, columns: torch.Tensor) -> torch.Tensor:
        said = batch["input_ids"][:, columns + 1].unsqueeze(-1)
        return _next_tokens(policy, batch, columns).gather(-1, said).squeeze(-1)

    # At worst all is reply, and logits take most of the memory.
    return _summed_over_replies(tokenizer, dialogs, of_tokens, policy.device, batch_tokens // 2)


def divergences(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dialogs: Sequence[Dialog],
    batch_tokens: int = BATCH_TOKENS,
) -> list[float]:
    """KL(policy || reference) of the next token, in nats, summed over each reply's tokens."""

    def of_tokens(batch: Any, columns: torch.Tensor) -> torch.Tensor:
        ours, theirs = _next_tokens(policy, batch, columns), _next_tokens(reference, batch, columns)
        return (ours.exp() * (ours - theirs)).sum(-1)

    return _summed_over_replies(tokenizer, dialogs, of_tokens, policy.device, batch_tokens // 4)


def _summed_over_replies(
    tokenizer: PreTrainedTokenizerBase,
    dialogs: Sequence[Dialog],
    of_tokens: Callable[[Any, torch.Tensor], torch.Tensor],
    device: Any,
    batch_tokens: int,
) -> list[float]:
    """The sum over each reply's tokens of what `of_tokens` gives, for a batch, of the tokens after some columns."""

    def sums(some: Sequence[Dialog]) -> list[float]:
        batch = _padded(tokenizer, some, device)
        in_reply = _in_reply(some, batch)
        columns = in_reply.any(0).nonzero().squeeze(1)
        found: list[float] = (of_tokens(batch, columns) * in_reply[:, columns]).sum(-1).tolist()
        return found

    return _in_batches(dialogs, sums, batch_tokens)


def _padded(tokenizer: PreTrainedTokenizerBase, dialogs: Sequence[Dialog], device: Any) -> Any:
    tokens = [one.tokens for one in dialogs]
    return tokenizer.pad({"input_ids": tokens}, padding_side="right", return_tensors="pt").to(device)


def _next_tokens(model: PreTrainedModel, batch: Any, columns: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the tokens after those of some columns, as (batch, columns, vocabulary)."""
    logits: torch.Tensor = model(**batch, logits_to_keep=columns, use_cache=False).logits
    if logits.shape[1] != len(columns):  # some models give all of them, whatever they are asked
        logits = logits[:, columns]
    return logits.float().log_softmax(-1)


def _in_reply(dialogs: Sequence[Dialog], batch: Any) -> torch.Tensor:
    """1 where a token other than the first belongs to a reply, as (batch, tokens - 1)."""
    mask: torch.Tensor = batch["attention_mask"][:, 1:]
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    starts = torch.tensor([one.start for one in dialogs], device=mask.device)
    return mask * (positions >= starts.unsqueeze(1))


@torch.inference_mode()
def _in_batches(
    dialogs: Sequence[Dialog], compute: Callable[[Sequence[Dialog]], list[Result]], batch_tokens: int
) -> list[Result]:
    """A result for each conversation, computed in batches of similar length, the longest ones first.

    Those with the same prompt lie side by side, so that a model that computes it once finds them together.
    """
    prompts = [tuple(one.tokens[: one.start]) for one in dialogs]
    longest_of: dict[tuple[int, ...], int] = {}
    for prompt, one in zip(prompts, dialogs, strict=True):
        longest_of[prompt] = max(longest_of.get(prompt, 0), len(one.tokens))
    order = sorted(range(len(dialogs)), key=lambda index: (longest_of[prompts[index]], prompts[index]))
    found: dict[int, Result] = {}
    while order:
        longest = longest_of[prompts[order[-1]]]
        batch = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // longest)))]
        found |= dict(zip(batch, in_parts(compute, [dialogs[index] for index in batch]), strict=True))
    return [found[index] for index in range(len(dialogs))]

"""Which side of a preference pair a model puts first: by log-probability for a policy, by score for a reward model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.core.memory import in_parts
from tasks.core.plan import BATCH_TOKENS

Row = dict[str, Any]


def preferred(
    scorer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Row], batch_tokens: int = BATCH_TOKENS
) -> list[bool]:
    """Whether a reward model scores the chosen side of each pair higher than the rejected one."""

    def scores(tokens: list[list[int]], starts: list[int]) -> torch.Tensor:
        batch = tokenizer.pad({"input_ids": tokens}, padding_side="right", return_tensors="pt").to(scorer.device)
        logits: torch.Tensor = scorer(**batch).logits
        return logits[:, 0].float()

    scorer.config.pad_token_id = tokenizer.pad_token_id
    return _compare(tokenizer, pairs, scores, batch_tokens)


def more_likely(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Row], batch_tokens: int = BATCH_TOKENS
) -> list[bool]:
    """Whether a policy gives the chosen side of each pair, given the prompt, a higher log-probability."""

    def logps(tokens: list[list[int]], starts: list[int]) -> torch.Tensor:
        batch = tokenizer.pad({"input_ids": tokens}, padding_side="right", return_tensors="pt").to(policy.device)
        logits = policy(**batch).logits[:, :-1].float()
        targets = batch["input_ids"][:, 1:]
        of_tokens = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        positions = torch.arange(1, targets.shape[1] + 1, device=targets.device)
        in_completion = positions >= torch.tensor(starts, device=targets.device).unsqueeze(1)
        summed: torch.Tensor = (of_tokens * in_completion * batch["attention_mask"][:, 1:]).sum(-1)
        return summed

    return _compare(tokenizer, pairs, logps, batch_tokens // 2)  # logits take much more than keys and values do


@torch.inference_mode()
def score(scorer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Row]) -> float:
    """What a reward model gives a conversation that ends with the assistant's turn; only differences mean something."""
    text = tokenizer.apply_chat_template(list(conversation), tokenize=False)
    batch = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(scorer.device)
    return float(scorer(**batch).logits[0, 0])


@torch.inference_mode()
def _compare(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Row],
    score: Callable[[list[list[int]], list[int]], torch.Tensor],
    batch_tokens: int,
) -> list[bool]:
    """Score both sides of every pair, in batches of similar length, and compare them.

    Args:
        tokenizer: Gives the chat template.
        pairs: Rows with `prompt`, `chosen` and `rejected`.
        score: From (conversations, tokens) and the position of each completion's first token to (conversations,).
        batch_tokens: Tokens, with padding, that one forward pass may hold.
    """
    sides = [_tokens(tokenizer, pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")]
    order = sorted(range(len(sides)), key=lambda index: len(sides[index][0]))

    def score_sides(some: Sequence[tuple[list[int], int]]) -> list[float]:
        tokens, starts = zip(*some, strict=True)
        found: list[float] = score(list(tokens), list(starts)).tolist()
        return found

    scores = torch.zeros(len(sides))
    while order:
        longest = len(sides[order[-1]][0])
        batch = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // longest)))]
        scores[batch] = torch.tensor(in_parts(score_sides, [sides[index] for index in batch]))
    return [bool(chosen > rejected) for chosen, rejected in scores.view(-1, 2)]


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: list[Row], completion: list[Row]) -> tuple[list[int], int]:
    """Tokens of the whole conversation, and where the completion starts."""
    start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(prompt + completion, tokenize=False)
    tokens: list[int] = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return tokens, len(tokenizer(start, add_special_tokens=False)["input_ids"])

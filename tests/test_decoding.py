"""Replies token by token: the tokens of Transformers' own search, the same distribution and weights."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from models.errors import StageError
from tasks.core.decoding import complete, merged_adapters
from tasks.core.loading import load_policy

NEVER = (258,)
PROMPTS = [[5, 9, 11], [5, 9, 11], [12], [12], [12], [40, 41, 42, 43, 44]]


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> PeftModel:
    """A tiny policy whose adapters do something."""
    return adapted(load_policy(tiny_model, torch.float32))


def adapted(model: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def greedy(ends: tuple[int, ...], tokens: int) -> dict[str, Any]:
    return {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": list(ends), "pad_token_id": 0}


def searched(model: Any, tokens: int, ends: tuple[int, ...] = NEVER) -> list[list[int]]:
    """Greedy replies of Transformers' own search, one prompt at a time, each with its end."""
    replies = []
    for prompt in PROMPTS:
        output = model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            **greedy(ends, tokens),
        )  # fmt: skip
        replies.append(output[0, len(prompt) :].tolist())
    return replies


def ends_of(model: Any, tokens: int) -> tuple[int, ...]:
    """Tokens that end some replies early and others later."""
    replies = searched(model, tokens)
    ends = replies[0][2], replies[2][tokens // 2]
    assert len({len(reply) for reply in searched(model, tokens, ends)}) > 1, "no reply ends before the others"
    return ends


def test_greedy_replies_are_those_of_transformers(policy: PeftModel) -> None:
    ends = ends_of(policy, 24)
    expected = searched(policy, 24, ends)
    assert complete(policy, PROMPTS, ends, 0, **greedy(ends, 24)) == expected
    with merged_adapters(policy):
        assert complete(policy, PROMPTS, ends, 0, **greedy(ends, 24)) == expected


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma3_text", "mistral", "lfm2", "mamba"])
def test_other_architectures(kind: str) -> None:
    torch.manual_seed(1)
    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads)).eval()
    ends = ends_of(model, 16)
    assert complete(model, PROMPTS, ends, 0, **greedy(ends, 16)) == searched(model, 16, ends)


def test_sampled_replies_have_the_model_s_distribution(policy: PeftModel) -> None:
    torch.manual_seed(3)
    options = greedy(NEVER, 1) | {"do_sample": True, "top_k": 0, "temperature": 0.7}
    drawn = complete(policy, [[5, 9, 11]] * 4000, NEVER, 0, **options)
    first = Counter(reply[0] for reply in drawn)
    with torch.no_grad():
        shares = (policy(input_ids=torch.tensor([[5, 9, 11]])).logits[0, -1] / 0.7).softmax(-1)
    likely = shares.topk(8).indices.tolist()
    for token in likely:
        deviation = (float(shares[token]) * (1 - float(shares[token])) / 4000) ** 0.5
        assert abs(first[token] / 4000 - float(shares[token])) < 4 * deviation


def test_16_bits_change_replies_by_rounding_alone() -> None:
    """Other products of matrices compute the attention of one token there."""
    torch.manual_seed(1)
    config = AutoConfig.for_model("llama", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    replies = complete(model, PROMPTS, NEVER, 0, **greedy(NEVER, 8))
    assert model.config._attn_implementation == "sdpa"
    exact = model.float()
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(-1, torch.tensor(reply).unsqueeze(-1)).squeeze(-1)
        assert float((logits.max(-1).values - chosen).max()) < 0.02


def test_merging_leaves_every_bit_as_it_was(policy: PeftModel) -> None:
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with pytest.raises(KeyError), merged_adapters(policy):
        assert any(not torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert not any(getattr(module, "merged", False) for module in policy.modules())


def test_what_rounding_would_lose_is_not_merged(tiny_model: Path) -> None:
    policy = adapted(load_policy(tiny_model, torch.bfloat16))
    with merged_adapters(policy):
        assert not any(getattr(module, "merged", False) for module in policy.modules())


def test_what_drops_out_in_training_is_not_merged(tiny_model: Path) -> None:
    dropping = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], lora_dropout=0.1)
    policy = get_peft_model(load_policy(tiny_model, torch.float32), dropping)
    with merged_adapters(policy):
        assert not any(getattr(module, "merged", False) for module in policy.modules())


def test_nothing_is_drawn_from_scores_that_are_not_finite(tiny_model: Path) -> None:
    model = load_policy(tiny_model, torch.float32)
    model.get_input_embeddings().weight.data[PROMPTS[0][0]] = torch.nan
    with pytest.raises(StageError, match="not finite; lower the learning rate"):
        complete(model, PROMPTS, NEVER, 0, do_sample=True, max_new_tokens=2, pad_token_id=0)

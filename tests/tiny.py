"""Small real things: a model that trains in seconds, its data, recipe and run, and variations of any contract."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import pytest
import yaml

from models.contract import Contract
from models.rewards import Reward, Verifier, has_effect

if TYPE_CHECKING:
    from uuid import UUID

    from models.recipe import Recipe
    from models.run import RunRecord

PROMPTS = [f"{a} + {b}" for a in range(1, 9) for b in range(1, 9)]
REWARDS: dict[str, dict[str, Any]] = {
    "exact_answer": {},
    "exact_number": {},
    "math_verify": {},
    "choice": {},
    "regex": {"pattern": "[0-9]"},
    "format": {"shape": "boxed"},
    "length": {"min_words": 2, "max_words": 9},
    "instructions": {},
    "reward_model": {"model": "org/scorer", "revision": "main"},
    "trl": {"trl": "get_cosine_scaled_reward", "options": {"max_len": 8}},
    "function": {"function": "rewards.py:brevity", "options": {"words": 20}},
}
"""Each kind of reward, with options that it can have."""
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_model(
    folder: Path,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    seed: int = 0,
    dtype: str = "fp32",
    shape: dict[str, Any] | None = None,
    kind: str = "llama",
) -> Path:
    """Write a model of two layers (or of the shape given) with random weights and its tokenizer to `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = chat_template
    torch.manual_seed(seed)
    shape = shape or {}
    width = shape.get("hidden_size", 32)
    small = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(
        kind,
        **small | {"num_attention_heads": 4, "num_key_value_heads": 2} | shape,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16 if dtype == "bf16" else torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(prompt: str) -> int:
    """The sum that a prompt asks for."""
    return sum(int(part) for part in prompt.split(" + "))


def write_tiny_data(folder: Path) -> Path:
    """Write the five files of a tiny recipe: demonstrations, pairs, prompts, and held-out prompts and pairs."""
    train, heldout = PROMPTS[:48], PROMPTS[48:]

    def pairs(prompts: list[str]) -> list[dict[str, Any]]:
        return [
            {"prompt": p, "chosen": str(answer(p)), "rejected": f"The sum is {answer(p) + 40}", "kind": "style"}
            for p in prompts
        ]

    write_rows(folder / "sft.jsonl", [{"prompt": p, "completion": str(answer(p))} for p in train])
    write_rows(folder / "preferences.jsonl", pairs(train))
    write_rows(folder / "prompts.jsonl", [{"prompt": p, "answer": answer(p)} for p in train])
    write_rows(folder / "heldout.jsonl", [{"prompt": p, "answer": answer(p)} for p in heldout])
    write_rows(folder / "heldout_preferences.jsonl", pairs(heldout))
    return folder


def tiny_recipe(model: Path, data: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of four short stages as plain data, with sections updated by `changes`."""
    short = {"learning_rate": 1e-2, "max_steps": 4, "batch_size": 8, "max_length": 64}
    recipe: dict[str, Any] = {
        "base_model": {"source": "folder", "name": str(model)},
        "sft": {"dataset": {"path": str(data / "sft.jsonl")}, **short},
        "reward": {"dataset": {"path": str(data / "preferences.jsonl")}, **short, "max_steps": 12},
        "dpo": {"dataset": {"path": str(data / "preferences.jsonl")}, **short},
        "grpo": {
            "dataset": {"path": str(data / "prompts.jsonl")},
            "learning_rate": 1e-2,
            "max_steps": 2,
            "batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 8,
            "rewards": [{"kind": "reward_model", "weight": 0.5}, {"kind": "exact_answer", "weight": 1.0}],
        },
        "evaluation": {
            "prompts": {"path": str(data / "heldout.jsonl")},
            "preferences": {"path": str(data / "heldout_preferences.jsonl")},
            "max_new_tokens": 8,
            "num_samples": 2,
        },
        "seed": 1,
        "precision": "fp32",
    }
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values} if isinstance(values, dict) else values
    return recipe


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """Write a recipe as YAML."""
    path.write_text(yaml.safe_dump(recipe))
    return path


@dataclass(frozen=True)
class Run:
    """How a run of the flow ended."""

    flow_run_id: "UUID | None"
    state: str
    result: Any

    @property
    def record(self) -> "RunRecord":
        """The finished run's record; raises what ended the run otherwise."""
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result  # type: ignore[no-any-return]


def run_align(
    recipe: "Recipe",
    home: Path,
    settings: dict[str, str] | None = None,
    force: tuple[str, ...] = (),
    resume: str | None = None,
) -> Run:
    """Run the whole flow in this process on the Prefect API that is up."""
    from flows.align import align

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ALIGN_HOME": str(home), **(settings or {})}.items():
            patch.setenv(name, value)
        state = align(recipe, "tiny", force, resume, return_state=True)
    return Run(state.state_details.flow_run_id, state.type.value, state.result(raise_on_failure=False))


def variations(contract: Contract) -> Iterator[tuple[str, Any]]:
    """Every field of a contract with another value, one at a time and nested ones too: the field's path, the contract.

    Datasets are left as they are: what they hold decides, not how they are named. So is an empty list, which has no
    member to vary, and what has no effect on a reward's kind.
    """
    for name, field in type(contract).model_fields.items():
        if name == "dataset" or (isinstance(contract, Reward | Verifier) and not has_effect(name, contract.kind)):
            continue
        value = getattr(contract, name)
        for path, other in _others(value, field.annotation):
            plain = other.model_dump() if isinstance(other, Contract) else other
            changed = contract.model_dump() | {name: plain}
            yield f"{name}{path}", type(contract).model_validate(_consistent(name, changed))


def _consistent(name: str, changed: dict[str, Any]) -> dict[str, Any]:
    """A changed contract as plain data, without what only went with the field's former value."""
    match name:
        case "loss_type" if "label_smoothing" in changed:
            return changed | {"label_smoothing": 0.0}  # which only `robust` takes
        case "kind" if changed["kind"] in REWARDS:
            return {"kind": changed["kind"], **REWARDS[changed["kind"]]}
        case "heldout_share":
            return changed | {"part": "training"}
        case "part":
            return changed | {"heldout_share": 0.25}
        case "trl":
            return {"kind": "trl", "trl": "think_format_reward"}
        case _:
            return changed


def _others(value: Any, annotation: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Contract):
        yield from ((f".{path}", other) for path, other in variations(value))
        if type(None) in get_args(annotation):
            yield "", None
    elif value is None and (left_out := _contract(annotation)):
        yield from ((f".{path}", other) for path, other in variations(left_out()))
    elif isinstance(value, tuple) and not value:
        return
    elif isinstance(value, tuple) and isinstance(value[0], Contract):
        yield from ((f".0.{path}", (other, *value[1:])) for path, other in variations(value[0]))
    elif literal := _literal(annotation):
        yield "", next(option for option in literal if option != value)
    else:
        yield "", _other_plain(value, annotation)


def _contract(annotation: Any) -> type[Contract] | None:
    """The contract of an optional one."""
    kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, Contract)]
    return kinds[0] if kinds else None


def _literal(annotation: Any) -> tuple[Any, ...]:
    """The values of a literal type, be it optional."""
    kinds = [annotation, *get_args(annotation)]
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def _other_plain(value: Any, annotation: Any) -> Any:
    other: Any
    match value:
        case bool():
            other = not value
        case tuple():
            other = value[:-1] if len(value) > 1 else (value[0] + "x",)
        case dict():
            other = {key: _other_plain(member, type(member)) for key, member in value.items()}
        case int():
            other = value * 2 or 1
        case float():
            other = value / 2 or 0.25
        case str():
            other = value + "x"
        case _:
            other = 0.25 if float in get_args(annotation) else 3 if "int" in str(annotation) else "x"
    return other

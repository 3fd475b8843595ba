"""Prompts computed once for all rows that share them: states, losses, gradients and weights stay those of TRL."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn
from trl.trainer.utils import add_fused_lm_head

from models.artifacts import Checkpoint, Dataset
from models.recipe import LoRA, Quantization
from models.sources import DatasetSource
from models.stages import DPOInput, GRPOInput, RewardInput, SFTInput, TrainingInput
from tasks.core import entry
from tasks.core.loading import load_policy, load_tokenizer
from tasks.core.lora import lora_config
from tasks.core.packed_attention import _dense
from tasks.core.plan import TrainingPlan
from tasks.core.prefix_tree import pack
from tasks.core.scoring import Dialog, divergences, log_likelihoods, reward_scores
from tasks.core.shared_prompts import share_prompts
from tasks.data.formats.reading import Role
from tests.prepared import frozen
from tests.tiny import build_tiny_model, write_rows

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 61, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
WINDOW = {"sliding_window": 4}
ALTERNATING = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama, eager": ("Llama", {"attn_implementation": "eager"}),
    "Qwen2": ("Qwen2", {}),
    "Qwen2, window": ("Qwen2", ALTERNATING | {"use_sliding_window": True}),
    "Qwen3": ("Qwen3", {"head_dim": 8}),
    "Gemma3": ("Gemma3", ALTERNATING | {"head_dim": 8}),
    "Mistral, window": ("Mistral", WINDOW),
}


def build(name: str, kind: str = "ForCausalLM", **options: Any) -> Any:
    """A model with random weights."""
    family, own = MODELS[name]
    torch.manual_seed(0)
    suffix = "TextConfig" if family == "Gemma3" else "Config"
    own = dict(own)
    attention = own.pop("attn_implementation", "sdpa")
    config = getattr(transformers, family + suffix)(**SIZES | HEADS | own | options)
    config._attn_implementation = attention
    return getattr(transformers, family + kind)(config)


def with_adapter(model: Any) -> Any:
    """The model with an adapter that does something; one that is new hides the half of its gradients."""
    torch.manual_seed(1)
    adapted = get_peft_model(model, lora_config(LoRA(dropout=0.0), "CAUSAL_LM"))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02
    return adapted


def shared(model: Any) -> Any:
    """The model, with shared prompts."""
    share_prompts(model)
    return model


def batch(prompts: list[int], completions: list[list[int]], seed: int = 1) -> dict[str, torch.Tensor]:
    """Random rows padded as GRPO pads them: prompts of these lengths on the left, their completions on the right."""
    draw = torch.Generator().manual_seed(seed)
    before, after = max(prompts), max(map(max, completions))
    rows = []
    for prompt, lengths in zip(prompts, completions, strict=True):
        start = torch.randint(1, 61, (prompt,), generator=draw)
        for length in lengths:
            reply = torch.randint(1, 61, (length,), generator=draw)
            zeros = (torch.zeros(before - prompt, dtype=torch.long), torch.zeros(after - length, dtype=torch.long))
            rows.append(torch.cat([zeros[0], start, reply, zeros[1]]))
    shuffled = torch.stack(rows)[torch.randperm(len(rows), generator=draw)]
    mask = (shuffled != 0).long()
    labels = shuffled.masked_fill(mask == 0, -100)
    labels[:, :before] = -100
    return {"input_ids": shuffled, "attention_mask": mask, "labels": labels}


RAGGED = batch([11, 7, 9], [[3, 5, 1, 4], [6, 2], [5]])


def scores_and_gradients(model: Any, rows: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities and entropies of completions, and gradients of a loss that weighs each differently."""
    outputs = model(**rows, fused_lm_head=True)
    figures = torch.stack([outputs.log_probs, outputs.entropy])
    weights = torch.linspace(-1, 1, figures.numel()).view_as(figures)
    (figures * weights).sum().backward()  # type: ignore[no-untyped-call]
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return figures.detach(), gradients


def relative(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors together, relative to the second."""
    assert ours.keys() == theirs.keys()
    off = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    return float((off / sum(float(each.square().sum()) for each in theirs.values())) ** 0.5)


def tokens_computed(model: Any) -> list[int]:
    """How many tokens each forward pass of a model computes, as it runs."""
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    return seen


def assert_agree(make: Callable[[], Any], rows: dict[str, torch.Tensor], capsys: Any) -> None:
    """Both ways give the same; ours has shared something."""
    their_figures, their_gradients = scores_and_gradients(make(), rows)
    model = shared(make())
    seen = tokens_computed(model.get_base_model() if hasattr(model, "get_base_model") else model)
    our_figures, our_gradients = scores_and_gradients(model, rows)
    assert not capsys.readouterr().out
    assert seen[-1] < rows["input_ids"].numel()
    assert (our_figures - their_figures).abs().max() < 1e-4
    assert relative(our_gradients, their_gradients) < 1e-5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", ["full", "lora"])
def test_every_kind_of_attention_gives_the_same(name: str, way: str, capsys: Any) -> None:
    def make() -> Any:
        model = build(name)
        add_fused_lm_head(model, temperature=0.9, outputs=("log_probs", "entropy"))
        return (model if way == "full" else with_adapter(model)).train()

    assert_agree(make, RAGGED, capsys)


def test_recomputed_activations_give_the_same(capsys: Any) -> None:
    def make() -> Any:
        model = build("Llama")
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        model.activation_checkpointing_enable({"use_reentrant": False})
        return model.train()

    assert_agree(make, RAGGED, capsys)


def test_16_bits_differ_by_rounding_alone(capsys: Any) -> None:
    def figures(prepare: Callable[[Any], Any], dtype: torch.dtype) -> torch.Tensor:
        model = build("Llama")
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        return scores_and_gradients(prepare(model.to(dtype)), RAGGED)[0].float()

    exact = figures(lambda model: model, torch.float32)
    ours, theirs = (figures(prepare, torch.bfloat16) - exact for prepare in (shared, lambda model: model))
    assert not capsys.readouterr().out
    assert float(ours.norm()) < 1.5 * float(theirs.norm())


def test_4_bit_weights_give_the_same(tmp_path: Path, capsys: Any) -> None:
    wide = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    folder = build_tiny_model(tmp_path / "model", shape=wide)

    def make() -> Any:
        model = load_policy(folder, torch.float32, "cpu", Quantization())
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        return with_adapter(model).train()

    assert_agree(make, RAGGED, capsys)


ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=8)


@given(rows=ROWS, hidden_size=st.sampled_from([1, 16, 4096]), left=st.booleans())
@settings(max_examples=200)
def test_each_token_sees_its_own_past(rows: list[list[int]], hidden_size: int, left: bool) -> None:
    width = max(map(len, rows))
    padded, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        filled = slice(width - len(row), width) if left else slice(len(row))
        padded[index, filled], mask[index, filled] = torch.tensor(row), 1
    packing = pack(padded, mask, hidden_size, always=True)
    assert packing
    tokens, positions = packing.input_ids.flatten(), packing.position_ids.flatten()
    states = torch.arange(tokens.numel()).view(*packing.input_ids.shape, 1)
    visible, packed_width = _dense(packing, None).squeeze(1).flatten(0, 1), packing.input_ids.shape[1]
    for index, row in enumerate(rows):
        for end, place in enumerate(packing.unpack(states)[index, mask[index].bool(), 0].tolist()):
            past = visible[place].nonzero().squeeze(1) + place // packed_width * packed_width
            past = past[positions[past].argsort()]
            assert tokens[past].tolist() == row[: end + 1]
            assert positions[past].tolist() == list(range(end + 1))
    assert packing.input_ids.numel() <= padded.numel() * 2


@pytest.mark.parametrize(
    ("prompts", "completions", "hidden_size", "shape"),
    [
        ([42] * 4, [[4] * 8] * 4, 576, (4, 42 + 8 * 4)),  # one row would attend over strangers
        ([100], [[200] * 8], 576, (2, 100 + 4 * 200)),  # half of the group in each row
        ([130] * 4, [[100] * 2] * 4, 576, (4, 130 + 2 * 100)),
        ([10, 10, 10], [[20], [20], [20]], 64, None),
        ([2, 2], [[50, 50], [50, 50]], 64, None),
    ],
)
def test_rows_are_as_wide_as_pays(
    prompts: list[int], completions: list[list[int]], hidden_size: int, shape: tuple[int, int] | None
) -> None:
    rows = batch(prompts, completions)
    packing = pack(rows["input_ids"], rows["attention_mask"], hidden_size)
    assert (packing and tuple(packing.input_ids.shape)) == shape


def test_a_beginning_that_all_rows_share_is_there_once() -> None:
    start = torch.arange(1, 31)
    prompts = [torch.cat([start, torch.full((5,), prompt)]) for prompt in (40, 41)]
    rows = torch.stack([torch.cat([prompt, torch.tensor([reply])]) for prompt in prompts for reply in (50, 51, 52)])
    packing = pack(rows, torch.ones_like(rows), 576)
    assert packing
    assert tuple(packing.input_ids.shape) == (1, 30 + 2 * (5 + 3))


def test_padding_amid_a_row_is_left_to_the_model() -> None:
    rows = torch.ones(2, 5, dtype=torch.long)
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]])
    assert pack(rows, mask, 64, always=True) is None


@pytest.mark.parametrize(
    ("why", "reason"), [("states", "off by"), ("refusal", "two dimensions"), ("layers", "takes no mask of its own")]
)
def test_a_model_that_cannot_share_is_trained_as_ever(why: str, reason: str, capsys: Any) -> None:
    model = build("Llama")
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    expected = model(**RAGGED, fused_lm_head=True)
    own = model.base_model.forward

    def forward(input_ids: Any, *, position_ids: Any = None, **options: Any) -> Any:
        if position_ids is not None and why == "refusal":
            raise ValueError("attention_mask must have two dimensions")
        return own(input_ids, **options)  # as a model that counts positions by itself

    if why == "layers":
        model.config.layer_types = ["full_attention", "linear_attention"]
    else:
        model.base_model.forward = forward
    shared(model)
    for _ in range(2):
        outputs = model(**RAGGED, fused_lm_head=True)
        torch.testing.assert_close(outputs.log_probs, expected.log_probs)
    told = capsys.readouterr().out
    assert told.count("prompts are not shared") == 1
    assert reason in told


def dropping_out(how: str) -> Any:
    """A model that draws random numbers in training."""
    if how == "setting":
        return build("Llama", attention_dropout=0.1)
    return get_peft_model(build("Llama"), lora_config(LoRA(dropout=0.1), "CAUSAL_LM")).get_base_model()


@pytest.mark.parametrize("how", ["setting", "adapter"])
def test_dropout_is_drawn_for_each_row(how: str, capsys: Any) -> None:
    rows = {name: RAGGED[name] for name in ("input_ids", "attention_mask")}
    model = shared(dropping_out(how).train())
    seen = tokens_computed(model)
    for _ in range(2):
        model(**rows, use_cache=False)
    assert seen == [rows["input_ids"].numel()] * 2
    assert capsys.readouterr().out.count("it trains with dropout") == 1


def test_a_model_with_dropout_shares_where_it_is_not_trained(capsys: Any) -> None:
    rows = {name: RAGGED[name] for name in ("input_ids", "attention_mask")}
    model = shared(dropping_out("setting").eval())
    seen = tokens_computed(model)
    model(**rows, use_cache=False)
    assert seen[-1] < rows["input_ids"].numel()
    model.train()
    model(**rows, use_cache=False)
    assert seen[-1] == rows["input_ids"].numel()
    assert "it trains with dropout" in capsys.readouterr().out


def test_generation_is_left_alone() -> None:
    rows = {name: RAGGED[name][:, :11] for name in ("input_ids", "attention_mask")}
    model = build("Llama").eval()
    expected = model.generate(**rows, max_new_tokens=6, do_sample=False)
    add_fused_lm_head(model)
    shared(model)(**RAGGED, fused_lm_head=True)
    assert torch.equal(model.generate(**rows, max_new_tokens=6, do_sample=False), expected)


def test_scores_of_a_reward_model_are_the_same() -> None:
    rows = {name: RAGGED[name] for name in ("input_ids", "attention_mask")}

    def scores(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = model(**rows, use_cache=False).logits
        logits.square().sum().backward()
        return logits.detach(), {name: each.grad for name, each in model.named_parameters()}

    kind = "ForSequenceClassification"
    model = shared(build("Llama", kind, num_labels=1))
    seen = tokens_computed(model)
    ours, theirs = scores(model), scores(build("Llama", kind, num_labels=1))
    assert seen[-1] < rows["input_ids"].numel()
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=0)
    assert relative(ours[1], theirs[1]) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_replies_are_scored_the_same(name: str, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    prompts = [list(range(1, 20)), list(range(1, 15)) + [7] * 9]
    replies = [[9, 8, 7], [9, 8, 1, 2], [5], [6] * 12, []]
    dialogs = [Dialog(prompt + reply, len(prompt)) for prompt in prompts for reply in replies]

    def figures(prepare: Callable[[Any], Any]) -> tuple[list[list[float]], list[int]]:
        policy, other = (prepare(build(name, attention_bias=bias).eval()) for bias in (False, True))
        scorer = prepare(build("Llama", "ForSequenceClassification", num_labels=1).eval())
        seen = tokens_computed(policy)
        found = [
            log_likelihoods(policy, tokenizer, dialogs),
            divergences(policy, other, tokenizer, dialogs),
            reward_scores(scorer, tokenizer, dialogs),
        ]
        return found, seen

    (ours, seen), (theirs, usual) = figures(shared), figures(lambda model: model)
    assert max(seen[-2:]) < min(usual)
    for mine, plain in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(plain, abs=1e-4)


def test_layers_that_add_a_mask_of_their_own_are_left_alone(capsys: Any) -> None:
    """GPT-Neo's count their window along the row, whatever mask they get: that shows in wide rows alone."""
    small = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 61, "window_size": 64}
    config = transformers.GPTNeoConfig(**small, attention_types=[[["global", "local"], 1]])
    _scores_as_ever(transformers.GPTNeoForCausalLM(config).eval())
    assert "takes no mask of its own" in capsys.readouterr().out


def test_a_model_that_counts_padding_in_positions_is_left_alone(capsys: Any) -> None:
    """Whether or not its first batch has any."""
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small)).eval()
    torch.nn.init.normal_(model.transformer.wpe.weight)
    _scores_as_ever(model)
    assert "its states would be off by" in capsys.readouterr().out


def _scores_as_ever(model: Any) -> None:
    rows = batch([9, 9], [[5, 5], [5, 5]])
    rows = {name: rows[name] for name in ("input_ids", "attention_mask")}
    expected = model(**rows).logits
    torch.testing.assert_close(shared(model)(**rows, use_cache=False).logits, expected, rtol=0, atol=0)


def test_an_encoder_scores_as_ever(capsys: Any) -> None:
    """Its tokens see those after them."""
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**SIZES, **dropout, num_attention_heads=4, num_labels=1)
    model = transformers.BertForSequenceClassification(config).eval()
    rows = {name: RAGGED[name] for name in ("input_ids", "attention_mask")}
    expected = model(**rows).logits
    torch.testing.assert_close(shared(model)(**rows, use_cache=False).logits, expected)
    assert "its states would be off by" in capsys.readouterr().out


STEPS = 20
ASKED: dict[str, dict[str, Any]] = {
    "sft": {},
    "reward": {"center_rewards_coefficient": 0.01},
    "dpo": {"sft_weight": 0.1},
    "grpo": {
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 8,
        "beta": 0.1,
        "rewards": [{"kind": "regex", "pattern": "[a-z]"}],
    },
}

DATA: dict[str, tuple[Role, str]] = {
    "sft": ("sft", "sft"),
    "reward": ("preference", "preferences"),
    "dpo": ("preference", "preferences"),
    "grpo": ("prompts", "prompts"),
}


def make_stage(name: str, model: Path, rows: Dataset, lora: bool) -> TrainingInput:
    """A stage of twenty steps, without dropout."""
    inputs = {"sft": SFTInput, "reward": RewardInput, "dpo": DPOInput, "grpo": GRPOInput}
    kind: Any = inputs[name]
    asked = {"dataset": {"path": "rows"}, "learning_rate": 1e-3, "max_steps": STEPS, "batch_size": 8, **ASKED[name]}
    made: TrainingInput = kind(
        policy=Checkpoint(path=model, fingerprint="0" * 64, stage="sft", precision="fp32"),
        dataset=rows,
        hyperparameters=asked | {"lora": {"dropout": 0.0} if lora else None},
        seed=1,
        precision="fp32",
    )
    return made


KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma3_text": ALTERNATING | {"head_dim": 8},
}
"""Models by Transformers' names, and what else their configurations hold."""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "lora"), [("llama", False), *((kind, True) for kind in KINDS)])
@pytest.mark.parametrize("name", ASKED)
def test_stages_train_the_same_weights(
    name: str, kind: str, lora: bool, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[bool] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        packing = pack(*arguments, **options)
        if not options.get("always"):  # as in the check before the first batch
            packed.append(packing is not None)
        return packing

    monkeypatch.setattr("tasks.core.shared_prompts.pack", noted)
    role, file = DATA[name]
    source = tiny_data / f"{file}.jsonl"
    if name == "sft":
        told = [json.loads(line) for line in source.read_text().splitlines()]
        source = write_rows(tmp_path / "sft.jsonl", [row | {"prompt": f"The sum of {row['prompt']}"} for row in told])
    rows = frozen(tmp_path, DatasetSource(path=str(source)), role)
    model = build_tiny_model(tmp_path / "model", kind=kind, shape=KINDS[kind])
    stage = make_stage(name, model, rows, lora)
    trained = []
    for sharing in (True, False):
        plan = TrainingPlan(
            device="cpu", per_device_train_batch_size=4, gradient_accumulation_steps=2, share_prompts=sharing
        )
        getattr(entry, name)(stage, plan, tmp_path / str(sharing), lambda _: None)
        trained.append(load_file(tmp_path / str(sharing) / "model" / "model.safetensors"))
    ours, theirs = trained
    assert sum(packed) >= 2 * STEPS * (0.5 if name == "sft" else 1)  # demonstrations share their first words alone
    assert ours.keys() == theirs.keys()
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-4
    start = load_file(model / "model.safetensors")
    assert max(float((ours[key] - start[key]).abs().max()) for key in start if key in ours) > 1e-3


def _in_shards(rank: int, meeting_point: str, folder: str) -> None:
    """One process of two: the differences between both ways, on rows of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    rows = RAGGED if rank else batch([9, 8, 7, 9], [[9], [10], [9], [10]], seed=3)  # which has nothing to share
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    found = []
    for sharing in (True, False):
        model = build("Llama")
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        if sharing:
            shared(model)
        for layer in (*model.model.layers, model):
            torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
        figures, gradients = scores_and_gradients(model.train(), rows)
        found.append((figures, {name: each.full_tensor() for name, each in gradients.items()}))  # type: ignore[attr-defined]
    (ours, our_gradients), (theirs, their_gradients) = found
    torch.save((float((ours - theirs).abs().max()), relative(our_gradients, their_gradients)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_with_sharded_weights_share_what_each_has(tmp_path: Path) -> None:
    spawn(_in_shards, (str(tmp_path / "meeting"), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in range(2):
        of_scores, of_gradients = torch.load(tmp_path / f"{rank}.pt")
        assert of_scores < 1e-4
        assert of_gradients < 1e-5

"""Each stage's training core for real on a tiny model: what is trained, what is written, and what is refused."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from models.artifacts import Checkpoint, Dataset, Stage
from models.errors import StageError
from models.evaluation import EvaluationResult
from models.recipe import Quantization, Recipe
from models.rewards import Verifier
from models.sources import DatasetSource
from models.stages import BaseModelInput, DPOInput, EvaluationInput, GRPOInput, RewardInput, SFTInput, TrainingInput
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core import entry
from tasks.core.generation import ChatModel, chat_generate, generate, load_chat
from tasks.core.loading import load_policy, load_scorer, load_tokenizer, training_dataset
from tasks.core.lora import write_model
from tasks.core.plan import EvaluationPlan, TrainingPlan, TrainingResult
from tasks.core.scoring import Dialog, dialog, divergences, log_likelihoods
from tasks.core.sft import sft_arguments
from tasks.core.statistics import mean_reward, proportion
from tasks.core.trainer import Report, Workspace
from tasks.data.formats.reading import Role
from tasks.files import file_digest
from tests.prepared import frozen
from tests.tiny import PROMPTS, build_tiny_model, write_rows

slow = pytest.mark.slow
STAGES = ("sft", "reward", "dpo", "grpo")
MODES = ("lora", "full", "4-bit")
BATCH = 8


def silent(report: Any) -> None:
    """Listen to no report."""


def plan(micro: int = BATCH, checkpoint_every_steps: int = 25) -> TrainingPlan:
    return TrainingPlan(
        device="cpu",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=BATCH // micro,
        checkpoint_every_steps=checkpoint_every_steps,
    )


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Trained:
    """A stage that was trained, and what came of it."""

    stage: TrainingInput
    result: TrainingResult
    folder: Path

    @property
    def model(self) -> Path:
        """What a next stage starts from."""
        return self.folder / "model"

    @property
    def checkpoint(self) -> Checkpoint:
        """The model as the stage would hand it over."""
        name = self.stage.stage
        return Checkpoint(
            path=self.model, fingerprint="1" * 64, stage=name, precision="fp32", metrics=self.result.metrics
        )

    @property
    def history(self) -> list[dict[str, float]]:
        """The trainer's log."""
        return [json.loads(line) for line in (self.model / "history.jsonl").read_text().splitlines()]


@dataclass
class Laboratory:
    """Trains stages of the tiny recipe, each once."""

    folder: Path
    recipe: Recipe
    base: Checkpoint
    done: dict[tuple[str, str], Trained] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe, folder: Path) -> "Laboratory":
        """A laboratory with the recipe's base model."""
        stage = BaseModelInput(source=recipe.base_model, origin={"files": "tiny"}, precision="fp32")
        entry.convert(stage, recipe.base_model.name, folder / "base", silent)
        return cls(
            folder, recipe, Checkpoint(path=folder / "base", fingerprint="0" * 64, stage="base", precision="fp32")
        )

    def trained(self, name: str, mode: str = "lora") -> Trained:
        """The stage, trained from its parent as it is with LoRA."""
        if (name, mode) not in self.done:
            self.done[name, mode] = self.train(self.stage(name, mode), self.folder / f"{name}-{mode}")
        return self.done[name, mode]

    def train(self, stage: TrainingInput, folder: Path, plan: TrainingPlan = plan()) -> Trained:  # noqa: B008
        """Train in this process."""
        return Trained(stage, getattr(entry, stage.stage)(stage, plan, folder, silent), folder)

    def rows(self, source: DatasetSource | None, role: Role) -> Dataset:
        """A snapshot of a source."""
        assert source
        return frozen(self.folder / "datasets", source, role)

    def stage(self, name: str, mode: str = "lora", **changes: Any) -> TrainingInput:
        """The input of a stage, with other hyperparameters where wanted."""
        asked = getattr(self.recipe, name).model_copy(update=changes | ({"lora": None} if mode == "full" else {}))
        quantization = Quantization() if mode == "4-bit" else None
        common: dict[str, Any] = {"seed": 1, "precision": "fp32", "hyperparameters": asked}
        common["quantization"] = quantization
        if name == "sft":
            return SFTInput(policy=self.base, dataset=self.rows(asked.dataset, "sft"), **common)
        if name == "grpo":
            policy, scorer = self.trained("dpo").checkpoint, self.trained("reward").checkpoint
            rows = self.rows(asked.dataset, "prompts")
            accuracy = self.evaluate(scorer).preference_accuracy
            return GRPOInput(policy=policy, reward_model=scorer, reward_accuracy=accuracy, dataset=rows, **common)
        common |= {"policy": self.trained("sft").checkpoint, "dataset": self.rows(asked.dataset, "preference")}
        if name == "dpo":
            return DPOInput(**common)
        return RewardInput(**common)

    def evaluate(
        self,
        checkpoint: Checkpoint,
        prompts: Dataset | None = None,
        parent: Checkpoint | None = None,
        reward_model: Checkpoint | None = None,
        plan: EvaluationPlan = EvaluationPlan(device="cpu"),  # noqa: B008
        **changes: Any,
    ) -> EvaluationResult:
        """Measure as the recipe says, with changes."""
        spec = self.recipe.evaluation.model_copy(update=changes)
        pairs = self.rows(spec.preferences, "preference") if spec.preferences else None
        prompts = prompts or self.rows(spec.prompts, "prompts")
        stage = EvaluationInput(
            checkpoint=checkpoint,
            spec=spec,
            prompts=prompts,
            preferences=pairs,
            parent=parent,
            reward_model=reward_model,
            seed=1,
        )
        return entry.evaluate(stage, plan, self.folder / "evaluation", silent)


@pytest.fixture(scope="module")
def laboratory(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory.of(recipe, tmp_path_factory.mktemp("core"))


@pytest.fixture(params=[(name, mode) for name in STAGES for mode in MODES], ids="-".join)
def trained(laboratory: Laboratory, request: pytest.FixtureRequest) -> Trained:
    """Each stage with LoRA, as full fine-tuning, and with LoRA on 4-bit weights."""
    return laboratory.trained(*request.param)


def load(trained: Trained, path: Path) -> Any:
    loader = AutoModelForSequenceClassification if trained.stage.stage == "reward" else AutoModelForCausalLM
    return loader.from_pretrained(path, **({"num_labels": 1} if trained.stage.stage == "reward" else {})).eval()


def weights(path: Path, trained: Trained) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load(trained, path).state_dict().items() if name != "lm_head.weight"}


@torch.no_grad()
def outputs(model: Any, tokenizer: Any, text: str = "3 + 5") -> torch.Tensor:
    model.config.pad_token_id = tokenizer.pad_token_id
    logits: torch.Tensor = model.eval()(**tokenizer(text, return_tensors="pt")).logits
    return logits


@slow
def test_all_that_is_trainable_has_moved(trained: Trained) -> None:
    before, after = weights(trained.stage.policy.path, trained), weights(trained.model, trained)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    adapted = tuple(f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "score"))
    adapted += tuple(f"{name}_proj.weight" for name in ("gate", "up", "down")) if trained.stage.quantization else ()
    full = trained.stage.hyperparameters.lora is None
    assert moved == {name for name in after if full or name.endswith(adapted)}
    assert all(torch.isfinite(value).all() for value in after.values())


@slow
def test_loss_is_finite_at_every_step(trained: Trained) -> None:
    losses = [entry["loss"] for entry in trained.history if "loss" in entry]
    assert len(losses) == trained.stage.hyperparameters.max_steps
    assert all(math.isfinite(loss) for loss in losses)


@slow
def test_written_folder_chats_by_itself(trained: Trained) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    base = AutoTokenizer.from_pretrained(trained.stage.policy.path)
    assert tokenizer.chat_template == base.chat_template
    assert (tokenizer.pad_token, tokenizer.eos_token) == (base.pad_token, base.eos_token)
    assert torch.isfinite(outputs(load(trained, trained.model), tokenizer)).all()
    assert sorted(path.suffix for path in trained.model.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}) == []


@slow
def test_written_model_is_the_trained_one(trained: Trained) -> None:
    assert trained.result.metrics["merge_relative_error"] < 1e-5
    if trained.stage.hyperparameters.lora:
        loader = load_scorer if trained.stage.stage == "reward" else load_policy
        parent = loader(trained.stage.policy.path, torch.float32, "cpu", trained.stage.quantization)
        adapted = PeftModel.from_pretrained(parent, trained.model / "adapter")
        tokenizer = load_tokenizer(trained.model)
        merged = outputs(load(trained, trained.model), tokenizer)
        torch.testing.assert_close(outputs(adapted, tokenizer), merged, rtol=1e-4, atol=1e-5)


@slow
def test_adapter_lies_beside_the_merged_model_as_asked(trained: Trained) -> None:
    adapter = trained.model / "adapter" / "adapter_config.json"
    assert adapter.exists() == (trained.stage.hyperparameters.lora is not None)
    if adapter.exists():
        config = json.loads(adapter.read_text())
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 16, 0.0)
        assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
        assert config["task_type"] == ("SEQ_CLS" if trained.stage.stage == "reward" else "CAUSAL_LM")


@slow
def test_only_the_completion_and_its_end_carry_loss(laboratory: Laboratory, tmp_path: Path) -> None:
    stage = laboratory.stage("sft")
    assert isinstance(stage, SFTInput)
    tokenizer = load_tokenizer(stage.policy.path)
    trainer = SFTTrainer(
        model=load_policy(stage.policy.path, torch.float32),
        args=SFTConfig(**sft_arguments(stage, plan(), tmp_path)),
        train_dataset=training_dataset(stage.dataset, ("prompt", "completion")),
        processing_class=tokenizer,
    )
    answers = {
        row["completion"] for row in map(json.loads, Path(laboratory.recipe.sft.dataset.path).read_text().splitlines())
    }
    for batch in trainer.get_train_dataloader():
        for tokens, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained = labels != -100
            assert torch.equal(labels[trained], tokens[trained])
            assert tokenizer.eos_token_id in labels[trained]
            assert tokenizer.decode(labels[trained]).partition(tokenizer.eos_token)[0] in answers
            untrained = tokenizer.decode(tokens[~trained], skip_special_tokens=False)
            assert untrained.rstrip(tokenizer.pad_token).endswith("<|im_start|>assistant\n")


@slow
@pytest.mark.parametrize("mode", MODES)
def test_dpo_starts_at_its_reference(laboratory: Laboratory, mode: str) -> None:
    assert laboratory.trained("dpo", mode).history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


@slow
@pytest.mark.parametrize("mode", MODES)
def test_reward_head_is_trained_and_published(laboratory: Laboratory, mode: str, tmp_path: Path) -> None:
    trained = laboratory.trained("reward", mode)
    still = laboratory.train(laboratory.stage("reward", mode, learning_rate=1e-12, max_steps=1), tmp_path)
    set_seed(trained.stage.seed)
    initial = load_scorer(trained.stage.policy.path, torch.float32).score.weight
    published = [load_scorer(run.model, torch.float32).score.weight for run in (still, trained)]
    # TRL rounds what trains on 4-bit weights to bfloat16 before it starts.
    torch.testing.assert_close(published[0], initial, rtol=0, atol=1e-3 if mode == "4-bit" else 1e-6)
    assert (published[1] - initial).abs().min() > 1e-4


@slow
@pytest.mark.parametrize("mode", MODES)
def test_published_reward_model_ranks_heldout_pairs_better_than_chance(laboratory: Laboratory, mode: str) -> None:
    accuracy = laboratory.evaluate(laboratory.trained("reward", mode).checkpoint).preference_accuracy
    assert accuracy
    assert accuracy.low > 0.5


@slow
def test_grpo_leaves_its_reward_model_alone(laboratory: Laboratory, tmp_path: Path) -> None:
    scorer = laboratory.trained("reward").model
    before = digests(scorer)
    grpo = laboratory.train(laboratory.stage("grpo"), tmp_path)
    assert digests(scorer) == before
    assert file_digest(grpo.model / "model.safetensors") != file_digest(grpo.stage.policy.path / "model.safetensors")


@slow
@pytest.mark.parametrize("right", [0, 8, 10])
def test_grpo_refuses_a_reward_model_at_chance(laboratory: Laboratory, tmp_path: Path, right: int) -> None:
    accuracy = proportion([number < right for number in range(16)])
    with pytest.raises(StageError, match="no better than chance"):
        laboratory.train(laboratory.stage("grpo").model_copy(update={"reward_accuracy": accuracy}), tmp_path)


@slow
@pytest.mark.parametrize("missing", ["reward_model", "reward_accuracy"])
def test_grpo_refuses_a_reward_model_that_nobody_judged(laboratory: Laboratory, tmp_path: Path, missing: str) -> None:
    with pytest.raises(StageError, match="none was trained and judged"):
        laboratory.train(laboratory.stage("grpo").model_copy(update={missing: None}), tmp_path)


@slow
def test_a_model_that_was_merged_into_another_parent_is_refused(laboratory: Laboratory, tmp_path: Path) -> None:
    stage = laboratory.stage("sft")
    other = load_policy(build_tiny_model(tmp_path / "other", seed=7), torch.float32)
    adapted = get_peft_model(other, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(StageError, match=r"differs from the trained one.*nothing was published"):
        write_model(adapted, load_tokenizer(stage.policy.path), stage, Workspace(tmp_path), "CAUSAL_LM")


def dying(
    key: str,
    moment: object,
    train: Callable[..., TrainingResult],
    stage: TrainingInput,
    plan: TrainingPlan,
    folder: Path,
    report: Report,
) -> TrainingResult:
    """Train, and kill this process by SIGKILL when a report's `key` says that the moment has come."""

    def pass_on(said: dict[str, Any]) -> None:
        report(said)
        if said.get(key) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return train(stage, plan, folder, pass_on)


def in_child(function: Callable[..., TrainingResult], *arguments: Any) -> TrainingResult:
    result = run_in_child(function, arguments, ChildOptions(threads=1), silent, silent)
    assert isinstance(result, TrainingResult)
    return result


@slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_goes_on_and_ends_with_the_same_weights(
    laboratory: Laboratory, tmp_path: Path, name: str, mode: str
) -> None:
    asked = getattr(laboratory.recipe, name)
    rows, steps, steps_of_epoch = (6, 12, 6) if name == "grpo" else (32, 8, 4)
    changes: dict[str, Any] = {"max_steps": steps, "lr_scheduler_type": "cosine"}
    changes["dataset"] = asked.dataset.model_copy(update={"max_rows": rows})
    changes |= {"num_iterations": 2, "beta": 0.1} if name == "grpo" else {}
    stage = laboratory.stage(name, mode, **changes)
    if mode == "lora":
        dropout = asked.lora.model_copy(update={"dropout": 0.2})
        asked = stage.hyperparameters.model_copy(update={"lora": dropout})
        stage = stage.model_copy(update={"hyperparameters": asked})
    often = plan(micro=BATCH // 2, checkpoint_every_steps=3)
    door: Callable[..., TrainingResult] = getattr(entry, name)
    whole = in_child(door, stage, often, tmp_path / "whole")
    assert whole.resumed_from_step == 0
    # GRPO's steps share completions in pairs, between which there can be no checkpoint.
    first, second = (4, 8) if name == "grpo" else (3, 6)
    assert first < steps_of_epoch < second
    for key, moment, saved in (("step", 5, first), ("step", steps - 1, second), ("phase", "merging", steps)):
        folder = tmp_path / f"killed-{moment}"
        with pytest.raises(StageError, match="SIGKILL"):
            in_child(partial(dying, key, moment, door), stage, often, folder)
        assert in_child(door, stage, often, folder).resumed_from_step == saved
        for file in ("model.safetensors", *(["adapter/adapter_model.safetensors"] if mode == "lora" else [])):
            made = [file_digest(tmp_path / run / "model" / file) for run in ("whole", folder.name)]
            assert made[0] == made[1], (moment, file)


@slow
@pytest.mark.parametrize("name", STAGES)
def test_half_the_micro_batch_gives_the_same_weights(laboratory: Laboratory, tmp_path: Path, name: str) -> None:
    whole = laboratory.trained(name)
    halved = laboratory.train(whole.stage, tmp_path, plan(micro=BATCH // 2))
    before, after = weights(whole.model, whole), weights(halved.model, whole)
    for key, value in before.items():
        # GRPO normalises tiny differences of reward, so that rounding shows most there.
        torch.testing.assert_close(after[key], value, rtol=0, atol=2e-3 if name == "grpo" else 1e-4)


@pytest.fixture(scope="module")
def taught(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model that has learned to answer with a number and to stop."""
    stage = laboratory.stage("sft", "full", max_steps=60)
    return laboratory.train(stage, tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def chat(taught: Trained) -> ChatModel:
    return load_chat(taught.model, dtype=torch.float32)


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@slow
def test_a_reply_ends_with_the_turn_and_has_no_special_tokens(chat: ChatModel) -> None:
    reply = chat_generate(chat, conversation("3 + 5"), max_new_tokens=20)
    assert reply.strip().isdigit()
    assert not any(token in reply for token in chat.tokenizer.all_special_tokens)


@slow
def test_replies_are_the_same_alone_and_in_a_batch(chat: ChatModel) -> None:
    texts = [*PROMPTS[:6], "1", "How much is 3 + 5, and why? Say it at length.", "2 + 2 + 2 + 2 + 2"]
    together = generate(chat, [conversation(text) for text in texts], max_new_tokens=12)
    assert [replies[0].text for replies in together] == [
        chat_generate(chat, conversation(text), max_new_tokens=12) for text in texts
    ]
    assert len({replies[0].text for replies in together}) > 1


@slow
def test_replies_are_counted_and_sampled_as_asked(chat: ChatModel) -> None:
    done: list[int] = []
    conversations = [conversation(text) for text in PROMPTS[:5]]
    drawn = generate(chat, conversations, max_new_tokens=4, temperature=5.0, num_replies=3, on_progress=done.append)
    assert [len(replies) for replies in drawn] == [3] * 5
    assert len({reply for replies in drawn for reply in replies}) > 5
    assert done[-1] == 5
    assert generate(chat, [], max_new_tokens=4) == []


@slow
def test_the_likelier_answer_is_found_as_one_row_at_a_time_would(chat: ChatModel, laboratory: Laboratory) -> None:
    texts = [("3", "14"), ("12", "The sum is 7"), ("9", "8"), ("a", "b"), ("16", "15")]
    pairs = [
        {
            "prompt": conversation(prompt),
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt in PROMPTS[:4]
        for one, other in texts
        for chosen, rejected in ((one, other), (other, one))
    ]

    @torch.no_grad()
    def logp(pair: dict[str, Any], side: str) -> float:
        text = chat.tokenizer.apply_chat_template(pair["prompt"], tokenize=False, add_generation_prompt=True)
        start = len(chat.tokenizer.encode(text, add_special_tokens=False))
        text += pair[side][0]["content"] + "<|im_end|>\n"
        tokens = torch.tensor(chat.tokenizer.encode(text, add_special_tokens=False))
        logps = chat.model(tokens[None]).logits[0].log_softmax(-1)
        return sum(float(logps[at - 1, tokens[at]]) for at in range(start, len(tokens)))

    naive = [logp(pair, side) for pair in pairs for side in ("chosen", "rejected")]
    dialogs = [dialog(chat.tokenizer, pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")]
    assert log_likelihoods(chat.model, chat.tokenizer, dialogs) == pytest.approx(naive, abs=1e-3)


@slow
def test_a_policy_is_measured_against_its_parent_and_by_the_reward_model(
    laboratory: Laboratory, taught: Trained
) -> None:
    scorer = laboratory.trained("reward").checkpoint
    found = laboratory.evaluate(taught.checkpoint, parent=laboratory.base, reward_model=scorer)
    assert found.kl
    assert found.kl.value > 0.1
    assert found.reward_score
    assert found.reward_score.value == pytest.approx(
        sum(one.reward_score or 0 for one in found.samples) / found.reward_score.n
    )
    assert found.implicit_accuracy
    gained = [pair.margin > (pair.parent_margin or 0) for pair in found.pairs]
    assert found.implicit_accuracy.value == sum(gained) / len(gained)
    before = laboratory.evaluate(laboratory.base)
    assert [pair.parent_margin for pair in found.pairs] == pytest.approx(
        [pair.margin for pair in before.pairs], abs=1e-3
    )
    assert before.loss
    assert found.loss
    assert found.loss.value < before.loss.value / 2
    assert found.perplexity
    assert found.perplexity.value == pytest.approx(math.exp(found.loss.value))


@slow
def test_shared_prompts_change_no_figure(laboratory: Laboratory, taught: Trained) -> None:
    scorer = laboratory.trained("reward").checkpoint
    ours, plain = (
        laboratory.evaluate(
            taught.checkpoint,
            parent=laboratory.base,
            reward_model=scorer,
            plan=EvaluationPlan(device="cpu", share_prompts=sharing),
        ).estimates()
        for sharing in (True, False)
    )
    assert {"kl", "reward_score", "loss", "preference_accuracy"} <= ours.keys()
    assert {name: each.value for name, each in ours.items()} == pytest.approx(
        {name: each.value for name, each in plain.items()}, abs=1e-4
    )


@slow
def test_a_policy_has_not_moved_from_itself(laboratory: Laboratory, taught: Trained) -> None:
    found = laboratory.evaluate(taught.checkpoint, parent=taught.checkpoint)
    assert found.kl
    assert found.kl.value == pytest.approx(0, abs=1e-6)
    assert found.implicit_accuracy
    assert found.implicit_accuracy.value == 0


@slow
def test_divergence_is_that_of_the_next_token(laboratory: Laboratory, chat: ChatModel) -> None:
    base = load_policy(laboratory.base.path, torch.float32).eval()
    dialogs = [dialog(chat.tokenizer, conversation(text), conversation("8")) for text in PROMPTS[:3]]

    @torch.no_grad()
    def naive(one: Dialog) -> float:
        ours, theirs = (model(torch.tensor(one.tokens)[None]).logits[0].log_softmax(-1) for model in (chat.model, base))
        return float(
            sum(
                (ours[at - 1].exp() * (ours[at - 1] - theirs[at - 1])).sum() for at in range(one.start, len(one.tokens))
            )
        )

    assert divergences(chat.model, base, chat.tokenizer, dialogs) == pytest.approx(
        [naive(one) for one in dialogs], rel=1e-3
    )


@slow
def test_length_repetition_and_endless_replies_are_counted(laboratory: Laboratory, taught: Trained) -> None:
    ending, endless = (laboratory.evaluate(model, max_new_tokens=12) for model in (taught.checkpoint, laboratory.base))
    for found in (ending, endless):
        assert found.length
        assert found.unstopped
        assert found.length.value == sum(one.tokens for one in found.samples) / len(found.samples)
        assert found.unstopped.value == sum(not one.stopped for one in found.samples) / len(found.samples)
        assert all(one.tokens == 12 for one in found.samples if not one.stopped)
    assert ending.unstopped
    assert ending.unstopped.value == 0
    assert all(one.tokens == len(one.reply) for one in ending.samples)  # a token a byte
    assert endless.unstopped
    assert endless.unstopped.value > 0


@slow
def test_every_field_of_an_evaluation_has_an_effect(laboratory: Laboratory, taught: Trained, tmp_path: Path) -> None:
    model = taught.checkpoint
    plain = laboratory.evaluate(model)
    assert plain.exact_match
    assert plain.sampled_reward
    assert laboratory.evaluate(model, num_samples=0).sampled_reward is None
    assert laboratory.evaluate(model, preferences=None).preference_accuracy is None
    short = laboratory.evaluate(model, max_new_tokens=1)
    assert max(len(sample.reply) for sample in short.samples) < max(len(sample.reply) for sample in plain.samples)
    # The same number written another way is wrong for one verifier only.
    rows = [{"prompt": sample.prompt, "answer": f"{sample.reply.strip()}.0"} for sample in plain.samples]
    source = DatasetSource(path=str(write_rows(tmp_path / "rows.jsonl", rows)))
    decimal = laboratory.rows(source, "prompts")
    by_verifier = [
        laboratory.evaluate(model, decimal, verifier=Verifier.model_validate(kind)).exact_match
        for kind in ("exact_answer", "exact_number", "math_verify")
    ]
    assert [round(figure.value) for figure in by_verifier if figure] == [0, 1, 1]


@slow
@pytest.mark.parametrize("name", ["base", *STAGES])
def test_each_model_is_measured_on_what_applies_to_it(laboratory: Laboratory, name: Stage) -> None:
    checkpoint = laboratory.base if name == "base" else laboratory.trained(name).checkpoint
    result = laboratory.evaluate(checkpoint)
    assert (result.exact_match is None) == (name == "reward")
    assert (result.sampled_reward is None) == (name == "reward")
    assert result.preference_accuracy
    assert result.preference_accuracy.n == 16
    written = (laboratory.folder / "evaluation" / "result.json").read_bytes()
    assert EvaluationResult(checkpoint=result.checkpoint, **json.loads(written)) == result


@slow
def test_a_checkpoint_is_self_contained(laboratory: Laboratory, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(laboratory.trained("dpo").model, tmp_path / "moved"))
    assert str(laboratory.folder) not in (moved / "config.json").read_text()
    assert isinstance(chat_generate(load_chat(moved), conversation("3 + 5"), max_new_tokens=2), str)


# Values of Wilson's interval: R, binom::binom.confint(k, n, methods = "wilson").
@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (41, 100, 0.3187, 0.5080),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_shares_have_wilsons_interval(right: int, n: int, low: float, high: float) -> None:
    figure = proportion([True] * right + [False] * (n - right))
    assert (figure.value, figure.n) == (right / n, n)
    assert [figure.low, figure.high] == pytest.approx([low, high], abs=1e-4)


@pytest.mark.parametrize("reward", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_equal_rewards_leave_room_for_doubt(reward: float, n: int) -> None:
    figure = mean_reward([reward] * n)
    assert figure.value == pytest.approx(reward)
    assert 0 <= figure.low <= reward <= figure.high <= 1
    assert figure.high - figure.low > 1 / (n + 4)


def test_unequal_rewards_have_the_normal_interval() -> None:
    figure = mean_reward([0.0, 0.5, 1.0, 0.5] * 25)
    assert figure.value == 0.5
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * 0.3553 / 10, abs=1e-3)
    assert mean_reward([0.0, 1.0]).low == 0.0


@pytest.mark.parametrize("estimate", [proportion, mean_reward])
def test_no_figures_without_rows(estimate: Callable[[list[Any]], Any]) -> None:
    with pytest.raises(ValueError, match="data point"):
        estimate([])

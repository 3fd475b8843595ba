"""The contracts: what a fingerprint depends on, what is refused and with which remedy, and what the form shows."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import models.recipe
from models.artifacts import Checkpoint, Dataset, Stage
from models.contract import Contract
from models.evaluation import Estimate
from models.fingerprint import canonical_json, fingerprint
from models.measurement import Evaluation, EvaluationSet, Harness, Judge
from models.recipe import DPO, GRPO, SFT, LoRA, Quantization, Recipe, RewardModel, Training
from models.rewards import Reward, Verifier, VerifierKind
from models.sources import BaseModelSource, DatasetSource
from models.stages import (
    BaseModelInput,
    DPOInput,
    EvaluationInput,
    GRPOInput,
    HeldOutSet,
    RewardInput,
    SFTInput,
    TrainingInput,
)
from settings.settings import Settings
from tasks.execution import plan_execution
from tests.tiny import REWARDS, variations

ROOT = Path(__file__).resolve().parent.parent
ROWS = DatasetSource(path="rows.jsonl")
DATASET = Dataset(path=Path("/home/datasets/d"), fingerprint="d" * 64, rows=9, source="rows.jsonl")
OTHER_ROWS = Dataset(path=Path("/home/datasets/e"), fingerprint="e" * 64, rows=9, source="rows.jsonl")


def checkpoint(stage: Stage, digit: str) -> Checkpoint:
    return Checkpoint(path=Path("/home") / stage, fingerprint=digit * 64, stage=stage, precision="fp32")


COMMON: dict[str, Any] = {"policy": checkpoint("sft", "a"), "dataset": DATASET, "seed": 1, "precision": "fp32"}
EVALUATION = Evaluation(
    prompts=ROWS,
    preferences=ROWS,
    sets=(EvaluationSet(name="further", prompts=ROWS, preferences=ROWS, verifier=Verifier()),),
    judge=Judge(model="judge"),
    harness=Harness(tasks=("arc_easy",)),
)
INPUTS: dict[str, TrainingInput] = {
    "sft": SFTInput(hyperparameters=SFT(dataset=ROWS), **COMMON),
    "reward": RewardInput(hyperparameters=RewardModel(dataset=ROWS), **COMMON),
    # Only with `robust` does smoothing have an effect.
    "dpo": DPOInput(hyperparameters=DPO(dataset=ROWS, loss_type="robust", label_smoothing=0.1), **COMMON),
    "grpo": GRPOInput(hyperparameters=GRPO(dataset=ROWS), **COMMON),
}
EVALUATED = EvaluationInput(
    checkpoint=checkpoint("dpo", "b"), spec=EVALUATION, prompts=DATASET, preferences=None, seed=1
)
RECIPE = Recipe(
    sft=SFT(dataset=ROWS),
    reward=RewardModel(dataset=ROWS),
    dpo=DPO(dataset=ROWS),
    grpo=GRPO(dataset=ROWS),
    evaluation=EVALUATION,
)


HYPERPARAMETER_CHANGES = [
    pytest.param(asked, changed, id=f"{stage}.{path}")
    for stage, asked in INPUTS.items()
    for path, changed in variations(asked.hyperparameters)
]


def grpo_with(kind: str) -> GRPOInput:
    """GRPO with one reward of this kind."""
    reward = Reward.model_validate({"kind": kind, **REWARDS[kind]})
    return GRPOInput(hyperparameters=GRPO(dataset=ROWS, rewards=(reward,)), **COMMON)


REWARD_CHANGES = [
    pytest.param(asked, changed, id=f"{kind}.{path}")
    for kind, asked in ((kind, grpo_with(kind)) for kind in REWARDS)
    for path, changed in variations(asked.hyperparameters)
    if path.startswith("rewards.")
]


NO_WEIGHT_CHANGES = ("name", "model", "revision", "timeout_seconds", "memory_limit_bytes", "failures_allowed")
"""Options of a reward that change no weight, or that the parents tell: which reward model it is."""


@pytest.mark.parametrize(("asked", "changed"), HYPERPARAMETER_CHANGES + REWARD_CHANGES)
def test_every_hyperparameter_is_in_the_fingerprint(
    asked: TrainingInput, changed: Training, request: pytest.FixtureRequest
) -> None:
    path = request.node.callspec.id.partition(".")[2]
    is_in = path.removeprefix("rewards.0.") not in NO_WEIGHT_CHANGES
    assert (asked.model_copy(update={"hyperparameters": changed}).fingerprint != asked.fingerprint) is is_in


@pytest.mark.parametrize("stage", INPUTS)
def test_hyperparameters_are_all_varied(stage: str) -> None:
    asked = INPUTS[stage].hyperparameters
    varied = {path.split(".")[0] for path, _ in variations(asked)}
    assert varied == set(type(asked).model_fields) - {"dataset"}
    assert {path for path, _ in variations(asked) if path.startswith("lora.")} == {
        f"lora.{name}" for name in LoRA.model_fields
    }


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"precision": "bf16"},
        {"policy": checkpoint("sft", "c")},
        {"dataset": OTHER_ROWS},
        {"versions": {"trl": "1.16.0"}},
        {"quantization": Quantization()},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("stage", INPUTS)
def test_what_training_starts_from_is_in_the_fingerprint(stage: str, change: dict[str, Any]) -> None:
    assert INPUTS[stage].model_copy(update=change).fingerprint != INPUTS[stage].fingerprint


@pytest.mark.parametrize("stage", INPUTS)
def test_version_of_a_stages_code_is_in_the_fingerprint(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = INPUTS[stage].fingerprint
    monkeypatch.setattr(type(INPUTS[stage]), "code_version", 99)
    assert INPUTS[stage].fingerprint != before


def test_stages_with_equal_hyperparameters_differ() -> None:
    assert len({asked.fingerprint for asked in INPUTS.values()}) == len(INPUTS)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": DATASET.model_copy(update={"path": Path("/elsewhere"), "source": "other.csv"})},
        {"policy": checkpoint("sft", "a").model_copy(update={"path": Path("/elsewhere"), "metrics": {"loss": 1.0}})},
        {"system_prompt": "Be brief."},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("stage", INPUTS)
def test_where_things_are_is_not_in_the_fingerprint(stage: str, change: dict[str, Any]) -> None:
    assert INPUTS[stage].model_copy(update=change).fingerprint == INPUTS[stage].fingerprint


@pytest.mark.parametrize("stage", INPUTS)
@pytest.mark.parametrize("field", [name for name in DatasetSource.model_fields if name != "max_rows"])
def test_how_the_dataset_is_named_is_not_in_the_fingerprint(stage: str, field: str) -> None:
    asked = INPUTS[stage].hyperparameters
    renamed = asked.model_copy(update={"dataset": asked.dataset.model_copy(update={field: "other"})})
    assert INPUTS[stage].model_copy(update={"hyperparameters": renamed}).fingerprint == INPUTS[stage].fingerprint


def test_how_well_a_reward_model_ranks_does_not_change_what_it_teaches() -> None:
    accuracy = Estimate(value=0.9, low=0.8, high=1.0, n=9)
    assert INPUTS["grpo"].model_copy(update={"reward_accuracy": accuracy}).fingerprint == INPUTS["grpo"].fingerprint


def test_a_reward_model_counts_where_the_rewards_ask_for_it() -> None:
    scorer = {"reward_model": checkpoint("reward", "f")}
    unused = INPUTS["grpo"]
    rewards = (Reward(kind="reward_model"),)
    used = GRPOInput(hyperparameters=GRPO(dataset=ROWS, rewards=rewards), **COMMON, **scorer)
    assert unused.model_copy(update=scorer).fingerprint == unused.fingerprint
    assert used.model_copy(update={"reward_model": checkpoint("reward", "0")}).fingerprint != used.fingerprint


SETTINGS: dict[str, Any] = {
    "remote": "s3://bucket/prefix",
    "cache_bytes": 10**9,
    "remote_lease_seconds": 60.0,
    "judge_url": "http://localhost:8000/v1",
    "judge_api_key": "secret",
    "home": Path("/elsewhere"),
    "device": "cpu",
    "threads": 1,
    "parallel_stages": 1,
    "per_device_train_batch_size": 1,
    "checkpoint_every_steps": 1,
    "checkpoint_every_minutes": 1.0,
    "checkpoints_kept": 3,
    "processes": 2,
    "sharding": "fsdp2",
    "machines": 2,
    "machine_rank": 1,
    "main_address": "10.0.0.1:29500",
    "join_seconds": 5.0,
    "memory_limit_bytes": 2**32,
    "gradient_checkpointing": True,
    "share_prompts": False,
    "stage_timeout_seconds": 5.0,
    "promoted_by": "somebody",
    "reserved_disk_bytes": 0,
    "report_to": ("tensorboard",),
    "notify": ("slack-webhook/team",),
    "queue": Path("elsewhere"),
    "vllm": "colocate",  # that it generates is in GRPO's, see test_vllm.py
    "vllm_server_url": "http://localhost:8000",
    "vllm_gpu_memory_utilization": 0.5,
    "vllm_tensor_parallel_size": 2,
    "vllm_max_model_length": 1024,
    "vllm_sleep": True,
}


@pytest.mark.parametrize("field", sorted(set(Settings.model_fields) - {"strict_versions"}))
def test_settings_are_not_in_the_fingerprint(field: str) -> None:
    recipe = RECIPE.model_copy(update={"precision": "fp32"})

    def made(settings: Settings) -> str:
        shared = plan_execution(recipe, settings).shared_inputs(recipe)
        return INPUTS["dpo"].model_copy(update=shared).fingerprint

    # A setting that is missing from the table above fails here: say what it does to a fingerprint.
    assert made(Settings(**{field: SETTINGS[field]})) == made(Settings())


def test_strict_versions_are_in_the_fingerprint() -> None:
    shared = [
        plan_execution(RECIPE, Settings(strict_versions=strict)).shared_inputs(RECIPE) for strict in (True, False)
    ]
    assert len({INPUTS["dpo"].model_copy(update=fields).fingerprint for fields in shared}) == 2


def test_every_kind_of_reward_and_each_of_its_options_is_varied() -> None:
    assert set(REWARDS) == set(get_args(Reward.model_fields["kind"].annotation))
    varied = {path.split(".")[2] for asked in map(grpo_with, REWARDS) for path, _ in variations(asked.hyperparameters)
              if path.startswith("rewards.")}  # fmt: skip
    assert varied == set(Reward.model_fields)


ELSEWHERE = ("prompts", "preferences", "sets", "judge")
"""Parts of an evaluation that are told by what they hold, or that decide nothing of its figures."""
VERIFIERS = [Verifier.model_validate({"kind": kind, **REWARDS[kind]}) for kind in get_args(VerifierKind)]
EVALUATION_CHANGES = [
    pytest.param(asked, changed, id=f"{asked.verifier.kind}.{path}")
    for asked in [EVALUATION.model_copy(update={"verifier": verifier}) for verifier in VERIFIERS]
    for path, changed in variations(asked)
    if path.split(".")[0] not in ELSEWHERE and path != "harness.include_path"
]


@pytest.mark.parametrize(("asked", "changed"), EVALUATION_CHANGES)
def test_every_field_of_an_evaluation_is_in_its_fingerprint(asked: Evaluation, changed: Evaluation) -> None:
    before = EVALUATED.model_copy(update={"spec": asked})
    assert before.model_copy(update={"spec": changed}).fingerprint != before.fingerprint


def test_the_harnesss_own_task_files_are_in_the_fingerprint() -> None:
    asked = EVALUATED.model_copy(update={"spec": EVALUATION})
    assert asked.model_copy(update={"harness_sha256": "f" * 64}).fingerprint != asked.fingerprint


@pytest.mark.parametrize("verifier", VERIFIERS[1:], ids=lambda verifier: verifier.kind)
def test_the_verifier_of_a_further_set_is_in_the_fingerprint(verifier: Verifier) -> None:
    sets = [HeldOutSet(name="further", verifier=rule, prompts=DATASET) for rule in (VERIFIERS[0], verifier)]
    made = {EVALUATED.model_copy(update={"sets": (one,)}).fingerprint for one in sets}
    assert len(made) == 2


def test_all_of_an_evaluation_is_varied() -> None:
    varied = {path.split(".")[0] for path, _ in variations(EVALUATION)}
    assert varied == set(Evaluation.model_fields)


@pytest.mark.parametrize(
    "change",
    [{"checkpoint": checkpoint("dpo", "c")}, {"prompts": OTHER_ROWS}, {"preferences": DATASET}, {"seed": 2}],
    ids=lambda change: next(iter(change)),
)
def test_what_is_evaluated_is_in_its_fingerprint(change: dict[str, Any]) -> None:
    assert EVALUATED.model_copy(update=change).fingerprint != EVALUATED.fingerprint


def test_a_base_model_is_known_by_content_tokens_and_precision() -> None:
    asked = BaseModelInput(source=BaseModelSource(), origin={"sha256": "a"}, precision="fp32")
    tokens = [BaseModelSource(pad_token="<pad>"), BaseModelSource(eos_token="<end>")]
    changes: list[dict[str, Any]] = [{"source": source} for source in tokens]
    changes += [{"origin": {"sha256": "b"}}, {"precision": "bf16"}]
    made = {asked.model_copy(update=change).fingerprint for change in changes}
    assert len(made | {asked.fingerprint}) == len(changes) + 1
    moved = BaseModelSource(source="folder", name="/elsewhere")
    assert asked.model_copy(update={"source": moved}).fingerprint == asked.fingerprint


def test_fingerprints_are_the_same_in_another_process() -> None:
    code = "from tests.test_contracts import INPUTS; print(*[asked.fingerprint for asked in INPUTS.values()])"
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [asked.fingerprint for asked in INPUTS.values()]


def test_spelling_of_a_recipe_does_not_matter() -> None:
    plain = {"batch_size": 8, "learning_rate": 0.0001, "dataset": {"path": "a"}, "lora": {"target_modules": ["q", "v"]}}
    spelled = {
        "lora": {"target_modules": ("q", "v"), "r": 8},
        "dataset": {"path": "a"},
        "learning_rate": "1e-4",
        "weight_decay": 0,
        "batch_size": "8",
    }
    made = [SFTInput(hyperparameters=SFT.model_validate(asked), **COMMON) for asked in (plain, spelled)]
    assert made[0].fingerprint == made[1].fingerprint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_canonical_json_refuses_what_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"deep": [value]})


def test_canonical_json_refuses_other_objects() -> None:
    with pytest.raises(TypeError):
        canonical_json({"path": Path("a")})


def test_canonical_json_ignores_the_order_of_keys_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan"])
def test_contracts_refuse_nan(value: Any) -> None:
    with pytest.raises(ValidationError):
        SFT(dataset=ROWS, weight_decay=value)


CONTRACTS: list[type[Contract]] = [
    found
    for _, found in inspect.getmembers(models.recipe, inspect.isclass)
    if issubclass(found, Contract) and found is not Contract
]


def known_keys() -> list[tuple[type[Contract], str]]:
    return [(contract, key) for contract in CONTRACTS for key in contract.model_fields if len(key) > 2]


@pytest.mark.parametrize(("contract", "key"), known_keys(), ids=lambda value: getattr(value, "__name__", value))
def test_a_mistyped_key_gets_the_right_one(contract: type[Contract], key: str) -> None:
    with pytest.raises(ValidationError, match=f"unknown key '{key}x'; did you mean '{key}'"):
        contract.model_validate({f"{key}x": 1})


def test_a_key_that_resembles_none_gets_the_list() -> None:
    with pytest.raises(ValidationError, match="unknown key 'zzzzzz'; known keys: r, alpha, dropout, target_modules"):
        LoRA.model_validate({"zzzzzz": 1})


def test_contracts_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LoRA().r = 4  # type: ignore[misc]


@pytest.mark.parametrize(("batch_size", "num_generations"), [(12, 8), (4, 8), (20, 6), (7, 2), (1, 2)])
def test_remedies_for_an_indivisible_batch_work(batch_size: int, num_generations: int) -> None:
    with pytest.raises(ValidationError) as caught:
        GRPO(dataset=ROWS, batch_size=batch_size, num_generations=num_generations)
    message = str(caught.value)
    assert f"batch_size {batch_size} is not divisible by num_generations {num_generations}" in message
    found = re.search(r"use batch_size=(\d+) or (\d+)", message)
    assert found
    for remedy in found.groups():
        GRPO(dataset=ROWS, batch_size=int(remedy), num_generations=num_generations)


def trl(name: str, **options: Any) -> dict[str, Any]:
    return {"kind": "trl", "trl": name, "options": options}


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"rewards": ({"kind": "exact_answer"}, {"kind": "exact_answer"})}, "have one name"),
        ({"rewards": ({"kind": "exact_answer", "weight": 0},)}, "every reward has weight 0"),
        ({"rewards": ()}, "at least 1 item"),
        ({"rewards": ({"kind": "regex", "pattern": "("},)}, r"'\(' is not a regular expression"),
        ({"rewards": ({"kind": "format", "shape": "box"},)}, "'think', 'think_answer', 'boxed' or 'json'"),
        ({"rewards": ({"kind": "regex"},)}, "kind 'regex' needs pattern; add it"),
        ({"rewards": ({"kind": "length"},)}, "needs min_words or max_words"),
        ({"rewards": ({"kind": "choice", "pattern": "a"},)}, "pattern has no effect on kind 'choice', only on regex"),
        ({"rewards": ({"kind": "instructions", "column": "a"},)}, "column has no effect on kind 'instructions'"),
        ({"rewards": ({"kind": "trl", "trl": "think_format_reward", "column": "a"},)}, "compares with nothing"),
        ({"rewards": (trl("accuracy_reward", limit=1),)}, "has no option 'limit'; it takes none"),
        ({"rewards": (trl("get_cosine_scaled_reward", max_length=9),)}, "did you mean 'max_len'"),
        ({"rewards": (trl("get_cosine_scaled_reward"),)}, "needs max_len; add it under options"),
        ({"rewards": (trl("get_repetition_penalty_reward", ngram_size="2"),)}, "'2' of .* must be a whole number"),
        ({"rewards": (trl("get_repetition_penalty_reward", max_penalty=1),)}, "1 of .* must be 0 or less"),
        ({"rewards": (trl("get_cosine_scaled_reward", max_len=9, min_value_wrong="a"),)}, "must be a number"),
        ({"rewards": (trl("reasoning_accuracy_reward", reasoning_delimiters="a"),)}, "must be a list of texts"),
        ({"num_generations": 1}, "greater than or equal to 2"),
    ],
)
def test_rewards_that_teach_nothing_are_refused(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        GRPO.model_validate({"dataset": {"path": "a"}, **wrong})


def test_a_recipe_that_lacks_what_it_uses_is_refused() -> None:
    asked = RECIPE.model_dump()
    asked["grpo"]["rewards"] = [{"kind": "reward_model"}]
    with pytest.raises(ValidationError, match="add `reward:`"):
        Recipe.model_validate(asked | {"reward": None})
    with pytest.raises(ValidationError, match=r"evaluation\.preferences"):
        Recipe.model_validate(asked | {"evaluation": asked["evaluation"] | {"preferences": None}})


def test_a_revision_needs_the_hub() -> None:
    with pytest.raises(ValidationError, match="only applies to source 'hub'"):
        BaseModelSource(revision="main")


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_every_field_shows_in_the_form(contract: type[Contract]) -> None:
    schema = contract.model_json_schema()
    properties = schema["properties"]
    assert list(properties) == list(contract.model_fields)
    assert [field["position"] % 1000 for field in properties.values()] == list(range(len(properties)))
    for name, field in properties.items():
        assert "title" in field or field["$ref"].endswith(f"/{contract.model_fields[name].title}"), name
        assert len(field.get("description", "")) > 5, name
        assert contract.model_fields[name].title, f"{name} has a generated title only"


def test_recipe_survives_json() -> None:
    assert Recipe.model_validate_json(RECIPE.model_dump_json()) == RECIPE


def test_every_stage_of_a_recipe_has_an_input() -> None:
    assert set(INPUTS) == set(get_args(Stage)) - {"base"}

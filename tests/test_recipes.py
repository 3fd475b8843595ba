"""Recipes: files, shipped names, flags over YAML, and where relative paths begin."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import InputError, StageError
from models.rewards import Reward
from settings.published_models import PUBLISHED
from settings.recipes import load_recipe, shipped_recipes
from settings.settings import Settings, load_settings
from tasks.data.checking import training_sections
from tasks.execution import plan_execution
from tasks.forecast import stage_inputs
from tasks.memory_forecast import forecast_memory_offline
from tasks.preflight import WhatIf, preflight

MINIMAL = """
sft:
  dataset: {path: sft.jsonl}
  learning_rate: 1e-3
  lora: {r: 16}
dpo:
  dataset: {path: organisation/pairs}
evaluation:
  prompts: {path: ../held.jsonl}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], str]:
    """Write a recipe below `recipes/` and return its path."""

    def write_recipe(content: str | bytes) -> str:
        path = tmp_path / "recipes" / "mine.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_recipe


Write = Callable[[str | bytes], str]


def test_yaml_values_and_defaults(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL))
    assert recipe.sft.learning_rate == 1e-3
    assert recipe.sft.lora
    assert (recipe.sft.lora.r, recipe.sft.lora.alpha) == (16, 16)
    assert recipe.grpo is None


def test_flags_win_and_leave_their_neighbours_alone(write: Write) -> None:
    flags = ["--sft.learning_rate", "1e-4", "--sft.lora.alpha=4", "--seed", "3", "--sft.packing"]
    recipe = load_recipe(write(MINIMAL), flags)
    assert (recipe.sft.learning_rate, recipe.seed, recipe.sft.packing) == (1e-4, 3, True)
    assert recipe.sft.lora
    assert (recipe.sft.lora.r, recipe.sft.lora.alpha) == (16, 4)


@pytest.mark.parametrize("nothing", ["null", "None"])
def test_null_removes_an_optional_part(write: Write, nothing: str) -> None:
    recipe = load_recipe(write(MINIMAL), ["--dpo", nothing, "--sft.lora", nothing])
    assert recipe.dpo is None
    assert recipe.sft.lora is None


def test_flags_can_add_a_stage_and_lists(write: Write) -> None:
    flags = ["--grpo.dataset.path", "prompts.jsonl", "--grpo.rewards", '[{"kind": "math_verify", "weight": 2}]']
    recipe = load_recipe(write(MINIMAL), [*flags, "--sft.lora.target_modules", "q_proj,v_proj"])
    assert recipe.grpo
    assert [(reward.kind, reward.weight) for reward in recipe.grpo.rewards] == [("math_verify", 2.0)]
    assert recipe.sft.lora
    assert recipe.sft.lora.target_modules == ("q_proj", "v_proj")


def test_a_whole_section_as_json(write: Write) -> None:
    assert (
        load_recipe(write(MINIMAL), ["--dpo", '{"beta": 0.3}']).dpo
        == load_recipe(write(MINIMAL), ["--dpo.beta", "0.3"]).dpo
    )


def test_relative_paths_start_at_the_recipe_and_those_of_flags_at_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(write(MINIMAL), ["--grpo.dataset.path", "prompts.jsonl"])
    assert recipe.sft.dataset.path == str(tmp_path / "recipes" / "sft.jsonl")
    assert recipe.evaluation.prompts.path == str(tmp_path / "held.jsonl")
    assert recipe.grpo
    assert recipe.grpo.dataset.path == str(tmp_path / "prompts.jsonl")


def test_hub_ids_stay_and_existing_folders_do_not(write: Write, tmp_path: Path) -> None:
    dpo = load_recipe(write(MINIMAL)).dpo
    assert dpo
    assert dpo.dataset.path == "organisation/pairs"
    (tmp_path / "recipes" / "organisation" / "pairs").mkdir(parents=True)
    dpo = load_recipe(write(MINIMAL)).dpo
    assert dpo
    assert dpo.dataset.path == str(tmp_path / "recipes" / "organisation" / "pairs")


def test_base_model_folder_and_template(write: Write, tmp_path: Path) -> None:
    section = "base_model: {source: folder, name: base, chat_template: mine.jinja}\n"
    base = load_recipe(write(section + MINIMAL)).base_model
    assert base.name == str(tmp_path / "recipes" / "base")
    assert base.chat_template == str(tmp_path / "recipes" / "mine.jinja")
    base = load_recipe(write(section + MINIMAL), ["--base_model.chat_template", "chatml"]).base_model
    assert base.chat_template == "chatml"


def test_aliases_are_allowed(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL.replace("{r: 16}", "&lora {r: 2}").replace("dpo:\n", "dpo:\n  lora: *lora\n")))
    assert recipe.sft.lora
    assert recipe.sft.lora.r == 2
    assert recipe.dpo
    assert recipe.dpo.lora == recipe.sft.lora


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("sft:\n  dataset: [\n", ("line 3", "column", "not valid YAML")),
        ("sft: 1\nsft: 2\n", ("line 2", "'sft' is given twice")),
        ("", ("empty", "sft:")),
        ("# only a remark\n", ("empty",)),
        ("- sft\n", ("top level is a list",)),
        ("recipe\n", ("top level is a str",)),
        ("--- {}\n--- {}\n", ("line 2", "not valid YAML")),
        ("a: &a {b: *a}\n", ("contains itself",)),
        ("? [1, 2]\n: 3\n", ("not valid YAML",)),
        ("seed: !!python/object/apply:os.getcwd []\n", ("not valid YAML", "line 1")),
        (b"\xff\xfe\x00", ("byte 0 is not UTF-8",)),
        ("seed: \x07\n", ("not valid YAML",)),
        (MINIMAL + "sed: 3\n", ("unknown key 'sed'", "did you mean 'seed'?")),
        (MINIMAL.replace("learning_rate", "lerning_rate"), ("sft", "did you mean 'learning_rate'?")),
    ],
)
def test_bad_files(write: Write, content: str | bytes, fragments: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(write(content))
    for fragment in ("mine.yaml", *fragments):
        assert fragment in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--sft.lerning_rate", "1"], ("unknown flag '--sft.lerning_rate'", "did you mean '--sft.learning_rate'?")),
        (["--sft.learn", "1"], ("unknown flag '--sft.learn'",)),
        (["--seed"], ("--seed", "expected one argument")),
        (["stray"], ("unknown argument 'stray'",)),
        (["--seed", "three"], ("command line", "seed", "'three'")),
        (["--sft.lora.r", "0"], ("command line", "sft.lora.r", "greater than or equal to 1")),
        (["--sft.packing=maybe"], ("--sft.packing",)),
        (["--grpo.rewards", "[{"], ("grpo.rewards",)),
        (["--sft", "{"], ("sft",)),
        (["--sft", "null"], ("sft", "command line")),
        (["--grpo.beta", "1"], ("mine.yaml: grpo.dataset: is missing",)),
        (["--precision", "int8"], ("precision", "int8")),
    ],
)
def test_bad_flags(write: Write, flags: list[str], fragments: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(write(MINIMAL), flags)
    for fragment in fragments:
        assert fragment in str(refused.value)


@pytest.mark.parametrize("wanted", ["nowhere.yaml", "folder/recipe", "", "."])
def test_missing_recipes(wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"one of|shipped"):
        load_recipe(wanted)


def test_environment_variables_named_like_keys_are_ignored(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "9")
    monkeypatch.setenv("DPO", "null")
    recipe = load_recipe(write(MINIMAL))
    assert recipe.seed == 0
    assert recipe.dpo


SHIPPED = {
    "quickstart": "",
    "qwen2.5-0.5b-t4": "t4",
    "qwen2.5-7b-24gb": "rtx4090",
    "smollm2-135m-gsm8k": "t4",
}
"""The recipes that come with the pipeline, and the card that each is checked for; none: this machine."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that this process asks for anything, in vain; the hub's own offline mode hides none of them."""
    hosts: list[str] = []

    def refuse(host: object, *_: object, **options: object) -> None:
        hosts.append(str(host))
        raise OSError("there is no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return hosts


def test_every_recipe_of_the_folder_is_shipped_and_checked() -> None:
    assert sorted(SHIPPED) == sorted(
        path.stem for path in (Path(__file__).parents[1] / "settings" / "recipes").rglob("*.y*ml")
    )
    assert SHIPPED.keys() == shipped_recipes().keys()


@pytest.mark.parametrize(("name", "card"), SHIPPED.items())
def test_a_shipped_recipe_passes_the_check_offline(name: str, card: str, tmp_path: Path, asked: list[str]) -> None:
    recipe = load_recipe(name)
    found = preflight(recipe, Settings(home=tmp_path / "home"), WhatIf(card=card, offline=True))
    assert found.named == (not found.unread)
    assert {stage.stage for stage in found.stages} >= {"sft", "grpo"}
    assert found.precision == ("fp16" if card == "t4" else "bf16" if card else found.precision)
    hub = [recipe.base_model.name] if recipe.base_model.source == "hub" else []
    assert set(hub) <= PUBLISHED.keys()
    assert not (tmp_path / "home").exists()
    assert asked == []


HUB = ["--base_model.source", "hub", "--base_model.name", "Qwen/Qwen2.5-0.5B-Instruct"]
STRICT = ["--data_rules.special_tokens", "fix", "--data_rules.too_long", "drop"]


@pytest.mark.parametrize(
    ("flags", "scorer", "named", "said"),
    [
        (HUB, "", False, ""),
        (HUB + STRICT, "", False, "special_tokens and too_long left out"),
        ([], "someone/scorer", False, "someone/scorer is not looked at offline"),
        (HUB + STRICT[:2], "someone/scorer", False, "data_rules: special_tokens left out"),
        ([], "", True, ""),
    ],
)
def test_models_on_the_hub_are_not_asked_for_offline(
    flags: list[str], scorer: str, named: bool, said: str, tmp_path: Path, asked: list[str]
) -> None:
    recipe = load_recipe("quickstart", flags)
    assert recipe.grpo
    rewards = (*recipe.grpo.rewards, *([Reward(kind="reward_model", model=scorer, name="other")] if scorer else []))
    recipe = recipe.model_copy(update={"grpo": recipe.grpo.model_copy(update={"rewards": rewards})})
    settings = Settings(home=tmp_path)
    found = preflight(recipe, settings, WhatIf(offline=True))
    stages = list(stage_inputs(recipe, found.datasets, plan_execution(recipe, settings, found.machine), offline=True))
    assert (found.named, len(stages), len(found.datasets)) == (named, 4, 6)
    assert said in " ".join(found.notes)
    assert asked == []


def test_without_offline_the_hub_is_asked(tmp_path: Path, asked: list[str]) -> None:
    with pytest.raises(InputError, match="cannot be looked up"):
        preflight(load_recipe("quickstart", HUB), Settings(home=tmp_path))
    assert set(asked) == {"huggingface.co"}


def test_recipes_name_licences_and_are_suggested() -> None:
    for name in SHIPPED:
        recipe = load_recipe(name)
        sources = [section.dataset for section in training_sections(recipe).values()] + [recipe.evaluation.prompts]
        assert {source.license for source in sources} <= {"mit", "apache-2.0"}
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        load_recipe("quickstar")


def test_what_cannot_be_known_offline_is_said(tmp_path: Path) -> None:
    found = preflight(load_recipe("qwen2.5-0.5b-t4"), Settings(home=tmp_path), WhatIf(card="t4", offline=True))
    assert found.machine.name == "Tesla T4"
    assert found.datasets == ()
    assert found.unread["sft.dataset"] == "openai/gsm8k"
    assert {stage.stage: stage.steps for stage in found.stages}["sft"] is None
    assert "not read offline" in found.notes[0]
    assert found.disk["base model"] == 2 * 494_032_768


@pytest.mark.slow
def test_the_recipe_for_a_t4_is_estimated_to_fit(tmp_path: Path) -> None:
    recipe = load_recipe("qwen2.5-0.5b-t4")
    settings = Settings(home=tmp_path, per_device_train_batch_size=2)
    found = preflight(recipe, settings, WhatIf(card="t4", offline=True))
    stages = forecast_memory_offline(recipe, found.datasets, plan_execution(recipe, settings, found.machine))
    assert [stage.verdict for stage in stages] == ["fits"] * 4
    assert all(stage.footprint.peak < 15e9 for stage in stages)
    assert [stage.footprint.longest_tokens for stage in stages] == [512, 1024, 1024, 512]


@pytest.mark.parametrize(
    ("card", "memory", "bf16"), [("T4", 14.74 * 2**30, False), ("24gb", 24e9, True), ("a100-80gb", 79.15 * 2**30, True)]
)
def test_a_card_is_planned_for(card: str, memory: float, bf16: bool) -> None:
    machine = WhatIf(card=card).machine(Settings())
    assert (machine.device, machine.accelerators, machine.native_bf16) == ("cuda", 1, bf16)
    assert machine.memory_bytes == int(memory)


@pytest.mark.parametrize(("card", "said"), [("a100-81gb", "did you mean 'a100-80gb'?"), ("abacus", "known: t4")])
def test_an_unknown_card_is_refused(card: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        WhatIf(card=card).machine(Settings())


def test_a_model_of_unknown_shape_is_told_offline(tmp_path: Path) -> None:
    recipe = load_recipe("qwen2.5-0.5b-t4", ["--base_model.name", "someone/something"])
    settings = Settings(home=tmp_path)
    found = preflight(recipe, settings, WhatIf(card="t4", offline=True))
    with pytest.raises(StageError, match="someone/something is not known offline"):
        forecast_memory_offline(recipe, found.datasets, plan_execution(recipe, settings, found.machine))


def test_a_misspelt_setting_in_the_env_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("ALIGN_THREDS=4\nOTHER=1\n")
    monkeypatch.setitem(Settings.model_config, "env_file", str(tmp_path / ".env"))
    with pytest.raises(InputError, match=r"\.env: unknown setting ALIGN_THREDS; did you mean ALIGN_THREADS\?"):
        load_settings()

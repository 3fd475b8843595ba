"""Reward models by name: of the artifact root, from a folder or the hub; judged first, then used by GRPO."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.errors import InputError, StageError
from models.fingerprint import ID_LENGTH, fingerprint
from models.recipe import Recipe
from models.rewards import Reward
from settings.settings import Settings
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.entry import convert_scorer
from tasks.finding import resolve
from tasks.preflight import preflight
from tasks.promoting import promote
from tasks.reproducing import check_reproduction
from tasks.scorer_check import find_scorer
from tasks.store import MANIFEST, ArtifactStore, read_manifest
from tests.tiny import build_tiny_model, run_align

COMMIT = "1" * 40
CONFIG = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
FILES = {"model.safetensors": "", "chat_template.jinja": "{{ messages }}"}


def scorer(name: str, revision: str | None = None) -> Reward:
    return Reward(kind="reward_model", model=name, revision=revision)


def publish_scorer(store: ArtifactStore) -> Path:
    """A finished reward model without weights."""
    identity = {"stage": "reward", "precision": "fp32"}
    name = f"reward-{fingerprint(identity)[:ID_LENGTH]}"
    (store.home / "making").mkdir()
    store.publish(
        store.home / "making", name=name, kind="checkpoint", fingerprint=fingerprint(identity), identity=identity
    )
    return store.folder("checkpoint", name)


def rewarded_by(recipe: Recipe, *rewards: dict[str, Any], **evaluation: Any) -> Recipe:
    """The recipe without a reward stage and with other rewards."""
    asked = recipe.model_dump() | {"reward": None}
    asked["grpo"]["rewards"] = rewards
    asked["evaluation"] |= evaluation
    return Recipe.model_validate(asked)


def write_model(folder: Path, config: dict[str, Any], files: dict[str, str] = FILES) -> Path:
    """A folder that looks like a model's."""
    folder.mkdir()
    for name, text in (files | {"config.json": json.dumps(config)}).items():
        (folder / name).write_text(text)
    return folder


def build_tiny_scorer(folder: Path, labels: int = 1) -> Path:
    """A reward model with random weights."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    build_tiny_model(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def test_a_reward_model_of_the_artifact_root_is_found_by_every_name(store: ArtifactStore) -> None:
    path = publish_scorer(store)
    digits = read_manifest(path).fingerprint
    promote(store, path, "judge", print, by="me", reason="for the test")
    for name in ("judge", path.name, path.name[:12], digits, digits[:ID_LENGTH], str(path)):
        found = find_scorer(scorer(name), store, "bf16")
        assert (found.checkpoint.path, found.checkpoint.precision, found.wanted) == (path, "fp32", None)


def test_a_policy_is_no_reward_model(store: ArtifactStore) -> None:
    with pytest.raises(InputError, match="is a model of stage 'dpo', which gives no score"):
        find_scorer(scorer("dpo"), store, "fp32")


@pytest.mark.parametrize(
    ("config", "files", "told"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, FILES, "is a LlamaForCausalLM"),
        (CONFIG | {"id2label": {"0": "bad", "1": "good"}}, FILES, "gives 2 scores"),
        (CONFIG, {"model.bin": "", "chat_template.jinja": ""}, "has no .safetensors files"),
        (CONFIG, {"model.safetensors": ""}, "has no chat template"),
    ],
)
def test_a_folder_that_cannot_score_is_refused(
    config: dict[str, Any], files: dict[str, str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        find_scorer(
            scorer(str(write_model(tmp_path / "model", config, files))), ArtifactStore(tmp_path / "home"), "fp32"
        )


def test_a_folder_is_known_by_what_it_holds(tmp_path: Path) -> None:
    folder, store = write_model(tmp_path / "model", CONFIG), ArtifactStore(tmp_path / "home")
    first = find_scorer(scorer(str(folder)), store, "fp32").checkpoint
    moved = find_scorer(scorer(str(folder.rename(tmp_path / "moved"))), store, "fp32").checkpoint
    (tmp_path / "moved" / "model.safetensors").write_text("other weights")
    assert first == moved
    assert first.stage == "reward"
    assert find_scorer(scorer(str(tmp_path / "moved")), store, "fp32").checkpoint.fingerprint != first.fingerprint


def test_a_hub_model_is_pinned_to_its_commit(tmp_path: Path, hub: dict[str, Any]) -> None:
    said = {"id": "org/scorer", "sha": COMMIT, "config": CONFIG, "siblings": [{"rfilename": "model.safetensors"}]}
    hub["/api/models/org/scorer/revision/v1"] = said
    store = ArtifactStore(tmp_path / "home")
    found = find_scorer(scorer("org/scorer", "v1"), store, "fp32")
    assert found.wanted
    assert found.wanted.origin == {"hub": "org/scorer", "commit": COMMIT}
    hub["/api/models/org/scorer/revision/v1"] = said | {"config": {"architectures": ["LlamaForCausalLM"]}}
    with pytest.raises(InputError, match="'org/scorer' is a LlamaForCausalLM"):
        find_scorer(scorer("org/scorer", "v1"), store, "fp32")
    with pytest.raises(InputError, match=r"grpo.rewards: model: hub model 'org/none' at revision 'main' cannot"):
        find_scorer(scorer("org/none"), store, "fp32")


@pytest.mark.slow
def test_a_model_without_a_trained_head_is_not_converted(tmp_path: Path) -> None:
    """Transformers would give it a head of random weights."""
    folder = build_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | CONFIG))
    found = find_scorer(scorer(str(folder)), ArtifactStore(tmp_path / "home"), "fp32")
    with pytest.raises(InputError, match="lacks weights of its own"):
        run_in_child(
            convert_scorer,
            (found.wanted, found.source, tmp_path / "made"),
            ChildOptions(threads=1),
            lambda report: None,
            print,
        )


@pytest.mark.slow
def test_grpo_takes_reward_models_by_name_and_from_a_folder(
    home: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(home)
    trained = resolve(store, "reward")[0]
    folder = Path(shutil.copytree(trained, tmp_path / "elsewhere"))
    (folder / MANIFEST).unlink()
    rewards = [
        {"kind": "reward_model", "name": "by name", "model": trained.name},
        {"kind": "reward_model", "name": "folder", "model": str(folder)},
        {"kind": "exact_answer"},
    ]
    asked = rewarded_by(recipe, *rewards)
    promised = preflight(asked, Settings(home=home)).needs
    record = run_align(asked, home).record
    made = resolve(store, "grpo")[0]
    manifest = read_manifest(made)

    assert made.name in promised
    converted = store.folder("base", manifest.parents["reward_model folder"])
    assert manifest.parents["reward_model by name"] == trained.name
    assert {trained.name, converted.name} <= manifest.ancestors.keys()
    assert read_manifest(converted).origin["name"] == "elsewhere"
    assert manifest.origin["scorer_accuracies"]["folder"] == manifest.origin["scorer_accuracies"]["by name"]
    entries = [json.loads(line) for line in (made / "history.jsonl").read_text().splitlines()]
    for entry in entries:
        assert entry["rewards/folder/mean"] == pytest.approx(entry["rewards/by name/mean"], rel=1e-4)
    assert str(tmp_path) not in (made / MANIFEST).read_text()
    assert all(outcome.cached for outcome in run_align(asked, home).record.stages)
    assert not all(outcome.cached for outcome in record.stages)
    check_reproduction(made.name, Settings(home=home))


@pytest.mark.slow
def test_a_reward_model_at_chance_is_refused(home: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = build_tiny_scorer(tmp_path / "scorer")
    rewards = [{"kind": "reward_model", "model": str(folder)}]
    run = run_align(rewarded_by(recipe, *rewards), home)
    assert isinstance(run.result, StageError)
    assert "no better than chance" in str(run.result)


def test_without_pairs_a_reward_model_is_used_unjudged_and_that_is_said(
    recipe: Recipe, store: ArtifactStore, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", CONFIG)
    rewards = [{"kind": "reward_model", "model": str(folder)}]
    asked = rewarded_by(recipe, *rewards, preferences=None)
    notes = preflight(asked, Settings(home=store.home)).notes
    assert any("reward_model is not judged before it is used" in note for note in notes)

"""Flows on machines that have made nothing themselves: what they need comes from the artifact root that all share."""

from pathlib import Path

import pytest

from models.recipe import Recipe
from tasks.pruned import is_pruned
from tasks.remote.catalogue import send_run
from tasks.remote.objects import ObjectStore
from tasks.remote.remote import Remote
from tasks.remote.sharing import send_missing
from tasks.run_record import all_runs
from tasks.store import ArtifactStore, damage
from tests.test_retrain import retrain

pytestmark = pytest.mark.slow


@pytest.fixture
def share(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a shared artifact root with all of a finished run."""
    url = (tmp_path / "share").as_uri()
    remote = Remote(ObjectStore(url), lease_seconds=60)
    store = ArtifactStore(home, remote)
    send_missing(store, remote)
    send_run(store, remote, all_runs(home)[0][0].id)
    monkeypatch.setenv("ALIGN_REMOTE", url)
    return url


def weights(home: Path) -> set[str]:
    """The stages whose weights are on this machine."""
    return {file.parent.name.partition("-")[0] for file in home.glob("checkpoints/[!.]*/model.safetensors")}


def test_a_model_is_judged_where_it_was_not_made(
    share: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.evaluation import evaluate

    other = tmp_path / "other"
    monkeypatch.setenv("ALIGN_HOME", str(other))
    known = evaluate("grpo", against="sft")
    assert [one.checkpoint.stage for one in known] == ["grpo", "sft"]
    assert weights(other) == set()  # both were judged before, elsewhere

    judged = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"max_new_tokens": 4})})
    (anew,) = evaluate("sft", recipe=judged)
    assert weights(other) >= {"sft", "reward"}
    assert anew.checkpoint == known[1].checkpoint
    assert anew.checkpoint.path.is_relative_to(other)


def test_a_retraining_takes_and_promotes_what_others_have_made(share: str, recipe: Recipe, tmp_path: Path) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    made = retrain(recipe, second, "never")
    assert made.state == "NotPromoted"
    assert {made.stages[stage] for stage in ("sft", "reward", "dpo", "grpo")} == {"Cached"}

    promoted = retrain(recipe, third)
    assert (promoted.state, promoted.result.run) == ("Promoted", made.result.run)
    path = third / "checkpoints" / promoted.result.checkpoint
    assert not is_pruned(path) and damage(path) == []
    assert weights(third) == {"grpo"}
    assert retrain(recipe, second).state == "Unchanged"

"""Aliases: whole histories, verified checkpoints, and promotions at once that do not lose one another."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.__main__ import main
from models.aliases import ALIAS_LAYOUT, Alias, Promotion, alias_problem
from models.artifacts import Stage
from models.errors import DamagedArtifact, InputError
from models.fingerprint import ID_LENGTH
from models.retraining import Decision
from tasks.aliases import all_aliases, read_alias
from tasks.finding import resolve
from tasks.promoting import promote, rollback
from tasks.store import ArtifactStore
from tests.folders import name_of, publish

ROOT = Path(__file__).resolve().parent.parent


def to_champion(store: ArtifactStore, wanted: str) -> None:
    promote(store, resolve(store, wanted)[0], "champion", print)


def said(store: ArtifactStore) -> list[tuple[str, str, str | None]]:
    """The history of `champion`: kind, checkpoint, previous."""
    alias = read_alias(store.home, "champion")
    assert alias
    return [(entry.kind, entry.checkpoint, entry.previous) for entry in alias.history]


def test_promotion_and_rollback_keep_the_whole_history(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_PROMOTED_BY", "release team")
    sft, dpo, grpo = name_of("sft"), name_of("dpo"), name_of("grpo")
    publish(store, "grpo")
    assert main(["promote", "sft", "--reason", "the first"]) == 0
    assert main(["promote", dpo[:8], "--by", ""]) == 0
    assert main(["promote", "grpo"]) == 0
    assert main(["promote", "--rollback", "--reason", "worse"]) == 0
    assert main(["promote", "--rollback"]) == 0
    assert said(store) == [
        ("promotion", sft, None),
        ("promotion", dpo, sft),
        ("promotion", grpo, dpo),
        ("rollback", dpo, grpo),
        ("rollback", sft, dpo),
    ]
    assert f"champion -> {sft}, before {dpo}" in capsys.readouterr().out
    assert main(["aliases", "--json"]) == 0
    (alias,) = json.loads(capsys.readouterr().out)
    assert (alias["name"], alias["checkpoint"]) == ("champion", sft)
    first, second, _, fourth, _ = alias["history"]
    assert (first["by"], first["reason"], first["command"]) == ("release team", "the first", "align promote")
    assert (second["by"], second["gate"], fourth["command"]) == ("", None, "align promote --rollback")
    assert main(["aliases"]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("champion", sft, f"before: {grpo}", "release team", "the first"))
    assert main(["promote", "--rollback"]) == 2
    assert f"'champion' has pointed to nothing before {sft}" in capsys.readouterr().err
    assert len(said(store)) == 5


def test_a_promotion_after_a_rollback_goes_back_to_what_stood(store: ArtifactStore) -> None:
    publish(store, "grpo")
    for wanted in ("sft", "grpo"):
        to_champion(store, wanted)
    rollback(store, "champion", print)
    to_champion(store, "dpo")
    assert rollback(store, "champion", print).checkpoint == name_of("sft")


def test_what_is_the_champion_already_stays_it(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "sft"]) == 0
    before = (store.home / "aliases" / "champion.json").read_bytes()
    assert main(["promote", "sft", "--reason", "again"]) == 0
    assert "already" in capsys.readouterr().out
    assert (store.home / "aliases" / "champion.json").read_bytes() == before


@pytest.mark.parametrize("command", [["lineage", "candidate", "--json"], ["verify", "candidate"]])
def test_an_alias_works_where_a_checkpoint_is_asked_for(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main(["promote", "dpo", "--alias", "candidate"]) == 0
    assert main(["promote", "candidate"]) == 0
    assert resolve(store, "champion") == resolve(store, "dpo")
    assert main(command) == 0
    assert name_of("dpo") in capsys.readouterr().out or command[0] == "verify"


def test_chat_refuses_the_reward_model_that_an_alias_means(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["promote", "reward", "--alias", "judge"]) == 0
    assert main(["chat", "judge", "--prompt", "hello"]) == 2
    assert name_of("reward") in capsys.readouterr().err


@pytest.mark.parametrize("alias", ["champion", "candidate"])
def test_an_alias_of_policies_points_to_no_reward_model(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], alias: str
) -> None:
    assert main(["promote", "sft", "--alias", "candidate"]) == 0
    assert main(["promote", "reward", "--alias", alias]) == 2
    assert f"'{alias}' cannot point to {name_of('reward')}, a reward model" in capsys.readouterr().err
    assert {one.name: one.checkpoint for one in all_aliases(store.home)} == {"candidate": name_of("sft")}


def test_an_approval_counts_only_against_what_the_question_named(store: ArtifactStore) -> None:
    to_champion(store, "sft")
    times = {"asked": "2026-01-01T00:00:00+00:00", "until": "2026-01-08T00:00:00+00:00"}
    asked = Decision(alias="champion", checkpoint=name_of("dpo"), run="", state="held", rival=name_of("sft"), **times)
    publish(store, "grpo")
    to_champion(store, "grpo")
    path = store.folder("checkpoint", name_of("dpo"))
    with pytest.raises(InputError, match=f"but {name_of('dpo')} was compared with {name_of('sft')}"):
        promote(store, path, "champion", print, answers=asked)
    _, changed = promote(store, path, "champion", print, answers=asked.model_copy(update={"rival": name_of("grpo")}))
    assert changed


def test_a_retraining_refuses_an_impossible_alias_first(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["retrain", "no.yaml", "--alias", "a b"]) == 2
    assert "'a b' cannot be an alias" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_promoted(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "sft"]) == 0
    file = store.folder("checkpoint", name_of("dpo")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert main(["promote", "dpo"]) == 1
    assert f"{file}: 800 bytes" in capsys.readouterr().err
    assert said(store) == [("promotion", name_of("sft"), None)]


def test_a_rollback_verifies_too(store: ArtifactStore) -> None:
    for wanted in ("sft", "dpo"):
        to_champion(store, wanted)
    (store.folder("checkpoint", name_of("sft")) / "config.json").unlink()
    with pytest.raises(DamagedArtifact, match=r"config\.json: missing; nothing was promoted"):
        rollback(store, "champion", print)
    assert said(store)[-1][1] == name_of("dpo")


def test_an_alias_whose_checkpoint_is_gone_says_so(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    to_champion(store, "dpo")
    store.folder("checkpoint", name_of("dpo")).rename(store.home / "elsewhere")
    assert main(["lineage", "champion"]) == 2
    assert f"'champion' points to {name_of('dpo')}, which is not in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give either a CHECKPOINT or --rollback"),
        (["sft", "--rollback"], "give either a CHECKPOINT or --rollback"),
        (["grpo"], "'grpo' matches nothing"),
        (["--rollback"], "there is no alias 'champion'"),
        (["sft", "--alias", "dpo"], "'dpo' cannot be an alias"),
        (["sft", "--alias", "../x"], "lower-case letters, digits and dashes"),
        (["sft", "--alias", "cafe"], "a fingerprint"),
    ],
)
def test_promotions_that_are_refused(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    before = set(store.home.rglob("*"))
    assert main(["promote", *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert (said.out, said.err.count("align: ")) == ("", 1)
    assert set(store.home.rglob("*")) == before


@pytest.mark.parametrize("name", ["champion", "candidate", "team-2", "2026-best", "x", "best-of-dpo"])
def test_names(name: str) -> None:
    assert alias_problem(name) == ""


@pytest.mark.parametrize(
    "name",
    [
        *("", "Champion", "ä", "a b", "-x", "a/b", "..", "a.b", "a_b", "x" * 65),
        *("base", "sft", "sf", "s", "reward", "rew", "dpo-", "grpo-0", "base-12af", "0", "1234", "deadbeef"),
    ],
)
def test_impossible_names(name: str) -> None:
    assert alias_problem(name)


@given(st.sampled_from(["", *(f"{stage}-" for stage in ("base", "sft", "reward", "dpo", "grpo"))]), st.data())
def test_no_beginning_of_a_folder_name_is_an_alias(prefix: str, data: st.DataObject) -> None:
    digits = data.draw(st.text("0123456789abcdef", min_size=ID_LENGTH, max_size=64))
    name = prefix + digits
    assert alias_problem(name[: data.draw(st.integers(1, len(name)))])


def test_every_stage_is_covered() -> None:
    assert all(alias_problem(stage[:length]) for stage in get_args(Stage) for length in range(1, len(stage) + 1))


STEPS = st.lists(st.one_of(st.none(), st.sampled_from("abcd")), max_size=12)


@given(STEPS)
def test_rollback_is_undo(steps: list[str | None]) -> None:
    """Any order of promotions and rollbacks (none) agrees with a stack."""
    alias, stack = None, list[str]()
    for step in steps:
        if step is None and len(stack) < 2:
            assert alias is None or alias.before is None
            continue
        if step is None:
            stack.pop()
        elif not stack or stack[-1] != step:
            stack.append(step)
        else:
            continue
        assert step or (alias and alias.before and alias.before.checkpoint == stack[-1])
        previous = alias.checkpoint if alias else None
        entry = Promotion(
            kind="promotion" if step else "rollback",
            when="2026-01-01T00:00:00+00:00",
            checkpoint=stack[-1],
            fingerprint="0" * 64,
            previous=previous,
        )
        alias = Alias(name="champion", history=(*(alias.history if alias else ()), entry))
        assert alias.checkpoint == stack[-1]


def test_promotions_at_once_do_not_lose_one_another(store: ArtifactStore) -> None:
    checkpoints = [publish(store, "grpo", number).name for number in range(8)]
    code = (
        "import sys; from pathlib import Path\n"
        "from tasks.promoting import promote; from tasks.store import ArtifactStore\n"
        "store = ArtifactStore(Path(sys.argv[1]))\n"
        "for name in sys.argv[2:]: promote(store, store.folder('checkpoint', name), 'champion', print)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, store.home, *checkpoints[half::2]], cwd=ROOT) for half in (0, 1)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    alias = read_alias(store.home, "champion")
    assert alias
    assert sorted(entry.checkpoint for entry in alias.history) == sorted(checkpoints)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Invalid JSON"),
        ("[]", "must be an object"),
        ('{"name": "champion", "history": []}', "at least 1"),
        (f'{{"schema_version": {ALIAS_LAYOUT + 1}, "name": "champion"}}', "is newer than this version reads"),
        ('{"name": "champion", "history": [], "more": 1}', "unknown key 'more'"),
    ],
)
def test_a_broken_alias_is_not_guessed_at(store: ArtifactStore, content: str, says: str) -> None:
    to_champion(store, "sft")
    file = store.home / "aliases" / "champion.json"
    file.write_text(content)
    for act in (
        lambda: resolve(store, "champion"),
        lambda: to_champion(store, "dpo"),
        lambda: all_aliases(store.home),
    ):
        with pytest.raises(DamagedArtifact, match=says):
            act()
    assert file.read_text() == content


def test_a_history_that_does_not_hang_together_is_refused(store: ArtifactStore) -> None:
    for wanted in ("sft", "dpo"):
        to_champion(store, wanted)
    file = store.home / "aliases" / "champion.json"
    alias = json.loads(file.read_text())
    del alias["history"][0]
    file.write_text(json.dumps(alias))
    with pytest.raises(DamagedArtifact, match="does not hang together"):
        read_alias(store.home, "champion")


def test_an_alias_under_another_name_is_refused(store: ArtifactStore) -> None:
    to_champion(store, "sft")
    (store.home / "aliases" / "champion.json").rename(store.home / "aliases" / "candidate.json")
    with pytest.raises(DamagedArtifact, match="holds the alias 'champion'"):
        resolve(store, "candidate")


@pytest.mark.slow
def test_the_flow_promotes_and_goes_back(prefect_api: None, store: ArtifactStore) -> None:
    from flows.promote import promote as flow

    flow("sft", reason="nightly", by="schedule")
    alias = flow("dpo")
    assert isinstance(alias, Alias)
    assert alias.checkpoint == name_of("dpo")
    assert len(alias.history[-1].flow_run) == 36
    assert flow(rollback=True).checkpoint == name_of("sft")
    with pytest.raises(InputError, match="not both"):
        flow("dpo", rollback=True)

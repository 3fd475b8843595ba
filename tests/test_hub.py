"""Uploads: the hub's own client against a hub on loopback; whole, private unless asked, and never a token in words."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.__main__ import main
from tests.folders import content_of
from tests.hub_stand_in import TOKEN, Hub, serving
from tests.published import Shelf

# The client hands a file to its HTTP library under the old name of the argument.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def hub(paper_shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process is logged in to, and an artifact root to upload from."""
    monkeypatch.setenv("ALIGN_HOME", str(paper_shelf.store.home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with serving() as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        yield hub


def push(*options: str, repo: str = "me/mine") -> int:
    return main(["export", "dpo", "out", "--push", repo, *options])


def test_the_folder_arrives_whole_in_one_commit(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push() == 0
    said = capsys.readouterr()
    (commit,) = hub.repositories["me/mine"]["commits"]
    assert commit == content_of(Path("out"))
    assert list(hub.objects.values()) == [commit["model.safetensors"]]
    assert hub.repositories["me/mine"]["private"] is True
    assert f"uploaded: {hub.endpoint}/me/mine/commit/" in said.out
    assert TOKEN not in said.out + said.err


def test_the_environment_alone_names_the_hub(hub: Hub, tmp_path: Path) -> None:
    """The command in a process of its own, as a user sets it up."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "flows", "export", "dpo", "out", "--push", "mine", "--public"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert hub.repositories["me/mine"]["private"] is False
    (commit,) = hub.repositories["me/mine"]["commits"]
    assert commit == content_of(Path("out"))


def test_a_second_upload_is_another_commit(hub: Hub) -> None:
    assert push() == 0
    assert main(["export", "sft", "sft", "--push", "me/mine"]) == 0
    first, second = hub.repositories["me/mine"]["commits"]
    assert first["lineage.json"] != second["lineage.json"]


def test_a_public_repository_is_not_filled_by_accident(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories["me/mine"] = {"private": False, "commits": []}
    assert push() == 2
    assert "the repository is public; add --public" in capsys.readouterr().err
    assert not Path("out").exists()
    assert push("--public") == 0
    assert len(hub.repositories["me/mine"]["commits"]) == 1


@pytest.mark.parametrize(
    ("token", "repo", "code", "says"),
    [
        (None, "me/mine", 2, "there is no token for the hub; log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "me/mine", 2, "the hub does not accept the token"),
        (TOKEN, "me/mine/too", 2, "not the name of a repository"),
        (TOKEN, "me/not good", 2, "not the name of a repository"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    token: str | None,
    repo: str,
    code: int,
    says: str,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    assert push(repo=repo) == code
    said = capsys.readouterr()
    assert says in said.err
    assert "nothing was written" in said.err
    assert (said.out, said.err.count("align: ")) == ("", 1)
    assert not token or token not in said.err
    assert not Path("out").exists()
    assert hub.repositories == {}


def test_an_offline_setting_is_obeyed(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push() == 2
    assert "HF_HUB_OFFLINE forbids it" in capsys.readouterr().err
    assert hub.requests == []


def test_a_hub_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert push() == 1
    said = capsys.readouterr().err
    assert "cannot be reached" in said
    assert said.count("align: ") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("/api/repos/create", 403, "You don't have the rights"),
        ("/preupload/", 403, "Forbidden"),
        ("/lfs/objects/batch", 413, "Storage quota exceeded"),
        ("/storage/", 403, "Forbidden"),
        ("/commit/", 412, "A commit has happened since"),
    ],
)
def test_a_refusal_leaves_the_folder_and_says_what_to_do(
    part: str, status: int, message: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failures[part] = (status, message)
    assert push() == 1
    said = capsys.readouterr().err
    assert said.count("align: ") == 1
    assert f"{status}" in said
    assert "out is whole: upload it with `hf upload me/mine out`" in said
    assert TOKEN not in said
    assert not any(repository["commits"] for repository in hub.repositories.values())
    assert main(["verify", "out"]) == 0

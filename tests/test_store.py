"""The artifact root: what is published is whole, what is damaged is never served, one process makes it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.artifacts import SCHEMA_VERSION, Manifest
from models.errors import DamagedArtifact, InputError
from models.fingerprint import ID_LENGTH, fingerprint
from tasks.finding import resolve
from tasks.store import MANIFEST, ArtifactStore, damage, read_manifest

ROOT = Path(__file__).resolve().parent.parent


def identity_of(stage: str, number: int) -> dict[str, Any]:
    return {"stage": stage, "seed": number}


def name_of(stage: str, number: int = 0) -> str:
    return f"{stage}-{fingerprint(identity_of(stage, number))[:ID_LENGTH]}"


NAME = name_of("sft")


def publish(store: ArtifactStore, stage: str = "sft", number: int = 0, size: int = 1000) -> Manifest:
    name, identity = name_of(stage, number), identity_of(stage, number)
    content = store.partial("checkpoint", name) / "model"
    (content / "adapter").mkdir(parents=True, exist_ok=True)
    (content / "model.safetensors").write_bytes(bytes(range(250)) * (size // 250))
    (content / "adapter" / "adapter.json").write_text("{}")
    return store.publish(content, name=name, kind="checkpoint", fingerprint=fingerprint(identity), identity=identity)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def folder(store: ArtifactStore) -> Path:
    """A finished checkpoint."""
    publish(store)
    return store.folder("checkpoint", NAME)


def test_what_is_published_is_found(store: ArtifactStore) -> None:
    written = publish(store)
    assert store.find("checkpoint", NAME) == written
    assert [entry.path for entry in written.files] == ["adapter/adapter.json", "model.safetensors"]
    assert damage(store.folder("checkpoint", NAME)) == []


def test_nothing_is_found_where_nothing_is(store: ArtifactStore) -> None:
    assert store.find("checkpoint", NAME) is None


def test_what_is_being_made_is_not_found(store: ArtifactStore) -> None:
    (store.partial("checkpoint", NAME) / "model").mkdir(parents=True)
    assert store.find("checkpoint", NAME) is None
    assert list(store.manifests("checkpoint")) == []


def delete(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[500] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def add_a_file(folder: Path) -> None:
    (folder / "adapter" / "pickle.bin").write_bytes(b"x")


def cut_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:-20])


def replace_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


def claim_another_identity(folder: Path) -> None:
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace('"seed": 0', '"seed": 7'))


def claim_a_later_layout(folder: Path) -> None:
    now, later = (f'"schema_version": {version}' for version in (SCHEMA_VERSION, SCHEMA_VERSION + 1))
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace(now, later))


def change_a_figure(folder: Path) -> None:
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace('"metrics": {', '"metrics": {"loss": 0.1, '))


def remove_the_digest(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {"digest": ""}))


DAMAGES = [
    *(delete, truncate, flip_a_bit, add_a_file, cut_the_manifest, replace_the_manifest),
    *(claim_another_identity, claim_a_later_layout, change_a_figure, remove_the_digest),
]


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_a_damaged_folder_is_moved_aside_and_not_served(
    store: ArtifactStore, folder: Path, harm: Callable[[Path], None]
) -> None:
    harm(folder)
    left = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    assert damage(folder)
    assert store.find("checkpoint", NAME) is None
    assert not folder.exists()
    (aside,) = (store.home / "checkpoints" / ".damaged").iterdir()
    assert sorted(path.relative_to(aside) for path in aside.rglob("*")) == left


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_a_damaged_folder_can_be_made_again(store: ArtifactStore, folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder)
    assert publish(store).fingerprint.startswith(NAME.partition("-")[2])
    assert store.find("checkpoint", NAME)


def test_damage_says_which_file_and_what(folder: Path) -> None:
    delete(folder)
    add_a_file(folder)
    missing, extra = sorted(damage(folder), key=len)[::-1] if "pickle" in damage(folder)[1] else damage(folder)
    said = " ".join([missing, extra])
    assert f"{folder / 'model.safetensors'}: missing" in said
    assert f"{folder / 'adapter' / 'pickle.bin'}: not in the manifest" in said


def test_a_manifest_of_a_later_layout_is_not_read(folder: Path) -> None:
    claim_a_later_layout(folder)
    with pytest.raises(DamagedArtifact, match=f"layout {SCHEMA_VERSION + 1} is newer"):
        read_manifest(folder)


def test_a_folder_under_another_name_is_damaged(folder: Path) -> None:
    other = folder.rename(folder.parent / name_of("sft", 1))
    assert "do not belong together" in damage(other)[0]


def test_what_a_failed_writing_left_behind_is_not_published(store: ArtifactStore) -> None:
    content = store.partial("checkpoint", NAME) / "model"
    content.mkdir(parents=True)
    (content / f".{MANIFEST}.unfinished").write_text("half")
    publish(store)
    assert store.find("checkpoint", NAME)


def test_a_folder_without_manifest_is_not_finished(store: ArtifactStore, folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert store.find("checkpoint", NAME) is None
    publish(store)
    assert store.find("checkpoint", NAME)


def test_others_never_see_half_a_folder(store: ArtifactStore) -> None:
    seen: list[list[str]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.extend(damage(path) for path in store.home.glob("checkpoints/sft-*"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(20):
        publish(store, "sft", number, size=200_000)
    done.set()
    watcher.join()
    assert seen
    assert not any(seen)


def test_a_kill_while_publishing_leaves_only_whole_folders(tmp_path: Path) -> None:
    code = (
        "import itertools, sys; from pathlib import Path; from tests.test_store import publish\n"
        "from tasks.store import ArtifactStore\n"
        "print('ready', flush=True)\n"
        "for n in itertools.count(): publish(ArtifactStore(Path(sys.argv[1])), 'sft', n, size=2_000_000)\n"
    )
    for wait in (0.05, 0.11, 0.23):
        home = tmp_path / str(wait)
        process = subprocess.Popen([sys.executable, "-c", code, home], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout
        with process:
            process.stdout.readline()
            time.sleep(wait)
            process.kill()
        assert [damage(path) for path in home.glob("checkpoints/sft-*") if damage(path)] == []


@pytest.fixture
def holder(store: ArtifactStore) -> "subprocess.Popen[bytes]":
    """Another process that holds the lock of `NAME`."""
    code = (
        "import sys, time; from pathlib import Path; from tasks.store import ArtifactStore\n"
        "store = ArtifactStore(Path(sys.argv[1]))\n"
        f"with store.lock('checkpoint', '{NAME}', 'run A', print):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, store.home], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_lock_waits_until_its_holder_is_dead(store: ArtifactStore, holder: "subprocess.Popen[bytes]") -> None:
    told: list[str] = []

    def waiting(process: str) -> None:
        told.append(process)
        holder.send_signal(signal.SIGKILL)

    with holder, store.lock("checkpoint", NAME, "B", waiting):
        assert holder.wait() == -signal.SIGKILL
    (said,) = told
    assert "run A" in said


def test_other_locks_do_not_wait(store: ArtifactStore, holder: "subprocess.Popen[bytes]") -> None:
    told: list[str] = []
    with holder, store.lock("checkpoint", name_of("dpo"), "B", told.append):
        holder.kill()
    assert told == []


def test_a_lock_excludes_another_thread(store: ArtifactStore) -> None:
    inside: list[int] = []

    def make() -> None:
        with store.lock("checkpoint", NAME, "B", lambda process: None):
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == []


@pytest.fixture
def filled(store: ArtifactStore) -> ArtifactStore:
    """One SFT checkpoint and two of DPO, the second one newer."""
    for number, (stage, seed) in enumerate((("sft", 0), ("dpo", 0), ("dpo", 1))):
        publish(store, stage, seed)
        os.utime(store.folder("checkpoint", name_of(stage, seed)) / MANIFEST, (number, number))
    return store


@pytest.mark.parametrize("length", [5, 8, 20])
def test_the_beginning_of_a_name_finds_it(filled: ArtifactStore, length: int) -> None:
    path, manifest = resolve(filled, NAME[:length])
    assert path.name == NAME
    assert read_manifest(path) == manifest


def test_the_beginning_of_a_fingerprint_finds_it(filled: ArtifactStore) -> None:
    assert resolve(filled, fingerprint(identity_of("dpo", 1))[:12])[0].name == name_of("dpo", 1)


def test_a_stage_means_its_newest_checkpoint(filled: ArtifactStore) -> None:
    assert resolve(filled, "dpo")[0].name == name_of("dpo", 1)


def test_a_folder_finds_itself(filled: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled.folder("checkpoint", NAME)
    assert resolve(filled, str(folder))[0] == folder
    monkeypatch.chdir(folder.parent)
    assert resolve(filled, f"./{NAME}")[0] == folder


@pytest.mark.parametrize(("wanted", "rule"), [("d", "matches several folders"), ("grpo", "matches nothing")])
def test_other_beginnings_are_refused_with_what_there_is(filled: ArtifactStore, wanted: str, rule: str) -> None:
    with pytest.raises(InputError, match=f"'{wanted}' {rule}") as caught:
        resolve(filled, wanted)
    assert name_of("dpo", 1) in str(caught.value)


def test_an_empty_root_says_so(store: ArtifactStore) -> None:
    with pytest.raises(InputError, match="none yet; run a recipe first"):
        resolve(store, "sft")

"""What machines share of an artifact root: folders, what is known of them, and what is not finished yet."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from models.artifacts import FileEntry, Pruned
from models.errors import DamagedArtifact, InputError
from models.preparation import Cleaning
from models.retraining import Decision
from models.sources import BaseModelSource
from models.stages import BaseModelInput
from tasks.base_model_check import locate
from tasks.child_main import ChildOptions
from tasks.dataset import _as_the_model_sees
from tasks.decisions import awaited, in_days, read_decision, write_decision
from tasks.execution import Execution
from tasks.files import file_digest
from tasks.pruned import is_pruned, mark_pruned
from tasks.remote.catalogue import changing_alias, refresh
from tasks.remote.folders import fetch_folder, send_folder
from tasks.remote.objects import ObjectStore
from tasks.remote.remote import Remote
from tasks.remote.sharing import send_missing
from tasks.restoring import restore
from tasks.store import FOLDERS, MANIFEST, ArtifactStore, damage, read_manifest, utc_now
from tests.folders import FILES, KINDS, content_of, family, name_of, publish
from tests.remotes import DAMAGES, alter, at_length

# --- folders


def listed(folder: Path) -> list[FileEntry]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "list"]
    return [
        FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=file_digest(path))
        for path in files
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "list").write_text("all")
    return folder


def test_a_folder_that_was_cut_off_goes_on_with_what_is_missing(objects: ObjectStore, folder: Path) -> None:
    files = listed(folder)
    first, rest = files[0], files[1:]
    (folder / rest[0].path).rename(folder / "gone")
    with pytest.raises(FileNotFoundError):
        send_folder(objects, folder, "f", files, "list")
    (folder / "gone").rename(folder / rest[0].path)
    assert "list" not in objects.names("f")
    assert send_folder(objects, folder, "f", files, "list") == sum(entry.size_bytes for entry in rest)
    assert objects.sizes("f") == {entry.path: entry.size_bytes for entry in files} | {"list": 3}
    assert objects.read(f"f/{first.path}") == (folder / first.path).read_bytes()


@at_length
@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_object_is_never_served(objects: ObjectStore, folder: Path, tmp_path: Path, harm: object) -> None:
    files = listed(folder)
    send_folder(objects, folder, "f", files, "list")
    harm(objects, "f/model.safetensors")  # type: ignore[operator]
    with pytest.raises(DamagedArtifact, match=r"model\.safetensors"):
        fetch_folder(objects, "f", files, tmp_path / "fetched")
    assert not (tmp_path / "fetched" / "model.safetensors").exists()


# --- finished folders


def test_what_one_machine_makes_another_one_finds(here: ArtifactStore, there: ArtifactStore, remote: Remote) -> None:
    path = publish(here, "sft")
    assert remote.send(here, "checkpoint", path.name) == sum(map(len, FILES.values()))
    assert remote.send(here, "checkpoint", path.name) == 0
    fetched = remote.fetch(there, "checkpoint", path.name)
    assert fetched == read_manifest(path)
    assert content_of(there.folder("checkpoint", path.name)) == content_of(path)
    assert not [*there.home.glob("checkpoints/.partial/*")]


@at_length
@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_a_folder_damaged_there_is_never_served_and_is_replaced_by_its_maker(
    here: ArtifactStore, there: ArtifactStore, remote: Remote, harm: object, file: str
) -> None:
    path = publish(here, "sft")
    remote.send(here, "checkpoint", path.name)
    harm(remote.objects, f"checkpoints/{path.name}/{file}")  # type: ignore[operator]
    left = remote.objects.sizes(f"checkpoints/{path.name}")
    assert remote.fetch(there, "checkpoint", path.name) is None
    assert not there.folder("checkpoint", path.name).exists()
    assert not remote.has(path)
    assert remote.objects.sizes(f"checkpoints/{path.name}") == left  # the fault may be the reader's own disk
    anew = publish(there, "sft", origin={"made": "anew"})
    assert remote.send(there, "checkpoint", anew.name, replace=True) > 0
    assert remote.fetch(here, "checkpoint", path.name) == read_manifest(anew)
    assert damage(path) == []


def test_what_is_made_anew_goes_in_place_of_the_old(here: ArtifactStore, there: ArtifactStore, remote: Remote) -> None:
    remote.send(here, "checkpoint", publish(here, "sft").name)
    path = publish(there, "sft", files={"model.safetensors": b"other"})
    assert remote.send(there, "checkpoint", path.name) == 0
    assert not remote.has(path)
    assert remote.send(there, "checkpoint", path.name, replace=True) == 5
    assert remote.has(path) and not remote.has(here.folder("checkpoint", path.name))


def test_everything_that_the_remote_lacks_is_sent_but_nothing_damaged(here: ArtifactStore, remote: Remote) -> None:
    made = family(here)
    (made["dpo"] / "config.json").write_text("?")
    send_missing(here, remote)
    safe = {stage for stage, path in made.items() if remote.has(path)}
    assert safe == made.keys() - {"dpo"}


# --- the catalogue


def test_another_machine_knows_manifests_and_fetches_files_where_it_needs_them(
    here: ArtifactStore, there: ArtifactStore, remote: Remote
) -> None:
    made = family(here)
    send_missing(here, remote)
    refresh(there, remote)
    path = there.folder("checkpoint", name_of("dpo"))
    assert is_pruned(path) and damage(path) == [] and not (path / "model.safetensors").exists()
    assert read_manifest(path) == read_manifest(made["dpo"])
    known = {each.name for each in there.newest_first("checkpoint")}
    assert known == {made[stage].name for stage in ("sft", "reward", "dpo")}
    told: list[str] = []
    restore(there, path, "test", lambda: pytest.fail("nothing is computed"), told.append)
    assert told == [f"fetching {path.name} from {remote.url}"]
    assert content_of(path) == content_of(made["dpo"])


@pytest.mark.parametrize("objects", ["file"], indirect=True)
@pytest.mark.parametrize("stage", ["base", "sft"])
def test_a_reader_of_what_is_damaged_there_says_so(
    here: ArtifactStore, there: ArtifactStore, remote: Remote, stage: str
) -> None:
    path = family(here)[stage]
    send_missing(here, remote)
    refresh(there, remote)
    kind = KINDS.get(stage, "checkpoint")
    alter(remote.objects, f"{FOLDERS[kind]}/{path.name}/model.safetensors")
    told: list[str] = []
    with pytest.raises(InputError, match="cannot be rebuilt here"):
        restore(there, there.folder(kind, path.name), "test", lambda: pytest.fail("nothing is computed"), told.append)
    assert told[-1] == f"what arrived of {path.name} is damaged"
    assert remote.manifest(kind, path.name) == read_manifest(path)


def test_a_manifest_of_which_half_was_written_is_no_folder(there: ArtifactStore, remote: Remote) -> None:
    remote.objects.write(f"checkpoints/sft-0123/{MANIFEST}", b'{"kind": ')
    refresh(there, remote)
    assert there.newest_first("checkpoint") == []


def test_no_example_is_rendered_by_a_base_model_whose_files_are_elsewhere(execution: Execution, tmp_path: Path) -> None:
    source = BaseModelSource(source="folder", name=str(tmp_path / "model"))
    stage = BaseModelInput(source=source, origin=locate(source)[1], precision=execution.precision)
    base = ArtifactStore(execution.settings.home).folder("base", stage.id)
    mark_pruned(base, Pruned(files=("tokenizer.json",), when=utc_now(), why="it is elsewhere"))
    asked = (
        SimpleNamespace(folder=tmp_path / "rows"),
        Cleaning(model=source),
        execution,
        SimpleNamespace(line=pytest.fail),
        ChildOptions(threads=1),
    )
    assert _as_the_model_sees(*asked) == {}  # type: ignore[arg-type]


def test_aliases_are_shared_and_changed_one_after_the_other(
    here: ArtifactStore, there: ArtifactStore, remote: Remote
) -> None:
    for number, store in enumerate((here, there, here)):
        with changing_alias(store, "champion", "test", lambda who: None):
            path = store.home / "aliases" / "champion.json"
            before = path.read_text() if path.exists() else ""
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{before}{number}")
    refresh(there, remote)
    assert (there.home / "aliases" / "champion.json").read_text() == "012"


def test_decisions_travel_with_their_alias(here: ArtifactStore, there: ArtifactStore, remote: Remote) -> None:
    asked = Decision(
        alias="champion", checkpoint="dpo-1", run="r", state="held", asked=utc_now(), until=in_days(1), asking="id"
    )
    with changing_alias(here, "champion", "test", lambda who: None):
        write_decision(here.home, asked)
    refresh(there, remote)
    assert awaited(there.home) == [asked]
    decided = asked.model_copy(update={"state": "rejected", "by": "somebody"})
    with changing_alias(there, "champion", "test", lambda who: None):
        write_decision(there.home, decided)
    with changing_alias(here, "champion", "test", lambda who: None):
        assert read_decision(here.home, "champion", "dpo-1") == decided

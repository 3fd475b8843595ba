"""Exported folders: whole or not there, verified on both sides, without a path of this machine."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from models.artifacts import Pruned
from models.errors import DamagedArtifact
from models.publishing import Export
from tasks.pruned import mark_pruned
from tasks.publishing.export import read_export
from tests.folders import content_of
from tests.published import HUB_ORIGIN, Shelf

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
ABOUT = {"README.md", "bom.cdx.json", "export.json", "lineage.json"}


@pytest.fixture
def align(paper_shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, in a folder beside the artifact root of a few bytes."""
    monkeypatch.setenv("ALIGN_HOME", str(paper_shelf.store.home))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return lambda *argv: main(list(argv))


def test_the_checkpoints_own_files_are_handed_over_with_what_is_known_of_them(
    align: Callable[..., int], paper_shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align("export", "dpo", "out") == 0
    said = capsys.readouterr().out
    assert all(part in said for part in (paper_shelf.dpo, "merged weights in float32", "licence: apache-2.0"))
    checkpoint, exported = content_of(paper_shelf.path(paper_shelf.dpo)), content_of(Path("out"))
    model = {"config.json", "tokenizer.json", "model.safetensors"}
    assert set(exported) == model | ABOUT
    assert all(exported[name] == checkpoint[name] for name in model)
    assert exported["lineage.json"] == checkpoint["manifest.json"]
    record = read_export(Path("out"))
    assert record
    assert {entry.path for entry in record.files} == exported.keys() - {"export.json"}
    assert (record.source, record.weights, record.relative_error) == (paper_shelf.dpo, "merged", None)
    assert [path.name for path in Path().iterdir()] == ["out"]
    assert not [name for name, content in exported.items() if str(tmp_path).encode() in content]


def test_an_empty_folder_is_filled_and_json_is_the_record(
    align: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    assert align("export", "sft", "out", "--json") == 0
    assert Export.model_validate_json(capsys.readouterr().out) == read_export(Path("out"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["dpo", "full"], "is not empty; an export needs a new folder"),
        (["dpo", "file"], "is a file; an export needs a new folder"),
        (["dpo", "file/below"], "cannot be written (Not a directory)"),
        (["dpo", "../home/checkpoints/mine"], "lies in the artifact root"),
        (["ppo", "out"], "'ppo' matches nothing"),
        (["dpo", "out", "--weights", "adapter", "--dtype", "float16"], "does not go with --weights adapter"),
        (["dpo", "out", "--weights", "onnx"], "--weights"),
        (["dpo", "out", "--public"], "nothing to show without --push"),
        (["reward", "out", "--weights", "gguf"], "GGUF has no place for its head"),
        (["dpo", "out", "--sign", "no.pem"], "no.pem: not a readable private elliptic-curve key"),
    ],
)
def test_what_is_refused_leaves_nothing(
    argv: list[str], says: str, align: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("file").write_text("mine")
    before = content_of(tmp_path)
    assert align("export", *argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("align: ") == 1
    assert says in said.err
    assert content_of(tmp_path) == before


def test_weights_that_were_trained_in_full_have_no_adapter(
    align: Callable[..., int], paper_shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align("export", paper_shelf.base, "out", "--weights", "adapter") == 2
    assert f"base-{paper_shelf.base} has no adapter" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_damaged_checkpoint_is_not_handed_over(
    align: Callable[..., int], paper_shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = paper_shelf.path(paper_shelf.dpo) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    assert align("export", "dpo", "out") == 1
    assert "model.safetensors" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_what_was_pruned_and_cannot_be_rebuilt_is_not_handed_over(
    align: Callable[..., int], paper_shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    place = paper_shelf.path(paper_shelf.dpo)
    files = ("config.json", "model.safetensors")
    mark_pruned(place, Pruned(files=files, when="2026-01-01T00:00:00+00:00", why="space"))
    for name in files:
        (place / name).unlink()
    assert align("export", paper_shelf.dpo, "out") == 2
    assert "was pruned" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


BUSY = """
import sys, time; from pathlib import Path; from tasks.publishing.export import _appearing_whole
with _appearing_whole(Path(sys.argv[1])) as folder:
    (folder / "model.safetensors").write_text("half")
    print("begun", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_export_leaves_is_removed_by_the_next_one(align: Callable[..., int]) -> None:
    begun = []
    for place in ("out", "out", "out.b"):
        command = [sys.executable, "-c", BUSY, str(Path(place).absolute())]
        begun.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE))
        assert begun[-1].stdout
        assert begun[-1].stdout.readline() == b"begun\n"
    dead, living, other = begun
    for process in (dead, other):
        process.kill()
        process.communicate()
    assert len(list(Path().glob(".out*.unfinished"))) == 3
    assert align("export", "sft", "out") == 0
    assert len(list(Path().glob(".out.????????.unfinished"))) == 1
    assert len(list(Path().glob(".out.b.*.unfinished"))) == 1
    living.kill()
    living.communicate()


def append(place: Path) -> None:
    place.write_bytes(place.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: append(folder / "config.json"), "out/config.json: "),
        (lambda folder: (folder / "model.safetensors").unlink(), "out/model.safetensors: missing"),
        (lambda folder: (folder / "pickle.bin").write_text("x"), "out/pickle.bin: not in the manifest"),
    ],
)
def test_an_exported_folder_is_verified_without_its_artifact_root(
    break_it: Callable[[Path], Any],
    says: str,
    align: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert align("export", "dpo", "out") == 0
    monkeypatch.setenv("ALIGN_HOME", "nowhere")
    (Path("out") / ".gitattributes").write_text("as a hub adds it\n")
    capsys.readouterr()
    assert align("verify", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"verified": 1, "damaged": {}, "signature": "there is none"}
    break_it(Path("out"))
    assert align("verify", "out") == 1
    said = capsys.readouterr().out
    assert says in said
    assert "1 files damaged or missing" in said


def test_an_unreadable_record_is_one_message(align: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert align("export", "dpo", "out") == 0
    Path("out/export.json").write_text("{}")
    with pytest.raises(DamagedArtifact, match="not an export's"):
        read_export(Path("out"))
    capsys.readouterr()
    assert align("verify", "out") == 1
    assert "export again" in capsys.readouterr().err


def test_a_key_is_for_exported_folders_alone(align: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert align("verify", "dpo", "--key", "pub.pem") == 2
    assert "dpo is no exported folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("origin", "stage", "base", "revision"),
    [
        (HUB_ORIGIN, "sft", "somebody/small-model", "c" * 40),
        (HUB_ORIGIN, "dpo", "sft-0", None),
        ({**HUB_ORIGIN, "source": "folder"}, "sft", "sft-0", None),
    ],
)
def test_an_adapter_names_the_hubs_model_where_it_was_trained_on_that(
    origin: dict[str, str],
    stage: str,
    base: str,
    revision: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf = Shelf(tmp_path / "hub home", origin, real=False)
    monkeypatch.setenv("ALIGN_HOME", str(shelf.store.home))
    folder = tmp_path / "out"
    assert main(["export", stage, str(folder), "--weights", "adapter"]) == 0
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"], config["r"]) == (base, revision, 8)
    card = (folder / "README.md").read_text()
    assert ("which is on no hub" in card) == (revision is None)
    assert (f'from_pretrained("{base}", revision="{revision}")' in card) == (revision is not None)
    assert not {"config.json", "model.safetensors"} & content_of(folder).keys()

"""Signatures: what was signed holds wherever the folder goes, and nothing else does."""

import builtins
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from tests.folders import content_of
from tests.published import Shelf

pytestmark = pytest.mark.slow

pytest.importorskip("model_signing")


def make_keys(folder: Path, name: str) -> None:
    """A key pair as the message of a missing key shows how to make it."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(make, check=True, capture_output=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)


@pytest.fixture
def signed(paper_shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed folder; beside it the keys `mine` and `other`."""
    monkeypatch.setenv("ALIGN_HOME", str(paper_shelf.store.home))
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        make_keys(tmp_path, name)
    assert main(["export", "dpo", "out", "--sign", "mine.pem"]) == 0
    return Path("out")


def test_a_signature_goes_with_the_folder(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = Path(shutil.copytree(signed, "elsewhere/under another name"))
    (moved / ".gitattributes").write_text("as a hub adds it\n")
    capsys.readouterr()
    assert main(["verify", str(moved), "--key", "mine.pub", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "holds"
    assert main(["verify", str(moved)]) == 0
    assert "signature: not verified; give --key" in capsys.readouterr().out


def test_nothing_of_the_private_key_is_in_the_folder(signed: Path) -> None:
    secret = [line for line in Path("mine.pem").read_text().splitlines() if "-----" not in line]
    assert len(secret) > 1
    assert not any(line.encode() in content for content in content_of(signed).values() for line in secret)
    assert not any(b"mine.pem" in content for content in content_of(signed).values())


def forge(folder: Path) -> None:
    """Change a file and the record that lists it, as somebody would who wants it to pass."""
    import hashlib

    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    record = json.loads((folder / "export.json").read_text())
    for entry in record["files"]:
        if entry["path"] == weights.name:
            entry["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "export.json").write_text(json.dumps(record))


def cut(folder: Path) -> None:
    signature = folder / "model.sig"
    signature.write_bytes(signature.read_bytes()[:-200])


def swap(folder: Path) -> None:
    """Put another statement under the signature."""
    bundle = json.loads((folder / "model.sig").read_text())
    payload = bundle["dsseEnvelope"]["payload"]
    bundle["dsseEnvelope"]["payload"] = payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]
    (folder / "model.sig").write_text(json.dumps(bundle))


@pytest.mark.parametrize("break_it", [forge, cut, swap])
def test_other_files_and_other_signatures_do_not_hold(
    break_it: Callable[[Path], None], signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it(signed)
    assert main(["verify", "out"]) == 0  # the record agrees with the files: only the signature tells
    capsys.readouterr()
    assert main(["verify", "out", "--key", "mine.pub"]) == 1
    said = capsys.readouterr().err
    assert "out: the signature does not hold with mine.pub" in said
    assert "Traceback" not in said


def test_anothers_key_does_not_hold(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "out", "--key", "other.pub"]) == 1
    assert "does not hold with other.pub" in capsys.readouterr().err


def test_damage_is_told_before_the_signature(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (signed / "config.json").write_text("{}")
    assert main(["verify", "out", "--key", "mine.pub"]) == 1
    said = capsys.readouterr().out
    assert "out/config.json: 2 bytes" in said
    assert "signature: not verified, since files are damaged" in said


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["verify", "plain", "--key", "mine.pub"], "plain: not signed, there is no model.sig"),
        (["verify", "out", "--key", "none.pub"], "none.pub: not a readable public elliptic-curve key"),
        (["verify", "out", "--key", "mine.pem"], "mine.pem: not a readable public elliptic-curve key"),
        (["export", "dpo", "new", "--sign", "none.pem"], "openssl ecparam"),
        (["export", "dpo", "new", "--sign", "mine.pub"], "mine.pub: not a readable private elliptic-curve key"),
        (["export", "dpo", "new", "--sign", "rsa.pem"], "rsa.pem: not a readable private elliptic-curve key"),
        (["export", "dpo", "new", "--sign", "locked.pem"], "give one without a password"),
    ],
)
def test_wrong_keys_are_refused(argv: list[str], says: str, signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "dpo", "plain"]) == 0
    subprocess.run(["openssl", "genrsa", "-out", "rsa.pem", "2048"], check=True, capture_output=True)
    lock = ["openssl", "ec", "-in", "mine.pem", "-aes256", "-passout", "pass:word", "-out", "locked.pem"]
    subprocess.run(lock, check=True, capture_output=True)
    capsys.readouterr()
    assert main(argv) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("align: ") == 1
    assert not Path("new").exists()


def test_a_missing_package_is_one_message_with_the_command(
    signed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("model_signing"):
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["export", "dpo", "new", "--sign", "mine.pem"]) == 2
    assert "pip install 'alignment-pipeline[sign]'" in capsys.readouterr().err
    assert not Path("new").exists()

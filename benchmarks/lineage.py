"""How long questions about lineage take in an artifact root of many checkpoints, as whole commands.

    python -m benchmarks.lineage --checkpoints 10000

Every folder is small but real: an SFT checkpoint, and DPO checkpoints of it in families of ten, with manifests that
carry as much as those of trained ones.
"""
# ruff: noqa: T201 - a benchmark prints

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from models.fingerprint import ID_LENGTH, fingerprint
from tasks.index_file import INDEX
from tasks.store import ArtifactStore

_FAMILY = 10
_FILES = {f"file-{number}.json": "{}" for number in range(12)}
_ATTEMPT = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "started": "2026-01-31T14:06:00+00:00",
    "seconds": 12.5,
    "outcome": "completed",
}


def main() -> None:
    """Fill a temporary artifact root and time each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        base, dataset, last, other = fill(ArtifactStore(home), asked.checkpoints)
        commands = {
            "lineage of a checkpoint": ["lineage", last],
            "descendants of the base model": ["lineage", base, "--descendants"],
            "the same as JSON": ["lineage", base, "--descendants", "--json"],
            "descendants of a dataset": ["lineage", dataset, "--descendants"],
            "diff of two checkpoints": ["diff", last, other],
            "verify a checkpoint": ["verify", last],
            "newest of a stage": ["lineage", "dpo"],
        }
        print(f"first question, the index is built: {seconds(home, commands['descendants of a dataset']):.2f} s")
        print(f"size of the index: {(home / INDEX).stat().st_size / 1e6:.1f} MB")
        for title, arguments in commands.items():
            took = [seconds(home, arguments) for _ in range(asked.rounds)]
            print(f"{title:32} median {statistics.median(took):.2f} s, most {max(took):.2f} s")


def fill(store: ArtifactStore, checkpoints: int) -> tuple[str, str, str, str]:
    """Publish the folders; returns the names of base model, dataset, and two checkpoints of one family."""
    base = publish(store, "base", {"stage": "base"}, {}, origin={"source": "hub", "name": "org/model"})
    dataset = publish(store, "dataset", {"rows": 0}, {}, origin={"path": "rows.jsonl"})
    names: list[str] = []
    for number in range(checkpoints):
        first = number % _FAMILY == 0
        parents = {"policy": base if first else names[number - number % _FAMILY], "dataset": dataset}
        identity = {"stage": "sft" if first else "dpo", "hyperparameters": {"beta": 0.1, "learning_rate": 1e-5}}
        names.append(publish(store, "checkpoint", identity | {"seed": number}, parents))
    return base, dataset, names[-1], names[-2]


def publish(store: ArtifactStore, kind: Any, identity: dict[str, Any], parents: dict[str, str], **more: Any) -> str:
    """Publish one folder and return its name."""
    content = store.home / "making"
    content.mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        (content / name).write_text(text)
    digits = fingerprint(identity)
    name = f"{identity['stage']}-{digits[:ID_LENGTH]}" if kind == "checkpoint" else digits[:ID_LENGTH]
    versions = {f"library-{number}": "1.2.3" for number in range(20)}
    attempts = (_ATTEMPT,) if kind == "checkpoint" else ()
    facts = {"fingerprint": digits, "identity": identity, "parents": parents, "versions": versions}
    store.publish(content, kind=kind, name=name, attempts=attempts, metrics={"loss": 1.0}, **facts, **more)
    shutil.rmtree(content, ignore_errors=True)
    return name


def seconds(home: Path, arguments: list[str]) -> float:
    """Wall time of a whole command."""
    start = time.monotonic()
    command = [sys.executable, "-m", "flows", *arguments]
    subprocess.run(command, env=os.environ | {"ALIGN_HOME": str(home)}, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return time.monotonic() - start


if __name__ == "__main__":
    main()

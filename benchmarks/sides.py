"""One side of a comparison, trained from start to end: the pipeline, a plain TRL script, and LLaMA-Factory."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.family import watched
from models.artifacts import Manifest, Stage
from models.recipe import Recipe
from settings.recipes import load_recipe
from tasks.store import ArtifactStore

STAGES: tuple[Stage, ...] = ("sft", "reward", "dpo", "grpo")
_HERE = Path(__file__).parent
_PEER_STAGES = {"sft": "sft", "reward": "rm", "dpo": "dpo"}
"""What LLaMA-Factory calls the stages that it has."""
_PEER_DATA = {
    "sft": {"prompt": "prompt", "response": "completion", "system": "system"},
    "reward": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "system": "system"},
}


class Side(NamedTuple):
    """What one side took in a round."""

    seconds: dict[str, float]
    """By stage, and `total`; what it does not have is not there."""
    besides: dict[str, float]
    """Seconds of them without optimizer steps: loading, merging, checking and writing; in `total`: of all stages, and
    what lies before and between them."""
    peak_gb: dict[str, float]
    """By stage: the largest resident set of its process; in `total`: of all processes together, shared pages once."""


def run_pipeline(recipe: Path, seed: int, base: Path, home: Path) -> Side:
    """`align run` in an artifact root that holds nothing but the base model."""
    shutil.copytree(base, home / "base" / base.name)
    started = time.time()
    peak = _run([str(Path(sys.executable).parent / "align"), "run", str(recipe), "--seed", str(seed)], home)
    store = ArtifactStore(home)
    found = {made.identity["stage"]: (path, made) for path, made in store.manifests("checkpoint")}
    finished = {stage: _finished(found[stage][0]) for stage in STAGES}
    figures = {stage: _figures(found[stage][1]) for stage in STAGES}
    at_work = [(finished[stage] - seconds, finished[stage]) for stage, (seconds, _, _) in figures.items()]
    at_work += [(finished["reward"], min(_finished(path) for path, _ in store.manifests("evaluation")))]  # it is judged
    return _side(figures, max(finished.values()) - started, covered(at_work), peak)


def _figures(made: Manifest) -> tuple[float, float, float]:
    """As the plain script writes them: seconds, those of optimizer steps, and memory in GB."""
    steps = sum(each.training_seconds for each in made.attempts)
    return made.metrics["seconds"], steps, max(each.peak_memory_bytes for each in made.attempts) / 1e9


def _finished(folder: Path) -> float:
    return (folder / "manifest.json").stat().st_mtime


def run_plain(recipe: Path, seed: int, base: Path, folder: Path) -> Side:
    """The plain script, which writes what its stages took to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    peak = _run([sys.executable, str(_HERE / "plain_trl.py"), *map(str, (recipe, base, folder, seed))], folder)
    figures = json.loads((folder / "figures.json").read_text())
    total = (folder / "figures.json").stat().st_mtime - started
    return _side(figures, total, sum(seconds for seconds, _, _ in figures.values()), peak)


def _side(figures: Mapping[Any, tuple[float, float, float]], total: float, at_work: float, peak_bytes: int) -> Side:
    """Of a side whose stages ran for `at_work` of its `total` seconds, one at least at a time."""
    besides = {stage: seconds - steps for stage, (seconds, steps, _) in figures.items()}
    return Side(
        {stage: seconds for stage, (seconds, _, _) in figures.items()} | {"total": total},
        besides | {"total": sum(besides.values()) + total - at_work},
        {stage: peak for stage, (_, _, peak) in figures.items()} | {"total": peak_bytes / 1e9},
    )


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """How long at least one of the intervals lasts."""
    length, until = 0.0, -inf
    for start, end in sorted(intervals):
        length += max(0.0, end - max(start, until))
        until = max(until, end)
    return length


def run_peer(command: Path, recipe: Path, seed: int, base: Path, folder: Path) -> Side:
    """LLaMA-Factory's SFT, reward model and DPO, a process each, and one that merges for SFT and for DPO.

    It trains in mixed precision, its one way to compute in bfloat16 on a CPU.

    Args:
        command: `llamafactory-cli` of an environment of its own.
        recipe: The recipe's file.
        seed: The seed.
        base: The base model's folder; its template is taken to be SmolLM2's.
        folder: Where data, settings and models go.
    """
    asked, seconds = load_recipe(str(recipe)), {}
    assert asked.reward and asked.dpo and asked.reward.dataset == asked.dpo.dataset  # noqa: S101 - its data is written once
    _write_peer_data(asked, folder / "data")
    common = {"template": "smollm2", "trust_remote_code": False}
    for stage, called in _PEER_STAGES.items():
        parent = base if stage == "sft" else folder / "sft"
        adapter = folder / f"{stage}-adapter"
        training = _peer_arguments(asked, stage, seed, folder)
        training |= common | {"stage": called, "model_name_or_path": str(parent), "output_dir": str(adapter)}
        merging = common | {"model_name_or_path": str(parent), "adapter_name_or_path": str(adapter)}
        merging |= {"export_dir": str(folder / stage), "export_device": "cpu", "infer_dtype": "bfloat16"}
        started = time.time()
        _run_peer(command, "train", training, folder)
        if stage != "reward":  # of a reward model it keeps adapter and head
            _run_peer(command, "export", merging, folder)
        seconds[stage] = time.time() - started
    return Side(seconds | {"total": sum(seconds.values())}, {}, {})


def _peer_arguments(asked: Recipe, stage: str, seed: int, folder: Path) -> dict[str, Any]:
    """What the recipe asks for, in LLaMA-Factory's words."""
    values = getattr(asked, stage)
    preferring = {"pref_beta": values.beta, "pref_ftx": values.sft_weight} if stage == "dpo" else {}
    return preferring | {
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": values.lora.r,
        "lora_alpha": values.lora.alpha,
        "lora_target": ",".join(values.lora.target_modules),
        "lora_dropout": 0.0,
        "dataset": "sft" if stage == "sft" else "reward",
        "dataset_dir": str(folder / "data"),
        "cutoff_len": values.max_length,
        "per_device_train_batch_size": values.batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": values.learning_rate,
        "lr_scheduler_type": values.lr_scheduler_type,
        "warmup_ratio": values.warmup_ratio,
        "max_steps": values.max_steps,
        "seed": seed,
        "bf16": True,
        "use_cpu": True,
        "disable_gradient_checkpointing": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
    }


def _write_peer_data(asked: Recipe, folder: Path) -> None:
    """The rows with the system prompt as a column, and the file that says which column is what."""
    folder.mkdir(parents=True)
    for stage, columns in _PEER_DATA.items():
        lines = Path(getattr(asked, stage).dataset.path).read_text().splitlines()
        rows = [json.loads(line) | {"system": asked.system_prompt} for line in lines]
        (folder / f"{stage}.json").write_text(
            json.dumps([{name: row[name] for name in columns.values()} for row in rows])
        )
    told = {
        stage: {"file_name": f"{stage}.json", "ranking": stage == "reward", "columns": columns}
        for stage, columns in _PEER_DATA.items()
    }
    (folder / "dataset_info.json").write_text(json.dumps(told))


def _run_peer(command: Path, doing: str, settings: dict[str, Any], folder: Path) -> None:
    file = folder / f"{doing}.yaml"  # its reader of JSON fails on any file
    file.write_text(json.dumps(settings))
    _run([str(command), doing, str(file)], folder)


def _run(command: list[str], folder: Path) -> int:
    """Run it in a folder of its own; the most memory that its processes held together, in bytes."""
    environment = os.environ | {"ALIGN_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    with (
        (folder / "output.txt").open("a") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,  # noqa: S603
        watched(process.pid) as peak,
    ):
        if process.wait():
            raise SystemExit(f"{command[0]} ended with exit code {process.returncode}; see {folder / 'output.txt'}")
    return peak.pss_bytes

"""The pipeline and a plain TRL script in turn, round by round; per-stage ratios and, last, `total ratio X`.

Each round trains the quickstart's four stages from the same converted base model, with a seed of its own, once by
`align run` in an empty artifact root and once by `plain_trl.py`, both as whole processes. Left out on both sides:
converting the base model, evaluation and report. A ratio below 1 means that the pipeline was faster. A stage's time is
all that it takes: loading, training, merging, writing and, for the pipeline, reading back and comparing. The total is
wall time from the start of the process to the last checkpoint, imports and Prefect's start included; the pipeline
trains reward model and DPO side by side, so its total is less than the sum of its stages.

Both sides' checkpoints are then judged on the recipe's held-out rows. Where a figure differs by more than the 95 %
intervals, one side has learned something else, and the exit code is 1.
"""
# ruff: noqa: T201 - a benchmark prints

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.heldout import apart, held_out_rows, measure
from flows.session import PREFECT_DEFAULTS
from models.artifacts import Stage
from settings.recipes import load_recipe
from settings.settings import Settings
from tasks.base_model import prepare_base_model
from tasks.execution import plan_execution
from tasks.store import ArtifactStore

STAGES: tuple[Stage, ...] = ("sft", "reward", "dpo", "grpo")
_HERE = Path(__file__).parent
Seconds = dict[str, float]
"""Seconds by stage, and `total`."""


def main() -> int:
    """Run the rounds and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one round a seed (default: 1 2 3)")
    parser.add_argument("--keep", type=Path, help="keep the artifact roots and logs in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        rounds, differing = _rounds(options.seeds, folder)
    _print_table([ours for ours, _ in rounds], [plain for _, plain in rounds])
    for line in differing:
        print(f"learned something else: {line}")
    return 1 if differing else 0


def _rounds(seeds: list[int], folder: Path) -> tuple[list[tuple[Seconds, Seconds]], list[str]]:
    """The seconds of both sides in each round, and the figures that differ."""
    for variable, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    recipe = load_recipe("quickstart")
    execution = plan_execution(recipe, Settings(home=folder / "base-home"))
    base = prepare_base_model(recipe.base_model, execution, return_state=True).result().path
    heldout = held_out_rows(recipe, execution)
    rounds, differing = [], []
    for seed in seeds:
        rounds.append(_round(seed, base, folder))
        models = (_our_models(seed, folder), _plain_models(seed, folder))
        ours, plain = (measure(side, heldout, execution, folder / "judged") for side in models)
        for name, mine in ours.items():
            print(f"round {seed} {name:30} ours {mine}  plain {plain[name]}", flush=True)
        differing += apart(ours, plain)
    return rounds, differing


def _our_models(seed: int, folder: Path) -> dict[Stage, Path]:
    store = ArtifactStore(folder / f"ours-{seed}")
    return {manifest.identity["stage"]: path for path, manifest in store.manifests("checkpoint")}


def _plain_models(seed: int, folder: Path) -> dict[Stage, Path]:
    return {stage: folder / f"plain-{seed}" / stage for stage in STAGES}


def _round(seed: int, base: Path, folder: Path) -> tuple[Seconds, Seconds]:
    sides = {"ours": _run_pipeline, "plain": _run_plain}
    order = sorted(sides, reverse=seed % 2 == 0)  # who goes first changes from round to round
    seconds_of = {name: sides[name](seed, base, folder / f"{name}-{seed}") for name in order}
    for name, seconds in seconds_of.items():
        print(
            f"round {seed} {name:6}",
            "  ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items()),
            flush=True,
        )
    return seconds_of["ours"], seconds_of["plain"]


def _run_pipeline(seed: int, base: Path, home: Path) -> Seconds:
    """`align run quickstart` in an artifact root that holds nothing but the base model."""
    shutil.copytree(base, home / "base" / base.name)
    started = time.time()
    _run([str(Path(sys.executable).parent / "align"), "run", "quickstart", "--seed", str(seed)], home, home)
    manifests = {
        manifest.identity["stage"]: (path, manifest) for path, manifest in ArtifactStore(home).manifests("checkpoint")
    }
    seconds = {stage: manifests[stage][1].metrics["seconds"] for stage in STAGES}
    finished = max((path / "manifest.json").stat().st_mtime for path, _ in manifests.values())
    return seconds | {"total": finished - started}


def _run_plain(seed: int, base: Path, folder: Path) -> Seconds:
    """The plain script, which writes its seconds by stage to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    _run([sys.executable, str(_HERE / "plain_trl.py"), str(base), str(folder), str(seed)], folder, folder)
    seconds: Seconds = json.loads((folder / "seconds.json").read_text())
    return seconds | {"total": (folder / "seconds.json").stat().st_mtime - started}


def _run(command: list[str], folder: Path, home: Path) -> None:
    environment = os.environ | {"ALIGN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with (folder / "output.txt").open("w") as output:
        subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=True)  # noqa: S603


def _print_table(ours: list[Seconds], plain: list[Seconds]) -> None:
    print(f"\n{'stage':8}{'ours (median s)':>18}{'plain (median s)':>18}{'ratio (median)':>16}{'min':>8}{'max':>8}")
    for name in (*STAGES, "total"):
        ratios = sorted(mine[name] / theirs[name] for mine, theirs in zip(ours, plain, strict=True))
        mine, theirs = median(one[name] for one in ours), median(one[name] for one in plain)
        print(f"{name:8}{mine:18.1f}{theirs:18.1f}{median(ratios):16.2f}{ratios[0]:8.2f}{ratios[-1]:8.2f}")
    total = median(mine["total"] / theirs["total"] for mine, theirs in zip(ours, plain, strict=True))
    print(f"\ntotal ratio {total:.2f}")


if __name__ == "__main__":
    sys.exit(main())

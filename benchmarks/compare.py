"""The pipeline and a plain TRL script in turn, round by round; per-stage ratios and, last, `total ratio X`.

    python -m benchmarks.compare [--shape quickstart|gsm8k|hh] [--seeds 1 2 3] [--peer llamafactory-cli]

Each round trains a recipe's four stages from the same converted base model, with a seed of its own, once by
`align run` in an empty artifact root and once by `plain_trl.py`, both as whole processes. Left out on both sides:
converting the base model, evaluation and report. A ratio below 1 means that the pipeline was faster. A stage's time is
all that it takes: loading, training, merging, writing and, for the pipeline, reading back and comparing. The total is
wall time from the start of the process to the last checkpoint, imports and Prefect's start included; the pipeline
trains reward model and DPO side by side, so its total is less than the sum of its stages, and judges the reward model
before GRPO, which the total has as well. Seconds without steps are a stage's loading, merging, checking and writing; of
the total they are those of all stages, and what lies before and between the stages, but not the judging. Memory is the
largest resident set of the process that trains a stage, and of the total the most that all processes of the side held
at once, shared pages counted once, looked at twice a second.

LLaMA-Factory joins where its command is given. Its stages are processes that train and others that merge, each of which
imports its libraries, which takes a stage of the others nothing; its total is their sum.

Both sides' checkpoints are then judged on the recipe's held-out rows: exact matches, ranked pairs, loss on accepted
answers, and the score that the pipeline's reward model gives to replies. Where a figure differs by more than the 95 %
intervals, one side has learned something else, and the exit code is 1.
"""
# ruff: noqa: T201 - a benchmark prints

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.figures import spread
from benchmarks.heldout import apart, held_out_rows, measure
from benchmarks.shapes import SHAPES, write_recipe
from benchmarks.sides import STAGES, Side, run_peer, run_pipeline, run_plain
from flows.session import PREFECT_DEFAULTS
from models.artifacts import Stage
from settings.recipes import load_recipe, shipped_recipes
from settings.settings import Settings
from tasks.base_model import prepare_base_model
from tasks.execution import plan_execution
from tasks.store import ArtifactStore

Round = dict[str, Side]
"""What each side took, by its name."""


def main() -> int:
    """Run the rounds and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="quickstart", choices=["quickstart", *SHAPES], help="lengths of the rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one round a seed (default: 1 2 3)")
    parser.add_argument(
        "--peer", type=Path, help="`llamafactory-cli` of an environment of its own, to compare with too"
    )
    parser.add_argument("--keep", type=Path, help="keep the artifact roots and logs in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        is_written = options.shape in SHAPES
        recipe = write_recipe(options.shape, folder / "shape") if is_written else shipped_recipes()[options.shape]
        sides = {"ours": run_pipeline, "plain": run_plain}
        sides |= {"peer": partial(run_peer, options.peer)} if options.peer else {}
        rounds, differing = _rounds(sides, recipe, options.seeds, folder)
    _print_table(rounds)
    for line in differing:
        print(f"learned something else: {line}")
    return 1 if differing else 0


def _rounds(
    sides: Mapping[str, Callable[..., Side]], recipe_file: Path, seeds: list[int], folder: Path
) -> tuple[list[Round], list[str]]:
    """What the sides took in each round, and the figures in which ours and the plain script's differ."""
    for variable, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    recipe = load_recipe(str(recipe_file))
    execution = plan_execution(recipe, Settings(home=folder / "base-home"))
    base = prepare_base_model(recipe.base_model, execution, return_state=True).result().path
    heldout = held_out_rows(recipe, execution)
    rounds, differing = [], []
    for index, seed in enumerate(seeds):
        first = index % len(sides)  # changes from round to round
        order = [*list(sides)[first:], *list(sides)[:first]]
        rounds.append(_round({name: sides[name] for name in order}, recipe_file, seed, base, folder))
        models = {"ours": _our_models(seed, folder), "plain": _plain_models(seed, folder)}
        models |= {"peer": _peer_models(seed, folder)} if "peer" in sides else {}
        found = {
            name: measure(side, models["ours"]["reward"], heldout, execution, folder / "judged")
            for name, side in models.items()
        }
        for figure in found["ours"]:
            told = "  ".join(f"{name} {figures[figure]}" for name, figures in found.items() if figure in figures)
            print(f"round {seed} {figure:30} {told}", flush=True)
        differing += apart(found["ours"], found["plain"])
    return rounds, differing


def _our_models(seed: int, folder: Path) -> dict[Stage, Path]:
    store = ArtifactStore(folder / f"ours-{seed}")
    return {manifest.identity["stage"]: path for path, manifest in store.manifests("checkpoint")}


def _plain_models(seed: int, folder: Path) -> dict[Stage, Path]:
    return {stage: folder / f"plain-{seed}" / stage for stage in STAGES}


def _peer_models(seed: int, folder: Path) -> dict[Stage, Path]:
    """Of its reward model it keeps adapter and head apart."""
    return {"sft": folder / f"peer-{seed}" / "sft", "dpo": folder / f"peer-{seed}" / "dpo"}


def _round(sides: Mapping[str, Callable[..., Side]], recipe: Path, seed: int, base: Path, folder: Path) -> Round:
    took = {}
    for name, run in sides.items():
        os.sync()  # what another side wrote must not slow this one's writing down
        took[name] = run(recipe, seed, base, folder / f"{name}-{seed}")
    for name, side in took.items():
        figures = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in side.seconds.items())
        print(f"round {seed} {name:6} {figures}", flush=True)
    return took


def _print_table(rounds: list[Round]) -> None:
    """Medians, with least and most of several rounds, and our share of the plain script's seconds."""
    names = [name for name in ("ours", "plain", "peer") if name in rounds[0]]
    pair = ("ours", "plain")
    heads = ["", *(f"{name} in s" for name in names), "ratio"]
    heads += [f"{name} {what}" for what in ("without steps in s", "in GB") for name in pair]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for stage in (*STAGES, "total"):
        cells = [spread([each[name].seconds.get(stage) for each in rounds]) for name in names]
        cells += [spread(_ratios(rounds, stage), digits=2)]
        cells += [spread([each[name].besides[stage] for each in rounds]) for name in pair]
        cells += [spread([each[name].peak_gb[stage] for each in rounds]) for name in pair]
        print(f"| {stage} | {' | '.join(cells)} |")
    more = median(each["ours"].besides["total"] - each["plain"].besides["total"] for each in rounds)
    share = median(each["ours"].besides["total"] / each["ours"].seconds["total"] for each in rounds)
    print(f"\nwithout steps: {share:.1%} of our total, {more:+.1f} s against the plain script")
    print(f"total ratio {median(_ratios(rounds, 'total')):.2f}")


def _ratios(rounds: list[Round], stage: str) -> list[float]:
    return [each["ours"].seconds[stage] / each["plain"].seconds[stage] for each in rounds]


if __name__ == "__main__":
    sys.exit(main())

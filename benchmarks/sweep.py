"""How the cost of a micro-batch grows with its shape: forward and backward pass, TRL's way and ours, as a plot.

    python -m benchmarks.sweep [--rounds 3] [--output docs/performance.svg]

One length changes at a time, the others stay: 8 rows of GRPO (16 where the group grows) that share a prompt of 128
tokens, replies of 32. Prints the figures as a table in Markdown, too.
"""
# ruff: noqa: T201 - a benchmark prints

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.micro_batches import DTYPES, Case, Measured, measure

_GROUP, _PROMPT, _REPLY = 8, 128, 32


def _case(group: int = _GROUP, prompt: int = _PROMPT, reply: int = _REPLY, rows: int = _GROUP) -> Case:
    return Case("", "grpo", (prompt, prompt), (reply, reply), (group,) * (rows // group))


SWEEPS: Mapping[str, tuple[Sequence[int], Callable[[int], Case]]] = {
    "replies to a prompt (of 16 rows)": ((1, 2, 4, 8, 16), lambda value: _case(group=value, rows=16)),
    "tokens of the prompt": ((16, 64, 256, 512), lambda value: _case(prompt=value)),
    "tokens of a reply": ((8, 32, 128, 256), lambda value: _case(reply=value)),
    "rows, 8 to a prompt": ((8, 16, 32), lambda value: _case(rows=value)),
}
"""What grows, through which values, and the micro-batch of each."""


def main() -> None:
    """Measure every micro-batch, print the table and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("docs/performance.svg"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| what grows | value | TRL in s | shared in s | times faster |\n|---|---|---|---|---|")
    found: dict[str, list[Measured]] = {}
    for what, (values, case) in SWEEPS.items():
        found[what] = []
        for value in values:
            measured = measure(case(value), DTYPES["fp32"], options.rounds)
            found[what].append(measured)
            seconds = [f"{median(measured.seconds[side]):.2f}" for side in ("theirs", "ours")]
            print(f"| {what} | {value} | {' | '.join(seconds)} | {measured.faster:.2f} |", flush=True)
    plot(found, options.output)


def plot(found: Mapping[str, Sequence[Measured]], file: Path) -> None:
    """A panel for each sweep, both axes logarithmic; bars from the fastest to the slowest round."""
    mpl.rcParams["svg.hashsalt"] = "performance"  # the same figures make the same file
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.5), sharey=True, layout="constrained")
    sides = {"theirs": ("TRL", "#b45309", "o"), "ours": ("computed once", "#1d4ed8", "s")}
    for panel, (what, measured) in zip(panels.flat, found.items(), strict=True):
        values = SWEEPS[what][0]
        for side, (label, colour, marker) in sides.items():
            middle = [median(each.seconds[side]) for each in measured]
            spread = [
                [centre - min(each.seconds[side]) for centre, each in zip(middle, measured, strict=True)],
                [max(each.seconds[side]) - centre for centre, each in zip(middle, measured, strict=True)],
            ]
            panel.errorbar(values, middle, spread, label=label, color=colour, marker=marker, capsize=3)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(values, [str(value) for value in values])
        panel.set_xlabel(what)
        panel.grid(alpha=0.3, which="both")
    for panel in panels[:, 0]:
        panel.set_ylabel("seconds of one thread")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panels.flat[0].legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()

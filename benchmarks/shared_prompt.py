"""Common beginnings computed once against TRL's way: a table in Markdown.

    python -m benchmarks.shared_prompt [--precision bf16] [--rounds 3] [--only GRPO]

For each micro-batch: tokens that differ in themselves or their past, and tokens computed on both sides; medians of the
processor's seconds with the fastest and slowest round; matrix products in GFLOP/s, to be compared with the machine's
own rate in the first line; how far log-probabilities (or scores) and gradients are apart.
"""
# ruff: noqa: T201 - a benchmark prints

import argparse

import torch

from benchmarks.figures import spread
from benchmarks.micro_batches import DTYPES, Case, Measured, matrix_product_rate, measure

CASES = (
    Case("SFT, quickstart", "sft", (10, 15), (3, 4), (1,) * 24, 11),
    Case("reward model, quickstart", "reward", (10, 15), (3, 9), (2,) * 12, 11),
    Case("DPO, quickstart", "dpo", (10, 15), (3, 9), (2,) * 12, 11),
    Case("GRPO, quickstart", "grpo", (11, 15), (3, 5), (8,) * 4, 11),
    Case("SFT, GSM8K", "sft", (60, 100), (50, 200), (1,) * 8, 20),
    Case("GRPO, GSM8K", "grpo", (100, 100), (50, 200), (8,)),
    Case("GRPO, GSM8K, 8 rows of 4 groups", "grpo", (80, 120), (50, 200), (3, 2, 2, 1)),
    Case("GRPO, 8 prompts of their own", "grpo", (80, 120), (50, 200), (1,) * 8),
    Case("DPO, HH", "dpo", (130, 200), (60, 130), (2,) * 2),
    Case("DPO, UltraFeedback", "dpo", (60, 120), (200, 350), (2,) * 2),
    Case("reward model, HH", "reward", (130, 200), (60, 130), (2,) * 2),
    Case("reward model, HH, system prompt of 100", "reward", (130, 200), (60, 130), (2,) * 2, 100),
)

_COLUMNS = (
    *("micro-batch", "rows x tokens", "tokens needed", "TRL computes", "shared computes", "TRL in s", "shared in s"),
    *("times faster", "TRL in GFLOP/s", "shared in GFLOP/s", "log-probabilities", "gradients"),
)


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose names begin so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = DTYPES[options.precision]
    print(f"matrix product of one thread in {options.precision}: {matrix_product_rate(dtype):.0f} GFLOP/s\n")
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for case in CASES:
        if case.name.startswith(options.only):
            print(_line(case, measure(case, dtype, options.rounds, counting=True)), flush=True)


def _line(case: Case, found: Measured) -> str:
    sides = ("theirs", "ours")
    cells = [
        case.name,
        " x ".join(map(str, found.shape)),
        str(found.needed),
        *(str(found.computed[side]) for side in sides),
        *(spread(found.seconds[side], 2) for side in sides),
        f"{found.faster:.2f}",
        *(f"{found.rate(side):.0f}" for side in sides),
        f"{found.off:.1e}",
        f"{found.gradients_off:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

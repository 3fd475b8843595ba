"""What is said of data in the terminal: the rules that rows break, with examples, and what a file is for each role."""

from collections.abc import Sequence

from rich.console import Console

from flows.terminal import print_table
from models.preparation import DataReport, RenderedExample, RoleReport, RuleCount

_DONE = {"error": "end the run", "drop": "left out", "fix": "mended", "keep": "kept"}
_NAMES = {"sft": "SFT", "preference": "reward model and DPO", "prompts": "GRPO and evaluation"}


def print_problems(problems: Sequence[RuleCount], read: int, console: Console) -> None:
    """Each rule that rows break: how many, what becomes of them, and the first three."""
    rows = [
        (each.rule, f"{each.rows:,}", f"{each.rows / max(read, 1):.1%}", _DONE[each.action], "\n".join(each.examples))
        for each in problems
    ]
    if rows:
        print_table(("rule", "rows", "share", "are", "such as"), rows, console)


def print_report(report: DataReport, console: Console) -> None:
    """What a file is for each role."""
    for role in report.roles:
        _say(f"{report.path} for {_NAMES[role.role]}", console, style="bold")
        for line in role.refused.splitlines():
            _say(f"  cannot be used: {line}" if line == role.refused.splitlines()[0] else f"  {line}", console)
        if role.found:
            _print_found(role, console)


def _print_found(report: RoleReport, console: Console) -> None:
    found = report.found
    if not found:
        return
    _say(f"  read as {found.recognised}", console)
    left = f", {found.unpaired:,} of them in no pair" if found.unpaired else ""
    _say(f"  {found.rows:,} rows of {found.read:,}{left}", console)
    if report.characters:
        lengths = report.characters
        _say(f"  characters: {lengths.median} (median), {lengths.p99} (99 %), {lengths.longest} (longest)", console)
    if found.tokens:
        tokens = found.tokens
        shown = f"{tokens.median} (median), {tokens.p99} (99 %), {tokens.longest} (longest), {tokens.total:,} in all"
        _say(f"  tokens: {shown}", console)
    for remark in found.remarks:
        _say(f"  {remark}", console)
    print_problems(found.problems, found.read, console)
    if report.example:
        _print_example(report.example, console)


def _print_example(example: RenderedExample, console: Console) -> None:
    _say(
        f"  the first row as the model sees it, {example.tokens} tokens, {example.trained_tokens} trained on:", console
    )
    console.print(example.context, style="dim", markup=False, highlight=False, end="")
    console.print(example.trained, style="bold green", markup=False, highlight=False)
    for warning in example.warnings:
        _say(f"  warning: {warning}", console)


def _say(text: str, console: Console, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False)

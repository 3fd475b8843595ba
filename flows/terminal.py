"""What people see in the terminal: a run's summary, and the answers of the reading commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from models.comparison import Comparison
from models.evaluation import EvaluationResult
from models.reproduction import Reproduction, StageReproduction
from models.run import RunRecord
from tasks.forecast import StageForecast
from tasks.memory_forecast import MemoryForecast
from tasks.preflight import Preflight

_PIPE_WIDTH = 1000  # no terminal, no reason to break lines
_PARTS = {
    "process": ("process",),
    "model": ("weights",),
    "training": ("gradients", "optimizer"),
    "activations": ("activations",),
    "logits": ("logits",),
    "reference": ("reference",),
    "reward model": ("reward_model",),
    "cache": ("generation_cache",),
    "merge": ("merging",),
}
"""Columns of the memory table, and the parts of a footprint that each adds up."""


def make_console(stderr: bool = False) -> Console:
    """The terminal, by one of its two ways; a pipe has lines as long as they come."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(width=_PIPE_WIDTH, stderr=stderr)


def print_summary(record: RunRecord, console: Console) -> None:
    """Figures of every model of the run, what each stage took, and where the report lies."""
    table = Table(title=f"Run {record.id}: {record.state}", box=box.SIMPLE_HEAD)
    for heading in ("model", "exact match", "preference accuracy", "sampled reward", "time"):
        table.add_column(heading)
    judged = {result.checkpoint.stage: _estimates(result) for result in record.evaluations}
    for outcome in record.stages:
        spent = "cached" if outcome.cached else duration(outcome.seconds)
        table.add_row(outcome.stage, *judged.get(outcome.stage, ("-", "-", "-")), spent)
    console.print(table)
    alarms = [f"{outcome.stage} {alarm.name}" for outcome in record.stages for alarm in outcome.alarms]
    if alarms:
        console.print(f"alarms: {len(alarms)} ({', '.join(alarms)}); see the report", markup=False, highlight=False)
    for comparison in record.comparisons:
        moved = [f"{one.measure} {one}" for one in comparison.differences if one.verdict != "unclear"]
        if comparison.role == "parent":
            told = "; ".join(moved) or "no change beyond chance"
            console.print(f"{comparison.model} against its parent: {told}", markup=False, highlight=False)
    if record.gate:
        console.print(f"gate: {'open' if record.gate.passed else 'closed'}", markup=False, highlight=False)
        for each in record.gate.conditions:
            mark = "✓" if each.passed else "✗"
            console.print(f"  {mark} {each.condition}: {each.found}", markup=False, highlight=False)
    if record.policies:
        console.print(f"talk to it: align chat {record.policies[-1].name}", markup=False, highlight=False)
    if record.report:
        console.print(f"report: {record.report}", soft_wrap=True, markup=False, highlight=False)


def print_comparison(comparison: Comparison, page: Path, console: Console) -> None:
    """What became of each measure, and where the page lies."""
    rows = [(one.measure, f"{one.before:.3g}", f"{one.after:.3g}", str(one)) for one in comparison.differences]
    print_table(("measure", comparison.against, comparison.model, "verdict"), rows, console)
    if comparison.win_rate:
        console.print(f"the reward model prefers {comparison.model}: {comparison.win_rate} of prompts", markup=False)
    console.print(f"page: {page}", soft_wrap=True, markup=False, highlight=False)


def print_preflight(result: Preflight, console: Console) -> None:
    """What a run of the recipe would do."""
    machine = result.machine
    console.print(
        f"device: {machine.device} ({machine.name}, {machine.cores} cores), precision {result.precision}", markup=False
    )
    known = [(data.place, str(data.rows), data.path, data.recognised) for data in result.datasets]
    unread = [(place, "?", path, "") for place, path in result.unread.items()]
    print_table(("dataset", "rows", "path", "read as"), known + unread, console)
    steps = [(stage.stage, stage.batch_size, stage.steps or "?") for stage in result.stages]
    print_table(("stage", "batch", "steps"), steps, console)
    kinds = ", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in result.disk.items() if size >= 5e7)
    console.print(f"disk: about {sum(result.disk.values()) / 1e9:.1f} GB at most" + (f" ({kinds})" if kinds else ""))
    for note in result.notes:
        console.print(f"note: {note}", markup=False)


def print_forecast(stages: Sequence[StageForecast], console: Console) -> None:
    """What is there of each stage, and what that saves."""
    said = {
        "cached": "is there",
        "rebuilds": "is there without its merged weights, which are made anew",
        "resumes": "goes on after step {0.step} of {0.total_steps}",
        "new": "will be trained",
        "damaged": "is there but damaged: will be moved aside and trained again",
    }
    for stage in stages:
        saved = f", saves {duration(stage.saved_seconds)}" if stage.saved_seconds else ""
        fits = f", with a micro-batch of {stage.fitted_batch_size}, which fitted before" * bool(stage.fitted_batch_size)
        console.print(f"{stage.name}: {said[stage.state].format(stage)}{saved}{fits}", markup=False, highlight=False)


def print_memory(stages: Sequence[MemoryForecast], console: Console) -> None:
    """What each stage will take of the memory, what of it is what, and whether it fits."""
    headings = ("GB", "rows x tokens", *_PARTS, "in all, at most", "available", "")
    rows = [
        (
            each.footprint.stage,
            f"{each.per_device_train_batch_size} x {each.footprint.longest_tokens}",
            *(_gigabytes_cell(sum(getattr(each.footprint, name) for name in names)) for names in _PARTS.values()),
            _gigabytes_cell(each.footprint.peak),
            _gigabytes_cell(each.available_bytes),
            each.verdict,
        )
        for each in stages
    ]
    print_table(headings, rows, console)
    for each in stages:
        if each.verdict == "won't fit":
            console.print(f"{each.footprint.stage}: {_what_fits(each)}", markup=False, highlight=False)


def _what_fits(stage: MemoryForecast) -> str:
    rows = stage.fitting_batch_size
    if rows is None:
        grpo = ", generate less at once (batch_size, max_completion_length)" * (stage.footprint.stage == "grpo")
        adapters = "train adapters only (lora), on 4-bit weights (quantization)"
        return f"not even one row fits; shorten rows, {adapters}{grpo}, or take a smaller base model"
    return (
        f"a micro-batch of {rows} would fit, as a run will find out; ALIGN_PER_DEVICE_TRAIN_BATCH_SIZE sets it at once"
    )


def print_runs(records: Sequence[tuple[RunRecord, str]], console: Console) -> None:
    """One line per run and where it stands, in the order given."""
    rows = [(record.id, record.recipe_name, stands, record.started, len(record.stages)) for record, stands in records]
    print_table(("run", "recipe", "state", "started", "stages"), rows, console)


def print_reproduction(found: Reproduction, console: Console) -> None:
    """Whether each stage's weights came out the same, and what was not as it was."""
    rows = [
        (stage.name, _compared(stage), ", ".join(stage.changes) or "-", duration(stage.seconds))
        for stage in found.stages
    ]
    print_table(("checkpoint", "weights", "changed since", "time"), rows, console)
    verdict = "the same weights, bit for bit" if found.same else "other weights"
    console.print(f"{found.checkpoint}: {verdict}", markup=False, highlight=False)


def _compared(stage: StageReproduction) -> str:
    apart = f", {stage.relative_difference:.1e} apart" if stage.relative_difference else ""
    return f"{stage.verdict}{apart}"


def duration(seconds: float) -> str:
    """A span of time as people say it: `45 s`, `12 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]], console: Console) -> None:
    """A plain table."""
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)


def _estimates(result: EvaluationResult) -> tuple[str, str, str]:
    estimates = (result.exact_match, result.preference_accuracy, result.sampled_reward)
    exact_match, preference_accuracy, sampled_reward = (escape(str(each)) if each else "-" for each in estimates)
    return exact_match, preference_accuracy, sampled_reward


def _gigabytes_cell(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f}" if size_bytes else "-"

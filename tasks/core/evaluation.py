"""What a model does on the held-out rows: greedy replies, sampled replies, and preference pairs."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from models.evaluation import Estimate, EvaluationResult, Sample
from models.stages import EvaluationInput
from tasks.core.generation import ChatModel, generate
from tasks.core.loading import DTYPES, load_policy, load_scorer, load_tokenizer, read_snapshot
from tasks.core.scoring import more_likely, preferred
from tasks.core.statistics import mean_reward, proportion
from tasks.core.trainer import Report
from tasks.core.verifiers import verify

Row = dict[str, Any]


def evaluate_model(
    stage: EvaluationInput, device: str, batch_tokens: int, folder: Path, report: Report
) -> EvaluationResult:
    """Measure a policy on prompts and pairs, or a reward model on pairs; the result is written to `folder` too.

    Args:
        stage: The model, and what to measure on which rows.
        device: Where to compute.
        batch_tokens: Tokens, with padding, that one batch may hold.
        folder: Where the result is written.
        report: Gets progress.
    """
    started = time.monotonic()
    measure = _measure_scorer if stage.checkpoint.stage == "reward" else _measure_policy
    result = EvaluationResult(checkpoint=stage.checkpoint, **measure(stage, device, batch_tokens, report))
    result = result.model_copy(update={"seconds": time.monotonic() - started})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(result.model_dump_json(indent=2, exclude={"checkpoint"}))
    return result


def _measure_scorer(stage: EvaluationInput, device: str, batch_tokens: int, report: Report) -> dict[str, Any]:
    report({"phase": "scoring held-out pairs"})
    scorer = load_scorer(stage.checkpoint.path, DTYPES[stage.checkpoint.precision], device).eval()
    tokenizer = load_tokenizer(stage.checkpoint.path)
    return _on_pairs(stage, lambda pairs: preferred(scorer, tokenizer, pairs, batch_tokens))


def _measure_policy(stage: EvaluationInput, device: str, batch_tokens: int, report: Report) -> dict[str, Any]:
    model = load_policy(stage.checkpoint.path, DTYPES[stage.checkpoint.precision], device).eval()
    chat = ChatModel(model, load_tokenizer(stage.checkpoint.path), batch_tokens)
    rows = read_snapshot(stage.prompts)

    def replies(phase: str, **options: Any) -> list[list[str]]:
        return generate(
            chat,
            [row["prompt"] for row in rows],
            max_new_tokens=stage.spec.max_new_tokens,
            on_progress=lambda done: report({"phase": phase, "step": done, "total_steps": len(rows)}),
            **options,
        )

    figures = _greedy(stage, rows, replies("answering"))
    if stage.spec.num_samples:
        set_seed(stage.seed)
        drawn = replies("sampling", temperature=1.0, num_replies=stage.spec.num_samples)
        figures["sampled_reward"] = _sampled(stage, rows, drawn)
    return figures | _on_pairs(stage, lambda pairs: more_likely(chat.model, chat.tokenizer, pairs, batch_tokens))


def _greedy(stage: EvaluationInput, rows: list[Row], replies: list[list[str]]) -> dict[str, Any]:
    """Exact match of greedy replies, overall and by kind, with the replies themselves."""
    rewards = _verify(stage, rows, [reply[0] for reply in replies])
    samples = [
        Sample(
            prompt=row["prompt"][-1]["content"],
            reply=reply[0],
            answer=tuple(row["answer"]),
            correct=reward >= 1,
            kind=row["kind"],
        )
        for row, reply, reward in zip(rows, replies, rewards, strict=True)
    ]
    verdicts = [sample.correct for sample in samples]
    return {
        "exact_match": proportion(verdicts),
        "exact_match_by_kind": _by_kind(rows, verdicts),
        "samples": tuple(samples),
    }


def _sampled(stage: EvaluationInput, rows: list[Row], drawn: list[list[str]]) -> Estimate:
    """Mean verifiable reward at temperature 1; the interval is over prompts, whose replies are not independent."""
    count = stage.spec.num_samples
    repeated = [row for row in rows for _ in range(count)]
    rewards = _verify(stage, repeated, [reply for replies in drawn for reply in replies])
    return mean_reward([sum(rewards[at : at + count]) / count for at in range(0, len(rewards), count)])


def _verify(stage: EvaluationInput, rows: list[Row], replies: list[str]) -> list[float]:
    return verify(stage.spec.verifier, replies, rows)


def _on_pairs(stage: EvaluationInput, judge: Callable[[list[Row]], list[bool]]) -> dict[str, Any]:
    """Preference accuracy, overall and by kind; nothing where there are no pairs."""
    if stage.preferences is None:
        return {}
    pairs = read_snapshot(stage.preferences)
    verdicts = judge(pairs)
    return {"preference_accuracy": proportion(verdicts), "preference_accuracy_by_kind": _by_kind(pairs, verdicts)}


def _by_kind(rows: Sequence[Row], verdicts: Sequence[bool]) -> dict[str, Estimate]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for row, verdict in zip(rows, verdicts, strict=True):
        groups[row["kind"]].append(verdict)
    return {kind: proportion(group) for kind, group in sorted(groups.items())}

"""What a model does on held-out rows: greedy and sampled replies, what other models make of them, preference pairs."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from models.artifacts import Checkpoint, Dataset
from models.evaluation import Estimate, EvaluationResult, HeldOutFigures, PairScores, Sample
from models.measurement import Harness
from models.rewards import Verifier, has_effect
from models.stages import EvaluationInput
from tasks.core import statistics
from tasks.core.columns import flat
from tasks.core.generation import ChatModel, Reply, generate
from tasks.core.loading import DTYPES, load_policy, load_scorer, load_tokenizer, read_snapshot
from tasks.core.plan import EvaluationPlan
from tasks.core.scoring import Dialog, dialog, divergences, log_likelihoods, prompt_tokens, reward_scores
from tasks.core.shared_prompts import share_prompts
from tasks.core.trainer import Report
from tasks.core.verifiers import verify
from tasks.core.verifiers.expected import accepted

Row = dict[str, Any]
_REPEATED_TOKENS = 3
"""Size of the groups of tokens whose repetition is counted."""


def evaluate_model(stage: EvaluationInput, plan: EvaluationPlan, folder: Path, report: Report) -> EvaluationResult:
    """Measure a policy on prompts and pairs, or a reward model on pairs; the result is written to `folder` too.

    Args:
        stage: The model, and what to measure on which rows.
        plan: Where and how to compute.
        folder: Where the result is written.
        report: Gets progress.
    """
    started = time.monotonic()
    bench = _Bench(stage, plan, report)
    figures = _measure(bench, stage.prompts, stage.preferences, stage.spec.verifier)
    sets = {one.name: _measure(bench, one.prompts, one.preferences, one.verifier) for one in stage.sets}
    harness = _harness(bench, stage.spec.harness) if stage.spec.harness and not bench.is_scorer else {}
    told = figures.model_dump() | {"sets": sets, "harness": harness, "seconds": time.monotonic() - started}
    result = EvaluationResult(checkpoint=stage.checkpoint, **told)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(result.model_dump_json(indent=2, exclude={"checkpoint"}))
    return result


class _Bench:
    """The models that take part in an evaluation, each loaded once, and how they compute."""

    def __init__(self, stage: EvaluationInput, plan: EvaluationPlan, report: Report) -> None:
        self.stage, self.batch_tokens, self.report, self._plan = stage, plan.batch_tokens, report, plan
        self.is_scorer = stage.checkpoint.stage == "reward"
        self.judged = self._load(stage.checkpoint)
        self.parent = self._load(stage.parent) if stage.parent else None
        self.scorer = self._load(stage.reward_model) if stage.reward_model else None

    def _load(self, checkpoint: Checkpoint) -> "_Model":
        load = load_scorer if checkpoint.stage == "reward" else load_policy
        model = load(checkpoint.path, DTYPES[checkpoint.precision], self._plan.device).eval()
        if self._plan.share_prompts:
            share_prompts(model)
        return _Model(model, load_tokenizer(checkpoint.path))

    def replies(self, phase: str, rows: Sequence[Row], **options: Any) -> list[list[Reply]]:
        """Replies of the judged model to the prompts of all rows."""
        return generate(
            ChatModel(self.judged.model, self.judged.tokenizer, self.batch_tokens),
            [row["prompt"] for row in rows],
            max_new_tokens=self.stage.spec.max_new_tokens,
            on_progress=lambda done: self.report({"phase": phase, "step": done, "total_steps": len(rows)}),
            **options,
        )


@dataclass(frozen=True)
class _Model:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def likelihoods(self, dialogs: list[Dialog], batch_tokens: int) -> list[float]:
        return log_likelihoods(self.model, self.tokenizer, dialogs, batch_tokens)

    def scores(self, dialogs: list[Dialog], batch_tokens: int) -> list[float]:
        return reward_scores(self.model, self.tokenizer, dialogs, batch_tokens)


def _measure(bench: _Bench, prompts: Dataset | None, pairs: Dataset | None, verifier: Verifier) -> HeldOutFigures:
    """All that applies to the model, on one set of rows."""
    rows = read_snapshot(prompts) if prompts and not bench.is_scorer else []
    samples = _samples(bench, rows, verifier) if rows else []
    scored = _pairs(bench, read_snapshot(pairs)) if pairs else []
    return HeldOutFigures(samples=tuple(samples), pairs=tuple(scored), **_of_samples(samples), **_of_pairs(scored))


def _samples(bench: _Bench, rows: list[Row], verifier: Verifier) -> list[Sample]:
    """Every row with the model's greedy reply and what is measured of it."""
    replies = [first for first, *_ in bench.replies("answering", rows)]
    rewards = verify(verifier, [reply.text for reply in replies], rows)
    columns = {
        "sampled_reward": _sampled(bench, rows, verifier),
        "reward_score": _scores(bench, rows, replies),
        "kl": _divergences(bench, rows, replies),
    }
    likelihoods = _answers(bench, rows, verifier)
    return [
        Sample(
            prompt=row["prompt"][-1]["content"],
            context="\n".join(f"{turn['role']}: {turn['content']}" for turn in row["prompt"][:-1]),
            reply=reply.text,
            answer=tuple(_accepted(row, verifier)),
            correct=rewards[at] >= 1,
            kind=row["kind"],
            tokens=len(reply.tokens),
            stopped=reply.stopped,
            repetition=_repetition(reply.tokens),
            **{name: values[at] for name, values in columns.items() if values},
            **likelihoods.get(at, {}),
        )
        for at, (row, reply) in enumerate(zip(rows, replies, strict=True))
    ]


def _sampled(bench: _Bench, rows: list[Row], verifier: Verifier) -> list[float]:
    """Mean verifiable reward of each row's replies at temperature 1."""
    count = bench.stage.spec.num_samples
    if not count:
        return []
    set_seed(bench.stage.seed)
    drawn = bench.replies("sampling", rows, temperature=1.0, num_replies=count)
    texts = [reply.text for of_row in drawn for reply in of_row]
    rewards = verify(verifier, texts, [row for row in rows for _ in range(count)])
    return [sum(rewards[at : at + count]) / count for at in range(0, len(rewards), count)]


def _scores(bench: _Bench, rows: list[Row], replies: list[Reply]) -> list[float]:
    """The reward model's score of each reply, in its own template and tokens."""
    if not bench.scorer:
        return []
    bench.report({"phase": "scoring replies"})
    tokenizer = bench.scorer.tokenizer
    said = [[{"role": "assistant", "content": reply.text}] for reply in replies]
    dialogs = [dialog(tokenizer, row["prompt"], turn) for row, turn in zip(rows, said, strict=True)]
    return bench.scorer.scores(dialogs, bench.batch_tokens)


def _divergences(bench: _Bench, rows: list[Row], replies: list[Reply]) -> list[float]:
    """KL from the parent over each reply's tokens; nothing where the two have other vocabularies."""
    if not bench.parent or bench.parent.model.config.vocab_size != bench.judged.model.config.vocab_size:
        return []
    bench.report({"phase": "measuring divergence"})
    prompts = [prompt_tokens(bench.judged.tokenizer, row["prompt"]) for row in rows]
    dialogs = [Dialog(prompt + list(reply.tokens), len(prompt)) for prompt, reply in zip(prompts, replies, strict=True)]
    compute = partial(divergences, bench.judged.model, bench.parent.model, bench.judged.tokenizer)
    return compute(dialogs, bench.batch_tokens)


def _accepted(row: Row, verifier: Verifier) -> list[str]:
    """What the verifier compares replies with; nothing where it compares them with nothing."""
    columns = flat(row)
    is_told = has_effect("column", verifier.kind) and columns.get(verifier.column)
    return accepted(columns, verifier.column) if is_told else list(row["answer"])


def _answers(bench: _Bench, rows: list[Row], verifier: Verifier) -> dict[int, dict[str, Any]]:
    """Negative log-likelihood and tokens of the first accepted answer of each row that has one."""
    tokenizer = bench.judged.tokenizer
    dialogs = {
        at: dialog(tokenizer, row["prompt"], [{"role": "assistant", "content": options[0]}])
        for at, row in enumerate(rows)
        if (options := _accepted(row, verifier))
    }
    likelihoods = bench.judged.likelihoods(list(dialogs.values()), bench.batch_tokens)
    return {
        at: {"answer_nll": -found, "answer_tokens": len(one.tokens) - one.start}
        for (at, one), found in zip(dialogs.items(), likelihoods, strict=True)
    }


def _repetition(tokens: Sequence[int]) -> float:
    groups = [tokens[at : at + _REPEATED_TOKENS] for at in range(len(tokens) - _REPEATED_TOKENS + 1)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0


def _pairs(bench: _Bench, rows: list[Row]) -> list[PairScores]:
    """Both sides of every pair, as the model and its parent put them."""
    bench.report({"phase": "scoring held-out pairs"})
    ours = _sides(bench.judged, bench.is_scorer, rows, bench.batch_tokens)
    theirs = _sides(bench.parent, False, rows, bench.batch_tokens) if bench.parent else []
    return [
        PairScores(
            kind=row["kind"],
            chosen=ours[2 * at],
            rejected=ours[2 * at + 1],
            parent_margin=theirs[2 * at] - theirs[2 * at + 1] if theirs else None,
        )
        for at, row in enumerate(rows)
    ]


def _sides(model: _Model, is_scorer: bool, rows: list[Row], batch_tokens: int) -> list[float]:
    """Chosen and rejected side of each pair in turn."""
    dialogs = [
        dialog(model.tokenizer, row["prompt"], row[side], row.get("tools"))
        for row in rows
        for side in ("chosen", "rejected")
    ]
    return (model.scores if is_scorer else model.likelihoods)(dialogs, batch_tokens)


def _of_samples(samples: list[Sample]) -> dict[str, Any]:
    """The figures over all prompts."""
    if not samples:
        return {}
    verdicts = [sample.correct for sample in samples]
    figures = {
        "exact_match": statistics.proportion(verdicts),
        "exact_match_by_kind": _by_kind(samples, verdicts),
        "length": statistics.mean([float(sample.tokens) for sample in samples]),
        "repetition": statistics.mean_reward([sample.repetition for sample in samples]),
        "unstopped": statistics.proportion([not sample.stopped for sample in samples]),
    }
    if sampled := [one.sampled_reward for one in samples if one.sampled_reward is not None]:
        figures["sampled_reward"] = statistics.mean_reward(sampled)
    if scores := [one.reward_score for one in samples if one.reward_score is not None]:
        figures["reward_score"] = statistics.mean(scores)
    if told := [(one.kl, one.tokens) for one in samples if one.kl is not None and one.tokens]:
        figures["kl"] = statistics.mean_of_ratios(*zip(*told, strict=True))
    if answered := [(one.answer_nll, one.answer_tokens) for one in samples if one.answer_nll is not None]:
        loss = statistics.mean_of_ratios(*zip(*answered, strict=True))
        figures |= {"loss": loss, "perplexity": statistics.exponential(loss)}
    return figures


def _of_pairs(pairs: list[PairScores]) -> dict[str, Any]:
    """The figures over all pairs."""
    if not pairs:
        return {}
    verdicts = [pair.margin > 0 for pair in pairs]
    gained = [pair.margin > pair.parent_margin for pair in pairs if pair.parent_margin is not None]
    return {
        "preference_accuracy": statistics.proportion(verdicts),
        "preference_accuracy_by_kind": _by_kind(pairs, verdicts),
        "implicit_accuracy": statistics.proportion(gained) if gained else None,
    }


def _by_kind(rows: Sequence[Sample | PairScores], verdicts: Sequence[bool]) -> dict[str, Estimate]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for row, verdict in zip(rows, verdicts, strict=True):
        groups[row.kind].append(verdict)
    return {kind: statistics.proportion(group) for kind, group in sorted(groups.items())}


def _harness(bench: _Bench, asked: Harness) -> dict[str, Estimate]:
    from tasks.core.harness import run_harness

    bench.report({"phase": f"running {', '.join(asked.tasks)}"})
    return run_harness(asked, bench.judged.model, bench.judged.tokenizer)

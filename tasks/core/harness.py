"""Public benchmarks by lm-evaluation-harness, on a model that is already loaded."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.errors import InputError
from models.evaluation import Estimate
from models.measurement import Harness
from tasks.core.statistics import mean, proportion


def run_harness(
    asked: Harness, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 8
) -> dict[str, Estimate]:
    """Figures of each task with intervals over its rows, as `task metric`; prompts are put into the chat template.

    Raises:
        InputError: a task is unknown.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=asked.include_path)
    if unknown := [name for name in asked.tasks if name not in tasks.all_tasks]:
        raise InputError(f"evaluation.harness.tasks: {', '.join(unknown)} is unknown; `lm-eval ls tasks` lists them")
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=list(asked.tasks),
        task_manager=tasks,
        num_fewshot=asked.num_fewshot,
        limit=asked.limit,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    return dict(_figures(found or {}))


def _figures(found: dict[str, Any]) -> Iterator[tuple[str, Estimate]]:
    """Every metric that each row has a number for."""
    for task, rows in found.get("samples", {}).items():
        for metric in dict.fromkeys(name for row in rows for name in row.get("metrics", ())):
            values = [float(row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
            if values:
                is_share = set(values) <= {0.0, 1.0}
                yield f"{task} {metric}", proportion([*map(bool, values)]) if is_share else mean(values)

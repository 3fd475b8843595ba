"""The doors into the training process. Importing this module imports no torch; going through a door does.

The flow's process hands one of these functions to a child, which calls it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.artifacts import Precision
from models.evaluation import EvaluationResult
from models.preparation import RenderedExample, TokenStatistics
from models.recipe import Quantization
from models.scorer import ScorerInput
from models.sources import BaseModelSource, RowSource
from models.stages import BaseModelInput, DPOInput, EvaluationInput, GRPOInput, RewardInput, SFTInput
from tasks.core.plan import EvaluationPlan, Footprint, StageShape, TrainingPlan, TrainingResult

if TYPE_CHECKING:
    from tasks.core.lora import Task
    from tasks.core.trainer import Report


def convert(stage: BaseModelInput, location: str, folder: Path, report: "Report") -> dict[str, float]:
    """See `tasks.core.conversion`."""
    from tasks.core.conversion import convert_base_model

    return convert_base_model(stage, location, folder, report)


def convert_scorer(stage: ScorerInput, source: BaseModelSource, folder: Path, report: "Report") -> dict[str, float]:
    """See `tasks.core.scorer_conversion`."""
    from tasks.core.scorer_conversion import convert_reward_model

    return convert_reward_model(stage, source, folder, report)


def estimate(
    source: BaseModelInput, location: str, shapes: tuple[StageShape, ...], report: "Report"
) -> list[Footprint]:
    """See `tasks.core.footprint`."""
    from tasks.core.footprint import estimate_footprints

    return estimate_footprints(source, location, shapes, report)


def estimate_published(
    architecture: dict[str, Any], shapes: tuple[StageShape, ...], report: "Report"
) -> list[Footprint]:
    """See `tasks.core.footprint`."""
    from tasks.core.footprint import estimate_architecture

    return estimate_architecture(architecture, shapes, report)


def fetch_rows(source: RowSource, file: Path, report: "Report") -> None:
    """See `tasks.core.hub_rows`."""
    from tasks.core.hub_rows import write_hub_rows

    write_hub_rows(source, file)


def render(row: dict[str, Any], tokenizer: Path, chat_template: str | None, report: "Report") -> RenderedExample:
    """See `tasks.core.example`."""
    from tasks.core.example import render_example

    return render_example(row, tokenizer, chat_template)


def measure_rows(
    folder: Path, tokenizer: Path, limit: int | None, report: "Report"
) -> tuple[RenderedExample, TokenStatistics | None]:
    """See `tasks.core.example`."""
    from tasks.core.example import first_and_all

    return first_and_all(folder, tokenizer, limit)


def sft(stage: SFTInput, plan: TrainingPlan, folder: Path, report: "Report") -> TrainingResult:
    """See `tasks.core.sft`."""
    from tasks.core.sft import train_sft_model

    return train_sft_model(stage, plan, folder, report)


def reward(stage: RewardInput, plan: TrainingPlan, folder: Path, report: "Report") -> TrainingResult:
    """See `tasks.core.reward`."""
    from tasks.core.reward import train_scorer

    return train_scorer(stage, plan, folder, report)


def dpo(stage: DPOInput, plan: TrainingPlan, folder: Path, report: "Report") -> TrainingResult:
    """See `tasks.core.dpo`."""
    from tasks.core.dpo import train_dpo_model

    return train_dpo_model(stage, plan, folder, report)


def grpo(stage: GRPOInput, plan: TrainingPlan, folder: Path, report: "Report") -> TrainingResult:
    """See `tasks.core.grpo`."""
    from tasks.core.grpo import train_grpo_policy

    return train_grpo_policy(stage, plan, folder, report)


def compare_weights(model: Path, reference: Path, report: "Report") -> float:
    """See `tasks.core.comparing`."""
    from tasks.core.comparing import relative_difference

    return relative_difference(model, reference)


def evaluate(stage: EvaluationInput, plan: EvaluationPlan, folder: Path, report: "Report") -> EvaluationResult:
    """See `tasks.core.evaluation`."""
    from tasks.core.evaluation import evaluate_model

    return evaluate_model(stage, plan, folder, report)


def convert_weights(source: Path, is_scorer: bool, precision: Precision, folder: Path, report: "Report") -> float:
    """See `tasks.core.exporting`."""
    from tasks.core.exporting import convert_weights

    return convert_weights(source, is_scorer, precision, folder, report)


def convert_to_gguf(source: Path, precision: Precision, file: Path, report: "Report") -> float:
    """See `tasks.core.exporting`."""
    from tasks.core.exporting import convert_to_gguf

    return convert_to_gguf(source, precision, file, report)


def rebuild(
    parent: Path,
    adapter: Path,
    merging: "tuple[Task, Precision, Quantization | None]",
    folder: Path,
    report: "Report",
) -> None:
    """See `tasks.core.lora.merge`; what it gives is written to `folder`."""
    from tasks.core.lora import merge

    report({"phase": "merging"})
    merge(parent, adapter, *merging).save_pretrained(folder)

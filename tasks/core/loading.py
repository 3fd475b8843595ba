"""Models, tokenizers and datasets as the trainers take them, from finished folders of the artifact root."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset as TrainingDataset
from datasets import Features, Json, List
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.artifacts import Dataset, Precision
from models.recipe import Quantization
from models.stages import TrainingInput
from tasks.core.columns import packed
from tasks.core.quantization import load_quantized
from tasks.core.rendering import calls_tools, for_template, refuse_unshown_tools
from tasks.data.snapshot import read_rows

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a finished folder, with its chat template and pad token."""
    return AutoTokenizer.from_pretrained(path)


def load_policy(
    path: Path, dtype: torch.dtype | str, device: str = "cpu", quantization: Quantization | None = None
) -> PreTrainedModel:
    """The causal language model of a finished folder; dtype `auto`: as it was written."""
    return _load(AutoModelForCausalLM, path, dtype, device, quantization)


def load_scorer(
    path: Path, dtype: torch.dtype | str, device: str = "cpu", quantization: Quantization | None = None
) -> PreTrainedModel:
    """A reward model: one score a conversation, read at its last token.

    From a policy's folder the score head is new and starts from the current random state.
    """
    return _load(AutoModelForSequenceClassification, path, dtype, device, quantization, num_labels=1)


def load_trainable(load: Callable[..., PreTrainedModel], stage: TrainingInput, device: str) -> PreTrainedModel:
    """The model that a stage starts from, as it trains.

    Without adapters in float32, whatever the precision: most of AdamW's steps are smaller than bfloat16 can tell apart.

    Args:
        load: `load_policy` or `load_scorer`.
        stage: The stage.
        device: Where it will be trained. Only 4-bit weights are put there at once; the trainer moves others itself.
    """
    dtype = DTYPES[stage.precision] if stage.hyperparameters.lora else torch.float32
    if stage.quantization:
        return load(stage.policy.path, dtype, device, stage.quantization)
    return load(stage.policy.path, dtype)


def _load(
    kind: Any, path: Path, dtype: torch.dtype | str, device: str, quantization: Quantization | None, **options: Any
) -> PreTrainedModel:
    options |= {"dtype": dtype, "use_safetensors": True}
    if quantization:
        return load_quantized(kind, path, device, quantization, **options)
    return cast(PreTrainedModel, kind.from_pretrained(path, **options).to(device))


def read_snapshot(dataset: Dataset) -> list[dict[str, Any]]:
    """The rows of a snapshot."""
    return list(read_rows(dataset.path))


def training_dataset(
    dataset: Dataset, columns: tuple[str, ...], tokenizer: PreTrainedTokenizerBase | None = None
) -> TrainingDataset:
    """The named columns of a snapshot, as far as its rows have them; `extra` and `tools` as JSON text.

    It is held in memory, so that no tokenised copy can go stale on disk.

    Args:
        dataset: The snapshot.
        columns: Its columns that the trainer reads.
        tokenizer: Has the chat template that must show what tools rows have, where there are any.

    Raises:
        StageError: it does not show them.
    """
    rows = read_snapshot(dataset)
    if tokenizer:
        refuse_unshown_tools(tokenizer, rows)
    # Arrow takes the names of the columns from the first row.
    offered = {"tools": None} if "tools" in columns and any("tools" in row for row in rows) else {}
    named = [offered | {column: row[column] for column in columns if column in row} for row in rows]
    table = TrainingDataset.from_list(packed(named))
    return _with_calls(table, rows) if any(map(calls_tools, rows)) else table


def _with_calls(table: TrainingDataset, rows: list[dict[str, Any]]) -> TrainingDataset:
    """The table with calls as objects, whose arguments have no type in common."""
    turns = [name for name in ("prompt", "completion", "chosen", "rejected") if name in table.features]
    structured = [
        packed_row | {name: for_template(row[name]) for name in turns}
        for packed_row, row in zip(table, rows, strict=True)
    ]
    return TrainingDataset.from_list(
        structured, features=Features(table.features | {name: List(Json()) for name in turns})
    )

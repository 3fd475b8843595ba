"""Models, tokenizers and datasets as the trainers take them, from finished folders of the artifact root."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset as TrainingDataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.artifacts import Dataset
from models.recipe import Precision
from models.stages import TrainingInput

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a finished folder, with its chat template and pad token."""
    return AutoTokenizer.from_pretrained(path)


def load_policy(path: Path, dtype: torch.dtype | str, device: str = "cpu") -> PreTrainedModel:
    """The causal language model of a finished folder; dtype `auto`: as it was written."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
    return cast(PreTrainedModel, model.to(device))


def load_scorer(path: Path, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """A reward model: one score a conversation, read at its last token.

    From a policy's folder the score head is new and starts from the current random state.
    """
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=dtype, use_safetensors=True)
    return cast(PreTrainedModel, model.to(device))


def training_dtype(stage: TrainingInput) -> torch.dtype:
    """Number format of the weights while they train.

    Without adapters float32, whatever the precision: most of AdamW's steps are smaller than bfloat16 can tell apart.
    """
    return DTYPES[stage.precision] if stage.hyperparameters.lora else torch.float32


def read_snapshot(dataset: Dataset) -> list[dict[str, Any]]:
    """The rows of a snapshot."""
    with dataset.file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def training_dataset(dataset: Dataset, columns: tuple[str, ...]) -> TrainingDataset:
    """The named columns of a snapshot; held in memory, so that no tokenised copy can go stale on disk."""
    return TrainingDataset.from_list([{column: row[column] for column in columns} for row in read_snapshot(dataset)])

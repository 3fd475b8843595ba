"""A reward model from the hub or a folder as a self-contained safetensors folder that reads conversations."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from models.errors import InputError
from models.scorer import ScorerInput
from models.sources import BaseModelSource
from tasks.core.conversion import prepare_tokenizer
from tasks.core.loading import DTYPES
from tasks.core.trainer import Report


def convert_reward_model(stage: ScorerInput, source: BaseModelSource, folder: Path, report: Report) -> dict[str, float]:
    """Write the model to `folder` in the wanted precision, with its own tokenizer and chat template.

    Returns:
        `parameters`: number of weights.

    Raises:
        InputError: no chat template, more than one score, or weights that the file does not hold: a score head that is
            new would score at random.
    """
    place = {"pretrained_model_name_or_path": source.name, "revision": stage.origin.get("commit", "main")}
    report({"phase": "reading the tokenizer"})
    tokenizer = AutoTokenizer.from_pretrained(**place)
    prepare_tokenizer(tokenizer, source, f"reward model {source.name}")
    report({"phase": "reading the weights"})
    model, found = AutoModelForSequenceClassification.from_pretrained(
        **place, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"reward model {source.name} lacks weights of its own ({', '.join(missing[:3])}); choose another"
        )
    if model.config.num_labels != 1:
        raise InputError(f"reward model {source.name} gives {model.config.num_labels} scores; a reward model gives one")
    model.config.pad_token_id = tokenizer.pad_token_id
    report({"phase": "writing"})
    model.to(DTYPES[stage.precision]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": float(model.num_parameters())}

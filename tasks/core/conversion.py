"""The base model: from a GGUF file, the hub or a folder to a self-contained safetensors folder that can chat."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from models.errors import InputError
from models.sources import BaseModelSource
from models.stages import BaseModelInput
from settings.chat_templates import chat_template
from tasks.core.loading import DTYPES
from tasks.core.trainer import Report


def convert_base_model(stage: BaseModelInput, location: str, folder: Path, report: Report) -> dict[str, float]:
    """Write the base model to `folder` in the wanted precision, with a tokenizer that can chat.

    Args:
        stage: Source and precision.
        location: A GGUF file, a folder or a hub id.
        folder: Where to write.
        report: Gets the phases.

    Returns:
        `parameters`: number of weights.

    Raises:
        InputError: no chat template, no end-of-sequence token, or a token that is not in the vocabulary.
    """
    options = load_options(stage, location)
    report({"phase": "reading the tokenizer"})
    tokenizer = AutoTokenizer.from_pretrained(**options)
    prepare_tokenizer(tokenizer, stage.source)
    report({"phase": "reading the weights"})
    model = AutoModelForCausalLM.from_pretrained(**options, **_weights(stage), dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    report({"phase": "writing"})
    model.to(DTYPES[stage.precision]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": float(model.num_parameters())}


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, source: BaseModelSource, model: str = "") -> None:
    """Give the tokenizer the wanted template and tokens, and check that it can chat.

    Args:
        tokenizer: Changed in place.
        source: What the recipe asks for.
        model: What an error calls the model; default: the base model by its name.

    Raises:
        InputError: as for `convert_base_model`.
    """
    if source.chat_template:
        tokenizer.chat_template = chat_template(source.chat_template)
    model = model or f"base_model {source.name}"
    if not tokenizer.chat_template:
        raise InputError(f"{model} has no chat template; set base_model.chat_template, e.g. to chatml")
    _set_token(tokenizer, "eos_token", source.eos_token)
    if tokenizer.eos_token is None:
        raise InputError(f"{model} names no end-of-sequence token; set base_model.eos_token")
    _set_token(tokenizer, "pad_token", source.pad_token or _distinct_pad_token(tokenizer))


def load_options(stage: BaseModelInput, location: str) -> dict[str, Any]:
    """Where Transformers finds the model: a file inside a folder, a folder, or a hub id at a commit."""
    if stage.source.source == "package":
        return {"pretrained_model_name_or_path": str(Path(location).parent), "gguf_file": Path(location).name}
    if stage.source.source == "hub":
        return {"pretrained_model_name_or_path": location, "revision": stage.origin["commit"]}
    return {"pretrained_model_name_or_path": location}


def _weights(stage: BaseModelInput) -> dict[str, Any]:
    """How the weights are read.

    A GGUF file's as plain tensors, since a model that is still quantised can be neither saved nor trained; others from
    safetensors only, since pickled weights can run code.
    """
    packaged = stage.source.source == "package"
    return {"quantization_config": GgufConfig(dequantize=True)} if packaged else {"use_safetensors": True}


def _distinct_pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A padding token other than end-of-sequence: where both are one, masking one hides the other from the loss."""
    if tokenizer.pad_token not in (None, tokenizer.eos_token):
        return str(tokenizer.pad_token)
    spare: list[str | None] = [tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
    return next((token for token in spare if token and token != tokenizer.eos_token), tokenizer.eos_token)


def _set_token(tokenizer: PreTrainedTokenizerBase, kind: str, token: str | None) -> None:
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        raise InputError(f"base_model.{kind}: '{token}' is not in the vocabulary; name a token that is")
    setattr(tokenizer, kind, token)

"""Weights for others: in another number format, or as a GGUF file; believed only after they have been read back."""

import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from models.artifacts import Precision
from models.errors import StageError
from tasks.core.gguf_file import check_gguf, write_gguf
from tasks.core.loading import DTYPES, load_policy, load_scorer, load_tokenizer
from tasks.core.lora import outputs
from tasks.core.trainer import Report

_SAME = 1e-5
"""Largest relative error of outputs between a model and its copy in the same number format."""


def convert_weights(source: Path, is_scorer: bool, precision: Precision, folder: Path, report: Report) -> float:
    """Write a checkpoint to `folder` in another number format, with its tokenizer.

    Args:
        source: A finished checkpoint.
        is_scorer: Whether it is a reward model.
        precision: The number format.
        folder: Where to write.
        report: Gets the phases.

    Returns:
        Norm of the difference of outputs, relative to the checkpoint's as it was published.

    Raises:
        StageError: what was written differs from the checkpoint rounded to that number format.
    """
    load = load_scorer if is_scorer else load_policy
    tokenizer = load_tokenizer(source)
    report({"phase": f"converting to {precision}"})
    model = load(source, DTYPES[precision])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report({"phase": "comparing"})
    written = load(folder, torch.float32)
    _refuse_difference(written, model.float(), tokenizer, folder)
    return _relative_error(written, load(source, torch.float32), tokenizer)


def convert_to_gguf(source: Path, precision: Precision, file: Path, report: Report) -> float:
    """Write a checkpoint as one GGUF file with tokenizer and chat template, and read it again with Transformers.

    Args:
        source: A finished checkpoint of a policy.
        precision: Number format of its matrices; vectors are kept in float32.
        file: Where to write.
        report: Gets the phases.

    Returns:
        Norm of the difference of outputs, relative to the checkpoint's as it was published.

    Raises:
        InputError: architecture or tokenizer is none that can be written as GGUF here.
        StageError: the file's model, tokens or chat template are not the checkpoint's.
    """
    tokenizer = load_tokenizer(source)
    model = load_policy(source, DTYPES[precision])
    check_gguf(model.config, tokenizer)
    report({"phase": "writing GGUF"})
    write_gguf(model, tokenizer, precision, file)
    report({"phase": "reading GGUF again"})
    options = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    _refuse_other_tokens(AutoTokenizer.from_pretrained(**options), tokenizer, file)
    # What Transformers logs of tensors that it does not know, the comparison says better.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = GgufConfig(dequantize=True)
    written = AutoModelForCausalLM.from_pretrained(**options, quantization_config=config, dtype=torch.float32)
    _refuse_difference(written, model.float(), tokenizer, file)
    return _relative_error(written, load_policy(source, torch.float32), tokenizer)


def _refuse_difference(
    written: PreTrainedModel, expected: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: Path
) -> None:
    error = _relative_error(written, expected, tokenizer)
    if not error <= _SAME:
        raise StageError(
            f"{place.name} gives other outputs than the checkpoint in the same number format: relative error "
            f"{error:.2g}, allowed {_SAME:.2g}; nothing was published"
        )


def _relative_error(written: PreTrainedModel, expected: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    wanted = outputs(expected, tokenizer)
    return float((outputs(written, tokenizer) - wanted).norm() / wanted.norm())


def _refuse_other_tokens(written: PreTrainedTokenizerBase, expected: PreTrainedTokenizerBase, file: Path) -> None:
    """Tokens of a conversation as the chat template writes it, with digits, accents and code in it."""
    talk = [
        {"role": "user", "content": "What's 12 + 345?\n\n    return x  # naïve Übung 😀"},
        {"role": "assistant", "content": "It's 357."},
    ]
    texts = [each.apply_chat_template(talk, tokenize=False) for each in (expected, written)]
    tokens = [each(texts[0])["input_ids"] for each in (expected, written)]
    if texts[0] != texts[1] or tokens[0] != tokens[1]:
        what = "chat template" if texts[0] != texts[1] else "tokens"
        raise StageError(f"{file.name} gives another {what} than the checkpoint's tokenizer; nothing was published")

"""Marks of chat templates and special tokens in the text of rows: there they begin or end a turn where none does."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.sources import BaseModelSource
from tasks.base_model_check import packaged_gguf
from tasks.data.lines import Row

CONVERSATIONS = ("prompt", "completion", "chosen", "rejected")
_FOREIGN = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<start_of_turn>",
    "<end_of_turn>", "<｜User｜>", "<｜Assistant｜>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "### Instruction:",
    "### Response:", "\n\nHuman:", "\n\nAssistant:",
)  # fmt: skip
"""Of ChatML, Llama 2 and 3, Phi, Gemma, DeepSeek, Alpaca and HH."""
_CONTROL = 3
"""Type of a special token in a GGUF file, as the format's specification says."""


def found_marks(row: Row, special_tokens: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """Each mark in a text of the row: the text's place, the mark, and whether it is one of the special tokens."""
    for part in CONVERSATIONS:
        for index, turn in enumerate(row.get(part, ())):
            text = turn.get("content") or ""
            for token in special_tokens:
                if token in text:
                    yield f"{part}[{index}].content", token, True
            for mark in _FOREIGN:
                if mark in text and mark not in special_tokens:
                    yield f"{part}[{index}].content", mark, False


def without_marks(row: Row, marks: Sequence[str]) -> Row:
    """The row with these marks removed from its texts."""
    pattern = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))

    def cleaned(turn: Row) -> Row:
        return turn | {"content": pattern.sub("", turn["content"])} if turn.get("content") else turn

    return row | {part: [cleaned(turn) for turn in row[part]] for part in CONVERSATIONS if part in row}


def special_tokens(source: BaseModelSource, *, whatever_it_takes: bool) -> tuple[str, ...]:
    """The special tokens of a model, read from its files without loading its tokenizer.

    Args:
        source: The model.
        whatever_it_takes: Whether to read a GGUF file, which takes seconds, or to ask the hub; otherwise nothing is
            found there.

    Raises:
        InputError: the hub does not have the model's tokenizer.
    """
    if source.source == "folder":
        return _of_tokenizer(Path(source.name) / "tokenizer.json")
    if not whatever_it_takes:
        return ()
    if source.source == "package":
        return _of_gguf(packaged_gguf(source.name))
    return _of_tokenizer(_from_hub(source))


def _of_tokenizer(file: Path) -> tuple[str, ...]:
    """Tokens that a tokenizer's file marks as special; none where the model has no such file."""
    if not file.is_file():
        return ()
    added: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")).get("added_tokens") or []
    return tuple(each["content"] for each in added if each.get("special"))


@cache
def _of_gguf(file: Path) -> tuple[str, ...]:
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    types, tokens = fields["tokenizer.ggml.token_type"], fields["tokenizer.ggml.tokens"]
    control = [index for index, place in enumerate(types.data) if int(types.parts[place][0]) == _CONTROL]
    return tuple(bytes(tokens.parts[tokens.data[index]]).decode() for index in control)


def _from_hub(source: BaseModelSource) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source.name, "tokenizer.json", revision=source.revision))
    except Exception as error:  # whatever the library raises is about what was asked for
        raise InputError(
            f"data_rules.special_tokens: the tokenizer of hub model '{source.name}' cannot be fetched "
            f"({type(error).__name__}); check the id and the network, or use special_tokens: keep"
        ) from error

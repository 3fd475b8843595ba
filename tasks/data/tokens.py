"""How many tokens rows have, as a model's chat template writes them and its tokenizer cuts them.

Only here, and only where tokens are asked for, a process imports Transformers.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.sources import BaseModelSource
from tasks.base_model_check import locate, packaged_gguf
from tasks.data.lines import Row

_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
"""Of a hub model: its configuration, tokenizer and chat template, in whichever of these forms it has them."""


def tokenizer_of(model: BaseModelSource) -> Path:
    """The folder or GGUF file with a model's tokenizer; that of a hub model is fetched at the commit of its revision.

    Raises:
        InputError: it is not there.
    """
    if model.source == "folder":
        return Path(model.name)
    if model.source == "package":
        return packaged_gguf(model.name)
    from huggingface_hub import snapshot_download

    place, pin = locate(model)
    try:
        return Path(snapshot_download(place, revision=pin["commit"], allow_patterns=_FILES))
    except Exception as error:  # whatever the library raises is about what was asked for
        raise InputError(
            f"the tokenizer of hub model '{place}' at commit {pin['commit']} cannot be fetched "
            f"({type(error).__name__}); check the id and the network, or use a local folder"
        ) from error


def count_tokens(rows: Sequence[Row], tokenizer: Path, chat_template: str | None = None) -> list[int]:
    """Tokens of each row: of its prompt with the longest reply to it, or of the prompt alone where it has none.

    Args:
        rows: In normal form.
        tokenizer: A folder with a tokenizer, or a GGUF file.
        chat_template: Takes the place of the tokenizer's own.
    """
    texts = [list(_conversations(row)) for row in rows]
    loaded = load_tokenizer(tokenizer, chat_template)
    rendered = [_render(loaded, turns) for each in texts for turns in each]
    encoded = loaded.backend_tokenizer.encode_batch_fast(rendered, add_special_tokens=False)
    lengths = iter([len(one) for one in encoded])
    return [max(next(lengths) for _ in each) for each in texts]


@cache
def load_tokenizer(tokenizer: Path, chat_template: str | None = None) -> Any:
    """The tokenizer of a folder or of a GGUF file, with a chat template in place of its own."""
    from transformers import AutoTokenizer

    if tokenizer.suffix == ".gguf":
        loaded = AutoTokenizer.from_pretrained(tokenizer.parent, gguf_file=tokenizer.name)
    else:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.chat_template = chat_template or loaded.chat_template
    return loaded


def _conversations(row: Row) -> Iterator[list[Row]]:
    replies = [row[key] for key in ("completion", "chosen", "rejected") if key in row]
    for reply in replies or [[]]:
        yield [*row["prompt"], *reply]


def _render(tokenizer: Any, turns: list[Row]) -> str:
    prompt_alone = turns[-1]["role"] != "assistant"
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt_alone)
    return text

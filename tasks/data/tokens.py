"""How many tokens rows have, as a model's chat template writes them and its tokenizer cuts them.

Only here, and only where tokens are asked for, a process imports Transformers.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tasks.data.lines import Row


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

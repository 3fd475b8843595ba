"""How many tokens rows have, as a model's chat template writes them and its tokenizer cuts them.

Only here, and only where tokens are asked for, a process imports Transformers.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tasks.data.lines import Row


def count_tokens(rows: Sequence[Row], tokenizer: Path) -> list[int]:
    """Tokens of each row: of its prompt with the longest reply to it, or of the prompt alone where it has none."""
    texts = [list(_conversations(row)) for row in rows]
    loaded = _load(tokenizer)
    rendered = [_render(loaded, turns) for each in texts for turns in each]
    encoded = loaded.backend_tokenizer.encode_batch_fast(rendered, add_special_tokens=False)
    lengths = iter([len(one) for one in encoded])
    return [max(next(lengths) for _ in each) for each in texts]


@cache
def _load(tokenizer: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer)


def _conversations(row: Row) -> Iterator[list[Row]]:
    replies = [row[key] for key in ("completion", "chosen", "rejected") if key in row]
    for reply in replies or [[]]:
        yield [*row["prompt"], *reply]


def _render(tokenizer: Any, turns: list[Row]) -> str:
    prompt_alone = turns[-1]["role"] != "assistant"
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt_alone)
    return text

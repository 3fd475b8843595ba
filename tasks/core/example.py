"""Rows as a model sees them: one rendered by the chat template, with what of it carries loss, and the tokens of all."""

from array import array
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from models.preparation import RenderedExample, TokenStatistics
from tasks.core.rendering import for_template, rendered
from tasks.data.gathering import token_statistics
from tasks.data.snapshot import read_rows
from tasks.data.tokens import count_tokens, load_tokenizer

Row = dict[str, Any]
MOST_ROWS = 50_000
"""Rows whose tokens are counted without being asked for, which takes ten seconds or so."""


def render_example(row: Row, tokenizer: Path, chat_template: str | None) -> RenderedExample:
    """Render a row in normal form as the trainers do: the loss is on what follows the generation prompt.

    Args:
        row: In normal form; of a pair, the chosen side is rendered.
        tokenizer: A folder with a tokenizer, or a GGUF file.
        chat_template: Takes the place of the tokenizer's own.
    """
    loaded = load_tokenizer(tokenizer, chat_template)
    reply = row.get("completion") or row.get("chosen") or []
    asked = rendered(loaded, row["prompt"], tools=row.get("tools"), add_generation_prompt=True)
    whole = rendered(loaded, [*row["prompt"], *reply], tools=row.get("tools")) if reply else asked
    context, tokens = _tokens(loaded, asked), _tokens(loaded, whole)
    continues = whole.startswith(asked) and tokens[: len(context)] == context
    trained = tokens[len(context) :] if reply else []
    bos = loaded.bos_token_id
    return RenderedExample(
        context=asked if continues else whole,
        trained=whole[len(asked) :] if continues else "",
        tokens=len(tokens),
        trained_tokens=len(trained),
        eos_trained=loaded.eos_token_id in trained if reply else None,
        bos_doubled=bos is not None and tokens[:2] == [bos, bos],
        generation_prompt=continues and asked != rendered(loaded, row["prompt"], tools=row.get("tools")),
        tools_shown=_tools_shown(row, whole),
    )


def first_and_all(folder: Path, tokenizer: Path, limit: int | None) -> tuple[RenderedExample, TokenStatistics | None]:
    """The first row of a snapshot, and the tokens of all its rows where there are at most `MOST_ROWS`.

    Args:
        folder: The snapshot's.
        tokenizer: A folder with a tokenizer.
        limit: Most tokens that the stage takes.
    """
    rows = list(islice(read_rows(folder), MOST_ROWS + 1))
    counted = array("i", count_tokens(rows, tokenizer) if len(rows) <= MOST_ROWS else ())
    return render_example(rows[0], tokenizer, None), token_statistics(counted, limit)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def _tools_shown(row: Row, text: str) -> bool | None:
    turns = [turn for part in ("prompt", "completion", "chosen") for turn in row.get(part, ())]
    calls = [call["function"]["name"] for turn in for_template(turns) for call in turn.get("tool_calls", ())]
    names = [*calls, *(tool["function"]["name"] for tool in _offered(row))]
    return all(name in text for name in names) if names else None


def _offered(row: Row) -> list[Row]:
    import json

    offered: list[Row] = json.loads(row.get("tools") or "[]")
    return offered

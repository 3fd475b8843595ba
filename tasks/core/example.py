"""One row as a model sees it: rendered by the chat template, cut into tokens, with what of it carries loss."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from models.preparation import RenderedExample
from tasks.core.rendering import for_template, rendered
from tasks.data.tokens import load_tokenizer

Row = dict[str, Any]


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

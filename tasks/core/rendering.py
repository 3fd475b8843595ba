"""Conversations as a chat template takes them, with the tools that they offer and call.

Snapshots hold tools and calls as JSON text (`tasks.data.tools`); templates go through their parts.
"""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from models.errors import StageError

Message = dict[str, Any]
Row = dict[str, Any]
_CONVERSATIONS = ("prompt", "completion", "chosen", "rejected")


def for_template(messages: Sequence[Message]) -> list[Message]:
    """Messages with their calls as objects."""
    return [
        turn | {"tool_calls": json.loads(turn["tool_calls"])} if isinstance(turn.get("tool_calls"), str) else turn
        for turn in messages
    ]


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: str | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation that is complete, or that the assistant's turn begins at the end of.

    Args:
        tokenizer: Has the chat template.
        messages: The turns.
        tools: The functions offered, as JSON text.
        add_generation_prompt: Whether a reply is asked for.
    """
    offered = json.loads(tools) if tools else None
    text: str = tokenizer.apply_chat_template(
        for_template(messages), tools=offered, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return text


def calls_tools(row: Row) -> bool:
    """Whether a turn of the row calls a tool."""
    return any("tool_calls" in turn for part in _CONVERSATIONS for turn in row.get(part, ()))


def refuse_unshown_tools(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> None:
    """Refuse rows whose tools or calls the model's chat template leaves out: the model would not see them.

    Raises:
        StageError: it does.
    """
    offering = next((row for row in rows if row.get("tools")), None)
    calling = next(filter(calls_tools, rows), None)
    for row in filter(None, (offering, calling)):
        turns = [turn for part in _CONVERSATIONS for turn in row.get(part, ())]
        shown = rendered(tokenizer, turns, tools=row.get("tools"))
        told = json.loads(row.get("tools") or "[]") if row is offering else []
        told += [call for turn in for_template(turns) for call in turn.get("tool_calls", ())]
        missing = [each["function"]["name"] for each in told if each["function"]["name"] not in shown]
        if missing:
            raise StageError(
                f"the model's chat template leaves out tools and their calls (no '{missing[0]}' in a row that has it); "
                "name a template that shows them (base_model.chat_template), or remove tools from the data"
            )

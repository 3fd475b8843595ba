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
_REPLIES = ("completion", "chosen", "rejected")
_CONVERSATIONS = ("prompt", *_REPLIES)
_ANOTHER = "another_name"


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

    A template leaves out what may be taken away, or named otherwise, without a change of the text that it makes.

    Raises:
        StageError: it does.
    """
    offering = next((row for row in rows if row.get("tools")), None)
    if offering and not any(_shows_tools(tokenizer, turns, offering["tools"]) for turns in _dialogues(offering)):
        raise _unshown(json.loads(offering["tools"])[0])
    calling = next(filter(calls_tools, rows), {})
    for turns in _dialogues(calling):
        called = [call for turn in turns for call in turn.get("tool_calls", ())]
        if called and not _shows_calls(tokenizer, turns, calling.get("tools")):
            raise _unshown(called[0])


def _dialogues(row: Row) -> list[list[Message]]:
    """The prompt with each of its replies, as templates take them."""
    replies = [row[part] for part in _REPLIES if part in row] or [[]]
    return [for_template([*row.get("prompt", ()), *reply]) for reply in replies]


def _shows_tools(tokenizer: PreTrainedTokenizerBase, turns: list[Message], tools: str) -> bool:
    return rendered(tokenizer, turns, tools=tools) != rendered(tokenizer, turns)


def _shows_calls(tokenizer: PreTrainedTokenizerBase, turns: list[Message], tools: str | None) -> bool:
    renamed = [
        turn | {"tool_calls": [_renamed(call) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in turns
    ]
    return rendered(tokenizer, turns, tools=tools) != rendered(tokenizer, renamed, tools=tools)


def _renamed(call: dict[str, Any]) -> dict[str, Any]:
    return call | {"function": call["function"] | {"name": _ANOTHER}}


def _unshown(told: dict[str, Any]) -> StageError:
    return StageError(
        f"the model's chat template leaves out tools and their calls (no '{told['function']['name']}' in a row that "
        "has it); name a template that shows them (base_model.chat_template), or remove tools from the data"
    )

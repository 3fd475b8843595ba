r"""One turn of a conversation, in any of the spellings that data has, as a message of the normal form.

    {"role": "user", "content": "…"}                                   TRL, Transformers, OpenAI
    {"from": "human", "value": "…"}                                    ShareGPT
    {"role": "user", "content": [{"type": "text", "text": "…"}, …]}    typed parts, whose texts are joined
    {"from": "function_call", "value": "{\"name\": …}"}                a call of a tool, or in `tool_calls`

Reasoning, be it a part or a key, comes before the text as `<think>…</think>`: every template shows the text, while few
show reasoning that is kept apart.
"""

from difflib import get_close_matches
from typing import Any

from tasks.data.problems import FILL_IN, problem, shown, text
from tasks.data.tools import calls_text

Message = dict[str, str]
"""One turn: `role` and `content`; `tool_calls` as JSON text where the assistant calls tools; `name` and `tool_call_id`
where a tool's result has them."""

ROLES = ("system", "user", "assistant", "tool")
_ROLE_OF = {role: role for role in ROLES} | {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
"""The role of each name that speakers go by."""
_PLAIN = {"role", "content"}
_SPOKEN = ("system", "user", "assistant")
"""Roles whose turn is all said with these two keys; most turns are such, and there are millions of them."""
_CALLERS = ("function_call", "tool_call")
"""Speakers whose text is a call."""
_PARTS = {
    "text": "text", "input_text": "text", "output_text": "text",
    "reasoning": "reasoning", "thinking": "reasoning", "tool_call": "call", "function_call": "call",
}  # fmt: skip
"""What each type of part holds."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MESSAGE_RULE = 'a message is {"role": …, "content": …}'
_PART_RULE = 'a part is {"type": "text", "text": …}; only text can be trained on'


def message(value: object, column: str) -> Message:
    """The message that a turn in any spelling is.

    Raises:
        RowProblem: it is none.
    """
    if not isinstance(value, dict):
        raise problem(column, f"got {shown(value)}", _MESSAGE_RULE, "write it as one")
    if value.keys() == _PLAIN and value["role"] in _SPOKEN and isinstance(value["content"], str):
        return {"role": value["role"], "content": text(value["content"], f"{column}.content")}
    speaker = _speaker(value, column)
    role = _ROLE_OF[speaker]
    content, calls, reasoning = _said(value, speaker, column)
    turn = {"role": role, "content": content}
    if reasoning or calls:
        turn = _assistant_turn(turn, calls, reasoning, column)
    else:
        text(content, f"{column}.content")
    if role == "tool":
        turn |= {key: text(value[key], f"{column}.{key}") for key in ("name", "tool_call_id") if value.get(key)}
    return turn


def role_of(value: object) -> str | None:
    """The role of whoever speaks in a turn; None where nobody known does."""
    speaker = _named(value) if isinstance(value, dict) else None
    return _ROLE_OF.get(speaker) if isinstance(speaker, str) else None


def carries_loss(value: object, column: str) -> bool:
    """Whether a turn may be trained on: its `loss_weight` or `weight`, where it has one, is 1 and not 0.

    Raises:
        RowProblem: it is another number or no number.
    """
    for key in ("loss_weight", "weight"):
        weight = value.get(key) if isinstance(value, dict) else None
        if weight is not None and weight not in (0, 1):
            rule = "a turn is trained on or not, by a weight of 1 or 0"
            raise problem(f"{column}.{key}", f"got {shown(weight)}", rule, "change it or remove the row")
        if weight == 0:
            return False
    return True


def _named(value: dict[Any, Any]) -> object:
    return value["from"] if value.get("role") is None and "from" in value else value.get("role")


def _speaker(value: dict[Any, Any], column: str) -> str:
    speaker = _named(value)
    if isinstance(speaker, str) and speaker in _ROLE_OF:
        return speaker
    if "role" not in value and "from" not in value:
        seen = f"the message has no 'role', only {', '.join(shown(key) for key in value) or 'nothing'}"
        raise problem(column, seen, _MESSAGE_RULE, "rename its keys or add the role")
    near = get_close_matches(str(speaker).lower(), _ROLE_OF, n=1) if isinstance(speaker, str) else []
    remedy = f"did you mean '{near[0]}'?" if near else "rename it or remove the row"
    raise problem(column, f"unknown role {shown(speaker)}", f"roles are {', '.join(ROLES)}", remedy, "roles")


def _said(value: dict[Any, Any], speaker: str, column: str) -> tuple[Any, str | None, Any]:
    """Text, calls as JSON text, and reasoning of a turn."""
    content = value["value"] if value.get("content") is None and "value" in value else value.get("content")
    calls = value.get("tool_calls") or value.get("function_call")
    reasoning = next((value[key] for key in _REASONING if value.get(key)), None)
    if speaker in _CALLERS and content:
        content, calls = "", content
    if isinstance(content, list):
        content, inner_calls, inner_reasoning = _joined(content, f"{column}.content")
        calls, reasoning = calls or inner_calls, reasoning or inner_reasoning
    if content is None and not calls and "content" not in value and "value" not in value:
        raise problem(column, "the message has no 'content'", "each message needs a text", FILL_IN, "missing")
    return content, calls_text(calls or None, f"{column}.tool_calls"), reasoning


def _joined(parts: list[Any], column: str) -> tuple[str, list[Any], str]:
    """Text, calls and reasoning of typed parts, each joined."""
    found: dict[str, list[Any]] = {"text": [], "call": [], "reasoning": []}
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        sort = _PARTS.get(kind) if isinstance(kind, str) else None
        if sort is None:
            seen = f"a part of type {shown(kind)}" if isinstance(kind, str) else f"got {shown(part)}"
            raise problem(f"{column}[{index}]", seen, _PART_RULE, "leave it out or remove the row")
        held = next((part[key] for key in ("text", "value", "content", kind) if part.get(key) is not None), None)
        if sort != "call" and not isinstance(held, str):
            raise problem(f"{column}[{index}]", f"got {shown(part)}", _PART_RULE, FILL_IN)
        found[sort].append(held)
    return "".join(found["text"]), found["call"], "".join(found["reasoning"])


def _assistant_turn(turn: Message, calls: str | None, reasoning: Any, column: str) -> Message:
    """A turn with calls, which needs no text, or with reasoning, which comes before it."""
    key = "tool_calls" if calls else "reasoning"
    if turn["role"] != "assistant":
        rule = "only the assistant calls tools and reasons"
        raise problem(column, f"the {turn['role']}'s turn has {key}", rule, "correct its role or remove it", "roles")
    content = "" if calls and turn["content"] in (None, "") else text(turn["content"], f"{column}.content")
    if reasoning:
        thought = f"<think>\n{text(reasoning, f'{column}.reasoning')}\n</think>"
        content = f"{thought}\n\n{content}" if content else thought
    return {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})

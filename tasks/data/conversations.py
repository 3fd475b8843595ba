"""Messages, prompts and replies of one row, checked and brought to one form: `[{"role": …, "content": …}, …]`.

Every function takes the column's name for its errors and raises InputError with column, value seen, rule and remedy;
the caller knows file and row and puts them in front.
"""

import reprlib
from difflib import get_close_matches
from itertools import takewhile
from typing import Any

from models.errors import InputError

Message = dict[str, str]
"""One turn: `role` and `content`."""

ROLES = ("system", "user", "assistant")
RENDERED_KEYS = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Keys that chat templates turn into text; to drop their values would change what is learned."""
MESSAGES_RULE = 'it must be a list of {"role": …, "content": …}'
TURNS_RULE = 'it must be a text or a list of {"role": …, "content": …}'
FILL_IN = "fill it in or remove the row"

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 60


def problem(column: str, seen: str, rule: str, remedy: str) -> InputError:
    """The error about one value of a row, without file and row."""
    return InputError(f"column '{column}': {seen}; {rule}; {remedy}")


def shown(value: object) -> str:
    """`value` as an error quotes it, shortened."""
    return "null" if value is None else _shortened.repr(value)


def text(value: object, column: str, rule: str = "it must be a text") -> str:
    """`value`, unchanged, if it is a text with something in it that has a UTF-8 form.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, str):
        raise problem(column, f"got {shown(value)}", rule, FILL_IN if value is None else "change it or remove the row")
    if not value.strip():
        raise problem(column, "the text is empty", "it must have content", FILL_IN)
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        rule = "half a surrogate pair is no character and cannot be stored"
        raise problem(column, f"got {shown(value)}", rule, "replace or remove it")
    return value


def prompt(value: object, column: str = "prompt") -> list[Message]:
    """The conversation up to the turn that is to be learned: a text is one user turn.

    Raises:
        InputError: there is none, or it does not end with a user turn.
    """
    turns = (
        [{"role": "user", "content": text(value, column)}]
        if isinstance(value, str)
        else messages(value, column, TURNS_RULE)
    )
    return ending_with_user(turns, column)


def reply(value: object, column: str) -> list[Message]:
    """The assistant's turn: a text, or a list with this one message.

    Raises:
        InputError: there is none, or more than one, or another role's.
    """
    if isinstance(value, str):
        return [{"role": "assistant", "content": text(value, column)}]
    return only_reply(messages(value, column, TURNS_RULE), column)


def messages(value: object, column: str, rule: str = MESSAGES_RULE) -> list[Message]:
    """The messages of a list, with role and content alone.

    Raises:
        InputError: it is no list, empty, or one of its members is no message.
    """
    if not isinstance(value, list):
        raise problem(column, f"got {shown(value)}", rule, FILL_IN if value is None else "write it as one")
    if not value:
        raise problem(column, "the list is empty", "it must hold at least one message", FILL_IN)
    return [_message(member, f"{column}[{index}]") for index, member in enumerate(value)]


def ending_with_user(turns: list[Message], column: str) -> list[Message]:
    """`turns`, if they can be a prompt.

    Raises:
        InputError: there are none, or the last one is not the user's.
    """
    last = turns[-1]["role"] if turns else "none"
    if last != "user":
        seen = f"the last turn before the reply is {_of(last)}"
        raise problem(column, seen, "a prompt must end with a user turn", "add the user's turn or remove the row")
    return turns


def only_reply(turns: list[Message], column: str) -> list[Message]:
    """`turns`, if they are one assistant turn.

    Raises:
        InputError: they are not.
    """
    if len(turns) != 1:
        seen = f"{len(turns)} messages where the reply should be"
        raise problem(column, seen, "the reply is one assistant turn", "move the earlier turns to the prompt")
    if turns[0]["role"] != "assistant":
        seen = f"the last turn is {_of(turns[0]['role'])}"
        raise problem(column, seen, "the reply must be an assistant turn", "add the assistant's turn or remove the row")
    return turns


def is_conversation(value: object) -> bool:
    """Whether `value` is a list that begins with another turn than the assistant's: a prompt and its reply in one."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and first.get("role") != "assistant"


def split_pair(chosen: object, rejected: object) -> tuple[list[Message], list[Message], list[Message]]:
    """Shared prompt, chosen and rejected reply of two whole conversations.

    Raises:
        InputError: they are equal, or differ in more than their last turn.
    """
    good, bad = messages(chosen, "chosen"), messages(rejected, "rejected")
    refuse_equal(good, bad)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(good, bad, strict=False)))
    for turns, column in ((good, "chosen"), (bad, "rejected")):
        if len(turns) != shared + 1:
            seen = f"{len(turns)} messages, of which the other side shares the first {shared}"
            rule = "chosen and rejected must differ in their last turn alone"
            raise problem(column, seen, rule, "make the turns before it equal or remove the row")
    start = ending_with_user(good[:shared], "chosen")
    return start, only_reply(good[shared:], "chosen"), only_reply(bad[shared:], "rejected")


def refuse_equal(chosen: list[Message], rejected: list[Message]) -> None:
    """Raise InputError where both sides of a pair are the same: it holds no preference."""
    if chosen == rejected:
        seen = f"both sides are {shown(chosen[-1]['content'])}"
        raise problem("rejected", seen, "chosen and rejected must differ", "correct one side or remove the row")


def _message(value: object, column: str) -> Message:
    if not isinstance(value, dict):
        raise problem(column, f"got {shown(value)}", 'a message is {"role": …, "content": …}', "write it as one")
    role = _role(value, column)
    for key in RENDERED_KEYS:
        if value.get(key):
            rule = "a message may only have role and content here"
            raise problem(column, f"key '{key}' has a value", rule, "write it into content or remove the row")
    if "content" not in value:
        raise problem(column, "the message has no 'content'", "each message needs a text", FILL_IN)
    return {"role": role, "content": text(value["content"], f"{column}.content")}


def _role(message: dict[Any, Any], column: str) -> str:
    role = message.get("role")
    if isinstance(role, str) and role in ROLES:
        return role
    if "role" not in message:
        seen = f"the message has no 'role', only {', '.join(shown(key) for key in message) or 'nothing'}"
        raise problem(column, seen, 'a message is {"role": …, "content": …}', "rename its keys or add the role")
    near = get_close_matches(str(role).lower(), ROLES, n=1) if isinstance(role, str) else []
    remedy = f"did you mean '{near[0]}'?" if near else "rename it or remove the row"
    raise problem(column, f"unknown role {shown(role)}", f"roles are {', '.join(ROLES)}", remedy)


def _of(role: str) -> str:
    return "missing" if role == "none" else f"the {role}'s"

"""Messages, prompts and replies of one row, checked and brought to one form: `[{"role": …, "content": …}, …]`.

Every function takes the column's name for its errors and raises RowProblem with column, value seen, rule and remedy;
the caller knows file and row and puts them in front.
"""

from itertools import takewhile

from tasks.data.problems import FILL_IN, problem, shown, text
from tasks.data.turns import Message, carries_loss, message, role_of

MESSAGES_RULE = 'it must be a list of {"role": …, "content": …}'
TURNS_RULE = 'it must be a text or a list of {"role": …, "content": …}'


def prompt(value: object, column: str = "prompt") -> list[Message]:
    """The conversation up to the turn that is to be learned: a text is one user turn.

    Raises:
        RowProblem: there is none, or it does not end with a user turn.
    """
    turns = (
        [{"role": "user", "content": text(value, column)}]
        if isinstance(value, str)
        else messages(value, column, TURNS_RULE)
    )
    return ending_with_user(turns, column)


def split(value: object, column: str) -> tuple[list[Message], list[Message]]:
    """Prompt and reply of a whole conversation: the turns before the last one, and the last one.

    Raises:
        RowProblem: it is none, or does not end with an assistant turn that may be trained on.
    """
    turns = messages(value, column)
    answer = only_reply(turns[-1:], column)
    refuse_weightless(value, column)
    return ending_with_user(turns[:-1], column), answer


def reply(value: object, column: str) -> list[Message]:
    """The assistant's turn: a text, or this one message, in a list or not.

    Raises:
        RowProblem: there is none, or more than one, or another role's.
    """
    if isinstance(value, str):
        return [{"role": "assistant", "content": text(value, column)}]
    answer = only_reply(messages([value] if isinstance(value, dict) else value, column, TURNS_RULE), column)
    refuse_weightless(value, column)
    return answer


def messages(value: object, column: str, rule: str = MESSAGES_RULE) -> list[Message]:
    """The messages of a list; keys that no template shows are left out.

    Raises:
        RowProblem: it is no list, empty, one of its members is no message, or a tool's result follows no call.
    """
    if value is None:
        raise problem(column, "got null", rule, FILL_IN, "missing")
    if not isinstance(value, list):
        raise problem(column, f"got {shown(value)}", rule, "write it as one")
    if not value:
        raise problem(column, "the list is empty", "it must hold at least one message", FILL_IN, "empty")
    turns = [message(member, f"{column}[{index}]") for index, member in enumerate(value)]
    _refuse_stray_results(turns, column)
    return turns


def ending_with_user(turns: list[Message], column: str) -> list[Message]:
    """`turns`, if they can be a prompt: the user's turn or a tool's result is the last one.

    Raises:
        RowProblem: there are none, or the last one is another's.
    """
    last = turns[-1]["role"] if turns else "none"
    if last not in ("user", "tool"):
        seen, rule = f"the last turn before the reply is {_of(last)}", "a prompt must end with a user turn"
        raise problem(column, seen, rule, "add the user's turn or remove the row", "last_turn")
    return turns


def only_reply(turns: list[Message], column: str) -> list[Message]:
    """`turns`, if they are one assistant turn.

    Raises:
        RowProblem: they are not.
    """
    if len(turns) != 1:
        seen = f"{len(turns)} messages where the reply should be"
        raise problem(column, seen, "the reply is one assistant turn", "move the earlier turns to the prompt", "roles")
    if turns[0]["role"] != "assistant":
        seen, rule = f"the last turn is {_of(turns[0]['role'])}", "the reply must be an assistant turn"
        raise problem(column, seen, rule, "add the assistant's turn or remove the row", "last_turn")
    return turns


def is_conversation(value: object) -> bool:
    """Whether `value` is a list that begins with another turn than the assistant's: a prompt and its reply in one."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and role_of(first) != "assistant"


def refuse_weightless(value: object, column: str) -> None:
    """Raise RowProblem where the last turn is marked as one not to be trained on: the row would teach nothing."""
    last = value[-1] if isinstance(value, list) else value
    if not carries_loss(last, column):
        rule = "the last assistant turn is the one that is trained on"
        raise problem(column, "the last turn has a weight of 0", rule, "remove the row or the weight", "last_turn")


def split_pair(
    chosen: object, rejected: object, columns: tuple[str, str] = ("chosen", "rejected")
) -> tuple[list[Message], list[Message], list[Message]]:
    """Shared prompt, chosen and rejected reply of two whole conversations, from columns of these names.

    Raises:
        RowProblem: they are equal, or differ in more than their last turn.
    """
    good, bad = messages(chosen, columns[0]), messages(rejected, columns[1])
    refuse_equal(good, bad, columns[1])
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(good, bad, strict=False)))
    for turns, column in zip((good, bad), columns, strict=True):
        if len(turns) != shared + 1:
            seen = f"{len(turns)} messages, of which the other side shares the first {shared}"
            rule = "chosen and rejected must differ in their last turn alone"
            raise problem(column, seen, rule, "make the turns before it equal or remove the row", "histories")
    start = ending_with_user(good[:shared], columns[0])
    sides = only_reply(good[shared:], columns[0]), only_reply(bad[shared:], columns[1])
    for value, column in zip((chosen, rejected), columns, strict=True):
        refuse_weightless(value, column)
    return start, *sides


def refuse_equal(chosen: list[Message], rejected: list[Message], column: str = "rejected") -> None:
    """Raise RowProblem where both sides of a pair are the same: it holds no preference."""
    if chosen == rejected:
        seen = f"both sides are {shown(chosen[-1]['content'])}"
        raise problem(
            column, seen, "chosen and rejected must differ", "correct one side or remove the row", "equal_pair"
        )


def _refuse_stray_results(turns: list[Message], column: str) -> None:
    """Raise RowProblem where a tool's result follows neither a call nor another result."""
    for index, turn in enumerate(turns):
        if turn["role"] != "tool":
            continue
        before = turns[index - 1] if index else None
        if before and (before["role"] == "tool" or "tool_calls" in before):
            continue
        seen = f"a tool's result follows {_of(before['role']) + ' turn' if before else 'nothing'}"
        rule, remedy = "it must follow a call of a tool", "add the call (tool_calls) or remove the row"
        raise problem(f"{column}[{index}]", seen, rule, remedy, "roles")


def _of(role: str) -> str:
    return "missing" if role == "none" else f"the {role}'s"

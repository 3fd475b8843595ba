"""Transcripts: a whole dialogue in one text, each turn behind a blank line and `Human:` or `Assistant:`."""

import re

from tasks.data.problems import problem, shown, text
from tasks.data.turns import Message

_MARK = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_START = re.compile(r"(?:\n\n)?Human: ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: object) -> bool:
    """Whether a text begins as a transcript does, and has a reply."""
    return isinstance(value, str) and bool(_START.match(value)) and "\n\nAssistant:" in value


def transcript(value: object, column: str) -> list[Message]:
    """The turns of a transcript, their texts as they are between the marks.

    Raises:
        RowProblem: it is none, or one of its turns is empty.
    """
    whole = text(value, column)
    before, *marked = _MARK.split(whole)
    if before.strip() or not marked:
        rule = "a transcript begins with 'Human:' and has a blank line before each turn"
        raise problem(column, f"got {shown(whole)}", rule, "write it so or remove the row")
    return [
        {"role": _ROLES[name], "content": text(said, f"{column} ({name})")}
        for name, said in zip(marked[::2], marked[1::2], strict=True)
    ]

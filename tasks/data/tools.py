"""Tools: the functions that a model is offered, and its calls of them.

Both are kept as JSON text in the order in which they were written, since templates put them before the model in that
order; the text has one type whatever functions and arguments there are.

    tools        [{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}, …]
    tool_calls   [{"type": "function", "function": {"name": …, "arguments": {…}}}, …], each with its `id` if it has one
"""

import json
from typing import Any

from tasks.data.problems import problem, shown, text

_TOOLS_RULE = "tools are a list of functions with a name each, or its JSON text"
_CALL_RULE = 'a call is {"name": …, "arguments": {…}}, or its JSON text'


def tools_text(value: object, column: str) -> str | None:
    """The functions offered, as JSON text; None where there are none. Bare functions get the form above.

    Raises:
        RowProblem: they are no list of functions.
    """
    tools = [] if value in (None, "") else _parsed(value, column, _TOOLS_RULE)
    if not isinstance(tools, list):
        raise problem(column, f"got {shown(value)}", _TOOLS_RULE, "write it as one")
    return _written([_tool(tool, column) for tool in tools], column) if tools else None


def calls_text(value: object, column: str) -> str | None:
    """One call or a list of them, as JSON text; None where there are none.

    Raises:
        RowProblem: one of them is no call.
    """
    calls = [] if value in (None, "") else _parsed(value, column, _CALL_RULE)
    calls = calls if isinstance(calls, list) else [calls]
    return _written([_call(call, column) for call in calls], column) if calls else None


def _tool(tool: object, column: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise problem(column, f"got {shown(tool)}", _TOOLS_RULE, "write it as one")
    return tool if isinstance(tool, dict) and "function" in tool else {"type": "function", "function": function}


def _call(call: object, column: str) -> dict[str, Any]:
    call = _parsed(call, column, _CALL_RULE)
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise problem(column, f"got {shown(call)}", _CALL_RULE, "write it as one")
    given = function.get("arguments", function.get("parameters"))
    arguments = {} if given in (None, "") else _parsed(given, column, _CALL_RULE)
    if not isinstance(arguments, dict):
        raise problem(column, f"arguments {shown(given)}", _CALL_RULE, "write them as an object")
    plain = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **plain} if call.get("id") else plain


def _parsed(value: object, column: str, rule: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise problem(column, f"got {shown(value)}, which is no JSON", rule, "correct it or remove the row") from None


def _written(value: object, column: str) -> str:
    try:
        return text(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False), column)
    except (ValueError, TypeError, RecursionError):
        raise problem(column, f"got {shown(value)}", "it must be JSON", "correct it or remove the row") from None

"""Rows for sft in every format that can hold them."""

import json

from models.sources import FormatName
from tasks.data.readers import Row
from tests.forms.rows import CALLING, CHOICES, LETTERED, TOOLS, completion, reply, said, system, turns

FORMS: dict[str, tuple[FormatName, Row, Row, list[str]]] = {
    "prompt and completion": (
        "standard",
        {"prompt": "a", "completion": "b", "id": 7},
        completion("a", "b"),
        ["left out: 'id'"],
    ),
    "prompt and response": (
        "standard",
        {"prompt": "a", "response": "b"},
        completion("a", "b"),
        ["`response` is the"],
    ),
    "messages": (
        "messages",
        {"messages": said("a", "b", "c", "d")},
        completion(said("a", "b", "c"), "d"),
        ["earlier ones are context"],
    ),
    "messages in ShareGPT's words": (
        "messages",
        {"messages": turns(("human", "a"), ("gpt", "b"))},
        completion("a", "b"),
        ["from and value"],
    ),
    "typed parts": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "value": "b"}]},
                *reply("c"),
            ]
        },
        completion("a b", "c"),
        [],
    ),
    "reasoning as a part": (
        "messages",
        {
            "messages": [
                *said("a"),
                {"role": "assistant", "content": [{"type": "reasoning", "value": "r"}, {"type": "text", "text": "c"}]},
            ]
        },
        completion("a", "<think>\nr\n</think>\n\nc"),
        ["reasoning comes before the text as <think>"],
    ),
    "reasoning as a key": (
        "messages",
        {"messages": [*said("a"), {"role": "assistant", "content": "c", "reasoning_content": "r"}]},
        completion("a", "<think>\nr\n</think>\n\nc"),
        ["reasoning comes before"],
    ),
    "loss weights": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "a", "loss_weight": 0},
                {"role": "assistant", "content": "b", "loss_weight": 1.0},
            ]
        },
        completion("a", "b"),
        ["weights of other turns than the last have no effect"],
    ),
    "null keys of a table": (
        "messages",
        {"messages": [{**turn, "tool_calls": None, "name": None} for turn in said("a", "b")]},
        completion("a", "b"),
        [],
    ),
    "ShareGPT": (
        "sharegpt",
        {"conversations": turns(("system", "s"), ("human", "a"), ("gpt", "b"), ("user", "c"), ("bing", "d"))},
        completion([system("s"), *said("a", "b", "c")], "d"),
        ["ShareGPT conversations: `conversations`", "(from and value)"],
    ),
    "ShareGPT with a system column": (
        "sharegpt",
        {"system": "s", "conversations": turns(("human", "a"), ("chatgpt", "b"))},
        completion([system("s"), *said("a")], "b"),
        [],
    ),
    "ShareGPT with tools": (
        "sharegpt",
        {
            "conversations": turns(
                ("human", "1 + 2?"),
                ("function_call", '{"name": "sum", "arguments": {"b": 2, "a": 1}}'),
                ("observation", "3"),
                ("gpt", "It is 3."),
            ),
            "tools": '[{"name": "sum", "parameters": {"b": 1, "a": []}}]',
        },
        completion(CALLING, "It is 3.", tools=TOOLS),
        ["`tools` are offered to the model"],
    ),
    "OpenAI's tool calls": (
        "messages",
        {
            "messages": [
                *said("1 + 2?"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "sum", "arguments": '{"b":2,"a":1}'}}],
                },
                {"role": "function", "content": "3"},
                *reply("3"),
            ],
            "tools": json.loads(TOOLS),
        },
        completion(CALLING, "3", tools=TOOLS),
        [],
    ),
    "the call is the reply": (
        "messages",
        {
            "messages": [
                *said("1 + 2?"),
                {
                    "role": "assistant",
                    "content": [{"type": "tool_call", "value": '{"name": "sum", "arguments": {"b": 2, "a": 1}}'}],
                },
            ]
        },
        completion("1 + 2?", "") | {"completion": [CALLING[1]]},
        [],
    ),
    "no tools": ("standard", {"prompt": "a", "completion": "b", "tools": "[]"}, completion("a", "b"), []),
    "alpaca": (
        "alpaca",
        {"instruction": "a", "input": "b", "output": "c"},
        completion("a\n\nb", "c"),
        ["`input` comes under it"],
    ),
    "alpaca without input": (
        "alpaca",
        {"instruction": "a", "input": "", "output": "c"},
        completion("a", "c"),
        [],
    ),
    "alpaca with response": (
        "alpaca",
        {"instruction": "a", "response": "c"},
        completion("a", "c"),
        ["`response` is the completion"],
    ),
    "alpaca with context": (
        "alpaca",
        {"instruction": "a", "context": "b", "response": "c", "category": "x"},
        completion("a\n\nb", "c"),
        ["'category'"],
    ),
    "alpaca with all": (
        "alpaca",
        {"instruction": "a", "input": " ", "output": "c", "system": "s", "history": [["1", "2"], ["3", "4"]]},
        completion([system("s"), *said("1", "2", "3", "4", "a")], "c"),
        ["`system` is the system message", "`history`"],
    ),
    "question and answer": ("question_answer", {"question": "a", "answer": "b"}, completion("a", "b"), []),
    "query and response": ("question_answer", {"query": "a", "response": "b"}, completion("a", "b"), []),
    "input and output": ("question_answer", {"input": "a", "output": "b"}, completion("a", "b"), []),
    "context and continuation": (
        "question_answer",
        {"context": "1+1=", "continuation": "2"},
        completion("1+1=", "2"),
        [],
    ),
    "GSM8K to learn": (
        "question_answer",
        {"question": "a", "answer": "1+1 = <<1+1=2>>2\n#### 2"},
        completion("a", "1+1 = <<1+1=2>>2\n#### 2"),
        ["with its calculations (<<…>>)"],
    ),
    "self-instruct": (
        "self_instruct",
        {"instruction": "a", "instances": [{"input": "b", "output": "c"}]},
        completion("a\n\nb", "c"),
        [],
    ),
    "choices by place": (
        "choices",
        {**CHOICES, "answer": 1},
        completion(LETTERED, "B"),
        ["the letter of `answer` is the completion"],
    ),
    "HH to learn": (
        "hh",
        {"text": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"},
        completion(said("a", "b", "c"), "d"),
        [],
    ),
}
"""What it is, its format, the row, its normal form, and what is said of it."""

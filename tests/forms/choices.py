"""Rows whose format the recipe has to name, by itself or by columns, and rows that have none."""

from typing import Any

from tasks.data.formats.reading import Role
from tasks.data.readers import Row
from tests.forms.rows import TOOLS, completion, pair, question, said, system

AMBIGUOUS: list[tuple[Role, Row, list[str], dict[str, Any]]] = [
    (
        "sft",
        {"messages": said("a", "b"), "prompt": "c", "completion": "d"},
        ["2 ways", "`messages` holds", "format: messages"],
        {"format": "messages"},
    ),
    (
        "sft",
        {"messages": said("a", "b"), "prompt": "c", "completion": "d"},
        [],
        {"columns": {"completion": "completion"}},
    ),
    (
        "sft",
        {"instruction": "a", "output": "b", "response": "c"},
        ["`output` is the completion", "completion: response"],
        {"columns": {"completion": "output"}},
    ),
    (
        "sft",
        {"problem": "a", "solution": "b", "answer": "c"},
        ["`solution`", "`answer`"],
        {"columns": {"completion": "solution"}},
    ),
    (
        "sft",
        {"question": "a", "query": "b", "answer": "c"},
        ["prompt: question", "prompt: query"],
        {"columns": {"prompt": "query"}},
    ),
    (
        "preference",
        {"question": "a", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"},
        ["`answer_matching_behavior` is better"],
        {"columns": {"chosen": "answer_matching_behavior", "rejected": "answer_not_matching_behavior"}},
    ),
    (
        "preference",
        {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 0, "safer_response_id": 1},
        ["label: better_response_id", "label: safer_response_id"],
        {"columns": {"label": "safer_response_id"}},
    ),
    (
        "preference",
        {"prompt": "a", "responses": ["b", "c"], "values": [1, 2]},
        ["scores: values", "ranks: values"],
        {"columns": {"ranks": "values"}},
    ),
    (
        "preference",
        {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2], "ranks": [1, 2]},
        ["highest of `scores`", "lowest of `ranks`"],
        {"columns": {"ranks": "ranks"}},
    ),
    (
        "preference",
        {"prompt": "a", "chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        ["`prompt` is the prompt", "format: hh"],
        {"format": "hh"},
    ),
    (
        "prompts",
        {"question": "a", "target": "b", "final_answer": "c"},
        ["answer: target", "answer: final_answer"],
        {"columns": {"answer": "target"}},
    ),
]
"""A role, a row that it can read in two ways, what is said of it, and what settles it."""

UNKNOWN: list[tuple[Role, Row, dict[str, Any], list[str]]] = [
    (
        "sft",
        {"promt": "a", "completion": "b"},
        {},
        ["columns found: 'promt', 'completion'", "did you mean 'promt'?", "rename it to 'prompt'"],
    ),
    ("sft", {"text": "a story"}, {}, ["a text without a prompt holds no reply to train on"]),
    (
        "sft",
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {},
        ["nearest is prompt, completion, of which 'completion' is missing"],
    ),
    (
        "preference",
        {"prompt": "a", "completion": "b"},
        {},
        ["nearest is prompt, completion, label", "'label' is missing", "columns: …"],
    ),
    ("prompts", {"x": 1}, {}, ["no format known for prompts"]),
    ("sft", {"prompt": "a", "completion": "b"}, {"format": "alpaca"}, ["this is not what format 'alpaca' has for sft"]),
    (
        "sft",
        {"question": "a", "reply": "b"},
        {"columns": {"completion": "replay"}},
        ["columns.completion: there is no column 'replay'; did you mean 'reply'?"],
    ),
]
"""A role, a row of no known format, what the recipe says, and what is said of it."""

MAPPED: list[tuple[Role, Row, dict[str, str], Row]] = [
    ("sft", {"q": "a", "best": {"text": "b"}}, {"prompt": "q", "completion": "best.text"}, completion("a", "b")),
    (
        "sft",
        {"q": "a", "about": "b", "r": "c"},
        {"prompt": "q", "input": "about", "completion": "r"},
        completion("a\n\nb", "c"),
    ),
    (
        "sft",
        {"prompt": "a", "sys": "s", "completion": "c"},
        {"system": "sys"},
        completion([system("s"), *said("a")], "c"),
    ),
    ("sft", {"prompt": "a", "chosen": "b", "rejected": "c"}, {"completion": "chosen"}, completion("a", "b")),
    (
        "sft",
        {"chat": said("a", "b"), "topic": "t"},
        {"messages": "chat", "kind": "topic"},
        completion("a", "b", kind="t"),
    ),
    (
        "sft",
        {"prompt": "a", "completion": "b", "functions": TOOLS},
        {"tools": "functions"},
        completion("a", "b", tools=TOOLS),
    ),
    (
        "preference",
        {"q": "a", "good": "b", "bad": "c"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        pair("a", "b", "c"),
    ),
    (
        "preference",
        {"q": "a", "answer_0": "b", "answer_1": "c", "win": 1},
        {"prompt": "q", "label": "win"},
        pair("a", "c", "b"),
    ),
    ("prompts", {"q": "a", "gold": 4, "more": "x"}, {"prompt": "q", "answer": "gold"}, question("a", "4", more="x")),
    ("prompts", {"question": "a", "answer": "b\n#### 2"}, {"prompt": "question"}, question("a", "2")),
]
"""A role, a row, the recipe's columns, and the normal form."""

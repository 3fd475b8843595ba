"""Rows for preference in every format that can hold them."""

from models.sources import FormatName
from tasks.data.readers import Row
from tests.forms.rows import TOOLS, pair, said, system, turns

FORMS: dict[str, tuple[FormatName, Row, Row, list[str]]] = {
    "pair": (
        "standard",
        {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 9.5},
        pair("a", "b", "c"),
        ["'score_chosen'"],
    ),
    "implicit prompt": (
        "standard",
        {"chosen": said("a", "b"), "rejected": said("a", "c")},
        pair("a", "b", "c"),
        ["what both begin with"],
    ),
    "pair of message columns": (
        "standard",
        {"chosen_messages": said("a", "b"), "rejected_messages": said("a", "c")},
        pair("a", "b", "c"),
        [],
    ),
    "pair with tools": (
        "standard",
        {"prompt": "a", "chosen": "b", "rejected": "c", "tools": TOOLS},
        pair("a", "b", "c", tools=TOOLS),
        ["`tools` are"],
    ),
    "ShareGPT pair": (
        "sharegpt",
        {
            "conversations": turns(("human", "a")),
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        pair("a", "b", "c"),
        ["`chosen` is better than `rejected`"],
    ),
    "alpaca pair": (
        "alpaca",
        {"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"},
        pair("a\n\nb", "c", "d"),
        [],
    ),
    "question with system and a pair": (
        "question_answer",
        {"system": "s", "question": "a", "chosen": "b", "rejected": "c"},
        pair([system("s"), *said("a")], "b", "c"),
        [],
    ),
    "Stack Exchange": (
        "question_answer",
        {"question": "a", "response_j": "b", "response_k": "c"},
        pair("a", "b", "c"),
        ["`response_j` is better"],
    ),
    "HH": (
        "hh",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e",
        },
        pair(said("a", "b", "c"), "d", "e"),
        ["HH transcripts"],
    ),
    "label by number": (
        "standard",
        {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 1},
        pair("a", "c", "b"),
        [],
    ),
    "label by letter": (
        "standard",
        {"prompt": "a", "answer_a": "b", "answer_b": "c", "winner": "model_a"},
        pair("a", "b", "c"),
        [],
    ),
    "votes": (
        "standard",
        {"prompt": "a", "response_1": "b", "response_2": "c", "labels": [2, 1, 2, "tie"]},
        pair("a", "c", "b"),
        ["by majority"],
    ),
    "two conversations": (
        "standard",
        {"conversation_a": said("a", "b"), "conversation_b": said("a", "c"), "winner": "b"},
        pair("a", "c", "b"),
        [],
    ),
    "scores": (
        "standard",
        {"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 3.5, 0]},
        pair("a", "c", "d"),
        ["highest"],
    ),
    "ranks": (
        "standard",
        {"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1]},
        pair("a", "c", "b"),
        ["lowest"],
    ),
}
"""What it is, its format, the row, its normal form, and what is said of it."""

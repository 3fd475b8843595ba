"""Rows for prompts in every format that can hold them."""

from models.sources import FormatName
from tasks.data.readers import Row
from tests.forms.rows import CHOICES, LETTERED, question, said, turns

FORMS: dict[str, tuple[FormatName, Row, Row, list[str]]] = {
    "prompts": (
        "standard",
        {"prompt": "a", "answer": 4.0, "level": 2},
        question("a", "4", level=2),
        ["kept for rewards and verifiers: 'level'"],
    ),
    "prompts with another's answer": (
        "standard",
        {"prompt": "a", "ground_truth": "4"},
        question("a", ground_truth="4"),
        ["no accepted"],
    ),
    "conversation to answer": (
        "messages",
        {"messages": said("a"), "ground_truth": "4", "dataset": "x"},
        question("a", "4", dataset="x"),
        [],
    ),
    "answered conversation": (
        "sharegpt",
        {"conversations": turns(("human", "a"), ("gpt", "b"))},
        question("a"),
        ["a reply at their end is left out"],
    ),
    "tools to answer with": (
        "standard",
        {"prompt": "a", "tools": "t"},
        question("a", tools="t"),
        ["`tools` are not shown to the model"],
    ),
    "input and target": ("question_answer", {"input": "a", "target": 43.0}, question("a", "43"), []),
    "GSM8K": (
        "gsm8k",
        {"question": "a", "answer": "1+1 = 2\n#### 1,002"},
        question("a", "1,002"),
        ["what follows #### in `answer`"],
    ),
    "GSM8K without a space": (
        "gsm8k",
        {"question": "a", "answer": "1+1 = 2\n####2"},
        question("a", "2"),
        [],
    ),
    "names and values without a UTF-8 form": (
        "standard",
        {"prompt": "a", "x\ud800": {"y\udfff": "\ud800"}},
        question("a", **{"x?": {"y?": "?"}}),
        [],
    ),
    "turns": (
        "turns",
        {"turns": ["a", "b"], "question_id": 81},
        question("a", question_id=81),
        ["the others are left out"],
    ),
    "alpaca to answer": (
        "alpaca",
        {"instruction": "a", "input": "b", "output": "c"},
        question("a\n\nb", output="c"),
        [],
    ),
    "self-instruct to answer": (
        "self_instruct",
        {"instruction": "a", "instances": [{"input": "", "output": "c"}]},
        question("a"),
        [],
    ),
    "choices by letter": (
        "choices",
        {**CHOICES, "answer": "B"},
        question(LETTERED, "B"),
        ["the letter of `answer` is accepted"],
    ),
    "choices with labels": (
        "choices",
        {"question": "q?", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "A"},
        question(LETTERED, "A"),
        [],
    ),
    "choices by text": (
        "choices",
        {"question": "q?", "options": {"A": "red", "B": "blue"}, "answer": "blue"},
        question(LETTERED, "B"),
        [],
    ),
    "choices by text beside the letter": (
        "choices",
        {"question": "q?", "options": {"A": "red", "B": "blue"}, "answer": "blue", "answer_idx": "B"},
        question(LETTERED, "B"),
        ["the letter of `answer_idx` is accepted", "left out: 'answer'"],
    ),
    "choices by a number that is a label": (
        "choices",
        {"question": "q?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}, "answerKey": 1},
        question("q?\n\n1. red\n2. blue", "1"),
        [],
    ),
    "choices alone": ("choices", dict(CHOICES), question(LETTERED), []),
}
"""What it is, its format, the row, its normal form, and what is said of it."""

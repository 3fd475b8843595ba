"""Rows of the normal form, and what several formats share."""

from typing import Any

from tasks.data.readers import Row


def said(*contents: str) -> list[dict[str, str]]:
    """Turns of user and assistant in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]


def reply(content: str) -> list[dict[str, str]]:
    """An assistant's turn."""
    return [{"role": "assistant", "content": content}]


def system(content: str) -> dict[str, str]:
    """A system message."""
    return {"role": "system", "content": content}


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    """Turns as ShareGPT writes them."""
    return [{"from": speaker, "value": value} for speaker, value in pairs]


def completion(prompt: Any, content: str, **more: Any) -> Row:
    """A normal row of sft."""
    return {
        "prompt": prompt if isinstance(prompt, list) else said(prompt),
        "completion": reply(content),
        "kind": "all",
    } | more


def pair(prompt: Any, chosen: str, rejected: str, **more: Any) -> Row:
    """A normal row of preference."""
    asked = prompt if isinstance(prompt, list) else said(prompt)
    return {"prompt": asked, "chosen": reply(chosen), "rejected": reply(rejected), "kind": "all"} | more


def question(prompt: Any, *answers: str, **extra: Any) -> Row:
    """A normal row of prompts."""
    asked = prompt if isinstance(prompt, list) else said(prompt)
    return {"prompt": asked, "answer": list(answers), "kind": "all"} | ({"extra": extra} if extra else {})


TOOLS = '[{"type":"function","function":{"name":"sum","parameters":{"b":1,"a":[]}}}]'
CALL = '[{"type":"function","function":{"name":"sum","arguments":{"b":2,"a":1}}}]'
CALLING = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": CALL},
    {"role": "tool", "content": "3"},
]
CHOICES = {"question": "q?", "choices": ["red", "blue"]}
LETTERED = said("q?\n\nA. red\nB. blue")

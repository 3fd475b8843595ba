"""Readings of what follows a prompt: the reply that SFT trains on, and the answers that a verifier accepts."""

import re
from functools import partial
from typing import Any

from tasks.core.verifiers.expected import answers
from tasks.data import conversations
from tasks.data.formats.prompting import (
    CONVERSATIONS,
    lettered,
    only_instance,
    options_column,
    system_columns,
    with_system,
)
from tasks.data.formats.reading import Reading, Sample, filled, require
from tasks.data.formats.transcripts import is_transcript, transcript
from tasks.data.problems import problem, shown, text
from tasks.data.readers import Row

_REPLIES = ("completion", "response", "output", "answer", "solution", "target", "targets", "continuation")
_ANSWERS = ("ground_truth", "final_answer", "expected_answer", "target", "targets", "continuation")
_RIGHT_OPTIONS = ("answerKey", "answer_idx", "answer", "label")
_NO_ANSWERS = "there are no accepted answers"
_FINAL = re.compile(r"\n####(?!#)\s*")
_LAST_TURN = "the last assistant turn is the completion, and earlier ones are context that carries no loss"


def whole_readings(sample: Sample) -> list[Reading]:
    """Every way to read prompt and completion out of one column."""
    found = [_conversation(sample, column) for column in sample.among(CONVERSATIONS)]
    if isinstance(sample.first("text"), str) and is_transcript(sample.first("text")):
        words = f"`text` is split at Human: and Assistant:; {_LAST_TURN}"
        found.append(Reading(words, ("text",), partial(transcript_row, column="text"), "hh", choice="format: hh"))
    return found


def reply_readings(sample: Sample) -> list[Reading]:
    """Every way to read a completion that has a place of its own."""
    if sample.has("instances"):
        words = "its output is the completion"
        return [Reading(words, ("instances",), instance_reply, "self_instruct")]
    return [*_letter_replies(sample), *(_reply(sample, column) for column in sample.among(_REPLIES))]


def _letter_replies(sample: Sample) -> list[Reading]:
    options, labels = options_column(sample), sample.among(_RIGHT_OPTIONS)[:1]
    if not options or not labels:
        return []
    read = partial(letter_reply, label=labels[0], options=options)
    return [Reading(f"the letter of `{labels[0]}` is the completion", (labels[0],), read, "choices")]


def answer_readings(sample: Sample) -> list[Reading]:
    """Every way to read accepted answers; a row of prompts may have none."""
    words = "`answer` is accepted" if sample.has("answer") else _NO_ANSWERS
    own = Reading(words, ("answer",), partial(accepted_answers, column="answer"), native=1)
    if sample.is_native("prompt"):
        return [own]
    return [*_letters(sample), *_finals(sample), *(_others(sample) or [own])]


def _letters(sample: Sample) -> list[Reading]:
    options, labels = options_column(sample), sample.among(_RIGHT_OPTIONS)[:1]
    if options is None:
        return []
    if not labels:
        return [Reading(_NO_ANSWERS, (), partial(accepted_answers, column="answer"), "choices")]
    read = partial(letter_answer, label=labels[0], options=options)
    return [Reading(f"the letter of `{labels[0]}` is accepted", (labels[0],), read, "choices", native=1)]


def _finals(sample: Sample) -> list[Reading]:
    if not any(isinstance(value, str) and _FINAL.search(value) for value in sample.values("answer")):
        return []
    words = "what follows #### in `answer` is accepted"
    return [Reading(words, ("answer",), final_answer, "gsm8k", native=2, choice="format: gsm8k")]


def _others(sample: Sample) -> list[Reading]:
    return [] if sample.has("answer") else [_answer(column) for column in sample.among(_ANSWERS)]


def _conversation(sample: Sample, column: str) -> Reading:
    system = system_columns(sample, column)
    spelling = "from and value" if "from" in next(iter(_first_turns(sample, column)), {}) else "role and content"
    also = (
        "; a row without it has `prompt` and `completion`"
        if column == "messages" and sample.has("prompt", "completion")
        else ""
    )
    return Reading(
        f"`{column}` holds the turns ({spelling}): {_LAST_TURN}{also}",
        (column, *system),
        partial(conversation_row, column=column, system=system),
        "messages" if column == "messages" else "sharegpt",
        native=_native(sample) if column == "messages" else 0,
        choice=f"format: {'messages' if column == 'messages' else 'sharegpt'}",
    )


def _first_turns(sample: Sample, column: str) -> list[dict[str, Any]]:
    return [value[0] for value in sample.values(column) if isinstance(value, list) and isinstance(value[0], dict)]


def _native(sample: Sample) -> int:
    """How `messages` stand to `prompt` and `completion`, which count 2; where a row has all, the recipe decides."""
    if "messages" in sample.mapped or not sample.together("messages", "prompt", "completion"):
        return 3
    return 1 if {"prompt", "completion"} & sample.mapped else 2


def _reply(sample: Sample, column: str) -> Reading:
    words = f"`{column}` is the completion"
    if any(_FINAL.search(value) for value in sample.values(column) if isinstance(value, str)):
        words += ", with its calculations (<<…>>) and its final line (#### …) as they are"
    return Reading(
        words,
        (column,),
        partial(column_reply, column=column),
        native=int(column == "completion"),
        choice=f"columns: {{completion: {column}}}",
    )


def _answer(column: str) -> Reading:
    choice = f"columns: {{answer: {column}}}"
    return Reading(f"`{column}` is accepted", (column,), partial(accepted_answers, column=column), choice=choice)


def conversation_row(row: Row, column: str, system: tuple[str, ...]) -> Row:
    """Prompt and completion of a whole conversation; where the row has none, of columns of their own."""
    if column == "messages" and not filled(row.get(column)) and filled(row.get("completion")):
        return own_row(row)
    require(row, (column,), "a row needs a conversation")
    prompt, completion = conversations.split(row[column], column)
    return {"prompt": with_system(row, system, prompt), "completion": completion}


def own_row(row: Row) -> Row:
    """The normal form's own columns, or else `messages`."""
    if "messages" in row and row.get("completion") is None:
        return conversation_row(row, "messages", ())
    require(row, ("prompt", "completion"), "sft needs prompt and completion, or messages")
    return {
        "prompt": conversations.prompt(row["prompt"]),
        "completion": conversations.reply(row["completion"], "completion"),
    }


def transcript_row(row: Row, column: str) -> Row:
    """Prompt and completion of a transcript."""
    require(row, (column,), "a row needs a transcript")
    prompt, completion = conversations.split(transcript(row[column], column), column)
    return {"prompt": prompt, "completion": completion}


def column_reply(row: Row, column: str) -> Row:
    """The completion in a column."""
    require(row, (column,), "a row needs a completion")
    return {"completion": conversations.reply(row[column], column)}


def instance_reply(row: Row) -> Row:
    """The completion of an instruction's instance."""
    return {"completion": conversations.reply(only_instance(row).get("output"), "instances.output")}


def accepted_answers(row: Row, column: str) -> Row:
    """Accepted answers in a column, or none where it is empty."""
    return {"answer": answers(row[column], column) if filled(row.get(column)) else []}


def final_answer(row: Row) -> Row:
    """What follows the last #### of a worked solution."""
    require(row, ("answer",), "a row needs its solution")
    _, *finals = _FINAL.split(text(row["answer"], "answer"))
    if not finals:
        seen = f"no '####' in {shown(row['answer'])}"
        raise problem("answer", seen, "the final answer follows ####", "add it, or name another format")
    return {"answer": [text(finals[-1].strip(), "answer")]}


def letter_reply(row: Row, label: str, options: str) -> Row:
    """The letter of the right option as completion."""
    return {"completion": [{"role": "assistant", "content": _letter(row, label, options)}]}


def letter_answer(row: Row, label: str, options: str) -> Row:
    """The letter of the right option as accepted answer."""
    return {"answer": [_letter(row, label, options)]}


def _letter(row: Row, label: str, options: str) -> str:
    """The right option's letter, given by letter, else by its place counted from 0, or by its text."""
    require(row, (label, options), "a question with options needs the right one")
    texts = lettered(row[options], options)
    right = row[label]
    is_number = isinstance(right, int) and not isinstance(right, bool)
    if (is_number or isinstance(right, str)) and str(right) in texts:
        return str(right)
    if is_number and 0 <= right < len(texts):
        return list(texts)[right]
    by_text = [letter for letter, option in texts.items() if option == right]
    if isinstance(right, str) and len(by_text) == 1:
        return by_text[0]
    raise problem(label, f"got {shown(right)}", f"it must name one of {', '.join(texts)}", "correct it")

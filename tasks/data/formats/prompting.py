"""Readings of a row's prompt: the conversation up to the turn that a reply is asked for."""

from functools import partial
from typing import Any

from tasks.data import conversations
from tasks.data.formats.reading import Reading, Role, Sample, filled, first_filled, require
from tasks.data.problems import problem, shown, text
from tasks.data.readers import Row
from tasks.data.turns import Message

CONVERSATIONS = ("messages", "conversations", "conversation")
_QUESTIONS = ("question", "query", "problem", "inputs")
_OPTIONS = ("choices", "options")
_SYSTEMS = ("system", "system_prompt")
_UNDER = ("input", "context")
"""What an instruction is about."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def prompt_readings(sample: Sample, role: Role) -> list[Reading]:
    """Every way to read a prompt; for sft, whole conversations hold the reply as well and are read elsewhere."""
    found = [*_alpaca(sample), *_choices(sample), *_questions(sample)]
    if sample.has("prompt") and not isinstance(sample.first("prompt"), dict) and not _takes_input(sample):
        found.append(_column(sample, "prompt"))
    if role != "sft":
        found += [_conversation(sample, column) for column in sample.among(CONVERSATIONS)]
    if role == "prompts" and sample.has("turns"):
        words = "the first of `turns` is the prompt, the others are left out"
        found.append(Reading(words, ("turns",), partial(first_turn, column="turns"), "turns"))
    return found


def system_columns(sample: Sample, beside: str) -> tuple[str, ...]:
    """Where a system message may be; beside the normal form's own columns only where the recipe names it."""
    if "system" in sample.mapped:
        return ("system",)
    is_own = beside in ("prompt", "messages") and sample.is_native(beside)
    return () if is_own else sample.one_of(_SYSTEMS)


def options_column(sample: Sample) -> str | None:
    """The column of a question's options."""
    return next(iter(sample.among(_OPTIONS)), None) if sample.has("question") else None


def _takes_input(sample: Sample) -> bool:
    return {"prompt", "input"} <= sample.mapped


def _column(sample: Sample, column: str) -> Reading:
    system = system_columns(sample, column)
    told = sample.told(system)
    words = f"`{column}` is the prompt" + (f", `{told}` the system message" if told else "")
    return Reading(
        words,
        (column, *system),
        partial(column_prompt, column=column, system=system),
        "standard" if column == "prompt" else "question_answer",
        native=int(column == "prompt"),
        choice=f"columns: {{prompt: {column}}}",
    )


def _questions(sample: Sample) -> list[Reading]:
    names = [name for name in sample.among(_QUESTIONS) if name != "question" or not options_column(sample)]
    if sample.has("input") and not sample.has("instruction") and not _takes_input(sample):
        names.append("input")
    if sample.has("context", "continuation"):
        names.append("context")
    return [_column(sample, name) for name in names]


def _alpaca(sample: Sample) -> list[Reading]:
    instruction = "prompt" if _takes_input(sample) else "instruction"
    if not sample.has(instruction):
        return []
    if sample.has("instances"):
        words = "`instruction` with the input of a member of `instances` under it is the prompt, a row for each"
        return [Reading(words, (instruction, "instances"), instance_prompt, "self_instruct")]
    under = ("input",) if "input" in sample.mapped else sample.one_of(_UNDER)
    system = system_columns(sample, instruction)
    words = f"`{instruction}` is the prompt"
    if told := sample.told(under):
        words += f", `{told}` comes under it where it is not empty"
    if told := sample.told(system):
        words += f", `{told}` is the system message"
    words += ", `history` comes before" if sample.told(("history",)) else ""
    read = partial(alpaca_prompt, instruction=instruction, under=under, system=system)
    return [Reading(words, (instruction, *under, *system, "history"), read, "alpaca", choice="format: alpaca")]


def _choices(sample: Sample) -> list[Reading]:
    options = options_column(sample)
    if options is None:
        return []
    words = f"`question` with the lettered `{options}` under it is the prompt"
    read = partial(choices_prompt, options=options)
    return [Reading(words, ("question", options), read, "choices", choice="format: choices")]


def _conversation(sample: Sample, column: str) -> Reading:
    system = system_columns(sample, column)
    return Reading(
        f"the turns of `{column}` are the prompt; a reply at their end is left out",
        (column, *system),
        partial(conversation_prompt, column=column, system=system),
        "messages" if column == "messages" else "sharegpt",
        choice=f"format: {'messages' if column == 'messages' else 'sharegpt'}",
    )


def with_system(row: Row, columns: tuple[str, ...], turns: list[Message]) -> list[Message]:
    """`turns` with the row's system message before them, unless they begin with one."""
    column = first_filled(row, columns)
    if column is None or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": text(row[column], column)}, *turns]


def column_prompt(row: Row, column: str, system: tuple[str, ...] = ()) -> list[Message]:
    """A text or messages in one column."""
    require(row, (column,), "a row needs a prompt")
    return with_system(row, system, conversations.prompt(row[column], column))


def alpaca_prompt(row: Row, instruction: str, under: tuple[str, ...], system: tuple[str, ...]) -> list[Message]:
    """An instruction, what it is about under it, and earlier exchanges before it."""
    require(row, (instruction,), "a row needs an instruction")
    asked = text(row[instruction], instruction)
    column = first_filled(row, under)
    about = row[column] if column else None
    if column and not (isinstance(about, str) and about.isspace()):
        asked += f"\n\n{text(about, column)}"
    turns = _earlier(row.get("history"), "history")
    return with_system(row, system, [*turns, {"role": "user", "content": asked}])


def instance_prompt(row: Row) -> list[Message]:
    """An instruction with the input of its instance under it."""
    about = {"instruction": row.get("instruction"), "input": only_instance(row).get("input")}
    return alpaca_prompt(about, "instruction", ("input",), ())


def only_instance(row: Row) -> dict[str, Any]:
    """The instance of a row; one that has several was split before.

    Raises:
        RowProblem: there is none.
    """
    require(row, ("instances",), "an instruction needs an instance")
    match row["instances"]:
        case [dict(instance)]:
            return instance
        case other:
            raise problem("instances", f"got {shown(other)}", "it must be a list of objects", "write it as one")


def _earlier(value: Any, column: str) -> list[Message]:
    """Turns of earlier exchanges, written as pairs of what was asked and what was replied."""
    pairs = value if filled(value) else []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        rule = "earlier exchanges are a list of [asked, replied]"
        raise problem(column, f"got {shown(value)}", rule, "write them as one")
    spoken = [(role, said) for pair in pairs for role, said in zip(("user", "assistant"), pair, strict=True)]
    return [{"role": role, "content": text(said, column)} for role, said in spoken]


def conversation_prompt(row: Row, column: str, system: tuple[str, ...]) -> list[Message]:
    """The turns of a conversation up to its last reply."""
    require(row, (column,), "a row needs a conversation")
    turns = conversations.messages(row[column], column)
    asked = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    return with_system(row, system, conversations.ending_with_user(asked, column))


def first_turn(row: Row, column: str) -> list[Message]:
    """The first of several questions that build on each other."""
    require(row, (column,), "a row needs a prompt")
    turns = row[column]
    if not isinstance(turns, list) or not turns:
        raise problem(column, f"got {shown(turns)}", "it must be a list of texts", "write it as one")
    return conversations.prompt(turns[0], f"{column}[0]")


def choices_prompt(row: Row, options: str) -> list[Message]:
    """A question with its options under it, a letter before each."""
    require(row, ("question", options), "a row needs a question and its options")
    lines = [f"{letter}. {option}" for letter, option in lettered(row[options], options).items()]
    return [{"role": "user", "content": "\n".join([text(row["question"], "question"), "", *lines])}]


def lettered(value: Any, column: str) -> dict[str, str]:
    """The options of a question by letter: a list of texts, `{"A": …}`, or `{"text": […], "label": […]}`.

    Raises:
        RowProblem: they are something else.
    """
    match value:
        case {"text": list(texts), "label": list(labels)} if len(texts) == len(labels):
            pairs = zip(labels, texts, strict=True)
        case dict():
            pairs = zip(value, value.values(), strict=True)
        case list() if len(value) <= len(LETTERS):
            pairs = zip(LETTERS, value, strict=False)
        case _:
            raise problem(column, f"got {shown(value)}", "options are a list of texts", "write them as one")
    return {text(str(label), column): text(option, column) for label, option in pairs}

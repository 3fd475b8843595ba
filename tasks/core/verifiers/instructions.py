"""The rule `instructions`: the share of a row's instructions that a reply obeys, and whether a row can be judged so."""

from collections.abc import Iterator
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, get_args, get_origin

from tasks.core.columns import Row
from tasks.core.verifiers.instruction_rules import RULES
from tasks.core.verifiers.language import LANGUAGES
from tasks.data.problems import problem, shown

IDS, ARGUMENTS = "instruction_id_list", "kwargs"


def instructions(reply: str, row: Row) -> float:
    """Share of the row's instructions that the reply obeys; 1: all of them, which is the benchmark's strict verdict.

    An empty reply obeys none.
    """
    verdicts = [bool(reply.strip()) and RULES[name](reply, **given) for name, given in _asked(row)]
    return sum(verdicts) / len(verdicts)


def check_instructions(row: Row) -> None:
    """Whether a row names known instructions with the arguments that they take.

    Raises:
        InputError: it does not; the message lacks the place.
    """
    names, given = row.get(IDS), row.get(ARGUMENTS)
    if not isinstance(names, list) or not names:
        raise problem(IDS, f"got {shown(names)}", "it must be a list of ids of IFEval's instructions", "fill it in")
    if not isinstance(given, list) or len(given) != len(names):
        rule = f"it must be a list of arguments for each of the {len(names)} ids, {{}} where there are none"
        raise problem(ARGUMENTS, f"got {shown(given)}", rule, "correct it or remove the row")
    for at, name in enumerate(names):
        _check_name(name, f"{IDS}[{at}]")
        if not isinstance(given[at], dict):
            raise problem(f"{ARGUMENTS}[{at}]", f"got {shown(given[at])}", "arguments are a dictionary", "write one")
    for at, (name, arguments) in enumerate(_asked(row)):
        for wanted in _parameters(name):
            _check_argument(wanted, arguments, f"{ARGUMENTS}[{at}]", name)


def _asked(row: Row) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each instruction with those of its arguments that its rule takes; Parquet files give every row all of them."""
    for name, given in zip(row[IDS], row[ARGUMENTS], strict=True):
        taken = {wanted.name for wanted in _parameters(name)}
        yield name, {key: value for key, value in given.items() if key in taken and value is not None}


def _parameters(name: str) -> list[Parameter]:
    return list(signature(RULES[name]).parameters.values())[1:]


def _check_name(name: object, place: str) -> None:
    if not isinstance(name, str) or name not in RULES:
        near = get_close_matches(str(name), RULES, n=1, cutoff=0.5)
        remedy = f"did you mean '{near[0]}'?" if near else "remove the row, or judge it by another rule"
        raise problem(place, f"unknown instruction {shown(name)}", "it must be one of IFEval's 25", remedy)


def _check_argument(wanted: Parameter, given: dict[str, Any], place: str, name: str) -> None:
    value = given.get(wanted.name)
    fault = _fault(wanted, value)
    if fault:
        raise problem(f"{place}.{wanted.name}", f"got {shown(value)}", f"{name} takes {fault} here", "correct it")


def _fault(wanted: Parameter, value: object) -> str:
    """What an argument should be, where it is not."""
    kind = wanted.annotation
    if wanted.name == "language":
        return "" if value in LANGUAGES else f"a language of {', '.join(sorted(LANGUAGES))}"
    if choices := get_args(kind) if get_origin(kind) is not list else ():
        return "" if value in choices else " or ".join(map(repr, choices))
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if number else "a number"
    if kind is str:
        return "" if isinstance(value, str) and value else "a text"
    return "" if isinstance(value, list) and value and all(isinstance(one, str) for one in value) else "a list of texts"

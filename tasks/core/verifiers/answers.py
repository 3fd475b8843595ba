"""Rules that compare what a reply settles on with the accepted answers of its row."""

import re
import threading

from tasks.core.columns import Row
from tasks.core.verifiers.expected import accepted
from tasks.core.verifiers.numbers import final_number

_SETTLED = re.compile(
    r"(?:####|\\boxed\s*\{|(?i:\banswer(?:\s+is\b|\s*:)\s*:?))[\s*_(\[{\"'`$]*"
    r"(?P<letter>[A-HJ-Z]|[a-zI](?!\s+[A-Za-z]))(?![\w'])"
)
"""A letter behind a mark of a final answer; a small one, or I, that a word follows is an article or a pronoun."""
_ALONE = re.compile(r"[\s*_(\[\"'`]*(?P<letter>[A-Za-z])(?:[*_\]\"'`]*\s*$|[*_]*[).:\]])")
"""A reply that begins with an option's letter, or is nothing but one."""
_MARKED = re.compile(r"\((?P<letter>[A-Z])\)|\*\*(?P<bold>[A-Z])(?:[).:][^*]*)?\*\*")
"""A letter in brackets or in bold."""
_PARSING_SECONDS, _COMPARING_SECONDS = 5, 5


def exact_answer(reply: str, row: Row, *, column: str) -> float:
    """1 where the reply, without the space around it, is one of the accepted answers."""
    return float(reply.strip() in accepted(row, column))


def exact_number(reply: str, row: Row, *, column: str) -> float:
    """1 where the reply's final number equals that of an accepted answer."""
    found = final_number(reply)
    return float(found is not None and found in map(final_number, accepted(row, column)))


def math_verify(reply: str, row: Row, *, column: str) -> float:
    """1 where the reply's last formula equals an accepted answer as mathematics (Math-Verify)."""
    return float(any(_same_formula(reply, option) for option in accepted(row, column)))


def choice(reply: str, row: Row, *, column: str) -> float:
    """1 where the option that the reply settles on has an accepted letter, in either case."""
    letters = {chosen_letter(option) for option in accepted(row, column)}
    return float(chosen_letter(reply) in letters - {None})


def chosen_letter(text: str) -> str | None:
    r"""The letter of the option that `text` settles on, as a capital.

    It is the one behind the last mark of a final answer (`####`, `answer is`, `answer:`, `\boxed{`); without one, the
    one that the text begins with (`B`, `(B)`, `B.`, `B) Paris`); otherwise the last one in brackets or in bold.
    """
    settled = list(_SETTLED.finditer(text))
    if settled:
        return settled[-1]["letter"].upper()
    if alone := _ALONE.match(text):
        return alone["letter"].upper()
    marked = list(_MARKED.finditer(text))
    return (marked[-1]["letter"] or marked[-1]["bold"]) if marked else None


def _same_formula(reply: str, answer: str) -> bool:
    from math_verify import parse, verify

    # Math-Verify's time limits rely on signals, which only the main thread may use.
    limited = threading.current_thread() is threading.main_thread()
    parsing, comparing = (_PARSING_SECONDS, _COMPARING_SECONDS) if limited else (None, None)
    gold, said = parse(answer, parsing_timeout=parsing), parse(reply, parsing_timeout=parsing)
    return bool(verify(gold, said, timeout_seconds=comparing))

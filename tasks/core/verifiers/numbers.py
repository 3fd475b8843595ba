"""The number that a text settles on."""

import re
from fractions import Fraction

_NUMBER = re.compile(
    r"""\$?(?P<sign>(?<![\w)])[-−])?\$?
    (?: \\[dt]?frac\{(?P<top>\d+)\}\{(?P<bottom>\d+)\}
      | (?P<value>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)
        (?P<exponent>[eE][+-]?\d{1,2}(?!\w))?
        (?:\s?/\s?(?P<divisor>\d+)(?![\d.]))? )""",
    re.VERBOSE,
)
_MARK = re.compile(r"####|(?<!\w)A:|\\boxed\s*\{|(?i:\banswer(?:\s+is\b|\s*:)\s*:?)")
_LONGEST = 1000
"""Characters of a number; a longer one is a reply that got stuck."""


def final_number(text: str) -> Fraction | None:
    r"""The number that `text` gives as its answer, exactly.

    It is looked for behind the last mark of a final answer (`####`, `A:`, `answer is`, `answer:`, `\boxed{`), in the
    rest of its line and there behind the last `=`; the first number there counts. A text without a mark ends with its
    answer: its last number counts. Thousands separators, `$` and `%` are ignored.

    Returns:
        The number, or None where there is none.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        found = [number for number in map(_value, _NUMBER.finditer(text)) if number is not None]
        return found[-1] if found else None
    line = text[marks[-1].end() :].strip().partition("\n")[0]
    first = _NUMBER.search(line.rpartition("=")[2])
    return _value(first) if first else None


def _value(match: re.Match[str]) -> Fraction | None:
    """The number that was found; a division by zero is none."""
    if len(match[0]) > _LONGEST:
        return None
    top = match["top"] or match["value"].replace(",", "") + (match["exponent"] or "")
    bottom = int(match["bottom"] or match["divisor"] or 1)
    sign = -1 if match["sign"] else 1
    return sign * Fraction(top) / bottom if bottom else None

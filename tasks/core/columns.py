"""The columns of a prompts snapshot beyond prompt, answer and kind, on their way to the reward functions.

A row keeps them under one key, `extra`. Arrow wants one type a column, which nested values of several shapes do not
have, so that a training dataset carries them as JSON text.
"""

import json
import math
from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

from models.fingerprint import canonical_json

Row = dict[str, Any]


def flat(row: Row) -> Row:
    """The row with its further columns beside the others."""
    further: Row = row.get("extra", {})
    return {name: value for name, value in row.items() if name != "extra"} | further


def packed(rows: Sequence[Row]) -> list[Row]:
    """Rows as Arrow can hold them: further columns as JSON text, the same ones in each row, null where it has none."""
    names = sorted({name for row in rows for name in row.get("extra", {})})
    if not names:
        return list(rows)
    return [row | {"extra": canonical_json(dict.fromkeys(names) | row.get("extra", {}))} for row in rows]


def unpacked(row: Row) -> Row:
    """A packed row with its further columns beside the others."""
    return flat(row | {"extra": json.loads(row["extra"])}) if "extra" in row else row


def plain(value: object) -> Any:
    """A value of a further column as JSON data: dates and decimals as text, null for what has no such form."""
    if isinstance(value, dict):
        return {_storable(str(name)): plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    if isinstance(value, str | date | time | Decimal):
        return _storable(str(value))
    finite = isinstance(value, float) and math.isfinite(value)
    return value if finite or isinstance(value, int) else None


def _storable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which has no UTF-8 form."""
    return text.encode("utf-8", "replace").decode()

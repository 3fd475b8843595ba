"""Identity by content: SHA-256 over canonical JSON.

Two requests that would train the same weights have the same fingerprint, on any machine and in any Python version;
hashes of pickled objects or of module paths would not.
"""

import hashlib
import json
from typing import Any

ID_LENGTH = 16
"""Hexadecimal digits of a fingerprint that name its folder (64 bits; the manifest has all 64 digits)."""


def canonical_json(value: Any) -> str:
    """Serialise JSON data with sorted keys, no spaces and no NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value is not JSON data.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()

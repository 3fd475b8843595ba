"""Digests that tell rows and prompts apart within a source, and the side of a split that a prompt is on."""

from hashlib import blake2b
from json import JSONEncoder

from tasks.data.lines import Row

DIGEST_BYTES = 16
"""2^64 rows until two are expected to be taken for equal."""
_canonical = JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
"""As `models.fingerprint.canonical_json`, without building an encoder for each row."""


def canonical_line(row: Row) -> bytes:
    """A row's canonical JSON with a line's end: what the digest of a snapshot is made of."""
    return _canonical(row).encode() + b"\n"


def line_digest(line: bytes) -> bytes:
    """Digest of a row by its canonical line."""
    return blake2b(line, digest_size=DIGEST_BYTES).digest()


def prompt_id(row: Row) -> bytes:
    """Digest of the conversation that a reply is asked for; a system message makes no new question."""
    turns = [[turn["role"], (turn.get("content") or "").strip()] for turn in row["prompt"] if turn["role"] != "system"]
    return line_digest(_canonical(turns).encode())


def is_heldout(prompt: bytes, share: float) -> bool:
    """Whether a prompt of that digest is held out: decided by its content alone, so it never changes."""
    return int.from_bytes(prompt[:8]) < share * 2**64

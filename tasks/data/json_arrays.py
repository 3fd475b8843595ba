"""The members of a JSON array, one after another, without holding all of a large one."""

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from models.errors import InputError
from tasks.data.lines import decoded, json_type, shown_names, unrepeated

WHOLE_BYTES = 32 << 20
"""An array up to this size is parsed at once, which gives the better messages."""
_REMEDY = "a JSON file holds an array of objects, correct it"
_OF_ONE_ROW = frozenset({"messages", "conversations", "prompt", "instruction", "question", "chosen"})
"""Columns by which a file that is one object is known as one row."""
_SPACE = " \t\r\n"
_LONGEST_TOKEN = 16
"""Characters of which the parser may need all to know what they are, strings excepted: `-Infinity`, `\\u20ac`."""
_DECODER = json.JSONDecoder(object_pairs_hook=unrepeated)


def array_members(stream: BinaryIO, file: Path) -> Iterator[object]:
    """Each member of the array that the file is; none of a file without content.

    Raises:
        InputError: it is not valid JSON in UTF-8, or neither an array nor a row.
    """
    start = stream.read(WHOLE_BYTES)
    further = stream.read(1)
    text = decoded(start, file) if not further else ""
    if further and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _Streamed(start + further, stream, file)
    elif further:
        raise InputError(f"{file}: the file is no array; {_REMEDY}")
    elif text.strip():
        yield from _parsed(text, file)


def _parsed(content: str, file: Path) -> list[object]:
    try:
        value = json.loads(content, object_pairs_hook=unrepeated)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{file}: {place}: invalid JSON ({error.msg}); {_REMEDY}") from None
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith("["):
            list(_Streamed(content.encode(), io.BytesIO(), file))  # raises the same, with the line
        raise InputError(f"{file}: unreadable JSON ({str(error).split(';')[0]}); {_REMEDY}") from None
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and not _OF_ONE_ROW.isdisjoint(value):
        return [value]
    seen = f"one object with the keys {shown_names(list(value))}" if isinstance(value, dict) else json_type(value)
    raise InputError(f"{file}: the file is {seen}; {_REMEDY}")


class _Streamed:
    """The members of an array of which a window is held."""

    def __init__(self, start: bytes, stream: BinaryIO, file: Path) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._stream, self._file = stream, file
        self._text, self._at, self._line, self._ended = "", 0, 1, False
        self._take(start)

    def __iter__(self) -> Iterator[object]:
        self._expect("[")
        if self._next_character() == "]":
            self._at += 1
        else:
            yield self._member()
            while self._expect(",]") == ",":
                yield self._member()
        if self._next_character():
            raise self._invalid("Extra data", self._at)

    def _member(self) -> object:
        self._next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error):
                    raise self._invalid(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                cause = str(error).split(";", maxsplit=1)[0]
                raise InputError(f"{self._place(self._at)}: unreadable JSON ({cause}); {_REMEDY}") from None
            self._read_on()

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the member may be valid once its rest is read."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_TOKEN

    def _expect(self, wanted: str) -> str:
        character = self._next_character()
        if not character or character not in wanted:
            raise self._invalid(f"Expecting {' or '.join(map(repr, wanted))}", self._at)
        self._at += 1
        return character

    def _next_character(self) -> str:
        """The next one that is no space, which is where reading goes on; none at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._read_on()

    def _read_on(self) -> None:
        """Let go of what was parsed, and take as much again as is held, so that a long member is parsed a few times."""
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :], 0
        self._take(self._stream.read(max(1 << 20, len(self._text))))

    def _take(self, data: bytes) -> None:
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n") + error.object.count(b"\n", 0, error.start)
            seen = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
            raise InputError(f"{self._file}: line {line}: {seen}; save the file as UTF-8") from None

    def _invalid(self, why: str, position: int) -> InputError:
        return InputError(f"{self._place(position)}: invalid JSON ({why}); {_REMEDY}")

    def _place(self, position: int) -> str:
        line = self._line + self._text.count("\n", 0, position)
        return f"{self._file}: line {line}"

"""Files as their content, unpacked where they are packed with gzip or zstd."""

import gzip
import io
from pathlib import Path
from typing import BinaryIO, cast

PACKED_ENDINGS = (".gz", ".zst")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def without_packing(name: str) -> str:
    """The file's name in lower case, without the ending that says how it is packed."""
    name = name.lower()
    return next((name.removesuffix(ending) for ending in PACKED_ENDINGS if name.endswith(ending)), name)


def is_packed(file: Path) -> bool:
    """Whether the content, not the name, says that the file is packed: browsers unpack a download and keep its name.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        return stream.read(4).startswith((_GZIP, _ZSTD))


def opened(file: Path) -> BinaryIO:
    """The file's content as a stream, unpacked; what is damaged shows while it is read, as an OSError or EOFError.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        start = stream.read(4)
    if start.startswith(_GZIP):
        return cast(BinaryIO, gzip.open(file))
    if start == _ZSTD:
        import pyarrow

        packed = pyarrow.OSFile(str(file))
        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(packed, "zstd"), 1 << 20))
    return file.open("rb")

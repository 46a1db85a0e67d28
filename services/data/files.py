"""Input files as text: gzip and the usual encodings are recognised by content, other formats are named in errors.

Every command that reads events or items (`publish`, `replay`, `backtest`, `fit`, `tune`, `bench`) opens them here.
"""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from services.errors import UsageError

GZIP_MAGIC = b"\x1f\x8b"
# First bytes of formats that are not text, with the name of the format and the remedy.
FOREIGN_FORMATS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or save it as CSV",
    b"PK\x05\x06": "an empty ZIP archive; give the file itself",
    b"PAR1": "a Parquet file; write it as CSV, for example with pandas.read_parquet(...).to_csv(...)",
    b"ARROW1": "an Arrow file; write it as CSV",
    b"ORC": "an ORC file; write it as CSV",
    b"Obj\x01": "an Avro file; write it as CSV or JSON lines",
    b"SQLite format 3\x00": "an SQLite database; export the table as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as CSV",
    b"%PDF": "a PDF document; give CSV or JSON lines",
    b"BZh": "compressed with bzip2; unpack it, or compress it with gzip",
    b"\xfd7zXZ\x00": "compressed with xz; unpack it, or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it, or compress it with gzip",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it, or compress it with gzip",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
}
TAR_MAGIC, TAR_OFFSET = b"ustar", 257
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
SNIFFED_BYTES = 512
READ_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)


class InputError(UsageError):
    """An input file cannot be used; the message names the file, the rule and the value."""


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a file as text.

    Raises:
        InputError: the file is missing, empty, or in a format that is not text.
    """
    try:
        with path.open("rb") as file, as_text(file, path) as text:
            yield text
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> InputError:
    """Return an error with one sentence about an error of the operating system or of a decoder."""
    if isinstance(error, UnicodeDecodeError):
        return InputError(f"{path} cannot be read: not {error.encoding}: {error.reason}; save it as UTF-8")
    if isinstance(error, EOFError):
        return InputError(f"{path} cannot be read: its gzip data is cut short; copy it again")
    if isinstance(error, zlib.error | gzip.BadGzipFile):
        return InputError(f"{path} cannot be read: its gzip data is damaged ({error}); copy it again")
    reason = error.strerror if isinstance(error, OSError) else None
    return InputError(f"{path} cannot be read: {reason or error}")


@contextmanager
def as_text(binary: IO[bytes], path: Path) -> Iterator[IO[str]]:
    """Decompress and decode a stream, which stays open; line ends are kept.

    Bytes that are not UTF-8 become surrogate escapes, so that the reader can name their line.

    Args:
        binary: the file, opened for reading.
        path: the file's name in errors.

    Raises:
        InputError: the file is empty or in a format that is not text.
    """
    unpacked = _buffered(binary)
    while _head(unpacked).startswith(GZIP_MAGIC):
        unpacked = _buffered(gzip.GzipFile(fileobj=unpacked, mode="rb"))  # BufferedReader.mode is a number
    head = _head(unpacked)
    if not head:
        raise InputError(f"{path} is empty: it has no header, no row and no event")
    _require_text(head, path)
    encoding = _encoding_of(head)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    text = io.TextIOWrapper(unpacked, encoding=encoding, errors=errors, newline="")
    try:
        yield text
    finally:
        text.detach()


def not_utf8(text: str) -> str | None:
    """Return which byte of a text read by `as_text` is not UTF-8; None if all bytes are."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return f"not UTF-8: byte 0x{code - 0xDC00:02x} after {text[: error.start][-20:]!r}; save it as UTF-8"
    return None


def _buffered(binary: IO[bytes] | gzip.GzipFile) -> io.BufferedReader:
    return binary if isinstance(binary, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", binary))


def _head(stream: io.BufferedReader) -> bytes:
    """Return the first bytes without consuming them; a pipe may deliver them in parts."""
    return stream.peek(SNIFFED_BYTES)[:SNIFFED_BYTES]


def _require_text(head: bytes, path: Path) -> None:
    for magic, description in FOREIGN_FORMATS.items():
        if head.startswith(magic):
            raise InputError(f"{path} is {description}")
    if head[TAR_OFFSET : TAR_OFFSET + len(TAR_MAGIC)] == TAR_MAGIC:
        raise InputError(f"{path} is a tar archive; unpack it")


def _encoding_of(head: bytes) -> str:
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    # Text has no zero bytes, except every other one of UTF-16.
    if len(head) >= 2 and 0 in head[:2]:
        return "utf-16-be" if head[0] == 0 else "utf-16-le"
    return "utf-8"

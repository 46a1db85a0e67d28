"""Values that the processes of a host share: one process writes a file, others map its arrays instead of copying them.

A value is pickled with its arrays out of band (PEP 574). They follow the pickle in the same file, and whoever maps it
gets arrays over the file's pages, which all processes share if the file is on a memory file system. A process that
writes to such an array gets a page of its own. The file is for processes of one user and of one release: a pickle can
run code, so never map a file that someone else can write.
"""

from __future__ import annotations

import mmap
import pickle
import secrets
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from peft_adapters.durable import path_in_errors
from peft_adapters.errors import MappedValueError

_MAGIC = b"headwater mapped value 1".ljust(32)
_ALIGNMENT = 64  # bytes, a cache line
_NUMBER = struct.Struct("<Q")


def write_value(path: Path, value: object) -> None:
    """Write a value to a file that appears under its name complete or not at all.

    Args:
        path: the file; one that exists is replaced, and those who have mapped it keep what they have.
        value: any value that can be pickled.

    Raises:
        OSError: the file cannot be written; the file at `path` is unchanged.
    """
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with path_in_errors(path), temporary.open("xb") as file:
            file.write(_MAGIC)
            _write_part(file, data)
            for buffer in buffers:
                _write_part(file, buffer.raw())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)


def map_value(path: Path) -> Any:
    """Return the value of a file, with its arrays mapped.

    Raises:
        OSError: the file cannot be read.
        MappedValueError: the file is not one of `write_value`, or is cut off.
    """
    with path_in_errors(path), path.open("rb") as file:
        try:
            pages = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        except ValueError:  # an empty file
            raise MappedValueError(f"{path} is empty; write the value again") from None
    if pages[: len(_MAGIC)] != _MAGIC:
        raise MappedValueError(f"{path} holds no mapped value of this release; write the value again")
    data, *buffers = _parts(path, pages)
    try:
        return pickle.loads(data, buffers=buffers)  # noqa: S301 - a file of this user, see above
    except pickle.UnpicklingError:
        raise MappedValueError(f"{path} is cut off at {len(pages):,} bytes; write the value again") from None


def _write_part(file: BinaryIO, part: bytes | memoryview) -> None:
    """Write the length of a part, and the part at the next aligned place."""
    file.write(_NUMBER.pack(memoryview(part).nbytes))
    file.write(bytes(-file.tell() % _ALIGNMENT))
    file.write(part)
    file.write(bytes(-file.tell() % _NUMBER.size))


def _parts(path: Path, pages: memoryview) -> list[memoryview]:
    """Return the parts of a file.

    Raises:
        MappedValueError: the file is cut off.
    """
    parts: list[memoryview] = []
    place = len(_MAGIC)
    while place < len(pages):
        (length,) = _NUMBER.unpack_from(pages, place)
        start = place + _NUMBER.size
        start += -start % _ALIGNMENT
        end = start + length
        if end > len(pages):
            raise MappedValueError(f"{path} is cut off at {len(pages):,} bytes; write the value again")
        parts.append(pages[start:end])
        place = end + -end % _NUMBER.size
    return parts

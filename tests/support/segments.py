"""Damage to the segment files of a stopped Apache Kafka."""

import struct
from pathlib import Path

from kafka.record.util import calc_crc32c

_LENGTH_AT, _CRC_AT, _ATTRIBUTES_AT, _RECORDS_AT = 8, 17, 21, 61
_CODEC_MASK = 0x07


def segment_of(directory: Path, topic: str, partition: int = 0) -> Path:
    """The first segment of a partition, below a broker's directory."""
    return next(directory.glob(f"**/{topic}-{partition}/*.log"))


def damage_batch(segment: Path, number: int, *, codec: int | None = None, fix_crc: bool = True) -> None:
    """Overwrite the records of a batch, or only the codec that it names.

    Args:
        segment: the file.
        number: position of the batch in the file.
        codec: codec to name instead of overwriting the records.
        fix_crc: whether the checksum agrees with the damage.
    """
    log = bytearray(segment.read_bytes())
    start = 0
    for _ in range(number):
        start += 12 + struct.unpack_from(">i", log, start + _LENGTH_AT)[0]
    end = start + 12 + struct.unpack_from(">i", log, start + _LENGTH_AT)[0]
    if codec is None:
        log[start + _RECORDS_AT : end] = b"\xff" * (end - start - _RECORDS_AT)
    else:
        (attributes,) = struct.unpack_from(">h", log, start + _ATTRIBUTES_AT)
        struct.pack_into(">h", log, start + _ATTRIBUTES_AT, attributes & ~_CODEC_MASK | codec)
    if fix_crc:
        struct.pack_into(">I", log, start + _CRC_AT, calc_crc32c(bytes(log[start + _ATTRIBUTES_AT : end])))
    segment.write_bytes(log)

"""Errors that name the record batch which the Kafka client cannot decode.

kafka-python passes on the error of the decompression library as it is (`ZstdError`, `UncompressError`, `RuntimeError`,
`EOFError`, ...), names neither the partition nor the offset that it was reading, and loops for ever if it is polled
again. `name_undecodable_batches` makes the client raise `UndecodableBatchError` instead, and continue.
"""

from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import UnsupportedCodecError

from streams.errors import UndecodableBatchError

CODECS = {0: "none", 1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
PACKAGES = {"snappy": "python-snappy", "lz4": "lz4", "zstd": "zstandard"}


def name_undecodable_batches(consumer: KafkaConsumer) -> None:
    """Make a client raise `UndecodableBatchError` for a batch that it cannot decode.

    The error comes out of `consumer.poll` once all records before the batch were returned. The client stays usable:
    the next poll fetches the same batch again, unless the partition is paused or sought elsewhere.

    Args:
        consumer: the client, changed in place.
    """
    consumer._fetcher.PartitionRecords = _NamedPartitionRecords


class _NamedPartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """Records of one fetched partition; the client's own class with its errors translated."""

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        batches = _LastBatch(records)
        try:
            yield from super()._unpack_records(tp, batches, *deserializers)
        except Exception as error:
            self.drain()  # otherwise the client would poll this exhausted iterator for ever
            raise _undecodable(tp, self.next_fetch_offset, batches.last, error) from error


class _LastBatch:
    """The batches of a fetch; `last` is the one that was returned last."""

    def __init__(self, records: Any) -> None:
        self._records = records
        self.last: Any = None

    def next_batch(self) -> Any:
        self.last = None
        self.last = self._records.next_batch()
        return self.last


def _undecodable(partition: Any, offset: int, batch: Any, error: Exception) -> UndecodableBatchError:
    codec = "unknown"
    end = offset + 1
    if batch is not None:
        codec = CODECS.get(batch.compression_type, f"number {batch.compression_type}")
        end = max(end, getattr(batch, "next_offset", end))
    return UndecodableBatchError(
        partition.topic,
        partition.partition,
        offset,
        end=end,
        codec=codec,
        reason=str(error) or type(error).__name__,
        remedy=_remedy(codec, end, error),
    )


def _remedy(codec: str, end: int, error: Exception) -> str:
    if isinstance(error, UnsupportedCodecError | NotImplementedError):
        if codec in PACKAGES:
            return f"install the package that decodes it: pip install {PACKAGES[codec]}"
        return "have its producer use gzip, snappy, lz4, zstd or no compression"
    return (
        f"restore it from another replica, or give it up by deleting the records before offset {end}; if the topic is "
        "compacted, set `cleanup.policy=compact,delete` and `retention.ms=-1` for that, set them back, and publish "
        "again what the partition held before that offset"
    )

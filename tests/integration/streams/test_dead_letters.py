"""Dead letters keep the original bytes, on each broker."""

from base64 import b64decode
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaAdminClient
from structlog.testing import capture_logs

from streams import EventProducer, KafkaConnection, Topics
from streams.consumer import PartitionConsumer, Record
from streams.dead_letters import DeadLetter, DeadLetterWriter, Reason
from streams.decode import MAX_EVENT_BYTES, decode
from streams.errors import DeliveryError

BAD = {
    Reason.MALFORMED_JSON: (b"u-1", b'{"event_id": "e-1", \xff\xfe'),
    Reason.INVALID_SCHEMA: (b"u-1", b'{"event_id": "", "ts": 1, "user_id": "u-1", "item_id": "i-1"}'),
    Reason.UNKNOWN_VERSION: (
        b"u-1", b'{"schema_version": 2, "event_id": "e-1", "ts": 1, "user_id": "u-1", "item_id": "i-1"}',
    ),
    Reason.WRONG_KEY: (b"u-2", b'{"event_id": "e-1", "ts": 1, "user_id": "u-1", "item_id": "i-1"}'),
}  # fmt: skip


def read_all(connection: KafkaConnection, topic: str) -> list[Record]:
    with closing(PartitionConsumer(connection, [topic])) as consumer:
        records: list[Record] = []
        while sum(consumer.lag().values()):
            records += consumer.poll(5)
        return records


def letter(payload_bytes: int, offset: int = 7) -> DeadLetter:
    refused = Record("some.topic", 3, offset, b"u-1", b"x" * payload_bytes, 0)
    result = decode(refused, Topics(clicks="some.topic"))
    assert isinstance(result, DeadLetter)
    return result


def test_refused_records_arrive_with_their_bytes_and_reason(kafka_connection: KafkaConnection, topics: Topics) -> None:
    with EventProducer(kafka_connection, topics) as producer:
        for key, value in BAD.values():
            producer.send_raw(topics.clicks, key, value)
        producer.send_raw(topics.clicks, None, b"{}")
    with closing(DeadLetterWriter(kafka_connection, topics)) as writer:
        refused = read_all(kafka_connection, topics.clicks)
        for record in refused:
            result = decode(record, topics)
            assert isinstance(result, DeadLetter)
            writer.write(result)
        writer.flush()
    letters = [DeadLetter.model_validate_json(r.value or b"") for r in read_all(kafka_connection, topics.dead_letters)]
    originals = {(record.topic, record.partition, record.offset): (record.key, record.value) for record in refused}
    assert len(letters) == len(BAD) + 1
    for found in letters:
        found_key = None if found.key is None else b64decode(found.key)
        assert (found_key, found.original()) == originals[found.topic, found.partition, found.offset]
    assert {found.reason for found in letters} == set(BAD)


def test_the_same_record_refused_again_has_the_same_key(kafka_connection: KafkaConnection, topics: Topics) -> None:
    for _ in range(2):
        with closing(DeadLetterWriter(kafka_connection, topics)) as writer:
            writer.write(letter(10))
    assert [record.key for record in read_all(kafka_connection, topics.dead_letters)] == [b"some.topic/3/7"] * 2


def test_a_payload_as_large_as_an_event_may_be_is_kept_whole(kafka_connection: KafkaConnection, topics: Topics) -> None:
    with closing(DeadLetterWriter(kafka_connection, topics)) as writer:
        writer.write(letter(MAX_EVENT_BYTES + 1))
    (record,) = read_all(kafka_connection, topics.dead_letters)
    found = DeadLetter.model_validate_json(record.value or b"")
    assert found.original() == b"x" * (MAX_EVENT_BYTES + 1)
    assert found.reason is Reason.OVERSIZED


def test_what_no_record_can_hold_leaves_its_letter_and_its_size(
    kafka_connection: KafkaConnection, topics: Topics
) -> None:
    with capture_logs() as lines, closing(DeadLetterWriter(kafka_connection, topics)) as writer:
        writer.write(letter(3 * MAX_EVENT_BYTES))
    (record,) = read_all(kafka_connection, topics.dead_letters)
    found = DeadLetter.model_validate_json(record.value or b"")
    assert (found.payload, found.payload_bytes, found.topic, found.offset) == (
        None,
        3 * MAX_EVENT_BYTES,
        "some.topic",
        7,
    )
    assert [line["event"] for line in lines] == ["dead_letter_without_payload"]


@pytest.mark.kafka
class TestTopicOfSmallRecords:
    def test_a_letter_too_large_for_the_topic_goes_without_payload(self, apache_kafka: Any) -> None:
        connection, topics = apache_kafka.connection, Topics(dead_letters="dead-letters.made-by-hand")
        with KafkaAdminClient(**connection.client_options()) as admin:
            admin.create_topics({topics.dead_letters: {"num_partitions": 1}}, wait_for_metadata=True)
        with closing(DeadLetterWriter(connection, topics)) as writer:
            writer.write(letter(1000, offset=1))
            writer.write(letter(MAX_EVENT_BYTES, offset=2))
        newest = {
            r.key: DeadLetter.model_validate_json(r.value or b"") for r in read_all(connection, topics.dead_letters)
        }
        assert newest[b"some.topic/3/1"].original() == b"x" * 1000
        assert newest[b"some.topic/3/2"].payload is None
        assert newest[b"some.topic/3/2"].payload_bytes == MAX_EVENT_BYTES


@pytest.mark.kafka
def test_a_letter_that_cannot_be_written_is_raised(apache_kafka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.producer.METADATA_TIMEOUT_MS", 300)
    with (
        closing(DeadLetterWriter(apache_kafka.connection, Topics(dead_letters="no.such.topic"))) as writer,
        pytest.raises(DeliveryError, match=r"no\.such\.topic"),
    ):
        writer.write(letter(10))

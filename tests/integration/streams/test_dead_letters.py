"""Dead letters keep the original bytes, on each broker."""

import json
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from structlog.testing import capture_logs

from streams import EventProducer, KafkaConnection, Topics
from streams.consumer import PartitionConsumer
from streams.dead_letters import DeadLetter, DeadLetterWriter, Reason
from streams.decode import MAX_EVENT_BYTES, decode
from streams.embedded_broker import EmbeddedBroker
from streams.errors import DeliveryError
from streams.privacy import PayloadPolicy, Pseudonymiser
from streams.record import Record
from streams.topic_creation import ensure_topics

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
def test_a_topic_that_is_not_there_is_raised_in_bounded_time_and_the_letter_waits(
    apache_kafka: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.dead_letters._METADATA_TIMEOUT_SECONDS", 0.3)
    connection, topics = apache_kafka.connection, Topics(dead_letters=f"late-{time.time_ns()}")
    with closing(DeadLetterWriter(connection, topics)) as writer:
        writer.write(letter(10))
        began = time.monotonic()
        with pytest.raises(DeliveryError, match=f"1 dead letters not confirmed.*{topics.dead_letters}"):
            writer.flush(1)
        assert time.monotonic() - began < 10
        with KafkaAdminClient(**connection.client_options()) as admin:
            admin.create_topics({topics.dead_letters: {"num_partitions": 1}}, wait_for_metadata=True)
        assert writer.pending == 1
        writer.flush()
    assert [record.key for record in read_all(connection, topics.dead_letters)] == [b"some.topic/3/7"]


class TestBrokerLost:
    def letters_after(self, broker: Any, connection: KafkaConnection, stop: Callable[[], None]) -> list[Record]:
        topics = Topics()
        ensure_topics(connection, topics, partitions=1, bounded=True)
        with closing(DeadLetterWriter(connection, topics)) as writer:
            writer.write(letter(10, offset=0))
            writer.flush()
            stop()
            for offset in range(1, 4):
                writer.write(letter(10, offset=offset))
                began = time.monotonic()
                with pytest.raises(DeliveryError, match=f"{offset} dead letters not confirmed"):
                    writer.flush(0.5)
                assert time.monotonic() - began < 15
                assert writer.pending == offset
            broker.start()
            writer.write(letter(10, offset=4))
            deadline = time.monotonic() + 40
            while writer.pending and time.monotonic() < deadline:  # a broker that is back may need a moment
                with suppress(DeliveryError):
                    writer.flush(5)
            assert writer.pending == 0
        return read_all(connection, topics.dead_letters)

    def test_embedded(self, tmp_path: Path) -> None:
        broker = EmbeddedBroker(tmp_path)
        with broker:
            connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
            records = self.letters_after(broker, connection, broker.stop)
        assert [record.key for record in records] == [f"some.topic/3/{offset}".encode() for offset in range(5)]

    @pytest.mark.kafka
    def test_apache(self, mortal_apache_kafka: Any) -> None:
        kafka = mortal_apache_kafka
        records = self.letters_after(kafka, kafka.connection, kafka.kill)
        assert [record.key for record in records] == [f"some.topic/3/{offset}".encode() for offset in range(5)]


class LosingProducer(EventProducer):
    """A producer that loses its records on the first flush."""

    lost = 0

    def flush(self, timeout_seconds: float | None = None) -> None:
        if not LosingProducer.lost:
            LosingProducer.lost += 1
            raise DeliveryError("2 records not delivered")
        super().flush(timeout_seconds)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        if LosingProducer.lost:
            super().send_raw(topic, key, value)


def test_a_failed_flush_then_a_good_one_delivers_every_letter_once(
    kafka_connection: KafkaConnection, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LosingProducer, "lost", 0)
    monkeypatch.setattr("streams.dead_letters.EventProducer", LosingProducer)
    with closing(DeadLetterWriter(kafka_connection, topics)) as writer:
        writer.write(letter(10, offset=1))
        writer.write(letter(20, offset=2))
        with pytest.raises(DeliveryError, match="2 dead letters not confirmed; they are kept and sent again"):
            writer.flush()
        assert read_all(kafka_connection, topics.dead_letters) == []
        writer.write(letter(30, offset=3))
        assert writer.pending == 3
        writer.flush()
        assert writer.pending == 0
        writer.flush()
    found = [DeadLetter.model_validate_json(r.value or b"") for r in read_all(kafka_connection, topics.dead_letters)]
    assert sorted((one.offset, one.payload_bytes) for one in found) == [(1, 10), (2, 20), (3, 30)]


class DeafProducer(EventProducer):
    """A producer that receives no confirmations while `deaf`."""

    deaf = True

    def flush(self, timeout_seconds: float | None = None) -> None:
        if DeafProducer.deaf:
            raise DeliveryError("records not confirmed")
        super().flush(timeout_seconds)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        if not DeafProducer.deaf:
            super().send_raw(topic, key, value)


class TestMoreThanMayWait:
    @pytest.fixture(autouse=True)
    def little_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("streams.dead_letters._MAX_WAITING_BYTES", 6_000)
        monkeypatch.setattr("streams.dead_letters._CHUNK_BYTES", 3_000)

    @pytest.fixture
    def deaf(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DeafProducer, "deaf", True)
        monkeypatch.setattr("streams.dead_letters.EventProducer", DeafProducer)

    def refuse_on_and_on(self, writer: DeadLetterWriter) -> None:
        for offset in range(1_000):
            writer.write(letter(10, offset=offset))

    def whole(self, connection: KafkaConnection, topics: Topics) -> dict[int, bool]:
        records = read_all(connection, topics.dead_letters)
        found = [DeadLetter.model_validate_json(record.value or b"") for record in records]
        assert len(found) == len({one.offset for one in found})
        return {one.offset: one.is_complete() for one in found}

    def test_goes_to_the_broker_at_once_and_whole(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        with closing(DeadLetterWriter(kafka_connection, topics)) as writer:
            for offset in range(10):
                writer.write(letter(1_000, offset=offset))
                assert writer.pending < 4
        assert self.whole(kafka_connection, topics) == dict.fromkeys(range(10), True)

    @pytest.mark.usefixtures("deaf")
    def test_with_the_broker_away_it_waits_without_its_bytes(
        self, kafka_connection: KafkaConnection, topics: Topics
    ) -> None:
        with capture_logs() as lines, closing(DeadLetterWriter(kafka_connection, topics)) as writer:
            for offset in range(5):
                writer.write(letter(1_000, offset=offset))
            DeafProducer.deaf = False
        assert self.whole(kafka_connection, topics) == {0: False, 1: False, 2: False, 3: False, 4: True}
        assert [(line["event"], line["count"]) for line in lines] == [("dead_letters_without_payload", 4)]

    @pytest.mark.usefixtures("deaf")
    def test_it_is_raised_before_memory_is_full(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        with closing(DeadLetterWriter(kafka_connection, topics)) as writer:
            with pytest.raises(DeliveryError, match="dead letters not confirmed; they are kept"):
                self.refuse_on_and_on(writer)
            assert 5 < writer.pending < 15
            waiting = writer.pending
            DeafProducer.deaf = False
        assert len(self.whole(kafka_connection, topics)) == waiting


def test_many_small_letters_do_not_make_a_flush_wait_for_the_lost_broker(tmp_path: Path) -> None:
    broker, topics = EmbeddedBroker(tmp_path), Topics()
    with broker:
        connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
        ensure_topics(connection, topics, bounded=True)
        writer = DeadLetterWriter(connection, topics, policy="drop")
        writer.write(letter(10))
        writer.flush()
        small = letter(10).model_copy(update={"error": "x" * 300})
        for offset in range(60_000):  # more bytes than a producer holds
            writer.write(small.model_copy(update={"offset": offset}))
    began = time.monotonic()
    with pytest.raises(DeliveryError, match="60000 dead letters not confirmed"):
        writer.flush(1)
    with pytest.raises(DeliveryError, match="60000 dead letters not confirmed"):
        writer.close(1)
    assert time.monotonic() - began < 40


class TestPolicies:
    def kept(self, connection: KafkaConnection, topics: Topics, refused: Record, policy: PayloadPolicy) -> DeadLetter:
        result = decode(refused, topics)
        assert isinstance(result, DeadLetter)
        writer = DeadLetterWriter(connection, topics, policy=policy, pseudonymise=Pseudonymiser(b"of the test"))
        with closing(writer):
            writer.write(result)
        (record,) = read_all(connection, topics.dead_letters)
        assert policy == "keep" or b"ann" not in (record.value or b"")
        return DeadLetter.model_validate_json(record.value or b"")

    def test_redact_puts_pseudonyms_in_place_of_ids(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        fields = {"event_id": "", "user_id": "ann", "session_id": "ann-1", "item_id": "mug-1", "ts": 1}
        value = json.dumps(fields).encode()
        found = self.kept(kafka_connection, topics, Record(topics.clicks, 0, 5, b"ann", value, 0), "redact")
        ann, session = (Pseudonymiser(b"of the test")(one) for one in ("ann", "ann-1"))
        assert json.loads(found.original() or b"") == fields | {"user_id": ann, "session_id": session}
        assert found.original_key() == ann.encode()
        assert (found.payload_policy, found.payload_bytes, found.is_complete()) == ("redact", len(value), False)

    def test_redact_keeps_nothing_of_what_is_not_json(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        found = self.kept(kafka_connection, topics, Record(topics.clicks, 0, 5, b"ann", b'{"ann', 0), "redact")
        assert (found.payload, found.payload_bytes, found.reason) == (None, 5, Reason.MALFORMED_JSON)

    def test_drop_keeps_neither_payload_nor_key(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        value = b'{"event_id": "", "user_id": "ann", "item_id": "mug-1", "ts": "ann"}'
        found = self.kept(kafka_connection, topics, Record(topics.clicks, 0, 5, b"ann", value, 0), "drop")
        assert (found.payload, found.key, found.payload_policy, found.is_complete()) == (None, None, "drop", False)
        assert "`ts` must be epoch milliseconds or an RFC 3339 time" in found.error

    def test_keep_keeps_the_bytes_and_says_so(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        found = self.kept(kafka_connection, topics, Record(topics.clicks, 0, 5, b"ann", b'{"ann', 0), "keep")
        assert (found.original(), found.original_key()) == (b'{"ann', b"ann")
        assert (found.payload_policy, found.is_complete()) == ("keep", True)

    def test_redacting_needs_a_way_to(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        with pytest.raises(ValueError, match="`pseudonymise` must be given"):
            DeadLetterWriter(kafka_connection, topics, policy="redact")

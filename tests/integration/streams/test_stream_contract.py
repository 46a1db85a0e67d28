"""The contract of producer and consumer, on each broker."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from structlog.testing import capture_logs

from streams import Click, Delivery, EventProducer, Impression, Item, KafkaConnection, Purchase, Topics
from streams.consumer import PartitionConsumer
from streams.decode import ItemRemoved, decode
from streams.errors import DeliveryError, EventTooLargeError, TopicError
from streams.events import Event, ShownItem
from streams.record import Record

TS = 1_700_000_000_000


def click(number: int, user_id: str = "u-1", **fields: Any) -> Click:
    return Click(event_id=f"e-{number}", ts=TS + number, user_id=user_id, item_id=f"i-{number % 7}", **fields)


def send_clicks(connection: KafkaConnection, topics: Topics, numbers: range, users: int = 5) -> None:
    with EventProducer(connection, topics) as producer:
        for number in numbers:
            producer.send(click(number, f"u-{number % users}"))


@contextmanager
def consumer_of(connection: KafkaConnection, names: list[str], **options: Any) -> Iterator[PartitionConsumer]:
    with closing(PartitionConsumer(connection, names, **options)) as consumer:
        yield consumer


def read(consumer: PartitionConsumer, count: int, *, timeout_seconds: float = 15.0) -> list[Record]:
    """Read `count` records and check that no more follow."""
    records: list[Record] = []
    for _ in range(int(timeout_seconds / 0.5)):
        records += consumer.poll(0.5)
        if len(records) >= count:
            break
    return records + consumer.poll(0.05)


class TestProducerToConsumer:
    def test_order_of_each_user_is_kept(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        send_clicks(kafka_connection, topics, range(2000), users=50)
        with consumer_of(kafka_connection, [topics.clicks]) as consumer:
            events = [event for record in read(consumer, 2000) for event in decode(record, topics)]
        of_user = defaultdict(list)
        for event in events:
            assert isinstance(event, Click)
            of_user[event.user_id].append(event.ts - TS)
        assert of_user == {f"u-{user}": list(range(user, 2000, 50)) for user in range(50)}

    def test_each_kind_comes_back_as_it_was_sent(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        sent: dict[str, Event] = {
            topics.impressions: Impression(
                event_id="e-1", ts=TS, request_id="r-1", user_id="u", scenario="search", query="größe 38",
                items=(ShownItem(item_id="i-1", position=0),),
            ),
            topics.clicks: click(2, position=3, session_id="s-1"),
            topics.purchases: Purchase(event_id="e-3", ts=TS, user_id="u", item_id="i", quantity=2, price=9.5),
            topics.items: Item(event_id="e-4", ts=TS, item_id="i-1", kind="product", title="Teapot, blue"),
        }  # fmt: skip
        with EventProducer(kafka_connection, topics) as producer:
            for event in sent.values():
                producer.send(event)
            producer.send_raw(topics.items, b"i-1", None)
        with consumer_of(kafka_connection, list(sent)) as consumer:
            records = read(consumer, 5)
        decoded = [(record.topic, event) for record in records for event in decode(record, topics)]
        assert decoded == [*sent.items(), (topics.items, ItemRemoved("i-1", records[-1].timestamp_ms))]
        assert {record.timestamp_ms > TS for record in records} == {True}

    def test_every_delivery_is_reported(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        reported: list[Delivery] = []
        with EventProducer(kafka_connection, topics, on_delivery=reported.append) as producer:
            for number in range(100):
                producer.send(click(number))
            producer.flush(10)
            assert (producer.delivered, producer.failed) == (100, 0)
        assert [delivery.event for delivery in reported] == [click(number) for number in range(100)]
        assert [delivery.offset for delivery in reported] == list(range(100))
        assert {(delivery.topic, delivery.error) for delivery in reported} == {(topics.clicks, None)}

    def test_failing_callback_does_not_stop_deliveries(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        def failing(delivery: Delivery) -> None:
            raise RuntimeError("callback of the application")

        with capture_logs() as lines, EventProducer(kafka_connection, topics, on_delivery=failing) as producer:
            producer.send(click(1))
            producer.flush(10)
            assert producer.delivered == 1
        assert [line["event"] for line in lines] == ["on_delivery_failed"]

    def test_too_large_event_is_refused_at_once(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        large = Item(event_id="e", ts=TS, item_id="i", kind="article", title="t", description="x" * (1024 * 1024))
        with EventProducer(kafka_connection, topics) as producer:
            with pytest.raises(EventTooLargeError, match="must fit into one record"):
                producer.send(large)
            producer.send(click(1))
            producer.flush(10)
            assert (producer.delivered, producer.failed) == (1, 1)

    @pytest.mark.kafka
    def test_missing_topic_is_named(self, apache_kafka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("streams.producer.METADATA_TIMEOUT_MS", 300)
        with (
            EventProducer(apache_kafka.connection, Topics(clicks="no.such.topic")) as producer,
            pytest.raises(DeliveryError, match=r"'no\.such\.topic' takes no records"),
        ):
            producer.send(click(1))


class TestReading:
    def test_resumes_from_its_own_offsets(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        send_clicks(kafka_connection, topics, range(300))
        with consumer_of(kafka_connection, [topics.clicks]) as consumer:
            first = consumer.poll(10, max_records=100)
            offsets = consumer.positions()
        send_clicks(kafka_connection, topics, range(300, 400))
        with consumer_of(kafka_connection, [topics.clicks], start=offsets) as consumer:
            rest = read(consumer, 400 - len(first))
            assert consumer.gaps == []
        assert 0 < len(first) <= 100
        seen = sorted((record.partition, record.offset) for record in first + rest)
        assert len(set(seen)) == len(seen) == 400

    def test_partition_without_an_offset_begins_at_its_first(
        self, kafka_connection: KafkaConnection, topics: Topics
    ) -> None:
        send_clicks(kafka_connection, topics, range(200))
        with consumer_of(kafka_connection, [topics.clicks]) as consumer:
            ends = consumer.end_offsets()
            skipped = max(ends, key=lambda at: ends[at])
        with consumer_of(kafka_connection, [topics.clicks], start={skipped: ends[skipped]}) as consumer:
            assert len(read(consumer, 200 - ends[skipped])) == 200 - ends[skipped] > 0

    def test_latest_reads_only_what_comes_after(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        send_clicks(kafka_connection, topics, range(50))
        with consumer_of(kafka_connection, [topics.clicks], start="latest") as consumer:
            send_clicks(kafka_connection, topics, range(50, 60))
            assert len(read(consumer, 10)) == 10

    def test_ranks_share_the_partitions(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        send_clicks(kafka_connection, topics, range(200), users=40)
        shares = []
        for rank in range(3):
            with consumer_of(kafka_connection, [topics.clicks], rank=rank, world_size=3) as consumer:
                records = read(consumer, sum(consumer.end_offsets().values()))
                assert {partition % 3 for _, partition in consumer.positions()} == {rank}
            shares.append({(record.partition, record.offset) for record in records})
        assert sum(len(share) for share in shares) == len(set().union(*shares)) == 200

    def test_a_poll_is_ordered_by_topic_partition_offset(
        self, kafka_connection: KafkaConnection, topics: Topics
    ) -> None:
        with EventProducer(kafka_connection, topics) as producer:
            for number in range(120):
                producer.send(click(number, f"u-{number % 11}"))
                purchase = Purchase(event_id=f"p-{number}", ts=TS, user_id=f"u-{number % 7}", item_id="i")
                producer.send(purchase)
        names = [topics.purchases, topics.clicks]
        with consumer_of(kafka_connection, names) as consumer:
            polls = [consumer.poll(5)]
            while sum(map(len, polls)) < 240:
                polls.append(consumer.poll(5))
        for records in polls:
            places = [(names.index(record.topic), record.partition, record.offset) for record in records]
            assert places == sorted(places)

    def test_what_was_held_is_read_once_it_is_let_go(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        """Includes partitions with buffered records when they were paused."""
        send_clicks(kafka_connection, topics, range(1_000), users=40)
        with consumer_of(kafka_connection, [topics.clicks]) as consumer:
            records = consumer.poll(5.0, max_records=1)  # the rest of its partition is fetched, and not given out
            first = (records[0].topic, records[0].partition)
            others = [at for at in consumer.positions() if at != first]
            for held in ([first], [first, others[0]], [first, *others[:2]], [*others], []):
                consumer.pause(held)
                for _ in range(8):
                    got = consumer.poll(0.2, max_records=20)
                    assert not {(record.topic, record.partition) for record in got} & set(held)
                    records += got
            records += read(consumer, 1_000 - len(records))
        assert len({(record.partition, record.offset) for record in records}) == len(records) == 1_000

    def test_after_a_quiet_time_it_looks_ten_times_a_second(
        self, kafka_connection: KafkaConnection, topics: Topics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with consumer_of(kafka_connection, [topics.clicks], start="latest") as consumer:
            looks, look = [], consumer._poll_once

            def noting(*arguments: Any) -> list[Record]:
                looks.append(arguments)
                return look(*arguments)

            monkeypatch.setattr(consumer, "_poll_once", noting)
            consumer._pacing._last_records -= 60.0
            assert consumer.poll(1.0) == []
            assert 0 < len(looks) <= 11
            send_clicks(kafka_connection, topics, range(1))
            assert len(read(consumer, 1)) == 1

    def test_after_a_look_that_brought_all_it_might_there_is_no_pause(
        self, kafka_connection: KafkaConnection, topics: Topics
    ) -> None:
        send_clicks(kafka_connection, topics, range(40))
        with consumer_of(kafka_connection, [topics.clicks], idle_pause_seconds=3_600.0) as consumer:
            found: list[Record] = []
            while not found:  # until the first fetch has come
                consumer._pacing._next_poll = 0.0
                found = consumer.poll(1.0, 4)
            assert len(found) == 4
            assert len(consumer.poll(1.0, 4)) == 4

    def test_lag_is_what_is_left_to_read(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        send_clicks(kafka_connection, topics, range(100))
        with consumer_of(kafka_connection, [topics.clicks]) as consumer:
            assert sum(consumer.lag().values()) == 100
            got = len(consumer.poll(10, max_records=30))
            assert sum(consumer.lag().values()) == 100 - got
            read(consumer, 100 - got)
            assert set(consumer.lag().values()) == {0}
            assert consumer.positions() == consumer.end_offsets()

    def test_aborted_transactions_are_neither_read_nor_lag(
        self, kafka_connection: KafkaConnection, topics: Topics
    ) -> None:
        producer = KafkaProducer(**kafka_connection.client_options(), transactional_id=topics.clicks)
        producer.init_transactions()
        for value, end in ((b"kept", producer.commit_transaction), (b"aborted", producer.abort_transaction)):
            producer.begin_transaction()
            producer.send(topics.clicks, key=b"u", value=value)
            producer.flush()
            end()
        producer.close()
        with consumer_of(kafka_connection, [topics.clicks]) as consumer:
            assert [record.value for record in read(consumer, 1)] == [b"kept"]
            assert set(consumer.lag().values()) == {0}

    def test_offset_beyond_the_log_is_rewound_and_told(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        send_clicks(kafka_connection, topics, range(10), users=1)
        with consumer_of(kafka_connection, [topics.clicks]) as consumer:
            at = next(at for at, end in consumer.end_offsets().items() if end == 10)
        with capture_logs() as lines, consumer_of(kafka_connection, [topics.clicks], start={at: 25}) as consumer:
            send_clicks(kafka_connection, topics, range(10, 13), users=1)
            assert [record.offset for record in read(consumer, 3)] == [10, 11, 12]
            (gap,) = consumer.gaps
        assert (gap.wanted, gap.resumed, gap.log_start, gap.log_end) == (25, 10, 0, 10)
        assert [(line["event"], line["wanted"], line["resumed"]) for line in lines] == [("log_gap", 25, 10)]

    def test_offset_before_the_log_goes_to_its_start_and_is_told(
        self, kafka_connection: KafkaConnection, topics: Topics
    ) -> None:
        send_clicks(kafka_connection, topics, range(10), users=1)
        with consumer_of(kafka_connection, [topics.clicks]) as consumer:
            at = next(at for at, end in consumer.end_offsets().items() if end == 10)
            (record, *_) = consumer.poll(10, max_records=2)
            with KafkaAdminClient(**kafka_connection.client_options()) as admin:
                admin.delete_records({KafkaPartition(*at): 6})
            with consumer_of(kafka_connection, [topics.clicks], start={at: 2}) as late:
                assert [record.offset for record in read(late, 4)] == [6, 7, 8, 9]
                (gap,) = late.gaps
        assert record.offset == 0
        assert (gap.wanted, gap.resumed, gap.log_start, gap.log_end) == (2, 6, 6, 10)

    def test_missing_topic_is_named(self, kafka_connection: KafkaConnection) -> None:
        with (
            closing(PartitionConsumer(kafka_connection, ["no.such.topic"])) as consumer,
            pytest.raises(
                TopicError, match=r"'no\.such\.topic' does not exist; create it with `headwater topics create`"
            ),
        ):
            consumer.check_readable()


class TestCommit:
    def test_offsets_are_there_for_lag_tools(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        send_clicks(kafka_connection, topics, range(20))
        group = f"updater-{topics.clicks}"
        with consumer_of(kafka_connection, [topics.clicks], group_id=group) as consumer:
            read(consumer, 20)
            consumer.commit(consumer.positions())
            expected = consumer.positions()
        with KafkaAdminClient(**kafka_connection.client_options()) as admin:
            committed = admin.list_group_offsets([group])[group]
        assert {(at.topic, at.partition): mark.offset for at, mark in committed.items()} == expected

    def test_without_a_group_nothing_is_committed(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        with consumer_of(kafka_connection, [topics.clicks]) as consumer:
            consumer.commit(consumer.positions())

"""A reader that is stopped and restarted at any point reads each record once, in order, on a real broker."""

from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams import Click, EventProducer, KafkaConnection, Topics
from streams.consumer import PartitionConsumer
from streams.embedded_broker import EmbeddedBroker
from streams.offsets import Offsets

RECORDS = 240
# For each run of the reader: the number of polls and the largest number of records of each.
RUNS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), max_size=6)


@pytest.fixture(scope="module")
def log(embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics]) -> tuple[KafkaConnection, Topics]:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    topics = make_topics(connection)
    with EventProducer(connection, topics) as producer:
        for number in range(RECORDS):
            producer.send(Click(event_id=f"e-{number}", ts=number, user_id=f"u-{number % 13}", item_id="i"))
    return connection, topics


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RUNS, st.integers(1, 3))
def test_each_record_once_over_any_restarts(
    log: tuple[KafkaConnection, Topics], runs: list[tuple[int, int]], world_size: int
) -> None:
    connection, topics = log
    seen: list[tuple[int, int]] = []
    for rank in range(world_size):
        offsets: Offsets = {}
        for polls, max_records in [*runs, (10_000, RECORDS)]:
            reader = PartitionConsumer(connection, [topics.clicks], rank=rank, world_size=world_size, start=offsets)
            with closing(reader):
                for _ in range(polls):
                    if not sum(reader.lag().values()):
                        break
                    records = reader.poll(2, max_records=max_records)
                    assert len(records) <= max_records
                    seen += [(record.partition, record.offset) for record in records]
                offsets = reader.positions()
                assert reader.gaps == []
    assert len(seen) == len(set(seen)) == RECORDS
    for partition in range(4):
        in_order = [offset for number, offset in seen if number == partition]
        assert in_order == sorted(in_order)

"""An updater killed at any instant and restarted ends bit for bit in the state of an uninterrupted run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from crash_replay import CrashReplay
from updater_shop import Shop

from streams.connection import KafkaConnection
from streams.topics import Topics


@pytest.fixture
def replay(kafka_connection: KafkaConnection, make_topics: Callable[..., Topics], tmp_path: Path) -> CrashReplay:
    return CrashReplay(Shop(kafka_connection, make_topics(kafka_connection, partitions=2), tmp_path), seed=7)


# How the broker is reached makes no difference to what is kept: two brokers are enough.
BROKERS = ["embedded", pytest.param("apache", marks=pytest.mark.kafka)]


@pytest.mark.timeout(3_000)
@pytest.mark.parametrize("kafka_connection", BROKERS, indirect=True)
def test_it_ends_where_an_unkilled_run_ends(replay: CrashReplay, kills: int) -> None:
    for kill in range(kills):
        replay.send(20)
        if kill == kills // 2:
            replay.shop.send(*replay.traffic.later_items())
        replay.die()
    replay.send(30)
    replay.finish()
    replay.check()

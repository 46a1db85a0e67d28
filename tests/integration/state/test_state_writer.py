"""The state writer between a real broker and a real server, and the loss of either."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from forked import ForkedCommand
from kafka import KafkaProducer
from pydantic import SecretStr
from redis_server import RedisServer
from state_deployment import Deployment, click, until
from structlog.testing import capture_logs

from services.state.errors import StateConflictError
from services.state.store import Changes, StateStore
from streams.connection import KafkaConnection, open_client
from streams.control import forget_record
from streams.embedded_broker import EmbeddedBroker
from streams.events import Purchase
from streams.privacy import PrivacySettings, pseudonymiser
from streams.topics import Topics


@pytest.fixture
def shop(kafka_connection: KafkaConnection, topics: Topics, valkey_server: RedisServer) -> Iterator[Deployment]:
    made = Deployment(kafka_connection, topics, valkey_server)
    with closing(made.store), made.producer:
        yield made


@pytest.fixture
def mortal_shop(
    embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], mortal_valkey: RedisServer
) -> Iterator[Deployment]:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    made = Deployment(connection, make_topics(connection, partitions=1), mortal_valkey)
    with closing(made.store), made.producer:
        yield made


def test_what_shoppers_do_is_written_once_whoever_starts_again(shop: Deployment) -> None:
    shop.send(click(1, "u"), Purchase(event_id="p2", ts=2, user_id="v", item_id="b"))
    shop.producer.send_raw(shop.topics.clicks, b"u", b"not an event")
    with shop.writing():
        until(lambda: shop.times("u") == [1] and shop.times("v") == [2])
        assert shop.store.entries("v") == shop.store.bought("v")
        shop.send(click(3, "u"))
        until(lambda: shop.times("u") == [1, 3])
    shop.send(click(4, "u"))
    with shop.writing():
        until(lambda: shop.times("u") == [1, 3, 4])
    assert (shop.written("click"), shop.written("purchase")) == (3, 1)


def test_a_forgotten_shopper_is_dropped_and_stays_so_though_their_events_are_read_again(shop: Deployment) -> None:
    shop.send(click(1, "u"), click(2, "v"), Purchase(event_id="p", ts=2, user_id="u", item_id="b"))
    with shop.writing():
        until(lambda: len(shop.times("u")) == 2 and shop.times("v") == [2])
        time.sleep(0.005)  # the broker's time, by which before and after are told, has whole milliseconds
        shop.producer.send_raw(shop.topics.control, *forget_record("u", ts_ms=1))
        shop.producer.flush()
        until(lambda: shop.times("u") == [])
        assert shop.store.bought("u") == []
        time.sleep(0.005)
        shop.send(click(3, "u"))
        until(lambda: shop.times("u") == [3])
    shop.server.client().flushdb()
    with shop.writing():
        until(lambda: shop.times("v") == [2])
        until(lambda: shop.times("u") == [3])
    assert shop.written("forgotten") == 2


def test_an_event_of_a_clock_ahead_is_not_written_after_the_command_to_forget(shop: Deployment) -> None:
    shop.send(click(1, "v"))
    ahead_ms = time.time_ns() // 1_000_000 + 2_000
    with closing(open_client(KafkaProducer, shop.connection)) as raw:
        sent = raw.send(
            shop.topics.clicks, click(2, "u").model_dump_json().encode(), key=b"u", timestamp_ms=ahead_ms
        ).get(30)
    ends = {(shop.topics.clicks, sent.partition): sent.offset + 1}
    shop.producer.send_raw(shop.topics.control, *forget_record("u", ts_ms=1, ends=ends))
    shop.producer.flush()
    until(lambda: time.time_ns() // 1_000_000 > ahead_ms)
    with shop.writing():
        until(lambda: shop.times("v") == [1] and shop.written("forgotten") == 1)
        shop.send(click(3, "u"))
        until(lambda: shop.times("u") == [3])


def test_of_two_writers_one_stands_by_and_takes_over(shop: Deployment) -> None:
    first, second = shop.writer(), shop.writer(shop.new_store())
    with shop.writing(second):
        with shop.writing(first):
            shop.send(*(click(number, "u") for number in range(50)))
            until(lambda: shop.times("u") == list(range(50)))
        shop.send(*(click(number, "u") for number in range(50, 60)))
        until(lambda: shop.times("u") == list(range(60)))
    assert shop.written("click") == 60


def test_a_writer_that_lost_its_turn_unknowingly_writes_nothing(shop: Deployment) -> None:
    changes = Changes()
    changes.add("u", "entry", is_purchase=False)
    shop.store.write(Changes(), before={}, after={("clicks", 0): 5}, heartbeat="1")
    with pytest.raises(StateConflictError, match="other offsets than this writer left"):
        shop.store.write(changes, before={("clicks", 0): 4}, after={("clicks", 0): 6}, heartbeat="2")
    assert shop.store.entries("u") == []
    assert shop.store.offsets() == {("clicks", 0): 5}


def test_under_another_secret_nothing_is_read_or_written(shop: Deployment) -> None:
    shop.send(click(1, "u"))
    with shop.writing():
        until(lambda: shop.times("u") == [1])
    shop.send(click(2, "u"))
    with closing(shop.new_store("another")) as foreign, capture_logs() as logs, shop.writing(shop.writer(foreign)):
        until(lambda: any(entry["event"] == "state_not_written" for entry in logs))
    assert "must have secret 'another', got 'one'" in logs[0]["problem"]
    assert shop.times("u") == [1]


def test_a_server_that_comes_back_empty_is_filled_from_the_log(mortal_shop: Deployment) -> None:
    shop = mortal_shop
    shop.send(*(click(number, "u") for number in range(20)))
    with shop.writing(), capture_logs() as logs:
        until(lambda: shop.times("u") == list(range(20)))
        shop.server.kill()
        shop.send(click(20, "u"))
        until(lambda: any(entry["event"] == "state_not_written" for entry in logs))
        shop.server.start()
        until(lambda: shop.times("u") == list(range(21)))
    assert shop.server.url in next(entry["problem"] for entry in logs if entry["event"] == "state_not_written")


def test_a_server_that_stands_still_is_waited_for(mortal_shop: Deployment) -> None:
    shop = mortal_shop
    hasty = StateStore(shop.settings, fingerprint="one", timeout_seconds=0.1)
    with closing(hasty), shop.writing(shop.writer(hasty)), capture_logs() as logs:
        shop.send(click(1, "u"))
        until(lambda: shop.times("u") == [1])
        with shop.server.standing_still():
            shop.send(click(2, "u"))
            until(lambda: any(entry["event"] == "state_not_written" for entry in logs))
        until(lambda: shop.times("u") == [1, 2])


def test_an_empty_server_begins_with_the_newest_events(mortal_shop: Deployment) -> None:
    shop = mortal_shop
    shop.send(*(click(number, f"u{number}") for number in range(40)))
    with shop.writing(shop.writer(look_back_events=20)):  # from two partitions: 10 each
        until(lambda: shop.times("u39") == [39])
    assert shop.times("u30") == [30]
    assert shop.times("u29") == []


def test_a_killed_writer_leaves_all_or_nothing_of_what_it_was_writing(mortal_shop: Deployment, tmp_path: Path) -> None:
    shop = mortal_shop
    shop.send(*(click(number, f"u{number % 7}") for number in range(3_000)))
    own = pseudonymiser(PrivacySettings(secret=SecretStr(SECRET)))
    store = shop.new_store(own.fingerprint())
    with _process(shop, tmp_path) as killed:
        until(lambda: bool(store.offsets()))
        killed.kill()
    shop.server.client().delete(f"{shop.settings.prefix}:writer")  # else the next waits until its turn is over
    with _process(shop, tmp_path):
        until(lambda: sum(store.offsets().values()) == 3_000)
        for user in range(7):
            assert shop.times(own(f"u{user}")) == list(range(user, 3_000, 7))[-160:]
    store.close()


SECRET = "of-this-test-alone"  # noqa: S105


@contextmanager
def _process(shop: Deployment, directory: Path) -> Iterator[ForkedCommand]:
    own = {
        "KAFKA__BOOTSTRAP_SERVERS": shop.connection.bootstrap_servers,
        "PRIVACY__SECRET": SECRET,
        "STATE__REDIS_URL": shop.server.url,
        "STATE__PREFIX": shop.settings.prefix,
        "STATE__METRICS_PORT": "0",
        **{f"TOPICS__{name.upper()}": topic for name, topic in shop.topics.model_dump(exclude={"dialects"}).items()},
    }
    environment = os.environ | {f"HEADWATER_{name}": value for name, value in own.items()}
    with (directory / "writer.log").open("ab") as output:
        process = ForkedCommand(["state-writer"], env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)

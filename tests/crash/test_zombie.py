"""Two updaters in one directory: one that hung is fenced, one started by mistake is refused."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from updater_shop import SETTLED, Shop, UpdaterProcess, events, items, wait_until

from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.events import Event
from streams.topics import Topics


@pytest.fixture
def shop(embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path) -> Shop:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    shop = Shop(connection, make_topics(connection, partitions=2), tmp_path)
    shop.send(*items(20), *events(60))
    return shop


def wait_until_published(shop: Shop, process: UpdaterProcess, count: int) -> None:
    """Until so many clicks and purchases came in, and a version has learnt what was to be learnt of them."""

    def published() -> bool:
        latest = shop.registry.latest("home")
        return latest is not None and latest.events_learned == process.total("learnt")

    process.wait_for("in", count)
    wait_until(published, what=f"{count} events published")


def versions_of(process: UpdaterProcess) -> list[int]:
    return [line["version"] for line in process.told("adapter_published")]


def see_each_event_counted_once(shop: Shop, process: UpdaterProcess, count: int) -> None:
    for topic in (shop.topics.clicks, shop.topics.purchases):
        counts = process.counts(topic)
        assert counts["in"] == sum(counts[outcome] for outcome in (*SETTLED, "pending"))
    assert process.total("in") == process.total("learnt") + process.total("quarantined") == count


def last_line(process: UpdaterProcess) -> str:
    return process.log().splitlines()[-1]


@contextmanager
def bought_from(shop: Shop, *, first: int) -> Iterator[list[Event]]:
    """Clicks and purchases, one after the other for as long as this lasts."""
    sent: list[Event] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.5):
            (event,) = events(1, first=first + len(sent))
            shop.send(event)
            sent.append(event)

    thread = threading.Thread(target=send, name="shop")
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


@pytest.mark.timeout(600)
def test_a_zombie_publishes_nothing_and_ends_with_the_fencing_error(shop: Shop, kills: int) -> None:
    hang_seconds = 14.0 if kills < 20 else 30.0
    with shop.process(log="zombie.log") as zombie:
        wait_until_published(shop, zombie, 60)
        zombie.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        shop.send(*events(60, first=60))
        with shop.process(log="successor.log") as successor:
            wait_until_published(shop, successor, 120)
            time.sleep(max(0.0, stopped + hang_seconds - time.monotonic()))
            zombie.signal(signal.SIGCONT)
            shop.send(*events(60, first=120))
            assert zombie.ended() == 1
            wait_until_published(shop, successor, 180)
            see_each_event_counted_once(shop, successor, 180)
            assert successor.end() == 0
        assert "expected epoch 1, found 2; another updater has taken over" in last_line(zombie)
        assert "Traceback" not in zombie.log()
        before, after = versions_of(zombie), versions_of(successor)
        assert max(before) < min(after)
        assert [manifest.version for manifest in shop.announced()] == before + after


def test_those_started_by_mistake_are_turned_away_and_the_first_goes_on(shop: Shop) -> None:
    others = shop.directory / "other checkpoints"
    with shop.process(log="first.log") as first:
        wait_until_published(shop, first, 60)
        with (
            bought_from(shop, first=60) as sent,  # a scenario that nobody publishes to may be claimed
            shop.process(log="same-place.log") as same_place,
            shop.process(log="same-scenario.log", checkpoint_dir=others) as same_scenario,
        ):
            assert same_place.ended() == same_scenario.ended() == 1
        assert "is at work in" in last_line(same_place)
        assert "from an updater with other checkpoints" in last_line(same_scenario)
        wait_until_published(shop, first, 60 + len(sent))
        see_each_event_counted_once(shop, first, 60 + len(sent))
        assert first.end() == 0
        assert [manifest.version for manifest in shop.announced()] == versions_of(first)
    for turned_away in (same_place, same_scenario):
        assert "Traceback" not in turned_away.log()
        assert versions_of(turned_away) == []

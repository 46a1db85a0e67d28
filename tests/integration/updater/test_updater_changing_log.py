"""An updater whose topics are recreated, extended, truncated or missing, on Apache Kafka."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from changing_topics import ChangingTopics
from kafka import KafkaProducer
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from updater_shop import SETTLED, Shop, events, items, wait_until

from peft_adapters.lifecycle.checkpoint import learner_state
from services.metrics.series import new_registry
from services.metrics.updater import UpdaterMetrics
from services.updater.log_metrics import LogMetrics
from services.updater.loop import Updater
from streams.consumer import PartitionConsumer
from streams.errors import HeadwaterStreamError
from streams.events import Click, Purchase
from streams.topics import Topics

pytestmark = pytest.mark.kafka


@pytest.fixture
def log(apache_kafka: Any) -> Iterator[ChangingTopics]:
    found = ChangingTopics(apache_kafka.connection)
    yield found
    found.admin.close()


@pytest.fixture
def shop(log: ChangingTopics, make_topics: Callable[..., Topics], tmp_path: Path) -> Shop:
    shop = Shop(log.connection, make_topics(log.connection, partitions=1), tmp_path)
    shop.send(*items(20), *events(20))
    return shop


class Running:
    """An updater in a thread of this process."""

    def __init__(self, shop: Shop, **settings: Any) -> None:
        self._stop = threading.Event()
        self.metrics = new_registry()
        topics = settings.pop("topics", shop.topics)
        made = shop.settings(**settings).model_copy(update={"topics": topics})
        self.updater = Updater(made, UpdaterMetrics(self.metrics, topics=topics), self._stop)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.updater.run()
        except BaseException as error:
            self.failure = error

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        for part in ("_letters", "_announcer", "_consumer"):
            with suppress(AttributeError, HeadwaterStreamError):
                getattr(self.updater, part).close()

    def learnt(self) -> int:
        assert self.failure is None, self.failure
        return self.updater.learner.events_learned

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.get_sample_value(name, labels)

    def counts(self) -> dict[str, int]:
        """Return the counts of clicks and purchases by outcome."""
        assert self.failure is None, self.failure
        found = dict.fromkeys(("in", "pending", *SETTLED), 0)
        intake = getattr(self.updater, "_intake", None)
        for topic, counts in intake.accounts.totals().items() if intake is not None else ():
            if topic.endswith((".clicks", ".purchases")):
                found = {name: found[name] + counts[name] for name in found}
        return found


@contextmanager
def running(shop: Shop, *, killed: bool = False, **settings: Any) -> Iterator[Running]:
    """Run an updater in a thread; unless it is killed, it stops cleanly at the end."""
    made = Running(shop, **settings)
    if killed:
        made.updater._finish = lambda: None  # type: ignore[method-assign]
    made.start()
    try:
        yield made
    finally:
        made.stop()
    for counts in made.updater._intake.accounts.totals().values():
        assert counts["in"] == counts["pending"] + sum(counts[name] for name in SETTLED)


def send_to(shop: Shop, partition: int, sent: Sequence[Click | Purchase]) -> None:
    producer = KafkaProducer(**shop.connection.client_options())
    for event in sent:
        topic = shop.topics.of_kind(event.KIND)
        producer.send(topic, event.model_dump_json().encode(), event.user_id.encode(), partition=partition)
    producer.flush(20)
    producer.close()


def assert_same_state(one: Updater, other: Updater) -> None:
    tensors, state = learner_state(one.learner)
    other_tensors, other_state = learner_state(other.learner)
    assert state == other_state
    assert [name for name, value in other_tensors.items() if not torch.equal(value, tensors[name])] == []
    assert one._quality.prequential.state_dict() == other._quality.prequential.state_dict()
    assert one._intake.watermarks.state() == other._intake.watermarks.state()
    assert one._intake.guard.state() == other._intake.guard.state()
    assert one._intake.accounts.totals() == other._intake.accounts.totals()
    assert one._learnt.offsets == other._learnt.offsets


def test_partitions_added_while_it_learns_are_learnt_and_repeated_bit_for_bit(shop: Shop, log: ChangingTopics) -> None:
    with running(shop, killed=True, checkpoint_seconds=3_600.0) as first:
        wait_until(lambda: first.learnt() == 20, what="the events that were there")
        for topic in (shop.topics.clicks, shop.topics.purchases):
            log.widen(topic, 4)
        for partition in range(4):
            send_to(shop, partition, events(50, first=100 + 50 * partition))
        wait_until(lambda: first.counts()["in"] == 220, what="200 events over all partitions", seconds=30)
        lag = "headwater_consumer_lag_records"
        wait_until(lambda: first.value(lag, topic=shop.topics.clicks, partition="3") == 0, what="its lag", seconds=10)
    assert not any(name.endswith("clicks/3") for name in shop.checkpointed()["offsets"])  # the journal alone knows it
    with capture_logs() as lines, running(shop) as again:
        wait_until(lambda: again.counts()["in"] == 220, what="all of them again")
    assert not [line for line in lines if line["event"] in ("slices_not_repeated", "slice_not_repeated_exactly")]
    assert_same_state(again.updater, first.updater)


def test_deleted_records_are_missed_and_killed_or_not_the_counts_are_the_same(shop: Shop, log: ChangingTopics) -> None:
    with running(shop) as made:
        wait_until(lambda: made.learnt() == 20, what="the events that were there")
    learnt = made.counts()
    clicks = [event for event in events(90, first=100) if isinstance(event, Click)]
    send_to(shop, 0, clicks)
    end = shop.checkpointed()["offsets"][f"{shop.topics.clicks}/0"]
    log.cut(shop.topics.clicks, end + 40)
    with running(shop, killed=True, checkpoint_seconds=3_600.0) as first:
        wait_until(lambda: first.learnt() == 40, what="those that are left")
    assert first.counts() == learnt | {"in": 80, "learnt": 40, "missed": 40}
    assert f"{shop.topics.clicks}/0" in shop.checkpointed()["offsets"]
    with capture_logs() as lines, running(shop) as again:
        wait_until(lambda: again.learnt() == 40, what="those that are left, again")
        wait_until(
            lambda: again.value("headwater_events_total", topic=shop.topics.clicks, outcome="missed") == 40,
            what="metric",
        )
    assert again.counts() == first.counts()
    assert_same_state(again.updater, first.updater)
    assert "slice_not_repeated_exactly" not in [line["event"] for line in lines]


def test_all_records_deleted_before_they_were_read(shop: Shop, log: ChangingTopics) -> None:
    """Nothing is left to be read; what is missed is counted without waiting for the next record."""
    with running(shop) as made:
        wait_until(lambda: made.learnt() == 20, what="the events that were there")
    send_to(shop, 0, [event for event in events(30, first=100) if isinstance(event, Click)])
    end = shop.checkpointed()["offsets"][f"{shop.topics.clicks}/0"]
    log.cut(shop.topics.clicks, end + 20)
    with running(shop) as made:
        wait_until(lambda: made.counts()["missed"] == 20, what="20 missed")
    assert shop.checkpointed()["offsets"][f"{shop.topics.clicks}/0"] == end + 20
    with running(shop) as made:
        wait_until(lambda: made.counts()["in"] == 40, what="the checkpoint")
        time.sleep(2)
        assert made.counts()["missed"] == 20  # once


def test_topic_recreated_while_it_learns(shop: Shop, log: ChangingTopics) -> None:
    clicks = shop.topics.clicks
    with capture_logs() as lines, running(shop) as made:
        wait_until(lambda: made.learnt() == 20, what="the events that were there")
        log.delete(clicks)
        readable = "headwater_topic_readable"
        wait_until(lambda: made.value(readable, topic=clicks) == 0, what="the problem", seconds=20)
        send_to(shop, 0, [event for event in events(30, first=50) if isinstance(event, Purchase)])
        wait_until(lambda: made.learnt() == 30, what="purchases, meanwhile", seconds=20)
        log.create(clicks)
        send_to(shop, 0, [event for event in events(90, first=300) if isinstance(event, Click)])
        wait_until(lambda: made.learnt() == 90, what="all of the new log", seconds=30)
        wait_until(lambda: made.value(readable, topic=clicks) == 1, what="no problem", seconds=20)
        assert made.value("headwater_log_changes_total", change="recreated") == 1
        assert made.counts()["in"] == 90
    told = [line["event"] for line in lines if line["log_level"] != "debug"]
    assert [told.count(name) for name in ("topic_unreadable", "log_gap", "topic_readable")] == [1, 1, 1]
    assert shop.checkpointed()["offsets"][f"{clicks}/0"] == 60


def test_a_recreated_log_as_long_as_the_old_one_is_checkpointed(shop: Shop, log: ChangingTopics) -> None:
    """Its offsets equal those of the checkpoint; only the identity of the log differs."""
    clicks = shop.topics.clicks
    with running(shop) as made:
        wait_until(lambda: made.learnt() == 20, what="the events that were there")
    before = shop.checkpointed()
    log.delete(clicks)
    log.create(clicks)
    log.send(clicks, ["{not an event"] * before["offsets"][f"{clicks}/0"])
    with running(shop, killed=True, batch_events=1_000):  # one slice
        wait_until(lambda: shop.checkpointed()["topic_ids"] != before["topic_ids"], what="a checkpoint", seconds=20)
    assert shop.checkpointed()["offsets"] == before["offsets"]


def test_topic_recreated_while_it_was_stopped(shop: Shop, log: ChangingTopics) -> None:
    clicks = shop.topics.clicks
    with running(shop) as made:
        wait_until(lambda: made.learnt() == 20, what="the events that were there")
    log.delete(clicks)
    log.create(clicks)
    sent = [event for event in events(300, first=6) if isinstance(event, Click)]
    send_to(shop, 0, sent)  # the first ones are repeats of what was learnt
    with running(shop) as made:
        wait_until(lambda: made.counts()["in"] == 20 + len(sent), what="the whole new log")
        assert made.counts()["duplicate"] == sum(int(event.event_id[1:]) < 20 for event in sent)


def test_slices_of_a_log_that_is_gone_are_not_repeated(shop: Shop, log: ChangingTopics) -> None:
    clicks = shop.topics.clicks
    with running(shop, killed=True, checkpoint_seconds=3_600.0) as made:
        wait_until(lambda: made.learnt() == 20, what="the events that were there")
    log.delete(clicks)
    log.create(clicks)
    send_to(shop, 0, [event for event in events(90, first=300) if isinstance(event, Click)])
    with capture_logs() as lines, running(shop, killed=True, checkpoint_seconds=3_600.0) as made:
        wait_until(lambda: made.counts()["in"] >= 60, what="the new log")
        time.sleep(3)  # all that is there is learnt
    (told,) = [line for line in lines if line["event"] == "slices_not_repeated"]
    assert "deleted and created again" in told["problem"]
    with capture_logs() as lines, running(shop) as again:  # what followed is repeated
        wait_until(lambda: again.counts() == made.counts(), what="the same")
    assert "slices_not_repeated" not in [line["event"] for line in lines]
    assert_same_state(again.updater, made.updater)


def test_one_missing_topic_of_several_holds_up_nothing(shop: Shop, log: ChangingTopics) -> None:
    missing = f"{log.prefix}.segment"
    topics = shop.topics.model_copy(update={"dialects": {missing: "segment"}})
    with running(shop, topics=topics) as made:
        wait_until(lambda: made.learnt() == 20, what="the others")
        wait_until(lambda: made.value("headwater_topic_readable", topic=missing) == 0, what="the problem", seconds=10)
        log.create(missing)
        log.send(missing, ["{}"] * 3)
        wait_until(lambda: made.updater._intake.accounts.totals()[missing]["in"] == 3, what="its records", seconds=30)
        wait_until(lambda: made.value("headwater_topic_readable", topic=missing) == 1, what="no problem", seconds=10)


def test_lag_behind_a_hanging_transaction(shop: Shop) -> None:
    producer = KafkaProducer(**shop.connection.client_options(), transactional_id=shop.topics.clicks)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(shop.topics.clicks, b"{}", partition=0)
    producer.flush(20)
    send_to(shop, 0, [event for event in events(30, first=50) if isinstance(event, Click)])
    with running(shop) as made:
        wait_until(lambda: made.learnt() == 20, what="those before it")
        lag = "headwater_consumer_lag_records"
        wait_until(lambda: made.value(lag, topic=shop.topics.clicks, partition="0") == 21, what="lag", seconds=20)
        send_to(shop, 0, [event for event in events(30, first=50) if isinstance(event, Purchase)])
        wait_until(lambda: made.learnt() == 30, what="other topics", seconds=20)
        producer.abort_transaction()
        wait_until(lambda: made.learnt() == 50, what="those behind it", seconds=20)
    producer.close()


def test_lag_of_partitions_that_are_gone_is_no_longer_exported(shop: Shop, log: ChangingTopics) -> None:
    topic, registry = log.topic("shrinking", partitions=3), CollectorRegistry()

    def lagging() -> set[str]:
        labels = [sample.labels for family in registry.collect() for sample in family.samples]
        return {own["partition"] for own in labels if own.get("topic") == topic and "partition" in own}

    with closing(PartitionConsumer(log.connection, [topic])) as consumer:
        metrics = LogMetrics(consumer, UpdaterMetrics(registry).log, [topic])
        metrics.export({})
        assert lagging() == {"0", "1", "2"}
        log.delete(topic)
        log.create(topic, partitions=1)
        deadline = time.monotonic() + 60
        while lagging() != {"0"}:
            assert time.monotonic() < deadline, lagging()
            consumer.poll(0.5)
            metrics.export({})


def test_a_missing_adapters_topic_does_not_hold_learning_up(shop: Shop, log: ChangingTopics) -> None:
    log.delete(shop.topics.adapters)
    with capture_logs() as lines, running(shop) as made:

        def failed() -> list[str]:
            return [line["problem"] for line in lines if line["event"] == "publication_failed"]

        wait_until(lambda: bool(failed()), what="a publication that fails", seconds=20)
        assert made.learnt() >= 10
        shop.send(*events(20, first=200))
        wait_until(lambda: made.counts()["in"] == 40, what="events learnt meanwhile", seconds=15)
        assert f"topic {shop.topics.adapters!r} takes no records" in failed()[0]
        assert "headwater topics create" in failed()[0]
        took = made.value("headwater_publish_seconds_sum") or 0.0
        assert took / (made.value("headwater_publish_seconds_count") or 1.0) < 10.0
        log.create(shop.topics.adapters)
        wait_until(lambda: bool(shop.announced()), what="the announcement, once the topic exists", seconds=30)

"""Failure of one step of the updater at a time: the steps that must not follow, and the recovery."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from kafka import KafkaProducer
from structlog.testing import capture_logs
from updater_shop import FINGERPRINT, Shop, events, items, newest_checkpoint

from peft_adapters.errors import CheckpointError
from peft_adapters.lifecycle.checkpoint import learner_state
from peft_adapters.lifecycle.gate_rules import judge_candidate
from peft_adapters.lifecycle.publishing import Publisher
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.stores import FsspecStore
from peft_adapters.settings import GateSettings
from services.metrics.series import new_registry
from services.metrics.updater import UpdaterMetrics
from services.updater.loop import Updater
from streams.connection import KafkaConnection
from streams.dead_letters import DeadLetterWriter
from streams.embedded_broker import EmbeddedBroker
from streams.errors import DeliveryError, HeadwaterStreamError
from streams.offsets import encode_offsets
from streams.producer import EventProducer
from streams.topics import Topics

LOOP = "services.updater.loop"
STARTUP = "services.updater.startup"
EVENTS = 40  # four batches
NO_SPACE = OSError(28, "No space left on device")


class UnconfirmedLetters(DeadLetterWriter):
    """A writer whose dead letters are never confirmed."""

    def flush(self, timeout_seconds: float | None = 30.0) -> None:
        raise DeliveryError("1 records not confirmed")


class FullStore(FsspecStore):
    """A store with space for `room` writes."""

    room = 0

    def write(self, path: str, data: bytes) -> None:
        self._take()
        super().write(path, data)

    def upload(self, path: str, source: Path) -> None:
        self._take()
        super().upload(path, source)

    def _take(self) -> None:
        if self.room == 0:
            raise NO_SPACE
        self.room -= 1


class UnconfirmedProducer(EventProducer):
    """A producer whose first `failures` announcements are not confirmed."""

    failures = 1
    sent = 0

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        self.sent += 1
        if UnconfirmedProducer.failures == 0:
            super().send_raw(topic, key, value)

    def flush(self, timeout_seconds: float | None = None) -> None:
        if self.sent and UnconfirmedProducer.failures:
            self.sent = 0
            UnconfirmedProducer.failures -= 1
            raise DeliveryError("1 records not confirmed")
        super().flush(timeout_seconds)


@pytest.fixture
def shop(embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path) -> Shop:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    shop = Shop(connection, make_topics(connection, partitions=1), tmp_path)
    shop.send(*items(20), *events(EVENTS))
    return shop


@contextmanager
def updater(shop: Shop, *, gate: GateSettings | None = None, **settings: Any) -> Iterator[Updater]:
    """Yield an updater in this process that stops once it has learnt all events."""
    registry = new_registry()
    made = Updater(
        shop.settings(**{"max_events": EVENTS} | settings).model_copy(update={"gate": gate or GateSettings()}),
        UpdaterMetrics(registry, topics=shop.topics),
        threading.Event(),
    )
    try:
        yield made
    finally:  # a process that fails lets go of its connections by ending
        for part in ("_letters", "_announcer", "_consumer"):
            with suppress(AttributeError, HeadwaterStreamError):
                getattr(made, part).close()


def published(made: Updater, outcome: str = "published") -> float:
    value: float = made._metrics.gate._adapters.labels(outcome)._value.get()
    return value


def events_in(made: Updater) -> int:
    return sum(counts["in"] for counts in made._intake.accounts.totals().values())


def test_all_steps_in_order(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(owner: Any, name: str) -> None:
        do = getattr(owner, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            return do(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    with updater(shop) as made:
        noted(made.learner, "learn")
        noted(Publisher, "candidate")
        noted(Publisher, "publish")
        for name in ("_checkpoint", "_announce"):
            noted(made, name)
        monkeypatch.setattr("streams.consumer.PartitionConsumer.commit", lambda *_: done.append("commit"))
        made.run()
    publication = ["_checkpoint", "candidate", "publish", "_announce", "commit"]
    at_the_start = done[: done.index("learn")]
    assert at_the_start in ([], publication)  # nothing is there yet, or events came first
    assert done[len(at_the_start) :] == ["learn", *publication] * (EVENTS // 10)


def test_of_a_large_batch_the_first_events_are_judged_and_all_are_learnt(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{LOOP}.JUDGED_EVENTS", 3)
    with updater(shop) as made:
        made.run()
        assert made.learner.events_learned == EVENTS
        assert len(made._quality.prequential.state_dict()["judged"]) == 4 * 3


@pytest.mark.parametrize(("late_seconds", "with_lora"), [(1e-6, [False, False, False, True]), (1e6, [True] * 4)])
def test_lora_waits_while_learning_is_late_but_not_for_ever(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, late_seconds: float, with_lora: list[bool]
) -> None:
    with updater(shop, late_seconds=late_seconds) as made:
        learn, taught = made.learner.learn, []

        def noting(batch: Any, *, lora: bool) -> Any:
            taught.append(lora)
            return learn(batch, lora=lora)

        monkeypatch.setattr(made.learner, "learn", noting)
        made.run()
        assert made._metrics.learning._lagging_slices._value.get() == with_lora.count(False)
    assert sorted(taught) == with_lora  # a slice of items alone may come first
    assert taught[:2] == with_lora[:2]


def test_what_is_judged_has_not_been_learnt(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with updater(shop) as made:
        learner, judged = made.learner, []
        judge = learner.judge

        def noting(*batch_and_live: Any, **rows: Any) -> Any:
            judged.append((learner.batches_learned, int(learner.ranker.counters.events.sum())))
            return judge(*batch_and_live, **rows)

        monkeypatch.setattr(learner, "judge", noting)
        made.run()
    assert judged[::2] == judged[1::2] == [(0, 0), (1, 10), (2, 20), (3, 30)]  # by the learner, and by the live adapter


def test_stopped_before_it_read_anything_it_publishes_a_version_that_has_learnt_nothing(shop: Shop) -> None:
    with updater(shop) as made:
        made._stop.set()
        made.run()
    assert [(manifest.version, manifest.events_learned) for manifest in shop.announced()] == [(1, 0)]


class TestStep2Checkpoint:
    def assert_nothing_left_the_process(self, shop: Shop) -> None:
        assert shop.registry.versions("home") == []
        assert shop.announced() == []
        assert shop.committed() == {}

    def test_a_failing_checkpoint_publishes_nothing(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> int:
            raise CheckpointError("checkpoint 1 cannot be written: No space left on device")

        monkeypatch.setattr("services.updater.checkpoint_store.save_checkpoint", full)
        with updater(shop) as made, pytest.raises(CheckpointError, match="No space left"):
            made.run()
        self.assert_nothing_left_the_process(shop)

    def test_letters_that_are_not_safe_stop_the_checkpoint(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(f"{LOOP}.DeadLetterWriter", UnconfirmedLetters)
        with capture_logs() as lines, updater(shop) as made:
            made.run()
        assert newest_checkpoint(shop.directory / "checkpoints" / "home") is None
        assert {line["event"] for line in lines if line["log_level"] == "warning"} == {"checkpoint_put_off"}
        self.assert_nothing_left_the_process(shop)


class TestStep3Gate:
    def test_a_refused_candidate_is_never_announced_and_learning_goes_on(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with capture_logs() as lines, updater(shop, gate=GateSettings(max_head_weight=1e-6)) as made:
            made.run()
        assert shop.registry.versions("home") == []
        assert shop.announced() == []
        assert shop.checkpointed()["events_learned"] == EVENTS
        refused = [line for line in lines if line["event"] == "adapter_refused"]
        assert len(refused) == published(made, "refused") >= 4
        assert published(made) == 0
        assert "heads.weights reaches" in refused[0]["reasons"][0]

    def test_its_changes_go_with_the_next_that_passes(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        judged: list[int] = []

        def strict_for_a_while(*arguments: Any) -> dict[str, Any]:
            judged.append(1)
            if 2 <= len(judged) <= 3:
                return {"decision": "refused", "reasons": ["of the test"], "rules": ["loss"]}
            return judge_candidate(*arguments)

        monkeypatch.setattr("peft_adapters.lifecycle.gate.judge_candidate", strict_for_a_while)
        with updater(shop) as made:
            made.run()
        versions = [manifest.version for manifest in shop.announced()]
        assert versions == shop.registry.versions("home") == list(range(1, len(judged) - 1))
        assert shop.latest().events_learned == EVENTS
        assert [m.kind for m in shop.announced()] == ["full"] + ["delta"] * (len(versions) - 1)


class TestStep4Publish:
    def test_a_failing_registry_announces_and_commits_nothing_and_learning_goes_on(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(f"{STARTUP}.AdapterRegistry", lambda url: AdapterRegistry(url, store=FullStore(url)))
        with capture_logs() as lines, updater(shop) as made:
            made.run()
        assert shop.announced() == []
        assert shop.committed() == {}
        assert shop.checkpointed()["events_learned"] == EVENTS
        failed = [line for line in lines if line["event"] == "publication_failed"]
        assert len(failed) >= 2
        assert "No space left" in failed[0]["problem"]
        assert published(made) == 0

    def test_once_the_registry_is_well_all_of_it_is_published(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = FullStore(str(shop.directory / "registry"))
        store.room = 1 + 8 + 7  # the claim; version 1; then version 2 up to its LATEST
        monkeypatch.setattr(f"{STARTUP}.AdapterRegistry", lambda url: AdapterRegistry(url, store=store))
        with updater(shop, max_events=20) as made:
            made.run()
        assert [manifest.version for manifest in shop.announced()] == [1]
        store.room = 1_000
        with updater(shop) as made:
            made.run()
        announced = shop.announced()
        assert [m.version for m in announced][:2] == [1, 3]
        assert (announced[1].kind, announced[1].events_learned) == ("full", 30)
        assert shop.latest() == announced[-1]
        assert announced[-1].events_learned == EVENTS

    def test_a_failing_announcement_commits_nothing_and_is_made_up_for_by_the_next_version(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        UnconfirmedProducer.failures = 1
        monkeypatch.setattr("services.updater.announcer.EventProducer", UnconfirmedProducer)
        committed: list[dict[tuple[str, int], int]] = []
        with capture_logs() as lines, updater(shop) as made:
            monkeypatch.setattr(
                "streams.consumer.PartitionConsumer.commit", lambda _, offsets: committed.append(dict(offsets))
            )
            made.run()
        assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["publication_failed"]
        versions = [manifest.version for manifest in shop.announced()]
        assert versions == shop.registry.versions("home")[-len(versions) :]
        assert len(committed) == len(versions)
        assert published(made) == len(versions)

    def test_a_failing_announcement_is_tried_again_without_another_version(
        self,
        embedded_broker: EmbeddedBroker,
        make_topics: Callable[..., Topics],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
        quiet = Shop(connection, make_topics(connection, partitions=1), tmp_path)
        UnconfirmedProducer.failures = 2
        monkeypatch.setattr("services.updater.announcer.EventProducer", UnconfirmedProducer)
        with capture_logs() as lines, updater(quiet) as made:
            monkeypatch.setattr(made, "_export", lambda: None if made._is_behind() else made._stop.set())
            made.run()
        assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["publication_failed"] * 2
        assert [manifest.version for manifest in quiet.announced()] == quiet.registry.versions("home") == [1]

    def test_an_announcement_lost_at_the_end_is_made_up_for_at_the_next_start(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        UnconfirmedProducer.failures = 1_000
        with monkeypatch.context() as patch:
            patch.setattr("services.updater.announcer.EventProducer", UnconfirmedProducer)
            with updater(shop) as made:
                made.run()
        assert shop.announced() == []
        assert shop.committed() == {}
        assert shop.latest().events_learned == EVENTS
        with updater(shop) as made:
            made.run()
        (manifest,) = shop.announced()
        assert (manifest.kind, manifest.events_learned) == ("full", EVENTS)
        assert manifest == shop.latest()


def test_step_5_commits_where_the_checkpoint_stands(shop: Shop) -> None:
    with updater(shop) as made:
        made.run()
    offsets = encode_offsets(shop.committed())
    assert offsets == shop.checkpointed()["offsets"] == shop.latest().offsets
    assert offsets[f"{shop.topics.items}/0"] == 20
    assert sum(offsets.values()) == 20 + EVENTS


def test_batches_closed_by_bytes_are_published_too(shop: Shop) -> None:
    """Such a batch leaves something waiting, and what waits is in no checkpoint."""
    with updater(shop, batch_events=1_000, batch_bytes=500, batch_seconds=60.0, max_events=EVENTS - 5) as made:
        made.run()
    assert len(shop.announced()) > 5


def test_publications_take_no_more_than_their_share_of_the_time(shop: Shop) -> None:
    with updater(shop, publish_share=0.0001) as made:
        made.run()
    assert [manifest.events_learned for manifest in shop.announced()] == [10, EVENTS]  # the first, and what is left


def assert_same_learner(made: Updater, expected: Updater) -> None:
    tensors, state = learner_state(made.learner)
    expected_tensors, expected_state = learner_state(expected.learner)
    assert state == expected_state
    assert [name for name, value in expected_tensors.items() if not torch.equal(value, tensors[name])] == []
    assert made._quality.prequential.state_dict() == expected._quality.prequential.state_dict()
    assert made._quality.drift.state_dict() == expected._quality.drift.state_dict()


def test_what_was_published_since_the_checkpoint_is_learnt_again_to_the_same_bits(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with updater(shop) as unkilled:
        unkilled.run()
    again = Shop(shop.connection, shop.topics, tmp_path / "again")
    with updater(again, checkpoint_seconds=3_600.0, max_events=30) as killed:
        monkeypatch.setattr(killed, "_finish", lambda: None)
        killed.run()
    assert again.checkpointed()["events_learned"] < 30  # once, at the beginning
    before = again.registry.versions("home")
    assert again.latest().events_learned > again.checkpointed()["events_learned"]
    with updater(again) as made:
        made.run()
    assert_same_learner(made, unkilled)
    assert again.registry.versions("home")[: len(before) + 1] == [*before, before[-1] + 1]
    assert again.latest().events_learned == EVENTS


def test_publications_do_not_wait_for_checkpoints(shop: Shop) -> None:
    with updater(shop, checkpoint_seconds=3_600.0) as made:
        made.run()
    assert len(shop.announced()) >= EVENTS // 10
    assert newest_checkpoint(shop.directory / "checkpoints" / "home") is not None
    assert made._store.checkpoint == 2  # the first, and at the end
    assert shop.checkpointed()["events_learned"] == EVENTS


def test_stopped_and_started_twice_it_ends_bit_for_bit_as_one_that_was_not(shop: Shop, tmp_path: Path) -> None:
    with updater(shop) as unkilled:
        unkilled.run()
    again = Shop(shop.connection, shop.topics, tmp_path / "again")
    for learnt in (10, 20, EVENTS):
        with updater(again, max_events=learnt) as made:
            made.run()
    assert again.checkpointed()["intake"] == shop.checkpointed()["intake"]
    assert_same_learner(made, unkilled)


def test_what_is_read_and_not_learnt_is_kept_too_and_makes_no_version(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a reader that has read all would show a lag, and letters would be written again at the next start."""
    versions: list[list[int]] = []
    with updater(shop, max_events=None) as made:
        export = made._export

        def send_more_then_stop() -> None:
            export()
            if not versions and made.learner.events_learned == EVENTS and not made._is_behind():
                versions.append(shop.registry.versions("home"))
                shop.send(*events(10))
                shop.send_raw(shop.topics.clicks, b"u", b"{")
            elif events_in(made) == 20 + EVENTS + 11 + FINGERPRINT and not made._is_behind():
                made._stop.set()

        monkeypatch.setattr(made, "_export", send_more_then_stop)
        made.run()
    assert versions == [shop.registry.versions("home")]
    kept = shop.checkpointed()
    assert sum(kept["offsets"].values()) == sum(shop.committed().values()) == 20 + EVENTS + 11 + FINGERPRINT
    assert [letter.reason for letter in shop.letters()] == ["malformed_json"]
    with updater(shop) as made:
        made.run()
    assert len(shop.letters()) == 1


def test_a_catalogue_written_in_transactions_is_read_to_its_end(
    embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker that ends a transaction takes an offset and is no record."""
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    shop = Shop(connection, make_topics(connection, partitions=1), tmp_path)
    producer = KafkaProducer(**connection.client_options(), transactional_id=f"t-{tmp_path.name}")
    producer.init_transactions()
    producer.begin_transaction()
    for item in items(5):
        producer.send(shop.topics.items, key=item.item_id.encode(), value=item.model_dump_json().encode())
    producer.commit_transaction()
    producer.close()
    with updater(shop) as made:
        impatience = threading.Timer(20, made._stop.set)
        impatience.start()
        monkeypatch.setattr(made, "_is_done", lambda: True)
        made.run()
        impatience.cancel()
        assert not made._stop.is_set(), "it waited for a record at the offset of the marker"
    assert len(made.learner.catalogue) == 5


def test_a_catalogue_larger_than_is_held_at_once_is_read_to_its_end(
    embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path
) -> None:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    shop = Shop(connection, make_topics(connection, partitions=1), tmp_path)
    shop.send(*items(1_700), *events(10))
    with capture_logs() as lines, updater(shop, max_events=10, batch_bytes=20_000) as made:
        made.run()
    (started,) = [line for line in lines if line["event"] == "updater_started"]
    assert started["items"] == len(made.learner.catalogue) == 1_700  # before any event, in many slices

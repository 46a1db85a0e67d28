"""Personal data in the updater: no raw id anywhere, and quarantines on the control topic."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs
from updater_shop import NO_BURSTS, START_MS, Shop, events, items, newest_checkpoint

from peft_adapters.errors import CheckpointError
from services.metrics.series import new_registry
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings
from services.updater.loop import Updater
from streams.connection import KafkaConnection
from streams.control import GuardReport, Quarantined, Released, Secret, forget_record, parse_control, release_key
from streams.embedded_broker import EmbeddedBroker
from streams.errors import DeliveryError, HeadwaterStreamError, SecretMismatchError
from streams.events import Click, Impression, ShownItem
from streams.privacy import PrivacySettings, Pseudonymiser
from streams.producer import EventProducer
from streams.topics import Topics

SECRET = "only for tests"  # noqa: S105
PSEUDONYM = Pseudonymiser(SECRET.encode())
PERSON, SESSION = "raw-user-ann", "raw-session-of-ann"


class UnconfirmedOnce(EventProducer):
    """Does not get its first words on a topic through."""

    topic = ""
    failures = 1

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        if topic == UnconfirmedOnce.topic and UnconfirmedOnce.failures:
            UnconfirmedOnce.failures -= 1
            raise DeliveryError("1 records not confirmed")
        super().send_raw(topic, key, value)


@pytest.fixture
def shop(embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path) -> Shop:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    shop = Shop(connection, make_topics(connection, partitions=1), tmp_path)
    shop.send(*items(20))
    return shop


def settings_of(shop: Shop, *, secret: str = SECRET, payload: str = "keep", **updater: Any) -> Settings:
    privacy = PrivacySettings.model_validate({"secret": secret, "dead_letter_payload": payload})
    guard = NO_BURSTS.model_copy(update={"user_quarantine_events": 3})
    return shop.settings(**updater).model_copy(update={"privacy": privacy, "guard": guard})


@contextmanager
def updater(settings: Settings, registry: CollectorRegistry | None = None) -> Iterator[Updater]:
    """One in this process."""
    metrics = UpdaterMetrics(registry or new_registry(), topics=settings.topics)
    made = Updater(settings, metrics, threading.Event())
    try:
        yield made
    finally:
        for part in ("_letters", "_announcer", "_consumer"):
            with suppress(AttributeError, HeadwaterStreamError):
                getattr(made, part).close()


def of_person(number: int, item_id: str = "i1") -> Click:
    return Click(
        event_id=f"p{number}",
        ts=START_MS + number,
        user_id=PERSON,
        session_id=SESSION,
        item_id=item_id,
        scenario="home",
    )


def said(shop: Shop) -> list[Quarantined | Released]:
    heard = [parse_control(record) for record in shop.records(shop.topics.control)]
    return [command for command in heard if isinstance(command, Quarantined | Released)]


@pytest.mark.parametrize("payload", ["redact", "drop"])
def test_no_raw_id_is_kept_logged_measured_or_published(shop: Shop, payload: str) -> None:
    shown = Impression(
        event_id="shown",
        ts=START_MS,
        user_id=PERSON,
        session_id=SESSION,
        request_id="r1",
        scenario="home",
        items=(ShownItem(item_id="i2", position=0),),
    )
    waits = of_person(100, "an-item-that-has-not-come")
    shop.send(shown, waits, *(of_person(n) for n in range(20)))
    shop.send_raw(shop.topics.clicks, PERSON.encode(), f'{{"user_id": "{PERSON}", "item_id": ""}}'.encode())
    shop.send_raw(shop.topics.clicks, PERSON.encode(), f"{PERSON}, and no JSON".encode())
    shop.send(*events(30))
    registry = new_registry()
    settings = settings_of(shop, payload=payload, max_events=30)
    with capture_logs() as lines, updater(settings, registry) as made:
        made.run()
    assert PSEUDONYM(PERSON) in str(shop.checkpointed()["intake"]["guard"]), "it was there"
    published = [shop.records(topic) for topic in (shop.topics.adapters, shop.topics.control, shop.topics.dead_letters)]
    assert all(published), "something was said on each"
    files = {path: path.read_bytes() for path in shop.directory.rglob("*") if path.is_file()}
    assert {"join.sqlite", "state.json"} <= {path.name for path in files}
    texts = {str(path): text for path, text in files.items()}
    texts |= {"metrics": generate_latest(registry), "logs": str(lines).encode()}
    texts |= {f"topics {n}": (r.key or b"") + (r.value or b"") for n, rs in enumerate(published) for r in rs}
    letters = {
        f"letter {n}": str((one.original_key(), one.original())).encode() for n, one in enumerate(shop.letters())
    }
    for where, text in (texts | letters).items():
        assert PERSON.encode() not in text, where
        assert SESSION.encode() not in text, where


def test_quarantine_is_said_once_and_lifted_by_a_word_on_the_topic(shop: Shop) -> None:
    key = f"user/{PSEUDONYM(PERSON)}"
    shop.send(*(of_person(n) for n in range(20)), *events(30))
    registry = new_registry()
    with updater(settings_of(shop, max_events=20), registry) as made:
        made.run()
        assert key in made._intake.guard.quarantined
    (told,) = said(shop)
    assert isinstance(told, Quarantined)
    assert (told.key, told.why.reason) == (key, "user_item")
    assert registry.get_sample_value("headwater_quarantined_total", {"kind": "user"}) == 1
    assert registry.get_sample_value("headwater_quarantine_keys", {"kind": "user"}) == 1
    assert registry.get_sample_value("headwater_guard_downweighted_total", {"rule": "user_item"}) == 3
    shop.send_raw(shop.topics.control, release_key(key), None)
    shop.send(*events(30, first=30))
    with updater(settings_of(shop, max_events=60)) as made:
        made.run()
        assert made._intake.guard.in_quarantine == {"user": 0, "item": 0}
    assert said(shop) == [told, Released(key)]


def test_what_could_not_be_said_puts_the_checkpoint_off_and_is_said_with_the_next(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.updater.announcer.EventProducer", UnconfirmedOnce)
    monkeypatch.setattr(UnconfirmedOnce, "topic", shop.topics.control)
    monkeypatch.setattr(UnconfirmedOnce, "failures", 1)
    key = f"user/{PSEUDONYM(PERSON)}"
    shop.send(*(of_person(n) for n in range(20)), *events(60))
    quarantined_in_checkpoint: list[bool] = []
    with capture_logs() as lines, updater(settings_of(shop, max_events=60)) as made:
        publish = made._announcer._publish

        def publishing(topic: str, records: Any) -> None:
            if topic == shop.topics.control:
                kept = newest_checkpoint(shop.directory / "checkpoints" / "home")
                quarantined_in_checkpoint.append(kept is not None and key in (kept / "state.json").read_text())
            publish(topic, records)

        monkeypatch.setattr(made._announcer, "_publish", publishing)
        made.run()
    assert quarantined_in_checkpoint == [False, False], "it is said, or it is not passed by"
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["checkpoint_put_off"]
    assert [type(command) for command in said(shop)] == [Quarantined]
    assert key in shop.checkpointed()["intake"]["guard"]["quarantined"]


def test_who_is_forgotten_leaves_the_checkpoint(shop: Shop) -> None:
    shop.send(*(of_person(n, f"i{n}") for n in range(5)), of_person(9, "an-item-that-has-not-come"), *events(15))
    with updater(settings_of(shop, max_events=20)) as made:
        made.run()
        assert PSEUDONYM(PERSON) in made.learner.shoppers
    shop.send_raw(shop.topics.control, *forget_record(PSEUDONYM(PERSON), ts_ms=1))
    shop.send(*events(20, first=15))
    with updater(settings_of(shop, max_events=40)) as made:
        made.run()
    assert shop.checkpointed()["events_learned"] == 40
    kept = newest_checkpoint(shop.directory / "checkpoints" / "home")
    assert kept is not None
    with closing(sqlite3.connect(f"file:{kept.parent / 'join.sqlite'}?mode=ro", uri=True)) as store:
        waiting = "".join(store.iterdump())
    assert PSEUDONYM(PERSON).encode() not in (kept / "state.json").read_bytes()
    assert PSEUDONYM(PERSON) not in waiting, "for its item"
    assert PSEUDONYM("u1").encode() in (kept / "state.json").read_bytes()


def test_another_secret_than_that_of_the_checkpoint_is_noticed(shop: Shop) -> None:
    shop.send(*events(20))
    with updater(settings_of(shop, max_events=20)) as made:
        made.run()
    with (
        updater(settings_of(shop, secret="of another shop", max_events=40)) as made,  # noqa: S106
        pytest.raises(CheckpointError, match=r"`privacy\.secret` must be the one"),
    ):
        made.run()


def test_an_updater_with_another_secret_than_the_deployments_learns_nothing(shop: Shop) -> None:
    shop.send(*events(10))
    with updater(settings_of(shop, max_events=10)) as made:
        made.run()
    found = [parse_control(record) for record in shop.records(shop.topics.control)]
    assert [one.fingerprint for one in found if isinstance(one, Secret)] == [PSEUDONYM.fingerprint()]
    assert shop.latest().secret_fingerprint == PSEUDONYM.fingerprint()
    version = shop.latest().version
    other = settings_of(shop, secret="another secret", checkpoint_dir=shop.directory / "elsewhere")  # noqa: S106
    with updater(other) as made, pytest.raises(SecretMismatchError, match="must be the same in all processes"):
        made.run()
    assert shop.latest().version == version
    assert len(shop.records(shop.topics.control)) == len(found), "it has published nothing"


def test_what_is_capped_is_reported_with_the_checkpoint(shop: Shop) -> None:
    shop.send(*(of_person(n) for n in range(20)), *events(30))
    with updater(settings_of(shop, max_events=20)) as made:
        made.run()
    found = [parse_control(record) for record in shop.records(shop.topics.control)]
    report = [one for one in found if isinstance(one, GuardReport)][-1]
    assert report.scenario == "home"
    (cap,) = report.caps
    assert (cap.key, cap.rule) == (f"user/{PSEUDONYM(PERSON)}", "quarantine")
    assert cap.left_out > 3

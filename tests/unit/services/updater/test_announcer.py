"""The announcer: it connects at first use, reconnects after a failure, and publishes undelivered records later."""

from typing import ClassVar

import pytest

from services.updater.announcer import Announcer
from streams.connection import KafkaConnection
from streams.control import Capped, GuardReport, Quarantine, Quarantined
from streams.errors import DeliveryError
from streams.topics import Topics

TOPICS = Topics()
QUARANTINE = Quarantine(event_id="e1", ts=5, reason="item_burst", count=51, limit=50)


class FailingProducer:
    """A producer that confirms nothing as long as `failures` are left."""

    failures = 0
    opened = 0
    delivered: ClassVar[list[tuple[str, bytes | None]]] = []

    def __init__(self, *_: object, **__: object) -> None:
        FailingProducer.opened += 1
        self._sent: list[tuple[str, bytes | None]] = []
        self.is_closed = False

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        assert not self.is_closed
        self._sent.append((topic, key))

    def flush(self, timeout_seconds: float | None = None) -> None:
        if FailingProducer.failures:
            FailingProducer.failures -= 1
            raise DeliveryError("1 records not confirmed")
        FailingProducer.delivered += self._sent
        self._sent.clear()

    def close(self, timeout_seconds: float | None = None) -> None:
        self.is_closed = True


@pytest.fixture
def announcer(monkeypatch: pytest.MonkeyPatch) -> Announcer:
    monkeypatch.setattr("services.updater.announcer.EventProducer", FailingProducer)
    monkeypatch.setattr(FailingProducer, "failures", 0)
    monkeypatch.setattr(FailingProducer, "opened", 0)
    monkeypatch.setattr(FailingProducer, "delivered", [])
    return Announcer(KafkaConnection(), TOPICS)


def quarantined(name: str) -> Quarantined:
    return Quarantined(f"user/{name}", QUARANTINE)


def report(*users: str) -> GuardReport:
    caps = tuple(Capped(key=user, rule="user_item", hour_ms=0, left_out=1, weighed_down=0) for user in users)
    return GuardReport(event_id="g", ts=1, scenario="home", caps=caps)


def test_nothing_to_publish_opens_no_connection(announcer: Announcer) -> None:
    announcer.publish_quarantined([])
    announcer.report_caps(report())
    announcer.close()
    assert FailingProducer.opened == 0


def test_a_failed_delivery_is_repeated_over_a_new_producer(announcer: Announcer) -> None:
    FailingProducer.failures = 1
    with pytest.raises(DeliveryError):
        announcer.publish_quarantined([quarantined("a")])
    assert FailingProducer.delivered == []
    announcer.publish_quarantined([quarantined("b")])
    assert FailingProducer.opened == 2
    assert FailingProducer.delivered == [(TOPICS.control, b"quarantine/user/a"), (TOPICS.control, b"quarantine/user/b")]
    announcer.publish_quarantined([])
    assert len(FailingProducer.delivered) == 2


def test_caps_are_sent_only_if_they_have_changed(announcer: Announcer) -> None:
    for users in (("a",), ("a",), ("a", "b"), ()):
        announcer.report_caps(report(*users))
    announcer._open().flush()
    assert len(FailingProducer.delivered) == 3

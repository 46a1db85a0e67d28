"""Shoppers' states from a server that is gone, slow or wrong: the fallback answers, and the problem is reported."""

import socketserver
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from prometheus_client import CollectorRegistry
from redis_server import RedisServer
from structlog.testing import capture_logs

from services.metrics.shopper_state import ShopperStateMetrics
from services.scorer.shopper_state_redis import SILENT_SECONDS, RedisState
from services.settings.state import StateSettings
from services.state.entries import pack_entry
from services.state.errors import StateError
from services.state.store import Changes, StateStore
from streams.events import Click

ROWS = {"a": 0, "b": 1, "c": 2}


class Reading:
    """A reader, and a writer of single clicks."""

    def __init__(self, settings: StateSettings, *, fallback_shoppers: int = 2) -> None:
        self.settings = settings
        self.store = StateStore(settings, fingerprint="one", timeout_seconds=settings.timeout_seconds)
        self.registry = CollectorRegistry()
        self.state = RedisState(
            self.store, ROWS, fallback_shoppers=fallback_shoppers, metrics=ShopperStateMetrics(self.registry)
        )
        self._number = 0

    def clicked(self, user_id: str, *item_ids: str) -> None:
        changes = Changes()
        for item_id in item_ids:
            self._number += 1
            event = Click(event_id=f"c{self._number}", ts=self._number, user_id=user_id, item_id=item_id)
            changes.add(user_id, pack_entry(event, publish_ts_ms=1, pseudonymise=str), is_purchase=False)
        before = self.store.offsets()
        self.store.write(changes, before=before, after={("clicks", 0): self._number}, heartbeat=str(self._number))

    def seen(self, user_id: str) -> list[int]:
        return self.state.context(user_id, None, 10)[0]

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def settings_of(server: RedisServer, **fields: object) -> StateSettings:
    return server.settings(f"t{uuid.uuid4().hex[:8]}", **({"timeout_seconds": 5.0} | fields))


@pytest.fixture
def reading(valkey_server: RedisServer) -> Iterator[Reading]:
    made = Reading(settings_of(valkey_server))
    with closing(made.store):
        made.clicked("u", "a", "b")
        made.state.check()
        yield made


def test_without_the_server_shoppers_seen_lately_are_known_as_they_were(mortal_valkey: RedisServer) -> None:
    reading = Reading(settings_of(mortal_valkey))
    reading.clicked("u", "a", "b")
    reading.clicked("v", "c")
    reading.state.check()
    assert (reading.seen("u"), reading.state.problem()) == ([1, 0], None)
    mortal_valkey.kill()
    with capture_logs() as logs:
        assert [reading.seen(user) for user in ("u", "v", "u")] == [[1, 0], [], [1, 0]]
        reading.state.check()
    problem = reading.state.problem()
    assert problem is not None
    assert f"127.0.0.1:{mortal_valkey.port}" in problem
    assert reading.value("headwater_state_available") == 0
    assert reading.value("headwater_state_reads_total", source="held") == 2
    assert reading.value("headwater_state_reads_total", source="none") == 1
    assert {entry["event"] for entry in logs} == {"state_store_problem"}
    mortal_valkey.start()
    reading.state.check()
    assert reading.state.problem() is None
    assert reading.value("headwater_state_available") == 1
    assert reading.seen("u") == [], "it came back empty, and that is what is there"


def test_a_server_that_stands_still_is_waited_for_once_and_no_longer_than_allowed(mortal_valkey: RedisServer) -> None:
    reading = Reading(settings_of(mortal_valkey, timeout_seconds=0.2))
    reading.clicked("u", "a")
    reading.state.check()
    assert reading.seen("u") == [0]
    with mortal_valkey.standing_still():
        assert reading.seen("u") == [0]
        assert "TimeoutError" in (reading.state.problem() or "")
        began = time.monotonic()
        assert [reading.seen("u") for _ in range(100)] == [[0]] * 100
        assert time.monotonic() - began < 100 * 0.2, "none of them waited"
    thread = threading.Thread(target=reading.state.run)
    thread.start()
    deadline = time.monotonic() + 30
    while reading.state.problem() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    reading.state.stop()
    thread.join(30)
    assert not thread.is_alive()
    reading.clicked("u", "b")
    assert reading.seen("u") == [1, 0]


LIES = ["no json", "{}", "[]", '["click","x"]', '["click","e",1,1,null,7]', '["click","e","1",1,null,"a"]', "[" * 5_000]


def test_entries_that_are_none_are_left_out_and_counted(reading: Reading, valkey_server: RedisServer) -> None:
    key = f"{reading.settings.prefix}:shopper:u"
    with valkey_server.client() as client:
        client.lpush(key, *LIES)
    with closing(valkey_server.client()) as client:
        client.rpush(key, b"\xff\xfe")
    assert reading.seen("u") == [1, 0]
    assert reading.value("headwater_state_refused_total") == len(LIES) + 1
    assert reading.state.problem() is None


def test_a_key_of_another_kind_costs_its_shopper_the_state_and_nobody_else(
    reading: Reading, valkey_server: RedisServer
) -> None:
    with valkey_server.client() as client:
        client.set(f"{reading.settings.prefix}:shopper:v", "not a list")
    assert reading.seen("v") == []
    assert reading.seen("u") == [1, 0]
    assert reading.state.problem() is None


def test_what_was_written_under_another_secret_is_not_read(reading: Reading) -> None:
    foreign = StateStore(reading.settings, fingerprint="another", timeout_seconds=5.0)
    with closing(foreign):
        state = RedisState(foreign, ROWS, fallback_shoppers=2, metrics=ShopperStateMetrics(CollectorRegistry()))
        state.check()
        assert state.context("u", None, 1)[:2] == ([], [])
        assert "must have secret 'another', got 'one'" in (state.problem() or "")


def test_a_writer_that_is_silent_is_told_and_states_are_still_read(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("services.scorer.shopper_state_redis.time.monotonic", lambda: now + SILENT_SECONDS)
    reading.state.check()
    assert "does `headwater state-writer` run?" in (reading.state.problem() or "")
    assert reading.seen("u") == [1, 0]
    reading.clicked("u", "c")
    reading.state.check()
    assert reading.state.problem() is None


def test_no_more_states_are_held_than_allowed_the_ones_seen_last(mortal_valkey: RedisServer) -> None:
    reading = Reading(settings_of(mortal_valkey), fallback_shoppers=2)
    for user in ("u", "v", "w"):
        reading.clicked(user, "a")
    reading.state.check()
    for user in ("u", "v", "u", "w"):
        reading.seen(user)
    assert len(reading.state) == 2
    mortal_valkey.kill()
    assert [reading.seen(user) for user in ("u", "v", "w")] == [[0], [], [0]]


class _SpeaksHttp(socketserver.BaseRequestHandler):
    """Answers whatever it is asked with a web page."""

    def handle(self) -> None:
        while self.request.recv(4_096):
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@contextmanager
def _listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_server_that_is_no_redis_is_a_problem_and_no_failure() -> None:
    with _listening(_SpeaksHttp) as port:
        reading = Reading(StateSettings.model_validate({"redis_url": f"redis://127.0.0.1:{port}", "source": "redis"}))
        reading.state.check()
        assert f"127.0.0.1:{port}" in (reading.state.problem() or "")
        assert reading.seen("u") == []
        reading.store.close()


def test_a_password_is_never_told() -> None:
    settings = StateSettings.model_validate({"redis_url": "redis://me:letmein@127.0.0.1:1/0", "source": "redis"})
    reading = Reading(settings)
    reading.state.check()
    assert "127.0.0.1:1/0" in (reading.state.problem() or "")
    assert "letmein" not in (reading.state.problem() or "")
    with pytest.raises(StateError, match=r"`state.redis_url` must be redis://HOST:PORT/DB") as raised:
        Reading(StateSettings.model_validate({"redis_url": "http://me:letmein@somewhere", "source": "redis"}))
    assert "letmein" not in str(raised.value)

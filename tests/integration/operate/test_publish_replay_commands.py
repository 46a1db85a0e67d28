"""`headwater publish` and `headwater replay` as processes, on each broker: what arrives, what is said, how they end."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.decode import decode
from streams.embedded_broker import EmbeddedBroker
from streams.events import Click, Item, Purchase
from streams.record import Record
from streams.topics import Topics

TIMEOUT_SECONDS = 60
COMMAND = [sys.executable, "-m", "services.cli"]

ITEMS = "item_id,title\n" + "".join(f"i{number},ITEM {number}\n" for number in range(5))
EVENTS = "timestamp,user_id,session_id,event_type,item_id,quantity,price\n" + "".join(
    f"2011-09-05T09:{number // 60:02}:{number % 60:02},u{number % 7},s,"
    f"{'return' if number % 50 == 49 else 'purchase'},i{number % 5},1,2.5\n"
    for number in range(400)
)


def environment(connection: KafkaConnection, topics: Topics) -> dict[str, str]:
    """The whole connection and all topics as an operator would set them."""
    kafka = connection.model_dump(exclude_defaults=True) | {"bootstrap_servers": connection.bootstrap_servers}
    if connection.sasl_password is not None:
        kafka["sasl_password"] = connection.sasl_password.get_secret_value()
    sections = {"KAFKA": kafka, "TOPICS": topics.model_dump()}
    ours = {f"HEADWATER_{name}__{key.upper()}": str(v) for name, part in sections.items() for key, v in part.items()}
    return {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")} | ours


def run(*arguments: str, env: dict[str, str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments], env=env, input=stdin, capture_output=True, timeout=TIMEOUT_SECONDS, check=False
    )


def records(connection: KafkaConnection, *topics: str) -> list[Record]:
    """Everything in the topics."""
    consumer = PartitionConsumer(connection, topics)
    try:
        found: list[Record] = []
        while any(consumer.lag().values()):
            found += consumer.poll(0.5)
        return found
    finally:
        consumer.close()


@pytest.fixture
def env(kafka_connection: KafkaConnection, topics: Topics) -> dict[str, str]:
    return environment(kafka_connection, topics)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "events.csv").write_text(EVENTS)
    return ["--items", str(tmp_path / "items.csv"), "--events", str(tmp_path / "events.csv")]


class TestOnEachBroker:
    def test_published_lines_arrive_on_the_topic_of_their_kind_under_their_key(
        self, kafka_connection: KafkaConnection, topics: Topics, env: dict[str, str]
    ) -> None:
        lines = [
            {"type": "item", "item_id": "i1", "kind": "product", "title": "Teapot"},
            {"type": "click", "user_id": "u1", "item_id": "i1"},
            {"type": "click", "event_id": "mine", "ts": 1_767_225_600_000, "user_id": "u2", "item_id": "i1"},
        ]
        done = run("publish", "-", env=env, stdin="\n".join(map(json.dumps, lines)).encode())
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == "3 events delivered, 0 bad lines skipped\n"
        arrived = [
            event
            for record in records(kafka_connection, topics.items, topics.clicks)
            for event in decode(record, topics)
        ]
        assert {type(event) for event in arrived} == {Item, Click}
        clicks = {event.user_id: event for event in arrived if isinstance(event, Click)}
        assert clicks["u2"].event_id == "mine"
        assert abs(clicks["u1"].ts / 1000 - time.time()) < TIMEOUT_SECONDS

    def test_a_replayed_data_set_arrives_whole_and_in_order_for_each_user(
        self, kafka_connection: KafkaConnection, topics: Topics, env: dict[str, str], data: list[str]
    ) -> None:
        done = run("replay", *data, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().startswith("5 items and 392 events delivered in ")
        assert done.stdout.decode().endswith(", 8 return rows skipped\n")
        assert len(records(kafka_connection, topics.items)) == 5
        events = [event for record in records(kafka_connection, topics.purchases) for event in decode(record, topics)]
        rows: dict[str, list[int]] = {}
        for event in events:
            assert isinstance(event, Purchase)
            rows.setdefault(event.user_id, []).append(int(event.event_id.removeprefix("events-")))
        assert sum(map(len, rows.values())) == 392
        assert all(numbers == sorted(numbers) for numbers in rows.values())


@pytest.fixture
def connection(embedded_broker: EmbeddedBroker) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)


@pytest.fixture
def own_topics(connection: KafkaConnection, make_topics: Callable[[KafkaConnection], Topics]) -> Topics:
    return make_topics(connection)


@pytest.fixture
def embedded_env(connection: KafkaConnection, own_topics: Topics) -> dict[str, str]:
    return environment(connection, own_topics)


def test_bad_lines_are_named_and_passed_over_and_the_good_ones_arrive(
    connection: KafkaConnection, own_topics: Topics, embedded_env: dict[str, str], tmp_path: Path
) -> None:
    good = b'{"user_id": "u", "item_id": "i"}\n'
    too_large = json.dumps({"user_id": "u", "item_id": "i", "session_id": "s"}).encode()[:-1]
    too_large += b', "request_id": "' + b"x" * 2_000_000 + b'"}\n'
    file = tmp_path / "clicks.jsonl"
    file.write_bytes(good + b"{oops\n" + good + b'{"user_id": "u"}\n' + too_large + b"1\n" * 4 + good)
    done = run("publish", "--kind", "click", str(file), env=embedded_env)
    errors = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert done.stdout.decode() == "3 events delivered, 7 bad lines skipped\n"
    assert [line.split(":")[0] for line in errors] == [
        *("line 2", "line 4", "line 5", "line 6", "line 7"),
        "... and 2 more bad lines",
    ]
    assert "not JSON" in errors[0]
    assert "`item_id`: Field required" in errors[1]
    assert len(records(connection, own_topics.clicks)) == 3


def test_an_event_too_large_for_the_broker_is_a_bad_line(embedded_env: dict[str, str]) -> None:
    line = {"type": "item", "item_id": "i", "kind": "answer", "title": "t", "description": "x" * 1_100_000}
    done = run("publish", "-", env=embedded_env, stdin=json.dumps(line).encode())
    assert done.returncode == 1
    assert done.stderr.decode().startswith("line 1: an event must fit into one record")


def test_a_rate_is_held_and_sigterm_ends_the_replay_with_everything_sent_delivered(
    connection: KafkaConnection, own_topics: Topics, embedded_env: dict[str, str], data: list[str]
) -> None:
    with subprocess.Popen(
        [*COMMAND, "replay", *data, "--rate", "100"], env=embedded_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        consumer = PartitionConsumer(connection, [own_topics.purchases])
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while sum(consumer.end_offsets().values()) < 50 and time.monotonic() < deadline:
            time.sleep(0.02)
        consumer.close()
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, err
    words = out.decode().split()
    events, seconds = int(words[3]), float(words[7])
    assert 50 <= events < 392
    assert len(records(connection, own_topics.purchases)) == events
    assert events / 100 - 0.1 <= seconds < events / 100 + 2


def test_a_missing_events_file_is_noticed_before_the_catalogue_is_sent(
    connection: KafkaConnection, own_topics: Topics, embedded_env: dict[str, str], data: list[str]
) -> None:
    done = run("replay", *data[:3], "none.csv", env=embedded_env)
    assert done.returncode == 2
    assert b"headwater: none.csv cannot be read: " in done.stderr
    assert records(connection, own_topics.items) == []


def test_max_events_ends_a_replay(embedded_env: dict[str, str], data: list[str]) -> None:
    done = run("replay", *data, "--max-events", "7", env=embedded_env)
    assert done.stdout.decode().startswith("5 items and 7 events delivered in "), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["publish", "none.jsonl"], "headwater: none.jsonl cannot be read: No such file or directory\n"),
        (["replay", "--items", "none.csv", "--events", "x.csv"], "headwater: none.csv cannot be read: "),
        (["publish", "--config", "none.toml", "-"], "headwater: settings file none.toml does not exist; "),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    embedded_env: dict[str, str], arguments: list[str], message: str
) -> None:
    done = run(*arguments, env=embedded_env)
    assert done.returncode == 2
    assert done.stderr.decode().startswith(message)
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        "item_id;title\ni1;Teapot\ni2;Cup\n".encode("utf-16"),
        gzip.compress(b"item_id\ttitle\ni1\tTeapot\ni2\tCup\n"),
        b'[\n{"item_id": "i1", "kind": "product", "title": "Teapot"},\n'
        b'{"item_id": "i2", "kind": "product", "title": "Cup"}]\n',
    ],
)
@pytest.mark.parametrize("through_a_pipe", [False, True])
def test_a_catalogue_is_published_from_a_file_as_it_is(
    connection: KafkaConnection,
    own_topics: Topics,
    embedded_env: dict[str, str],
    tmp_path: Path,
    content: bytes,
    through_a_pipe: bool,
) -> None:
    file = tmp_path / "items"
    file.write_bytes(content)
    done = run("publish", "-" if through_a_pipe else str(file), "--kind", "item", env=embedded_env, stdin=content)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "2 events delivered, 0 bad lines skipped\n"
    assert {record.key for record in records(connection, own_topics.items)} == {b"i1", b"i2"}


def test_strict_stops_at_the_first_bad_line_and_says_where(
    connection: KafkaConnection, own_topics: Topics, embedded_env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "items.csv"
    file.write_text("item_id,title,price\ni1,Teapot,\ni2,Cup,dear\ni3,Pot,\n")
    done = run("publish", str(file), "--kind", "item", "--strict", env=embedded_env)
    assert done.returncode == 2
    assert "items.csv, line 3: `price`: " in done.stderr.decode()
    assert "got 'dear'" in done.stderr.decode()
    assert "; 1 events before that were delivered" in done.stderr.decode()
    assert len(records(connection, own_topics.items)) == 1


def test_a_catalogue_is_replayed_without_events_and_its_bad_rows_are_named(
    connection: KafkaConnection, own_topics: Topics, embedded_env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "items.csv"
    file.write_text("item_id,title,price\ni1,Teapot,\ni2,Cup,dear\ni3,Pot,\n")
    done = run("replay", "--items", str(file), env=embedded_env)
    assert done.returncode == 1
    assert done.stdout.decode().startswith("2 items and 0 events delivered in ")
    assert "items.csv, row 2: `price`: " in done.stderr.decode()
    assert len(records(connection, own_topics.items)) == 2
    strict = run("replay", "--items", str(file), "--strict", env=embedded_env)
    assert strict.returncode == 2
    assert b"items.csv, row 2" in strict.stderr

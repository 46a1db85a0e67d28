"""`headwater forget` and `headwater quarantine` as processes, on each broker: what they write, say and refuse."""

import json
import os
import subprocess
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from forked import run_command

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.control import (
    Capped,
    Command,
    Forget,
    GuardReport,
    Quarantine,
    Released,
    guard_record,
    parse_control,
    quarantine_record,
    secret_record,
)
from streams.dead_letters import DeadLetter, DeadLetterWriter, Reason
from streams.privacy import Pseudonymiser
from streams.producer import EventProducer
from streams.record import Record
from streams.topics import Topics

SECRET = "secret-of-a-test"  # noqa: S105
ANN = Pseudonymiser(SECRET.encode())("ann")
WHY = {"event_id": "e1", "reason": "item_burst", "limit": 50}


@pytest.fixture
def env(kafka_connection: KafkaConnection, topics: Topics) -> dict[str, str]:
    kafka = kafka_connection.model_dump(exclude_defaults=True)
    kafka["bootstrap_servers"] = kafka_connection.bootstrap_servers
    if kafka_connection.sasl_password is not None:
        kafka["sasl_password"] = kafka_connection.sasl_password.get_secret_value()
    sections: dict[str, Mapping[str, object]] = {
        "KAFKA": kafka,
        "TOPICS": {name: topic for name, topic in topics.model_dump().items() if name != "dialects"},
        "PRIVACY": {"secret": SECRET},
    }
    ours = {f"HEADWATER_{name}__{key.upper()}": str(v) for name, part in sections.items() for key, v in part.items()}
    return {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")} | ours


def headwater(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return run_command(arguments, env=env)


def commands(connection: KafkaConnection, topics: Topics) -> list[Command | None]:
    written = newest(connection, topics.control).items()
    return [parse_control(Record(topics.control, 0, 0, key, value, 0)) for key, value in written]


def newest(connection: KafkaConnection, topic: str) -> dict[bytes, bytes | None]:
    """The newest value of each key."""
    found: dict[bytes, bytes | None] = {}
    with closing(PartitionConsumer(connection, [topic])) as consumer:
        while any(consumer.lag().values()):
            found |= {record.key or b"": record.value for record in consumer.poll(0.5)}
    return found


def letter(offset: int, key: bytes, payload: bytes) -> DeadLetter:
    return DeadLetter(
        reason=Reason.INVALID_SCHEMA,
        error="bad",
        topic="clicks",
        partition=0,
        offset=offset,
        key=b64encode(key).decode(),
        payload=b64encode(payload).decode(),
        payload_bytes=len(payload),
        first_seen_ts=1,
    )


def test_forget_tells_everybody_and_removes_the_letters_that_name_the_user(
    kafka_connection: KafkaConnection, topics: Topics, env: dict[str, str]
) -> None:
    writer = DeadLetterWriter(kafka_connection, topics)
    letters = {
        1: (b"ann", b"{}"),
        2: (b"k", b'{"context": {"users": ["ben", "ann"]}}'),
        3: (b"k", b'{"user_id": "ann", cut short'),
        4: (ANN.encode(), b"{}"),
        5: (b"k", b'{"user_id": "joann", "title": "for ann and ben"}'),
        6: (b"ben", b"{} joann"),
    }
    for offset, (key, payload) in letters.items():
        writer.write(letter(offset, key, payload))
    writer.close()
    done = headwater("forget", "ann", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"done: the command to forget {ANN} is on {topics.control}",
        "done: 4 dead letters removed",
        "not verified: updaters, scorers and state writers forget the shopper when they read that topic",
        "not verified: whether this is the deployment's secret; no updater has published a fingerprint",
    ]
    told = commands(kafka_connection, topics)
    assert any(isinstance(command, Forget) and command.user == ANN for command in told)
    assert Released(f"user/{ANN}") in told
    left = newest(kafka_connection, topics.dead_letters)
    assert {key for key, value in left.items() if value is not None} == {b"clicks/0/5", b"clicks/0/6"}
    assert all(b"ann" not in key + (value or b"") for key, value in newest(kafka_connection, topics.control).items())


def test_with_another_secret_than_the_deployments_nobody_is_forgotten(
    kafka_connection: KafkaConnection, topics: Topics, env: dict[str, str]
) -> None:
    other = Pseudonymiser(b"another secret of a test")
    with EventProducer(kafka_connection, topics) as producer:
        producer.send_raw(topics.control, *secret_record(other.fingerprint(), ts_ms=1))
    before = newest(kafka_connection, topics.control)
    for arguments in (["forget", "ann"], ["quarantine", "list"], ["quarantine", "release", "item/mug"]):
        refused = headwater(*arguments, env=env)
        assert (refused.returncode, refused.stdout) == (1, "")
        (line,) = refused.stderr.splitlines()
        assert line.startswith("headwater: `privacy.secret` must be the same in all processes of a deployment")
        assert other.fingerprint()[:8] in line
        assert "HEADWATER_PRIVACY__SECRET" in line
    assert newest(kafka_connection, topics.control) == before, "nothing was written"
    same = headwater("forget", "ann", env=env | {"HEADWATER_PRIVACY__SECRET": "another secret of a test"})
    assert same.returncode == 0
    assert "whether this is the deployment's secret" not in same.stdout
    assert "forget" not in headwater("secret", "reset", env=env).stderr
    assert headwater("forget", "ann", env=env).returncode == 0


def test_guard_list_shows_what_each_updater_reported(
    kafka_connection: KafkaConnection, topics: Topics, env: dict[str, str]
) -> None:
    capped = Capped(key="item/mug", rule="item_burst", hour_ms=1_767_225_600_000, left_out=51, weighed_down=2)
    first = GuardReport(event_id="e1", ts=1, scenario="home", caps=())
    with EventProducer(kafka_connection, topics) as producer:
        for report in (first, first.model_copy(update={"caps": (capped,), "others": 3, "ts": 2})):
            producer.send_raw(topics.control, *guard_record(report))
    listed = headwater("guard", "list", env=env)
    line = "home\titem/mug\titem_burst\t51 left out\t2 weighed down\t2026-01-01T00:00+00:00\n"
    assert (listed.stdout, listed.stderr) == (line, "home: 3 more with fewer events\n")
    (document,) = map(json.loads, headwater("guard", "list", "--json", env=env).stdout.splitlines())
    assert document == {"scenario": "home", "reported_at_ms": 2, **capped.model_dump()}


def test_quarantine_is_listed_latest_first_and_released(
    kafka_connection: KafkaConnection, topics: Topics, env: dict[str, str]
) -> None:
    with EventProducer(kafka_connection, topics) as producer:
        for ts, key in ((1_767_225_600_000, "item/mug"), (1_767_225_601_000, f"user/{ANN}")):
            why = Quarantine.model_validate({**WHY, "ts": ts, "count": 51})
            producer.send_raw(topics.control, *quarantine_record(key, why))
    listed = headwater("quarantine", "list", env=env)
    assert listed.stdout.splitlines() == [
        f"user/{ANN}\titem_burst\t51 of 50\t2026-01-01T00:00:01+00:00",
        "item/mug\titem_burst\t51 of 50\t2026-01-01T00:00:00+00:00",
    ]
    assert headwater("quarantine", "release", "item/mug", env=env).stdout == "item/mug released\n"
    assert Released("item/mug") in commands(kafka_connection, topics)
    assert headwater("quarantine", "list", env=env).stdout.splitlines() == listed.stdout.splitlines()[:1]
    again = headwater("quarantine", "release", "item/mug", env=env)
    assert again.stdout == "item/mug was not in quarantine; its events count without limit from now on\n"


@pytest.mark.parametrize("key", ["mug", "item/", "shop/mug"])
def test_a_key_that_is_none_is_refused_before_anything_is_asked(key: str) -> None:
    nowhere = {"HEADWATER_BOOTSTRAP_SERVERS": "127.0.0.1:1", "PATH": os.environ["PATH"]}
    refused = headwater("quarantine", "release", key, env=nowhere)
    assert refused.returncode == 2
    assert "KEY must be user/<pseudonym> or item/<item id>" in refused.stderr


@pytest.mark.parametrize("kept", ["\n", None])
def test_without_the_secret_nobody_is_forgotten(env: dict[str, str], tmp_path: Path, kept: str | None) -> None:
    if kept is not None:
        (tmp_path / "secret").write_text(kept)
    del env["HEADWATER_PRIVACY__SECRET"]
    refused = headwater("forget", "ann", env=env | {"HEADWATER_PRIVACY__SECRET_FILE": str(tmp_path / "secret")})
    assert refused.returncode == 1
    assert refused.stderr.startswith("headwater: `privacy.secret_file`")
    assert "ann" not in refused.stderr.split()
    assert (tmp_path / "secret").exists() == (kept is not None), "a new secret would name nobody"

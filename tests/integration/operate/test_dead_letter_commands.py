"""`headwater dead-letters` on each broker: list, show, replay, replay mended events, purge."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.operate.dead_letters.errors import LetterError
from services.operate.dead_letters.replaying import CHUNK_LETTERS
from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.dead_letters import DeadLetter, DeadLetterWriter
from streams.decode import decode
from streams.errors import DeliveryError
from streams.events import Click, Purchase
from streams.privacy import PayloadPolicy, Pseudonymiser
from streams.producer import EventProducer
from streams.record import Record
from streams.topics import Topics

SECRET = "of the test"  # noqa: S105
CLICK = {"event_id": "e-1", "ts": 1, "user_id": "ann", "item_id": "mug-1"}
BAD: list[tuple[bytes | None, bytes | None]] = [
    (b"ann", b'{"event_id": "e-0", \x1b[31m'),
    (b"ann", json.dumps(CLICK | {"item_id": ""}).encode()),
    (b"ben", json.dumps(CLICK).encode()),
    (None, b"\xff\xfe"),
    (b"ann", b""),
]


class Desk:
    """Where an operator sits: a broker with refused clicks, and the command line."""

    def __init__(self, connection: KafkaConnection, topics: Topics) -> None:
        self.connection, self.topics = connection, topics
        kafka = connection.model_dump(exclude_defaults=True) | {"bootstrap_servers": connection.bootstrap_servers}
        if connection.sasl_password is not None:
            kafka["sasl_password"] = connection.sasl_password.get_secret_value()
        names = topics.model_dump(exclude={"dialects"})
        sections = {"KAFKA": kafka, "TOPICS": names, "PRIVACY": {"secret": SECRET}}
        ours = {f"HEADWATER_{s}__{key.upper()}": str(v) for s, part in sections.items() for key, v in part.items()}
        self._env = dict.fromkeys(name for name in os.environ if name.startswith("HEADWATER_")) | ours

    def run(self, *arguments: str, status: int = 0, stdin: str = "") -> list[str]:
        """The lines of a command's output."""
        result = CliRunner().invoke(app, ["dead-letters", *arguments], env=self._env, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result.stdout.splitlines()

    def send(self, records: Sequence[tuple[bytes | None, bytes | None]]) -> list[Record]:
        """Has a producer send clicks; gives them as they are in the log."""
        with EventProducer(self.connection) as producer:
            for key, value in records:
                producer.send_raw(self.topics.clicks, key, value)
        return self.read(self.topics.clicks)

    def refuse(self, records: Sequence[Record], policy: PayloadPolicy = "keep") -> list[DeadLetter]:
        """Refuses them as the updater does."""
        letters = [letter for record in records if isinstance(letter := decode(record, self.topics), DeadLetter)]
        pseudonymise = Pseudonymiser(SECRET.encode())
        writer = DeadLetterWriter(self.connection, self.topics, policy=policy, pseudonymise=pseudonymise)
        with closing(writer):
            for letter in letters:
                writer.write(letter)
        return letters

    def read(self, topic: str) -> list[Record]:
        with closing(PartitionConsumer(self.connection, [topic])) as consumer:
            records: list[Record] = []
            while sum(consumer.lag().values()):
                records += consumer.poll(5)
            return records

    def clicks(self) -> list[tuple[bytes | None, bytes | None]]:
        return sorted(((one.key, one.value) for one in self.read(self.topics.clicks)), key=repr)

    def listed(self, *arguments: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.run("list", "--json", *arguments)]


@pytest.fixture
def desk(kafka_connection: KafkaConnection, topics: Topics) -> Desk:
    return Desk(kafka_connection, topics)


def doubled(records: Sequence[tuple[bytes | None, bytes | None]]) -> list[tuple[bytes | None, bytes | None]]:
    return sorted([*records, *records], key=repr)


class TestList:
    def test_shows_each_letter_and_counts_reasons(self, desk: Desk) -> None:
        letters = desk.refuse(desk.send(BAD))
        *rows, last = desk.run("list")
        assert rows[0].split()[:3] == ["LETTER", "FIRST", "SEEN"]
        assert {row.split()[0] for row in rows[1:]} == {letter.record_key() for letter in letters}
        assert last == "5 dead letters: 3 malformed_json, 1 invalid_schema, 1 wrong_key"
        assert not any("\x1b" in row for row in rows)

    def test_filters_and_limit(self, desk: Desk) -> None:
        desk.refuse(desk.send(BAD))
        assert [one["reason"] for one in desk.listed("--reason", "wrong_key")] == ["wrong_key"]
        assert len(desk.listed("--limit", "2")) == 2
        assert desk.run("list", "--limit", "2")[-1].startswith("5 dead letters, 2 of them shown: 3 malformed_json")
        assert len(desk.listed("--topic", desk.topics.clicks, "--since", "1h")) == 5
        assert desk.listed("--topic", desk.topics.items) == desk.listed("--until", "1h") == []
        assert desk.listed("--since", "2999-01-01T00:00:00Z") == []
        assert all("payload" not in one and one["payload_bytes"] is not None for one in desk.listed())

    @pytest.mark.parametrize(
        "arguments", [("--since", "yesterday"), ("--until", "2026-01-01T00:00:00"), ("--reason", "x")]
    )
    def test_a_filter_that_cannot_be_used_is_an_error(self, desk: Desk, arguments: tuple[str, str]) -> None:
        with pytest.raises(LetterError, match=f"got '{arguments[1]}'"):
            desk.run("list", *arguments)

    def test_of_one_key_the_newest_letter_counts_and_what_is_none_is_counted(self, desk: Desk) -> None:
        records = desk.send(BAD[:1])
        desk.refuse(records)
        (letter,) = desk.refuse(records)
        with EventProducer(desk.connection) as producer:
            producer.send_raw(desk.topics.dead_letters, b"foreign", b"{}")
            producer.send_raw(desk.topics.dead_letters, b"a/0/0", letter.model_dump_json().encode())
        assert len(desk.listed()) == 1
        assert desk.run("list")[-1].endswith("; 2 records on the topic are not dead letters")


class TestShow:
    def test_has_the_payload_as_text_without_control_characters(self, desk: Desk) -> None:
        letter, *_ = desk.refuse(desk.send(BAD[:1]))
        lines = desk.run("show", letter.record_key())
        assert 'payload: {"event_id": "e-0", \\x1b[31m' in lines
        assert {"key: ann", "reason: malformed_json", "replayed_ts: -", "payload_policy: keep"} <= set(lines)

    def test_has_what_is_no_text_as_base64(self, desk: Desk) -> None:
        letter, *_ = desk.refuse(desk.send(BAD[3:4]))
        assert {"key: none", "payload: (not text, base64) //4="} <= set(desk.run("show", letter.record_key()))

    def test_a_letter_that_is_not_there_is_an_error(self, desk: Desk) -> None:
        with pytest.raises(LetterError, match="there is no dead letter 'a/0/1'"):
            desk.run("show", "a/0/1")


class TestReplay:
    def test_puts_key_and_bytes_back_and_twice_sends_once(self, desk: Desk) -> None:
        desk.refuse(desk.send(BAD))
        assert desk.run("replay", "--dry-run") == [f"5 records would be put back: 5 to {desk.topics.clicks}"]
        assert desk.clicks() == sorted(BAD, key=repr)
        assert desk.run("replay") == [f"5 records put back: 5 to {desk.topics.clicks}"]
        assert desk.clicks() == doubled(BAD)
        assert all(one["replayed_ts"] for one in desk.listed())
        assert desk.run("replay") == ["0 records put back", "5 skipped: replayed before; --again repeats them"]
        assert desk.clicks() == doubled(BAD)
        desk.run("replay", "--again", "--reason", "wrong_key")
        assert desk.clicks() == sorted([*doubled(BAD), BAD[2]], key=repr)

    def test_a_limit_goes_on_where_the_last_replay_ended(self, desk: Desk) -> None:
        desk.refuse(desk.send(BAD))
        for left in (3, 1, 0):
            desk.run("replay", "--limit", "2")
            assert sum(one["replayed_ts"] is None for one in desk.listed()) == left
        assert desk.clicks() == doubled(BAD)

    def test_more_than_a_chunk_in_the_order_of_the_log(self, desk: Desk) -> None:
        bad: list[tuple[bytes | None, bytes | None]] = [
            (b"ann", str(number).encode()) for number in range(CHUNK_LETTERS + 5)
        ]
        desk.refuse(desk.send(bad))
        desk.run("replay")
        again = desk.read(desk.topics.clicks)[len(bad) :]
        assert [(one.key, one.value) for one in again] == bad

    @pytest.mark.parametrize("policy", ["redact", "drop"])
    def test_what_the_letter_does_not_hold_comes_from_the_log(self, desk: Desk, policy: PayloadPolicy) -> None:
        desk.refuse(desk.send(BAD), policy)
        assert desk.run("replay") == [f"5 records put back: 5 to {desk.topics.clicks}"]
        assert desk.clicks() == doubled(BAD)
        assert {one["payload_policy"] for one in desk.listed()} == {policy}

    def test_what_nobody_holds_any_more_is_counted_with_its_reason(self, desk: Desk) -> None:
        here, *_ = desk.send(BAD[1:2])
        end = Record(here.topic, here.partition, here.offset + 1, here.key, here.value, 0)
        other = Record(here.topic, 99, 0, here.key, here.value, 0)
        longer = Record(here.topic, here.partition, here.offset, here.key, (here.value or b"") + b" ", 0)
        desk.refuse([end, other, longer], "redact")
        assert desk.run("replay", status=1) == [
            "0 records put back",
            "2 not replayable: the letter has no payload, and the log no longer has the record",
            "1 not replayable: the letter has no payload, and the log has another record in its place",
        ]
        assert desk.clicks() == BAD[1:2]
        assert all(one["replayed_ts"] is None for one in desk.listed())

    def test_what_is_no_event_or_goes_to_no_topic_of_events_is_not_put_back(self, desk: Desk) -> None:
        forged = [Record(topic, 0, 0, b"home", b"{}", 0) for topic in (desk.topics.adapters, "a.b")]
        desk.refuse([*desk.send([(b"ann", None)]), *forged])
        *_, first, second, third = desk.run("replay", status=1)
        assert {first, second, third} == {
            "1 not replayable: a record without a value is not an event; send a corrected one with --mended",
            f"1 not replayable: topic '{desk.topics.adapters}' carries no events; send corrected ones with --mended",
            "1 not replayable: topic 'a.b' carries no events; send corrected ones with --mended",
        }
        assert desk.read(desk.topics.adapters) == []

    def test_a_topic_that_is_gone_stops_no_other(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEADWATER_TOPICS__DIALECTS", '{"gone": "segment"}')
        gone = [Record("gone", 0, offset, b"ann", b"{", 0) for offset in range(2)]
        letters = [decode(record, Topics(dialects={"gone": "segment"})) for record in gone]
        with closing(DeadLetterWriter(desk.connection, desk.topics)) as writer:
            for letter in letters:
                assert isinstance(letter, DeadLetter)
                writer.write(letter)
        desk.refuse(desk.send(BAD))
        sent, problem = desk.run("replay", status=1)
        assert sent == f"5 records put back: 5 to {desk.topics.clicks}"
        assert problem == "2 not replayable: topic 'gone' does not exist"
        assert desk.clicks() == doubled(BAD)

    def test_another_record_of_the_same_size_is_not_taken_for_it(self, desk: Desk) -> None:
        here, *_ = desk.send(BAD[1:2])
        value = (here.value or b"").replace(b"ann", b"eve")
        desk.refuse([Record(here.topic, here.partition, here.offset, b"eve", value, 0)], "redact")
        assert "another record in its place" in desk.run("replay", status=1)[-1]

    def test_not_confirmed_it_is_not_marked(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        def lose(*_: object) -> None:
            raise DeliveryError("1 records not delivered")

        desk.refuse(desk.send(BAD[:1]))
        with monkeypatch.context() as broken:
            broken.setattr("services.operate.dead_letters.replaying.EventProducer.flush", lose)
            with pytest.raises(DeliveryError):
                desk.run("replay")
        assert [one["replayed_ts"] for one in desk.listed()] == [None]

    def test_killed_between_record_and_mark_it_repeats_the_record(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.refuse(desk.send(BAD[:1]))

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as broken:
            broken.setattr("services.operate.dead_letters.replaying.Replay._mark", killed)
            desk.run("replay", status=130)
        assert len(desk.clicks()) == 2
        assert desk.run("replay")[0].startswith("1 records put back")
        assert len(desk.clicks()) == 3


class TestMended:
    @pytest.fixture
    def mend(self, desk: Desk, tmp_path: Path) -> Callable[..., Path]:
        def write(*lines: object) -> Path:
            (tmp_path / "mended.jsonl").write_text("\n".join(map(json.dumps, lines)))
            return tmp_path / "mended.jsonl"

        return write

    def test_takes_the_place_of_the_record(self, desk: Desk, mend: Callable[..., Path]) -> None:
        letters = desk.refuse(desk.send(BAD[:2]))
        first = letters[0].record_key()
        file = mend({"letter": first, "event": {"user_id": "eve", "item_id": "mug-1"}})
        assert desk.run("replay", "--mended", str(file)) == [f"1 records put back: 1 to {desk.topics.clicks}"]
        (record,) = [one for one in desk.read(desk.topics.clicks) if one.key == b"eve"]
        event = Click.model_validate_json(record.value or b"")
        assert (event.event_id, event.ts) == (first, letters[0].first_seen_ts)
        assert [one["letter"] for one in desk.listed() if one["replayed_ts"]] == [first]
        assert desk.run("replay", "--mended", str(file))[0] == "0 records put back"

    def test_an_event_of_another_kind_goes_to_its_own_topic(self, desk: Desk, mend: Callable[..., Path]) -> None:
        letter, *_ = desk.refuse(desk.send(BAD[:1]))
        event = {"type": "purchase", "event_id": "p-1", "ts": 7, "user_id": "eve", "item_id": "mug-1", "quantity": 2}
        desk.run("replay", "--mended", str(mend({"letter": letter.record_key(), "event": event})))
        (record,) = desk.read(desk.topics.purchases)
        assert record.key == b"eve"
        assert desk.clicks() == BAD[:1]

    def test_a_line_of_an_order_goes_back_mended_and_only_so(
        self, desk: Desk, mend: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        topics = desk.topics.model_copy(update={"dialects": {desk.topics.clicks: "segment"}, "clicks": "others"})
        monkeypatch.setenv("HEADWATER_TOPICS__DIALECTS", '{"shop.orders": "segment"}')
        products = [{"product_id": "mug-1"}, {"product_id": "mug-2", "quantity": -1}, {"sku": "(not set)"}]
        order = {"type": "track", "event": "Order Completed", "messageId": "m-1", "userId": "ann",
                 "properties": {"order_id": "o-1", "products": products}}  # fmt: skip
        (sent,) = desk.send([(b"ann", json.dumps(order).encode())])
        decoded = decode(sent, topics)
        assert isinstance(decoded, list)
        letters = [one.model_copy(update={"topic": "shop.orders"}) for one in decoded if isinstance(one, DeadLetter)]
        with closing(DeadLetterWriter(desk.connection, desk.topics)) as writer:
            for letter in letters:
                writer.write(letter)
        key = f"shop.orders/{sent.partition}/0/properties.products.1"
        assert [one["letter"] for one in desk.listed()] == [key, key[:-1] + "2"]
        why = "it is one line of a record whose other lines count already; send a corrected event with --mended"
        assert desk.run("replay", status=1) == ["0 records put back", f"2 not replayable: {why}"]
        event = json.loads(letters[0].original() or b"") | {"quantity": 1}
        assert desk.run("replay", "--mended", str(mend({"letter": key, "event": event}))) == [
            f"1 records put back: 1 to {desk.topics.purchases}"
        ]
        (back,) = desk.read(desk.topics.purchases)
        (purchase,) = decode(back, desk.topics)
        assert isinstance(purchase, Purchase)
        assert (purchase.user_id, purchase.item_id, purchase.order_id) == ("ann", "mug-2", "o-1")

    def test_one_that_is_wrong_sends_none(self, desk: Desk, mend: Callable[..., Path]) -> None:
        good, bad = (letter.record_key() for letter in desk.refuse(desk.send(BAD[:2])))
        event = {"user_id": "eve", "item_id": "mug-1"}
        file = mend(
            {"letter": good, "event": event},
            {"letter": bad, "event": event | {"item_id": ""}},
            {"letter": "x/0/0", "event": event},
        )
        with pytest.raises(LetterError, match=rf"nothing was sent: {bad}: `item_id`: .*; x/0/0: there is no such"):
            desk.run("replay", "--mended", str(file))
        assert desk.clicks() == sorted(BAD[:2], key=repr)


class TestPurge:
    def test_deletes_what_was_chosen_once_confirmed(self, desk: Desk) -> None:
        desk.refuse(desk.send(BAD))
        assert desk.run("purge", "--reason", "malformed_json", "--dry-run") == ["3 dead letters would be deleted"]
        desk.run("purge", status=1, stdin="n\n")
        assert len(desk.listed()) == 5
        assert desk.run("purge", "--reason", "malformed_json", stdin="y\n")[-1] == "3 dead letters deleted"
        assert {one["reason"] for one in desk.listed()} == {"invalid_schema", "wrong_key"}
        assert desk.run("purge", "--yes") == ["2 dead letters deleted"]
        assert desk.listed() == []

"""What an operator says of dead letters, and what is said of them to an operator."""

import json
import time
from base64 import b64encode
from collections import Counter
from pathlib import Path

import pytest

from services.moments import moment_ms
from services.operate.dead_letters.command import replayed
from services.operate.dead_letters.errors import LetterError
from services.operate.dead_letters.letters import DeadLetterListing, Selection, reason_named
from services.operate.dead_letters.mended import letters_named, mended
from services.operate.dead_letters.rendering import counts, json_line, table, whole
from services.operate.dead_letters.replaying import CHUNK_BYTES, CHUNK_LETTERS, ReplaySummary, _chunks
from streams.dead_letters import DeadLetter, Reason
from streams.events import Click, Purchase
from streams.topics import Topics

TOPICS = Topics()
KEY = "headwater.clicks/0/7"


def letter(payload: bytes | None = b"{}", **fields: object) -> DeadLetter:
    given = {
        "reason": Reason.INVALID_SCHEMA,
        "error": "item_id: Field required",
        "topic": TOPICS.clicks,
        "partition": 0,
        "offset": 7,
        "key": b64encode(b"ann").decode(),
        "payload": None if payload is None else b64encode(payload).decode(),
        "payload_bytes": len(payload or b""),
        "first_seen_ts": 1_767_225_600_000,
    }
    return DeadLetter.model_validate(given | fields)


class TestMoments:
    def test_a_time_with_its_offset(self) -> None:
        assert moment_ms("2026-01-01T01:00:00+01:00") == 1_767_225_600_000

    @pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7_200), ("30d", 2_592_000)])
    def test_how_long_ago(self, text: str, seconds: int) -> None:
        assert moment_ms(text) == pytest.approx((time.time() - seconds) * 1000, abs=2_000)

    @pytest.mark.parametrize("text", ["", "h", "-2h", "2 h", "2w", "2026-01-01", "2026-01-01T00:00:00", "9" * 10 + "d"])
    def test_anything_else_is_an_error(self, text: str) -> None:
        with pytest.raises(ValueError, match=f"got '{text}'"):
            moment_ms(text)


class TestSelection:
    @pytest.mark.parametrize(
        ("selection", "taken"),
        [
            (Selection(), True),
            (Selection(reason=Reason.INVALID_SCHEMA, topic=TOPICS.clicks), True),
            (Selection(reason=Reason.WRONG_KEY), False),
            (Selection(topic=TOPICS.items), False),
            (Selection(since_ms=1_767_225_600_000), True),
            (Selection(since_ms=1_767_225_600_001), False),
            (Selection(until_ms=1_767_225_600_000), False),
            (Selection(until_ms=1_767_225_600_001), True),
        ],
    )
    def test_takes_what_each_filter_lets_pass(self, selection: Selection, taken: bool) -> None:
        assert selection.matches(letter()) is taken

    def test_a_reason_that_is_none_is_an_error(self) -> None:
        assert reason_named("oversized") is Reason.OVERSIZED
        with pytest.raises(LetterError, match="got 'too_big'"):
            reason_named("too_big")


class TestMended:
    def named(self, tmp_path: Path, *lines: str) -> dict[str, dict[str, object]]:
        (tmp_path / "mended").write_text("\n".join(lines))
        return letters_named(tmp_path / "mended")

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("{", "line 2: not JSON"),
            ("[]", "line 2: must be"),
            ('{"letter": "a/0/1"}', "line 2: must be"),
            ('{"letter": "a/0/1", "event": {}, "key": "k"}', "and nothing else"),
            ('{"letter": 1, "event": {}}', "`letter` must be a text and `event` an object"),
            ('{"letter": "a/0/1", "event": []}', "`letter` must be a text and `event` an object"),
            ("[" * 100_000, "line 2: nested too deeply"),
        ],
    )
    def test_a_line_that_is_none_is_named(self, tmp_path: Path, line: str, problem: str) -> None:
        with pytest.raises(LetterError, match=problem):
            self.named(tmp_path, "", line)

    def test_a_letter_is_named_once(self, tmp_path: Path) -> None:
        line = json.dumps({"letter": KEY, "event": {}})
        assert self.named(tmp_path, line) == {KEY: {}}
        with pytest.raises(LetterError, match=f"line 2: letter '{KEY}' must be named once"):
            self.named(tmp_path, line, line)

    def test_what_is_not_said_comes_from_the_letter(self) -> None:
        fields = {"user_id": "ann", "item_id": "mug-1"}
        click, purchase = (
            mended({KEY: fields | more}, {KEY: letter()}, TOPICS)[KEY]
            for more in ({}, {"type": "purchase", "event_id": "p-1", "ts": 5})
        )
        assert click == Click(event_id=KEY, ts=1_767_225_600_000, user_id="ann", item_id="mug-1")
        assert purchase == Purchase(event_id="p-1", ts=5, user_id="ann", item_id="mug-1")

    def test_on_a_topic_that_says_nothing_of_the_kind_the_event_must_say_it(self) -> None:
        fields = {"user_id": "ann", "item_id": "mug-1"}
        with pytest.raises(LetterError, match="x/0/1: an event must name its `type`"):
            mended({"x/0/1": fields}, {"x/0/1": letter(topic="x", offset=1)}, TOPICS)

    def test_faults_are_told_together_the_first_few(self) -> None:
        with pytest.raises(LetterError, match=r"nothing was sent: 0: there is no such .* and 2 more$"):
            mended({str(number): {} for number in range(7)}, {}, TOPICS)


class TestShown:
    def test_a_table_has_a_row_a_letter(self) -> None:
        replayed_one = letter(offset=1_000, replayed_ts=1_767_225_660_000, error="e" * 500)
        heading, first, second = table([letter(), replayed_one])
        assert heading.split("  ")[0] == "LETTER"
        assert first.split() == [
            *(KEY, "2026-01-01T00:00:00Z", "invalid_schema", "2", "keep", "-"),
            *("item_id:", "Field", "required"),
        ]
        assert "  2026-01-01T00:01:00Z  " in second
        assert second.endswith("e...")
        assert len(second) < 250

    def test_counts_are_by_reason_the_most_first(self) -> None:
        by_reason = Counter(oversized=1, wrong_key=2, malformed_json=1)
        assert counts(DeadLetterListing([letter()], by_reason, 0)) == (
            "4 dead letters, 1 of them shown: 2 wrong_key, 1 malformed_json, 1 oversized"
        )
        assert counts(DeadLetterListing([], Counter(), 0)) == "0 dead letters"

    def test_a_line_of_json_has_all_but_the_payload(self) -> None:
        assert json.loads(json_line(letter())) == {"letter": KEY} | letter().model_dump(
            mode="json", exclude={"payload"}
        )

    def test_no_control_character_of_anyone_reaches_the_terminal(self) -> None:
        nasty = "\x1b]0;title\x07\u202e\x9b\r"
        shown = letter(f"a\n{nasty}".encode(), key=b64encode(nasty.encode()).decode(), error=nasty, topic=nasty)
        for line in [*whole(shown), *table([shown])]:
            assert all(part.isprintable() for part in line.split("\n"))

    def test_what_became_of_a_replay(self) -> None:
        summary = ReplaySummary(Counter({"b": 1, "a": 2}), 3, Counter({"gone": 4}))
        assert replayed(summary, dry_run=True) == [
            "3 records would be put back: 2 to a, 1 to b",
            "3 skipped: replayed before; --again repeats them",
            "4 not replayable: gone",
        ]


def test_chunks_are_few_letters_and_few_bytes() -> None:
    small = [letter(offset=number) for number in range(CHUNK_LETTERS + 1)]
    assert [len(chunk) for chunk in _chunks(small)] == [CHUNK_LETTERS, 1]
    large = [letter(offset=number, payload_bytes=CHUNK_BYTES // 2) for number in range(5)]
    assert [len(chunk) for chunk in _chunks(large)] == [2, 2, 1]
    huge = [letter(offset=number, payload_bytes=CHUNK_BYTES * 2) for number in range(2)]
    assert [len(chunk) for chunk in _chunks(huge)] == [1, 1]
    assert list(_chunks([])) == []

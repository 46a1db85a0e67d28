"""Ids are removed from a rejected record under any name; everything else stays."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.dead_letters import DeadLetter, redact_letter
from streams.decode import decode
from streams.record import Record
from streams.redaction import redact_error, redact_json, redact_key
from streams.topics import Topics


def hide(name: str) -> str:
    return f"<{name.swapcase()}>"


def redact(value: Any) -> Any:
    return json.loads(redact_json(json.dumps(value).encode(), hide) or b"null")


@pytest.mark.parametrize(
    "name",
    [
        *("user_id", "userId", "user", "USER-ID", "anonymousId", "anonymous_id", "previousId", "deviceId"),
        *("user_pseudo_id", "client_id", "app_instance_id", "session", "session_id", "sessionId", "ga_session_id"),
    ],
)
def test_an_id_is_hidden_under_each_of_its_names_at_any_depth(name: str) -> None:
    assert redact({name: "ann", "a": [{"b": {name: 7}}]}) == {name: "<ANN>", "a": [{"b": {name: "<7>"}}]}


@pytest.mark.parametrize("name", ["item_id", "id", "event_id", "request_id", "users_seen", "name", "event"])
def test_what_is_no_id_of_a_person_stays(name: str) -> None:
    assert redact({name: "user"}) == {name: "user"}


def test_all_that_stands_under_an_id_is_hidden() -> None:
    assert redact({"user": {"id": "ann", "tags": ["a", None, True]}}) == {
        "user": {"id": "<ANN>", "tags": ["<A>", None, True]}
    }


def test_parameters_of_the_ga4_export_say_their_name_in_a_field() -> None:
    session, other = {"key": "ga_session_id", "value": {"int_value": 7}}, {"key": "page", "value": {"int_value": 7}}
    assert redact({"event_params": [session, other]}) == {
        "event_params": [{"key": "ga_session_id", "value": {"int_value": "<7>"}}, other]
    }


def test_an_id_is_hidden_wherever_else_it_stands() -> None:
    found = redact({"user_id": "ann", "uid": "ann", "seen_by": ["ann", "anna"], "names": {"ann": 1}, "user": "user"})
    assert found == {
        "user_id": "<ANN>",
        "uid": "<ANN>",
        "seen_by": ["<ANN>", "anna"],
        "names": {"<ANN>": 1},
        "user": "<USER>",
    }


def test_so_is_the_key_of_the_record() -> None:
    payload = b'{"uid": "ann", "item_id": "mug-1"}'
    assert redact_json(payload, hide, key=b"ann") == b'{"uid": "<ANN>", "item_id": "mug-1"}'


def test_the_key_of_an_item_is_nobodys() -> None:
    topics = Topics()
    letter = decode(Record(topics.items, 0, 0, b"mug-1", b'{"item_id": "mug-1"}', 0), topics)
    assert isinstance(letter, DeadLetter)
    kept = redact_letter(letter, topics, hide)
    assert (kept.original_key(), kept.original()) == (b"mug-1", b'{"item_id": "mug-1"}')


@pytest.mark.parametrize(
    "payload", [b'{"user', b"", b"\xff\xfe{", b"[" * 100_000, b'{"user": "\\ud800"}', b"9" * 5_000]
)
def test_what_is_not_json_or_cannot_be_redacted_gives_none(payload: bytes) -> None:
    assert redact_json(payload, lambda found: found.encode().hex()) is None


def test_a_key_that_is_no_text_has_a_pseudonym_too() -> None:
    assert redact_key(b"ann", hide) == b"<ANN>"
    assert redact_key(b"\xff", hide) == b"<\\XFF>"


class TestError:
    @pytest.mark.parametrize(
        ("told", "kept"),
        [
            ("ts: must be a time, got 'ann; and more'; b: missing", "ts: must be a time, got ...; b: missing"),
            ('must be a time, got "it\'s ann"', "must be a time, got ..."),
            ("must be a time, got 'ann and cut o", "must be a time, got ..."),
            (r"got 'an\'n; ann'; b", "got ...; b"),
            ("must be a number, got [1, 'ann']; b", "must be a number, got ...; b"),
            ("ann-1 is not known to ann", "... is not known to ..."),
            ("key k-1 is another", "key ... is another"),
            ("annual: Field required at line 1", "annual: Field required at line 1"),
        ],
    )
    def test_repeats_no_value_of_the_record(self, told: str, kept: str) -> None:
        payload = b'{"user_id": "ann", "session_id": "ann-1"}'
        assert redact_error(told, key=b"k-1", payload=payload) == kept

    @given(
        st.text(st.characters(codec="utf-8"), min_size=4, max_size=40),
        st.sampled_from(["ts", "quantity", "price", "item_id", "scenario"]),
    )
    def test_nor_does_what_pydantic_says_of_an_id_in_the_wrong_field(self, found: str, field: str) -> None:
        topics = Topics()
        event = {
            "event_id": "e",
            "ts": 1,
            "user_id": found,
            "item_id": "i",
            field: [found] if field == "item_id" else found,
        }
        letter = decode(Record(topics.purchases, 0, 0, b"k", json.dumps(event).encode(), 0), topics)
        if isinstance(letter, DeadLetter):
            assert found not in redact_letter(letter, topics, lambda one: "p").error

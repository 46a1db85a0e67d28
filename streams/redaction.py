"""Refused records without the ids of people: what a dead letter keeps where the policy is to redact."""

import json
import re
from collections.abc import Callable, Set
from typing import Any

Pseudonymise = Callable[[str], str]

# What ids of users and sessions are called by us, GA4, Segment, RudderStack and Metarank; `_`, `-` and case aside.
ID_NAMES = frozenset(
    {
        *("userid", "user", "sessionid", "session", "gasessionid"),
        *("anonymousid", "previousid", "userpseudoid", "clientid", "appinstanceid", "deviceid"),
    }
)
# What an error repeats of a value follows this word: a text in quotes, or all up to the next problem.
_REPEATED = re.compile(r"""\bgot (?:b?(['"])(?:\\.|(?!\1).)*(?:\1|$)|[^;]*)""", re.DOTALL)


def redact_json(payload: bytes, pseudonymise: Pseudonymise, *, key: bytes | None = None) -> bytes | None:
    """Puts pseudonyms in place of ids, at any depth; None where the payload is no JSON.

    A text that is an id in one place is hidden in every other, whatever it is called there.

    Args:
        payload: Of the refused record.
        pseudonymise: Hides an id.
        key: Of the refused record, where it is an id too.

    >>> redact_json(b'{"userId": "ann", "context": {"sessionId": 7}, "item": "mug"}', lambda id: f"<{id}>")
    b'{"userId": "<ann>", "context": {"sessionId": "<7>"}, "item": "mug"}'
    """
    try:
        value = json.loads(payload)
        ids = {*_ids(value), (key or b"").decode(errors="replace")} - {""}
        return json.dumps(_redacted(value, pseudonymise, ids)).encode()
    except (ValueError, RecursionError):
        return None


def redact_key(key: bytes, pseudonymise: Pseudonymise) -> bytes:
    """The pseudonym of a record's key, which is a user's id."""
    return pseudonymise(key.decode(errors="backslashreplace")).encode()


def redact_error(error: str, *, key: bytes | None, payload: bytes | None) -> str:
    """Takes out of an error what it repeats of the record.

    Args:
        error: As it was told.
        key: Of the refused record.
        payload: Of the refused record.

    >>> redact_error("must be known, got 'ann; ben'; ann is refused", key=b"k", payload=b'{"user": "ann"}')
    'must be known, got ...; ... is refused'
    """
    text = _REPEATED.sub("got ...", error)
    ids = {*_ids_of(payload or b""), (key or b"").decode(errors="replace")} - {""}
    found = [one for one in ids if one in text]  # a payload may have a hundred thousand ids
    for repeated in sorted(found, key=len, reverse=True):  # one may be part of another
        text = re.sub(rf"(?<!\w){re.escape(repeated)}(?!\w)", "...", text)
    return text


def _ids_of(payload: bytes) -> list[str]:
    try:
        return _ids(json.loads(payload))
    except (ValueError, RecursionError):
        return []


def _ids(value: Any) -> list[str]:
    found: list[str] = []

    def note(one: str) -> str:
        found.append(one)
        return one

    _redacted(value, note, frozenset())
    return found


def _redacted(value: Any, pseudonymise: Pseudonymise, ids: Set[str]) -> Any:
    if isinstance(value, list):
        return [_redacted(one, pseudonymise, ids) for one in value]
    if isinstance(value, str) and value in ids:
        return pseudonymise(value)
    if not isinstance(value, dict):
        return value
    named = _named_by_a_field(value)
    result: dict[str, Any] = {}
    for name, part in value.items():
        if _is_id(name) or name == named:
            result[name] = _hidden(part, pseudonymise)
        else:
            result[pseudonymise(name) if name in ids else name] = _redacted(part, pseudonymise, ids)
    return result


def _hidden(value: Any, pseudonymise: Pseudonymise) -> Any:
    """Hides all that stands under the name of an id."""
    if isinstance(value, list):
        return [_hidden(one, pseudonymise) for one in value]
    if isinstance(value, dict):
        return {name: _hidden(part, pseudonymise) for name, part in value.items()}
    return value if value is None or isinstance(value, bool) else pseudonymise(str(value))


def _named_by_a_field(value: dict[str, Any]) -> str | None:
    """The field that holds an id by the word of another: ``{"key": "ga_session_id", "value": {"int_value": 7}}``."""
    return "value" if any(_is_id(value.get(field)) for field in ("key", "name")) else None


def _is_id(name: object) -> bool:
    return isinstance(name, str) and re.sub("[_-]", "", name).lower() in ID_NAMES

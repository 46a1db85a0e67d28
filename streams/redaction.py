"""Redaction of rejected records: personal ids in keys, payloads and error texts become pseudonyms."""

import json
import re
from collections.abc import Callable, Set
from typing import Any

Pseudonymise = Callable[[str], str]

# Names of user and session ids in our events, GA4, Segment, RudderStack and Metarank, without `_`, `-` and case.
ID_NAMES = frozenset(
    {
        *("userid", "user", "sessionid", "session", "gasessionid"),
        *("anonymousid", "previousid", "userpseudoid", "clientid", "appinstanceid", "deviceid"),
    }
)
# An error quotes a value after this word: a text in quotes, or everything up to the next problem.
_REPEATED = re.compile(r"""\bgot (?:b?(['"])(?:\\.|(?!\1).)*(?:\1|$)|[^;]*)""", re.DOTALL)


def redact_json(payload: bytes, pseudonymise: Pseudonymise, *, key: bytes | None = None) -> bytes | None:
    """Replace ids by pseudonyms at any depth; return None if the payload is no JSON.

    A text that is an id in one place is replaced in every other place, whatever its field is called.

    Args:
        payload: the value of the rejected record.
        pseudonymise: replaces an id by its pseudonym.
        key: the key of the rejected record, if it is an id too.

    >>> redact_json(b'{"userId": "ann", "context": {"sessionId": 7}, "item": "mug"}', lambda id: f"<{id}>")
    b'{"userId": "<ann>", "context": {"sessionId": "<7>"}, "item": "mug"}'
    """
    try:
        value = json.loads(payload)
        ids = {*_ids(value), (key or b"").decode(errors="replace")} - {""}
        return json.dumps(_redact(value, pseudonymise, ids)).encode()
    except (ValueError, RecursionError):
        return None


def redact_key(key: bytes, pseudonymise: Pseudonymise) -> bytes:
    """Return the pseudonym of a record's key, which is the id of a user."""
    return pseudonymise(key.decode(errors="backslashreplace")).encode()


def redact_error(error: str, *, key: bytes | None, payload: bytes | None) -> str:
    """Remove from an error text what it quotes of the record.

    Args:
        error: the text of the error.
        key: the key of the rejected record.
        payload: the value of the rejected record.

    >>> redact_error("must be known, got 'ann; ben'; ann is refused", key=b"k", payload=b'{"user": "ann"}')
    'must be known, got ...; ... is refused'
    """
    text = _REPEATED.sub("got ...", error)
    ids = {*_ids_of(payload or b""), (key or b"").decode(errors="replace")} - {""}
    quoted = [id_ for id_ in ids if id_ in text]  # a payload may have a hundred thousand ids
    for repeated in sorted(quoted, key=len, reverse=True):  # one id may be part of another
        text = re.sub(rf"(?<!\w){re.escape(repeated)}(?!\w)", "...", text)
    return text


def _ids_of(payload: bytes) -> list[str]:
    try:
        return _ids(json.loads(payload))
    except (ValueError, RecursionError):
        return []


def _ids(value: Any) -> list[str]:
    ids: list[str] = []

    def collect(id_: str) -> str:
        ids.append(id_)
        return id_

    _redact(value, collect, frozenset())
    return ids


def _redact(value: Any, pseudonymise: Pseudonymise, ids: Set[str]) -> Any:
    if isinstance(value, list):
        return [_redact(element, pseudonymise, ids) for element in value]
    if isinstance(value, str) and value in ids:
        return pseudonymise(value)
    if not isinstance(value, dict):
        return value
    value_field = _field_of_named_id(value)
    result: dict[str, Any] = {}
    for name, part in value.items():
        if _is_id(name) or name == value_field:
            result[name] = _replace_ids(part, pseudonymise)
        else:
            result[pseudonymise(name) if name in ids else name] = _redact(part, pseudonymise, ids)
    return result


def _replace_ids(value: Any, pseudonymise: Pseudonymise) -> Any:
    """Replace every value under the name of an id."""
    if isinstance(value, list):
        return [_replace_ids(element, pseudonymise) for element in value]
    if isinstance(value, dict):
        return {name: _replace_ids(part, pseudonymise) for name, part in value.items()}
    return value if value is None or isinstance(value, bool) else pseudonymise(str(value))


def _field_of_named_id(value: dict[str, Any]) -> str | None:
    """Return the field whose sibling names it an id: ``{"key": "ga_session_id", "value": {"int_value": 7}}``."""
    return "value" if any(_is_id(value.get(field)) for field in ("key", "name")) else None


def _is_id(name: object) -> bool:
    return isinstance(name, str) and re.sub("[_-]", "", name).lower() in ID_NAMES

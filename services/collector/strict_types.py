"""Strict JSON types: the collector refuses a text for a number, and 1 for `true`.

The event models convert such values, for producers on Kafka that have always sent them.
"""

from collections.abc import Iterator

from services.web.json_types import rfc_3339_only
from streams.events import Event

_NUMBERS = frozenset({int, float})


def require_json_types(fields: object, event: Event) -> None:
    """Refuse an event in which a field was converted from another JSON type.

    Args:
        fields: the parsed JSON as it was sent.
        event: the event that was validated from it.

    Raises:
        ValueError: a field has another JSON type than its schema, or the time is in no documented format.
    """
    values = dict(event)
    del values["ts"]  # it may be a number or a text
    if isinstance(fields, dict):
        rfc_3339_only(fields.get("ts"))
    mismatch = next(_mismatches(fields, values, ""), None)
    if mismatch is not None:
        raise ValueError(mismatch)


def _mismatches(sent: object, converted: object, path: str) -> Iterator[str]:
    """Yield a sentence for each value of another type than it was converted to."""
    if isinstance(converted, dict) and isinstance(sent, dict):
        members = [(name, sent[name], converted[name]) for name in converted if name in sent]
    elif isinstance(converted, list | tuple) and isinstance(sent, list):
        if _NUMBERS.issuperset(map(type, sent)):  # vectors are long
            return
        members = list(zip(range(len(sent)), sent, converted, strict=True))
    else:
        if _json_type(sent) != _json_type(converted):
            yield f"`{path[1:]}`: must be {_json_type(converted)} of JSON, got {_json_type(sent)}"
        return
    for name, value, target in members:
        if type(value) is not type(target) or isinstance(value, dict | list):  # equal scalar types cannot mismatch
            yield from _mismatches(value, target, f"{path}.{name}")


def _json_type(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case None:
            return "null"
    return "a list or an object"

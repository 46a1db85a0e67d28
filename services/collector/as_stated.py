"""What a client sends is of the JSON types that are stated: a text is no number, and 1 is no `true`.

The models take more, for producers on Kafka who have always written it so.
"""

from collections.abc import Iterator

from services.web.json_types import rfc_3339_only
from streams.events import Event

_NUMBERS = frozenset({int, float})


def require_as_stated(fields: object, event: Event) -> None:
    """Refuses an event of which something was taken for what it is not.

    Args:
        fields: As they were sent.
        event: What they were taken for.

    Raises:
        ValueError: A field is of another type of JSON, or the time is written in no way that is stated.
    """
    taken = dict(event)
    del taken["ts"]  # which is of two types
    if isinstance(fields, dict):
        rfc_3339_only(fields.get("ts"))
    fault = next(_mistaken(fields, taken, ""), None)
    if fault is not None:
        raise ValueError(fault)


def _mistaken(given: object, taken: object, path: str) -> Iterator[str]:
    """What is of another type than it was taken for, where it is, and what it must be."""
    if isinstance(taken, dict) and isinstance(given, dict):
        parts = [(name, given[name], taken[name]) for name in taken if name in given]
    elif isinstance(taken, list | tuple) and isinstance(given, list):
        if _NUMBERS.issuperset(map(type, given)):  # vectors are long
            return
        parts = list(zip(range(len(given)), given, taken, strict=True))
    else:
        if _json_type(given) != _json_type(taken):
            yield f"`{path[1:]}`: must be {_json_type(taken)} of JSON, got {_json_type(given)}"
        return
    for name, one, other in parts:
        if type(one) is not type(other) or isinstance(one, dict | list):  # of most parts no more need be asked
            yield from _mistaken(one, other, f"{path}.{name}")


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

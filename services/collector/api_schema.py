"""OpenAPI documentation of `POST /v1/events`, whose bodies the application validates event by event."""

from typing import Any

from services.web.problems import KEYS
from streams.events import json_schemas

CLICK = {"type": "click", "user_id": "ann", "item_id": "mug-1"}
PURCHASE = {
    "type": "purchase",
    "event_id": "order-7/1",
    "ts": "2026-01-31T09:00:00Z",
    "user_id": "ann",
    "item_id": "i1",
}

REFUSALS = KEYS | {
    403: "the key does not allow this call, or text/plain came from a page of no allowed origin",
    400: "not JSON, or gzip that is damaged or cut off",
    408: "the body did not arrive in time",
    413: "the body, as sent or decompressed, is larger than `max_body_bytes`",
    415: "the `Content-Type` is neither application/json nor text/plain, or the `Content-Encoding` is not gzip",
    422: "no event is valid, `errors` has the reason for each; or there are more than `max_batch_events`",
    429: "the spool is full: no event of the request was accepted; send it again after `Retry-After` seconds",
    503: "the disk fails, or too much is sent at once: no event of the request was accepted; send it again after "
    "`Retry-After` seconds",
}


def request_body(*, max_events: int) -> dict[str, Any]:
    """Return the documentation of a request body: one event of any kind, or a batch.

    Args:
        max_events: the most events of a batch.
    """
    event = {"title": "Event", "oneOf": [_event_schema(kind, schema) for kind, schema in json_schemas().items()]}
    events = {
        "type": "array",
        "minItems": 1,
        "maxItems": max_events,
        "contains": event,
        "items": {"anyOf": [event, {"title": "Invalid event", "description": "is rejected with a reason"}]},
    }
    batch = {
        "title": "Batch",
        "type": "object",
        "properties": {"events": events},
        "required": ["events"],
        "additionalProperties": False,
    }
    examples = {"one event": {"value": CLICK}, "a batch": {"value": {"events": [CLICK, PURCHASE]}}}
    return {
        "required": True,
        "description": "JSON. `Content-Encoding: gzip` is decompressed. `text/plain`, which `navigator.sendBeacon` "
        "sends, is read as JSON too if it comes from pages of `cors_origins`, of the collector's own origin, or "
        "from no browser.",
        "content": {"application/json": {"schema": {"anyOf": [event, batch]}, "examples": examples}},
    }


def _event_schema(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an event with its kind as a field; id and time are optional."""
    resolved = _without_refs(schema, schema.get("$defs", {}))
    properties = {"type": {"const": kind}, **resolved["properties"]}
    required = ["type", *(name for name in resolved["required"] if name not in ("event_id", "ts"))]
    return {**resolved, "properties": properties, "required": required}


def _without_refs(node: Any, definitions: dict[str, Any]) -> Any:
    """Replace references with their definitions: within an OpenAPI document they would point nowhere."""
    if isinstance(node, list):
        return [_without_refs(part, definitions) for part in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _without_refs(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {name: _without_refs(part, definitions) for name, part in node.items() if name != "$defs"}

"""Real events of the dialects, put together from the examples of their own documentation."""

import json
from copy import deepcopy
from typing import Any

from streams.dead_letters import DeadLetter
from streams.decode import ItemRemoved, decode
from streams.events import Event
from streams.record import Record
from streams.topics import Dialect, Topics

TOPICS = Topics(dialects={"of.ga4": "ga4", "of.segment": "segment", "of.metarank": "metarank"})
LOG_MS = 1_700_000_000_000  # when the log took the record

TEE: dict[str, Any] = {
    "item_id": "SKU_12345", "item_name": "Stan and Friends Tee", "affiliation": "Google Merchandise Store",
    "coupon": "SUMMER_FUN", "discount": 2.22, "index": 0, "item_brand": "Google", "item_category": "Apparel",
    "item_list_id": "related_products", "item_list_name": "Related Products", "price": 10.01, "quantity": 3,
}  # fmt: skip
PANTS = TEE | {"item_id": "SKU_12346", "item_name": "Google Grey Women's Tee", "index": 1, "price": 21.01}

# One row of the export as JSON: 64-bit integers are strings, what was not given is null or "(not set)".
GA4_ROW: dict[str, Any] = {
    "event_date": "20210131", "event_timestamp": "1612069510766593", "event_name": "view_item_list",
    "event_params": [
        {"key": "ga_session_id", "value": {"string_value": None, "int_value": "661084800", "double_value": None}},
        {"key": "page_location", "value": {"string_value": "https://shop.example/c/tees", "int_value": None}},
        {"key": "search_term", "value": {"string_value": "tee", "int_value": None}},
    ],
    "event_bundle_sequence_id": "6595101026", "user_id": None, "user_pseudo_id": "1026454.4271112504",
    "ecommerce": {"transaction_id": "(not set)", "total_item_quantity": None}, "platform": "WEB",
    "items": [
        {"item_id": "9195912", "item_name": "Womens Google Striped LS", "item_variant": " MD", "price": "16.0",
         "quantity": None, "item_list_name": "(not set)", "item_list_index": "4"},
        {"item_id": "9195913", "item_name": "Google Zip Hoodie", "price": "48.0", "quantity": None,
         "item_list_name": "(not set)", "item_list_index": "(not set)"},
    ],
}  # fmt: skip

GA4_REQUEST: dict[str, Any] = {
    "client_id": "123456.7654321", "user_id": "u-7", "timestamp_micros": 1713355200123456,
    "events": [
        {"name": "page_view", "params": {"page_title": "Thanks", "session_id": "123", "engagement_time_msec": 100}},
        {"name": "purchase", "params": {
            "currency": "USD", "transaction_id": "T_12345", "value": 72.05, "session_id": "123",
            "items": [TEE, PANTS | {"quantity": 2}]}},
    ],
}  # fmt: skip

GA4_EVENT: dict[str, Any] = {
    "name": "select_item", "client_id": "123456.7654321", "timestamp_micros": 1713355200123456,
    "params": {"item_list_id": "related_products", "item_list_name": "Related products", "items": [PANTS]},
}  # fmt: skip

_CALL: dict[str, Any] = {
    "anonymousId": "507f191e810c19729de860ea", "context": {"ip": "8.8.8.8", "library": {"name": "analytics.js"}},
    "integrations": {"All": True}, "messageId": "022bb90c-bbac-11e4-8dfc-aa07a5b093db",
    "receivedAt": "2015-12-10T04:08:31.909Z", "sentAt": "2015-12-10T04:08:31.581Z",
    "originalTimestamp": "2015-12-10T04:08:31.577Z", "timestamp": "2015-12-10T04:08:31.905Z",
    "type": "track", "userId": "97980cfea0067", "version": 2,
}  # fmt: skip
MONOPOLY: dict[str, Any] = {
    "product_id": "507f1f77bcf86cd799439011", "sku": "45790-32", "name": "Monopoly: 3rd Edition", "price": 19,
    "position": 1, "category": "Games", "url": "https://www.example.com/product/path",
}  # fmt: skip
UNO: dict[str, Any] = {
    "product_id": "505bd76785ebb509fc183733", "sku": "46493-32", "name": "Uno Card Game", "price": 3,
    "position": 2, "category": "Games",
}  # fmt: skip
SEGMENT_LIST = _CALL | {
    "event": "Product List Viewed",
    "properties": {"list_id": "hot_deals_1", "category": "Deals", "products": [MONOPOLY, UNO]},
}
SEGMENT_CLICK = _CALL | {
    "event": "Product Clicked",
    "properties": MONOPOLY | {"brand": "Hasbro", "variant": "200 pieces", "quantity": 1, "position": 3},
}
SEGMENT_ORDER = _CALL | {
    "event": "Order Completed",
    "properties": {
        "checkout_id": "fksdjfsdjfisjf9sdfjsd9f", "order_id": "50314b8e9bcf000000000000", "total": 27.5,
        "revenue": 25.0, "currency": "USD", "products": [MONOPOLY | {"quantity": 1}, UNO | {"quantity": 2}],
    },
}  # fmt: skip

METARANK_ITEM: dict[str, Any] = {
    "event": "item", "id": "81f46c34-a4bb-469c-8708-f8127cd67d27", "timestamp": "1599391467000", "item": "item1",
    "fields": [{"name": "title", "value": "You favourite cat"}, {"name": "color", "value": ["white", "black"]},
               {"name": "is_cute", "value": True}],
}  # fmt: skip
METARANK_USER: dict[str, Any] = {
    "event": "user", "id": "81f46c34-a4bb-469c-8708-f8127cd67d27", "timestamp": "1599391467000", "user": "user1",
    "fields": [{"name": "age", "value": 33}, {"name": "gender", "value": "m"}],
}  # fmt: skip
METARANK_RANKING: dict[str, Any] = {
    "event": "ranking", "id": "81f46c34-a4bb-469c-8708-f8127cd67d27", "timestamp": "1599391467000",
    "user": "user1", "session": "session1",
    "fields": [{"name": "query", "value": "cat"}, {"name": "source", "value": "search"}],
    "items": [{"id": "item3", "fields": [{"name": "relevancy", "value": 2.0}]}, {"id": "item1"}, {"id": "item2"}],
}  # fmt: skip
METARANK_INTERACTION: dict[str, Any] = {
    "event": "interaction", "id": "0f4c0036-04fb-4409-b2c6-7163a59f6b7d",
    "ranking": "81f46c34-a4bb-469c-8708-f8127cd67d27", "timestamp": "1599391467000", "user": "user1",
    "session": "session1", "type": "purchase", "item": "item1",
    "fields": [{"name": "count", "value": 2}, {"name": "shipping", "value": "DHL"}],
}  # fmt: skip

EXAMPLES: dict[Dialect, list[dict[str, Any]]] = {
    "ga4": [GA4_ROW, GA4_REQUEST, GA4_EVENT],
    "segment": [SEGMENT_LIST, SEGMENT_CLICK, SEGMENT_ORDER],
    "metarank": [METARANK_ITEM, METARANK_USER, METARANK_RANKING, METARANK_INTERACTION],
}


def record(dialect: Dialect, value: bytes | None, key: bytes | None = b"any") -> Record:
    return Record(f"of.{dialect}", 0, 5, key, value, LOG_MS)


def read(dialect: Dialect, said: object) -> list[Event | ItemRemoved | DeadLetter] | DeadLetter:
    """What `decode` makes of it."""
    return decode(record(dialect, json.dumps(said).encode()), TOPICS)


def changed(said: dict[str, Any], *path: str | int, to: Any) -> dict[str, Any]:
    """A copy with another value at a path, or, where that is ``...``, without it."""
    copy = deepcopy(said)
    inner: Any = copy
    for part in path[:-1]:
        inner = inner[part]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return copy

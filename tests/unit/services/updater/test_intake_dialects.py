"""The intake of records in other dialects: learnt, ignored or rejected, and each accounted for."""

import json
from collections import Counter
from itertools import count

from foreign_events import (
    GA4_REQUEST,
    LOG_MS,
    METARANK_INTERACTION,
    METARANK_ITEM,
    METARANK_RANKING,
    METARANK_USER,
    SEGMENT_ORDER,
    changed,
)
from tiny_model import tiny_encoder

from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.settings import LearnerSettings
from services.metrics.intake import EVENT_OUTCOMES
from services.settings import Settings
from services.updater.intake import Intake
from streams.dead_letters import DeadLetter
from streams.examples import Example, ShownList
from streams.join_store import JoinStore
from streams.privacy import Pseudonymiser
from streams.record import Record
from streams.topics import Topics

TOPICS = Topics(dialects={"of.ga4": "ga4", "of.segment": "segment", "of.metarank": "metarank"})


class Box:
    """An intake and what it gave."""

    def __init__(self) -> None:
        encoder = tiny_encoder()
        learner = Learner(encoder, Catalogue(PrefixCache(encoder, None)), LearnerSettings())
        self._intake = Intake(
            learner, Settings(topics=TOPICS), store=JoinStore(None), pseudonymise=Pseudonymiser(b"only for tests")
        )
        self._offset = count()
        self.learnt: list[Example] = []
        self.lists: list[ShownList] = []
        self.letters: list[DeadLetter] = []

    def take(self, topic: str, *said: object, log_ms: int = LOG_MS, key: bytes | None = None) -> None:
        values = [json.dumps(one).encode() for one in said]
        taken = self._intake.ingest(
            [Record(topic, 0, next(self._offset), key, value, log_ms) for value in values],
            now_ms=2 * LOG_MS,
            topic_ids={},
        )
        self.learnt += taken.examples
        self.lists += taken.lists
        self.letters += taken.letters

    def outcomes(self, topic: str) -> Counter[str]:
        counts = self._intake.accounts.totals()[topic]
        assert counts["in"] == sum(counts[outcome] for outcome in (*EVENT_OUTCOMES[1:], "pending"))
        return Counter(counts)


def test_what_metarank_showed_and_what_was_bought_of_it() -> None:
    box = Box()
    items = [METARANK_ITEM | {"id": f"of-{name}", "item": name} for name in ("item1", "item2", "item3")]
    box.take("of.metarank", *items, METARANK_USER, METARANK_RANKING, METARANK_INTERACTION, METARANK_INTERACTION)
    (bought,) = box.learnt
    assert (bought.kind, bought.item_id, bought.topic) == ("purchase", "item1", "of.metarank")
    assert bought.position == 1  # the impression's: an interaction says none
    hour_later = changed(METARANK_RANKING, "timestamp", to=1_599_391_467_000 + 3_600_000) | {"id": "later"}
    box.take("of.metarank", hour_later)
    (shown,) = box.lists
    assert shown.item_ids == ("item3", "item1", "item2")
    assert shown.clicked == (False, True, False)
    expected = {"in": 8, "learnt": 5, "ignored": 1, "duplicate": 1, "pending": 1}
    assert +box.outcomes("of.metarank") == Counter(expected)


def test_an_order_that_is_sent_again_counts_once_whoever_sends_it() -> None:
    box = Box()
    box.take("of.metarank", METARANK_ITEM | {"item": "22423"}, METARANK_ITEM | {"item": "85123A"})
    ga4 = {"name": "purchase", "client_id": "9.9", "event_timestamp": 1_764_500_000_000_000,
           "params": {"transaction_id": "T-9", "items": [{"item_id": "85123A"}, {"item_id": "85123A"}]}}  # fmt: skip
    segment = SEGMENT_ORDER | {"properties": {"order_id": "T-9", "products": [{"product_id": "85123A"}]}}
    metarank = METARANK_INTERACTION | {"item": "85123A", "fields": [{"name": "order_id", "value": "T-9"}]}
    box.take("of.ga4", ga4, ga4 | {"event_timestamp": 1_764_500_060_000_000, "client_id": "reloaded"})
    box.take("of.segment", segment, segment | {"messageId": "another", "timestamp": "2026-11-30T10:05:00Z"})
    box.take("of.metarank", metarank)
    own = {"ts": 1_764_500_000_000, "user_id": "ann", "item_id": "85123A", "order_id": "T-9"}
    box.take(TOPICS.purchases, own | {"event_id": "a"}, key=b"ann")
    assert [example.item_id for example in box.learnt] == ["85123A"]
    assert +box.outcomes("of.ga4") == Counter({"in": 4, "learnt": 1, "duplicate": 3})
    assert +box.outcomes("of.segment") == Counter({"in": 2, "duplicate": 2})
    others = [own | {"event_id": "b", "order_id": "T-10"}, own | {"event_id": "c", "item_id": "22423"}]
    box.take(TOPICS.purchases, *others, key=b"ann")
    assert [example.item_id for example in box.learnt] == ["85123A", "85123A", "22423"]


def test_an_order_without_an_id_counts_each_time() -> None:
    box = Box()
    box.take("of.metarank", METARANK_ITEM | {"item": "85123A"})
    said = {"name": "purchase", "client_id": "9.9", "params": {"transaction_id": "(not set)", "items": []}}
    said["params"] |= {"items": [{"item_id": "85123A"}]}  # type: ignore[operator]
    box.take("of.ga4", *(said | {"event_timestamp": 1_764_500_000_000_000 + place} for place in range(3)))
    assert len(box.learnt) == 3


def test_a_second_look_without_a_time_counts_and_the_same_record_again_does_not() -> None:
    box = Box()
    box.take("of.metarank", METARANK_ITEM | {"item": "85123A"})
    look = {"client_id": "111.222", "events": [{"name": "view_item", "params": {"items": [{"item_id": "85123A"}]}}]}
    box.take("of.ga4", look, look, log_ms=LOG_MS)
    box.take("of.ga4", look, log_ms=LOG_MS + 1_500)
    assert +box.outcomes("of.ga4") == Counter({"in": 3, "learnt": 3})
    timed = look | {"timestamp_micros": 1_764_500_000_000_000}
    box.take("of.ga4", timed, timed)
    assert +box.outcomes("of.ga4") == Counter({"in": 5, "learnt": 4, "duplicate": 1})


def test_a_bad_line_is_counted_as_one_dead_letter_beside_those_that_are_learnt() -> None:
    box = Box()
    box.take("of.metarank", METARANK_ITEM | {"item": "85123A"}, METARANK_ITEM | {"item": "22423"})
    items = [{"item_id": "85123A"}, {"item_id": "(not set)"}, {"item_id": "22423", "price": "12,50"}, {"quantity": -1}]
    order = {"name": "purchase", "client_id": "9.9", "event_timestamp": 1_764_500_000_000_000}
    box.take("of.ga4", order | {"params": {"transaction_id": "T-1", "items": items}})
    assert [example.item_id for example in box.learnt] == ["85123A", "22423"]
    assert +box.outcomes("of.ga4") == Counter({"in": 4, "learnt": 2, "dead_letter": 2})
    assert [letter.record_key() for letter in box.letters] == ["of.ga4/0/2/items.1", "of.ga4/0/2/items.3"]


def test_requests_and_orders_of_several_items_count_each_once() -> None:
    box = Box()
    names = ("SKU_12345", "SKU_12346", "507f1f77bcf86cd799439011", "505bd76785ebb509fc183733")
    box.take("of.metarank", *(METARANK_ITEM | {"item": name} for name in names))
    for _ in range(2):
        box.take("of.ga4", GA4_REQUEST, {"name": "page_view"}, {"name": "purchase"})
        box.take("of.segment", SEGMENT_ORDER)
    assert [example.item_id for example in box.learnt] == list(names)
    assert +box.outcomes("of.ga4") == Counter({"in": 8, "learnt": 2, "duplicate": 2, "ignored": 2, "dead_letter": 2})
    assert +box.outcomes("of.segment") == Counter({"in": 4, "learnt": 2, "duplicate": 2})

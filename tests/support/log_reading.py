"""A scorer's reader of the log and what it has read, without a model."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from services.metrics.scorer import ScorerMetrics
from services.scorer.announcements import Announcements
from services.scorer.live_items import LiveItems
from services.scorer.log_reader import LogReader
from services.scorer.shopper_state import ShopperState
from streams.connection import KafkaConnection
from streams.events import Click, Item
from streams.topics import Topics


class Reading:
    """A reader and what it has read."""

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        *,
        look_back_events: int = 10_000,
        pseudonymise: Callable[[str], str] = str,
    ) -> None:
        self.items = LiveItems()
        self.shoppers = ShopperState(self.items.rows, max_shoppers=1_000, pseudonymise=pseudonymise)
        self.announcements = Announcements("home", ScorerMetrics(CollectorRegistry()))
        self.reader = LogReader(
            connection,
            topics,
            look_back_events=look_back_events,
            items=self.items,
            shoppers=self.shoppers,
            announcements=self.announcements,
            pseudonymise=pseudonymise,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.reader.run)
        thread.start()
        try:
            yield
        finally:
            self.reader.stop()
            thread.join(30)
            assert not thread.is_alive()

    def seen(self, user_id: str) -> list[int]:
        return self.shoppers.context(user_id, None, 0, session=None)[0]


def until(holds: Callable[[], bool], *, timeout_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def item(item_id: str, **fields: str) -> Item:
    return Item.model_validate(
        {"event_id": f"e-{item_id}", "ts": 1, "item_id": item_id, "kind": "product", "title": "Mug", **fields}
    )


def click(number: int, user_id: str, item_id: str) -> Click:
    return Click(event_id=f"c{number}", ts=number, user_id=user_id, item_id=item_id)

"""The replayed shop: shoppers are shown what the scorers recommend, then buy what the data says."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from peft_adapters.ranking.shoppers import History, Shoppers
from services.lab.demo.quality import Judgement, Quality
from services.lab.demo.storefront import Answer, Storefront
from services.operate.replay.pacer import Pacer
from streams.events import Purchase
from streams.producer import EventProducer

JUDGED_PER_SECOND = 12.0
LEAD_SECONDS = 0.15  # time between a request and its purchase, so that publishing does not wait for the answer
# The shop waits for an updater that is further behind. A slow machine then shows a lower rate of publishing instead of
# a growing backlog, which the broker would cut at one megabyte per partition.
MOST_BEHIND_SECONDS = 2.5
WAIT_SECONDS = 0.05

Request = tuple[History, "Future[Answer | None]"]


class Shop:
    """Publishes purchases at a rate, and requests a recommendation before some of them.

    A recommendation is judged only if its answer arrived before its purchase was published, so that no scorer can have
    learnt the purchase that it is to predict.

    Args:
        purchases: the purchases in order.
        rows: row of each item in the model that is never updated.
        rate: purchases per second at most.
        finished: returns the number of purchases with a final outcome at the updater.
        storefront: the storefront that sends the requests.
        quality: the judge of the answers.
    """

    def __init__(
        self,
        purchases: Sequence[Purchase],
        *,
        rows: Mapping[str, int],
        rate: float,
        finished: Callable[[], int],
        storefront: Storefront,
        quality: Quality,
    ) -> None:
        self.published = 0
        self.waited_seconds = 0.0  # time spent waiting for the updater
        self.took_seconds = 0.0
        self.ts = purchases[0].ts  # epoch milliseconds, the time in the shop
        self._purchases = purchases
        self._rows = rows
        self._ids = {row: item_id for item_id, row in rows.items()}
        self._rate = rate
        self._judge_every = max(1, round(rate / JUDGED_PER_SECOND))
        self._lead = max(1, round(rate * LEAD_SECONDS))
        self._published_at: list[float] = []  # monotonic seconds
        self._finished = finished
        self._storefront = storefront
        self._quality = quality
        self._shoppers = Shoppers()

    def run(self, producer: EventProducer, stop: threading.Event) -> None:
        """Publish until everything is published and confirmed, or `stop` is set.

        Args:
            producer: the producer to publish with.
            stop: ends the run early when set.

        Raises:
            DeliveryError: the broker did not confirm an event.
        """
        pacer = Pacer(rate=self._rate, sleep=stop.wait)
        began = time.monotonic()
        for purchase, request in self._with_requests():
            pacer.wait(purchase.ts)
            self._wait_for_updater(stop)
            if stop.is_set():
                return
            if request is not None:
                self._judge(purchase, *request)
            producer.send(purchase)
            self._published_at.append(time.monotonic())
            self.published += 1
            self.ts = purchase.ts
        producer.flush()
        self.took_seconds = time.monotonic() - began

    def _wait_for_updater(self, stop: threading.Event) -> None:
        while self._behind_seconds() > MOST_BEHIND_SECONDS and not stop.wait(WAIT_SECONDS):
            self.waited_seconds += WAIT_SECONDS

    def _behind_seconds(self) -> float:
        """Return how long ago the oldest purchase was published that the updater has not finished."""
        finished = self._finished()
        return time.monotonic() - self._published_at[finished] if finished < self.published else 0.0

    def _with_requests(self) -> Iterator[tuple[Purchase, Request | None]]:
        """Yield the purchases in order; recommendation requests are sent some purchases before they are due."""
        ahead: deque[tuple[Purchase, Request | None]] = deque()
        for index, purchase in enumerate(self._purchases):
            request = self._ask(purchase) if index % self._judge_every == 0 else None
            self._shoppers.update(purchase.user_id, purchase.session_id, purchase.ts, self._rows[purchase.item_id])
            ahead.append((purchase, request))
            if len(ahead) > self._lead:
                yield ahead.popleft()
        yield from ahead

    def _ask(self, purchase: Purchase) -> Request:
        """Request a recommendation as a storefront would, with the user and the session so far."""
        history = self._shoppers.context(purchase.user_id, purchase.session_id, purchase.ts)
        session = [self._ids[item] for item, age in zip(history.items, history.ages, strict=True) if age == 0]
        shopper = {
            "user_id": purchase.user_id,
            "session_id": purchase.session_id,
            "session_items": session[::-1],  # oldest first
            "ts": purchase.ts,
        }
        return history, self._storefront.recommend(shopper)

    def _judge(self, purchase: Purchase, context: History, future: "Future[Answer | None]") -> None:
        """Wait for the answer, which must arrive before the purchase is published, and queue it to be judged."""
        answer = future.result()
        if answer is None:
            return
        rank = answer.items.index(purchase.item_id) + 1 if purchase.item_id in answer.items else None
        self._quality.add(Judgement(rank, context, self._rows[purchase.item_id]))

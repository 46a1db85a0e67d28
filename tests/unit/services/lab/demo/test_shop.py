"""The replayed shop: what it asks, when it asks, and that nothing is published before its question is answered."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, cast

import pytest

import services.lab.demo.shop
from services.lab.demo.quality import Quality
from services.lab.demo.shop import Shop
from services.lab.demo.storefront import Answer, Storefront
from streams.events import Purchase
from streams.producer import EventProducer

MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS


def purchase(number: int, item_id: str, *, user: str = "u1", session: str = "s1", ts: int = DAY_MS) -> Purchase:
    return Purchase(event_id=f"e{number}", ts=ts, user_id=user, session_id=session, item_id=item_id)


class RecordingStorefront:
    """Answers every question at once with the same items, and remembers what was asked."""

    def __init__(self, *items: str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.items = list(items)

    def recommend(self, shopper: Mapping[str, Any]) -> "Future[Answer | None]":
        self.asked.append(dict(shopper))
        answer: Future[Answer | None] = Future()
        self.respond(answer)
        return answer

    def respond(self, answer: "Future[Answer | None]") -> None:
        answer.set_result(Answer(1, self.items))


class FailingStorefront(RecordingStorefront):
    """Gets no answer to any question."""

    def respond(self, answer: "Future[Answer | None]") -> None:
        answer.set_result(None)


class SlowStorefront(RecordingStorefront):
    """Answers only when it is told to."""

    def __init__(self) -> None:
        super().__init__("b")
        self.open: list[Future[Answer | None]] = []

    def respond(self, answer: "Future[Answer | None]") -> None:
        self.open.append(answer)


class RecordingProducer:
    """Remembers what was published."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, event: Purchase) -> None:
        self.sent.append(event.event_id)

    def flush(self) -> None:
        self.sent.append("flush")


def shop_over(
    purchases: list[Purchase],
    storefront: RecordingStorefront,
    *,
    rate: float,
    finished: Callable[[], int] | None = None,
) -> tuple[Shop, RecordingProducer, Quality, list[int]]:
    """Return a shop, its producer, its quality, and the rows that the model never updated was asked to rank."""
    bought_rows: list[int] = []

    def never_updated(contexts: object, bought: Any) -> list[int]:
        bought_rows.extend(bought)
        return [21] * len(bought)

    quality = Quality(never_updated)
    rows = {item_id: row for row, item_id in enumerate("abcdefgh")}
    shop = Shop(
        purchases,
        rows=rows,
        rate=rate,
        finished=finished or (lambda: len(purchases)),
        storefront=cast(Storefront, storefront),
        quality=quality,
    )
    return shop, RecordingProducer(), quality, bought_rows


def run(shop: Shop, producer: RecordingProducer, stop: threading.Event | None = None) -> None:
    shop.run(cast(EventProducer, producer), stop or threading.Event())


def test_everything_is_published_in_order_and_confirmed() -> None:
    purchases = [purchase(number, "abc"[number % 3]) for number in range(50)]
    shop, producer, _, _ = shop_over(purchases, RecordingStorefront(), rate=1000.0)
    run(shop, producer)
    assert producer.sent == [*(f"e{number}" for number in range(50)), "flush"]
    assert shop.published == 50


def test_a_question_carries_the_session_up_to_the_purchase_and_nothing_after_it() -> None:
    purchases = [
        purchase(0, "a", session="s1"),
        purchase(1, "b", session="s1"),
        purchase(2, "c", user="u2", session="s2"),
        purchase(3, "d", session="s1"),
        purchase(4, "e", session="s3", ts=2 * DAY_MS),
    ]
    storefront = RecordingStorefront()
    shop, producer, quality, _ = shop_over(purchases, storefront, rate=12.0)  # every purchase is asked for
    contexts = []
    quality.add = lambda judgement: contexts.append(judgement.context)  # type: ignore[method-assign]
    run(shop, producer)
    assert [question["session_items"] for question in storefront.asked] == [[], ["a"], [], ["a", "b"], []]
    assert storefront.asked[3] == {
        "user_id": "u1",
        "session_id": "s1",
        "session_items": ["a", "b"],
        "ts": DAY_MS,
    }
    # The model never updated is given the history as well: rows newest first, and their ages in sessions.
    assert contexts[4][:2] == ([3, 1, 0], [1, 1, 1])


def test_the_answer_is_judged_against_what_was_then_bought() -> None:
    shop, producer, quality, bought_rows = shop_over(
        [purchase(0, "a"), purchase(1, "c"), purchase(2, "h")], RecordingStorefront("b", "c", "a"), rate=12.0
    )
    run(shop, producer)
    quality.judge_waiting()
    assert (quality.live.judged, quality.live.hits) == (3, 2)
    assert bought_rows == [0, 2, 7]


def test_a_question_that_failed_is_not_judged_and_its_purchase_is_published_all_the_same() -> None:
    shop, producer, quality, _ = shop_over([purchase(0, "a"), purchase(1, "b")], FailingStorefront(), rate=12.0)
    run(shop, producer)
    quality.judge_waiting()
    assert quality.live.judged == 0
    assert producer.sent == ["e0", "e1", "flush"]


def test_a_purchase_is_not_published_before_its_question_is_answered() -> None:
    storefront = SlowStorefront()
    shop, producer, quality, _ = shop_over([purchase(0, "a"), purchase(1, "b")], storefront, rate=12.0)
    thread = threading.Thread(target=run, args=(shop, producer))
    thread.start()
    thread.join(0.3)
    assert producer.sent == []
    storefront.open[0].set_result(Answer(1, ["b"]))
    while len(producer.sent) < 1:
        thread.join(0.01)
    thread.join(0.2)
    assert producer.sent == ["e0"]
    storefront.open[1].set_result(Answer(1, ["b"]))
    thread.join(5)
    assert producer.sent == ["e0", "e1", "flush"]
    quality.judge_waiting()
    assert (quality.live.judged, quality.live.hits) == (2, 1)


@pytest.mark.parametrize(("rate", "expected"), [(12.0, 100), (120.0, 10), (1200.0, 1)])
def test_the_faster_the_shop_the_smaller_the_share_that_is_asked_for(rate: float, expected: int) -> None:
    storefront = RecordingStorefront()
    shop, _, _, _ = shop_over([purchase(number, "a") for number in range(100)], storefront, rate=rate)
    assert len(list(shop._with_requests())) == 100
    assert len(storefront.asked) == expected


def test_it_waits_for_an_updater_that_is_far_behind_and_goes_on_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.lab.demo.shop, "MOST_BEHIND_SECONDS", 0.2)
    finished, stop = [0], threading.Event()
    purchases = [purchase(number, "a") for number in range(1_000)]
    shop, producer, _, _ = shop_over(purchases, RecordingStorefront(), rate=200.0, finished=lambda: finished[0])
    thread = threading.Thread(target=run, args=(shop, producer, stop))
    thread.start()
    thread.join(1.0)
    ahead = shop.published
    assert 1 < ahead < 80  # about 0.2 s of 200 a second, and not 1 s
    thread.join(0.3)
    assert shop.published == ahead
    assert shop.waited_seconds > 0.5
    finished[0] = ahead
    thread.join(0.5)
    assert shop.published > ahead
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_told_to_stop_it_publishes_no_more() -> None:
    stop = threading.Event()
    stop.set()
    shop, producer, _, _ = shop_over([purchase(0, "a"), purchase(1, "b")], RecordingStorefront(), rate=12.0)
    run(shop, producer, stop)
    assert producer.sent == []

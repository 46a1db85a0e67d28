"""A storefront: sends requests to the scorers in turn, and counts the answers."""

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from peft_adapters.registry.internal_http import internal_client

RECOMMEND_ROUTE = "/v1/recommend"
RANK_ROUTE = "/v1/rank"
SHOWN_ITEMS = 20
RANK_CANDIDATES = 100
RANKS_PER_SECOND = 3.0
TIMEOUT_SECONDS = 10.0
THREADS = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a scorer.

    Attributes:
        version: version of the adapter that answered.
        items: item ids, best first.
    """

    version: int
    items: list[str]


@dataclass(slots=True)
class ScorerTraffic:
    """The answers of one scorer.

    Attributes:
        answered: number of requests answered.
        version: version of the newest adapter that answered.
        versions: versions of all adapters that answered.
    """

    answered: int = 0
    version: int = 0
    versions: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Traffic:
    """The requests of the storefront by outcome.

    Attributes:
        scorers: answers by scorer.
        failed: number of requests without a valid answer.
        first_failure: description of the first failure.
        rank_seconds: duration of each `/v1/rank`, at the client.
    """

    scorers: list[ScorerTraffic]
    failed: int = 0
    first_failure: str = ""
    rank_seconds: list[float] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Return the number of requests that were answered or failed."""
        return self.failed + sum(scorer.answered for scorer in self.scorers)


class Storefront:
    """Sends requests to the scorers in turn, from a few threads.

    Args:
        urls: URLs of the scorers.
        answered: called with the version and the time (epoch seconds) of each answer.
    """

    def __init__(self, urls: Sequence[str], *, answered: Callable[[int, float], None]) -> None:
        self.traffic = Traffic([ScorerTraffic() for _ in urls])
        self._urls = list(urls)
        self._answered = answered
        self._lock = threading.Lock()
        self._turn = itertools.cycle(range(len(urls)))
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="storefront")
        # Idle connections expire before a server would close them during a request.
        self._client = internal_client(timeout=TIMEOUT_SECONDS, limits=httpx.Limits(keepalive_expiry=2.0))

    def recommend(self, shopper: Mapping[str, Any]) -> "Future[Answer | None]":
        """Request the 20 best items of the catalogue.

        Args:
            shopper: `user_id`, `session_id`, `session_items` and `ts` of the request.
        """
        return self._pool.submit(self._ask, RECOMMEND_ROUTE, {**shopper, "k": SHOWN_ITEMS})

    def rank(self, shopper: Mapping[str, Any], candidates: Sequence[str]) -> "Future[Answer | None]":
        """Request the order of some items.

        Args:
            shopper: the shopper's fields of the request, as for `recommend`.
            candidates: ids of the items to order.
        """
        return self._pool.submit(self._ask, RANK_ROUTE, {**shopper, "candidates": list(candidates)})

    def close(self) -> None:
        """Wait for the requests under way, and close the connections."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _ask(self, route: str, body: dict[str, Any]) -> Answer | None:
        """Send a request, and return None if it fails."""
        scorer = next(self._turn)
        began = time.perf_counter()
        try:
            response = self._client.post(self._urls[scorer] + route, json=body)
            seconds, at_seconds = time.perf_counter() - began, time.time()
            answer = _answer(response)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            self._count_failure(f"scorer {scorer + 1} {route}: {type(error).__name__} {error}")
            return None
        self._count(scorer, answer, seconds if route == RANK_ROUTE else None)
        self._answered(answer.version, at_seconds)
        return answer

    def _count(self, scorer: int, answer: Answer, rank_seconds: float | None) -> None:
        with self._lock:
            traffic = self.traffic.scorers[scorer]
            traffic.answered += 1
            traffic.version = max(traffic.version, answer.version)  # answers may overtake each other on the way
            traffic.versions.add(answer.version)
            if rank_seconds is not None:
                self.traffic.rank_seconds.append(rank_seconds)

    def _count_failure(self, problem: str) -> None:
        with self._lock:
            self.traffic.failed += 1
            self.traffic.first_failure = self.traffic.first_failure or problem


def _answer(response: httpx.Response) -> Answer:
    response.raise_for_status()
    body = response.json()
    return Answer(int(body["adapter_version"]), [item["item_id"] for item in body["items"]])


def browse(
    storefront: Storefront,
    *,
    users: Sequence[str],
    item_ids: Sequence[str],
    ts: Callable[[], int],
    stop: threading.Event,
) -> None:
    """Request the order of random items for random users, a few times per second, until `stop` is set.

    Args:
        storefront: the storefront that sends the requests.
        users: ids of the users.
        item_ids: ids of the items.
        ts: returns the time in the shop, epoch milliseconds.
        stop: ends the browsing when set.
    """
    chance = np.random.default_rng(0)
    count = min(RANK_CANDIDATES, len(item_ids))
    while not stop.wait(1 / RANKS_PER_SECOND):
        candidates = [item_ids[row] for row in chance.choice(len(item_ids), size=count, replace=False)]
        storefront.rank({"user_id": users[int(chance.integers(len(users)))], "ts": ts()}, candidates)

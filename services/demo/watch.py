"""Draws the demo's moments together from everything that counts."""

import time
from contextlib import suppress

import httpx

from services.demo.accounts import Accounts, read_accounts
from services.demo.freshness import Freshness, percentile
from services.demo.quality import Quality
from services.demo.shop import Shop
from services.demo.stage import Stage
from services.demo.storefront import Storefront
from services.demo.view import Moment, ScorerNow

ACCOUNTS_EVERY_SECONDS = 1.0
RATE_OVER_SECONDS = 2.0
RECENT_SECONDS = 10.0  # over which the freshness shown is taken


class Watch:
    """Looks at everything, again and again.

    Args:
        up: The processes.
        shop: What is published.
        storefront: What is asked.
        freshness: How fresh the answers are.
        quality: How good they are.
        events_total: Events that will be published.
    """

    def __init__(
        self,
        up: Stage,
        *,
        shop: Shop,
        storefront: Storefront,
        freshness: Freshness,
        quality: Quality,
        events_total: int,
    ) -> None:
        self.accounts = Accounts()
        self._up, self._shop, self._storefront = up, shop, storefront
        self._freshness, self._quality = freshness, quality
        self._events_total = events_total
        self._began = time.monotonic()
        self._accounts_due = 0.0
        self._rate_since = (self._began, 0)  # (when, events published by then)
        self._rate = 0.0

    def look(self, doing: str) -> Moment:
        """Checks that all processes run, judges what came in, and gives the moment.

        Args:
            doing: What is going on, in a word.

        Raises:
            DemoError: A process has ended.
        """
        self._up.check()
        self._quality.settle()
        now = time.monotonic()
        if now >= self._accounts_due:
            self._accounts_due = now + ACCOUNTS_EVERY_SECONDS
            self.refresh_accounts()
        return self._moment(doing, now)

    def refresh_accounts(self) -> None:
        """Asks the updater; when it is too busy to answer, the accounts of before stand."""
        with suppress(httpx.HTTPError):
            self.accounts = read_accounts(self._up.metrics_url, self._up.settings.topics)

    def _moment(self, doing: str, now: float) -> Moment:
        traffic, published = self._storefront.traffic, self._shop.published
        recent = self._freshness.seconds(newest=max(1, round(self._events_per_second(now, published) * RECENT_SECONDS)))
        rank_ms = [1000 * seconds for seconds in list(traffic.rank_seconds)]
        return Moment(
            doing=doing,
            elapsed_seconds=now - self._began,
            events_total=self._events_total,
            published=published,
            events_per_second=self._rate,
            learnt=self.accounts.learnt,
            adapters_published=self.accounts.adapters_published,
            scorers=[
                ScorerNow(
                    name=f"scorer {number}",
                    version=scorer.version,
                    versions_served=len(scorer.versions),
                    answered=scorer.answered,
                )
                for number, scorer in enumerate(traffic.scorers, start=1)
            ],
            freshness_p50_seconds=percentile(recent, 50),
            freshness_p95_seconds=percentile(recent, 95),
            hr20_live=self._quality.live.hr20,
            hr20_never_updated=self._quality.never_updated.hr20,
            judged=self._quality.live.judged,
            requests=traffic.total - traffic.failed,
            failed=traffic.failed,
            rank_p50_ms=percentile(rank_ms, 50),
            rank_p99_ms=percentile(rank_ms, 99),
        )

    def _events_per_second(self, now: float, published: int) -> float:
        """The pace of the last few seconds."""
        since, before = self._rate_since
        if now - since >= RATE_OVER_SECONDS:
            self._rate = (published - before) / (now - since)
            self._rate_since = (now, published)
        return self._rate

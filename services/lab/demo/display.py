"""Display of the demo's state, collected from everything that counts."""

import time

from services.lab.demo.accounts import AccountsPoller
from services.lab.demo.deployment import DemoDeployment
from services.lab.demo.freshness import Freshness, percentile
from services.lab.demo.quality import Quality
from services.lab.demo.shop import Shop
from services.lab.demo.storefront import Storefront
from services.lab.demo.view import ScorerSnapshot, Snapshot

RATE_OVER_SECONDS = 2.0
RECENT_SECONDS = 10.0  # window of the freshness shown


class DemoDisplay:
    """Collects snapshots of the running demo.

    Args:
        up: the deployment of the demo.
        accounts: the updater's account of events.
        shop: the shop that publishes.
        storefront: the storefront that sends requests.
        freshness: the freshness of the answers.
        quality: the quality of the answers.
        events_total: number of events that will be published.
    """

    def __init__(
        self,
        up: DemoDeployment,
        *,
        accounts: AccountsPoller,
        shop: Shop,
        storefront: Storefront,
        freshness: Freshness,
        quality: Quality,
        events_total: int,
    ) -> None:
        self._up, self._accounts, self._shop, self._storefront = up, accounts, shop, storefront
        self._freshness, self._quality = freshness, quality
        self._events_total = events_total
        self._began = time.monotonic()
        self._rate_since = (self._began, 0)  # (monotonic seconds, events published by then)
        self._rate = 0.0

    def update(self, doing: str) -> Snapshot:
        """Check that all processes run, judge new answers, and return a snapshot.

        Args:
            doing: the current phase, in a few words.

        Raises:
            DemoError: a process has ended.
        """
        self._up.check()
        self._quality.judge_waiting()
        self._accounts.refresh()
        return self._snapshot(doing, time.monotonic())

    def _snapshot(self, doing: str, now: float) -> Snapshot:
        traffic, published = self._storefront.traffic, self._shop.published
        recent = self._freshness.seconds(newest=max(1, round(self._events_per_second(now, published) * RECENT_SECONDS)))
        rank_ms = [1000 * seconds for seconds in list(traffic.rank_seconds)]
        return Snapshot(
            doing=doing,
            elapsed_seconds=now - self._began,
            events_total=self._events_total,
            published=published,
            events_per_second=self._rate,
            learnt=self._accounts.latest.learnt,
            adapters_published=self._accounts.latest.adapters_published,
            scorers=[
                ScorerSnapshot(
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
        """Return the rate over the last few seconds."""
        since, before = self._rate_since
        if now - since >= RATE_OVER_SECONDS:
            self._rate = (published - before) / (now - since)
            self._rate_since = (now, published)
        return self._rate

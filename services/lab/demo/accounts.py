"""Account of every event by outcome, read from the updater's metrics page."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from peft_adapters.registry import internal_http
from services.metrics.intake import EVENT_OUTCOMES
from streams.topics import Topics

TIMEOUT_SECONDS = 5.0
FINAL_OUTCOMES = tuple(outcome for outcome in EVENT_OUTCOMES if outcome != "in")


@dataclass(frozen=True, slots=True)
class Accounts:
    """Events of shoppers by outcome, without the catalogue's.

    Attributes:
        taken_in: events read from the log.
        learnt: events learnt from.
        dead_letters: events refused as invalid.
        duplicates: events dropped as duplicates.
        expired: events whose item never came.
        left_out: events in quarantine, forgotten or ignored.
        pending: events that wait for their outcome.
        adapters_published: adapters that passed the gate.
        balanced: whether ``in`` is the sum of all other outcomes and of pending events, in every topic.
    """

    taken_in: int = 0
    learnt: int = 0
    dead_letters: int = 0
    duplicates: int = 0
    expired: int = 0
    left_out: int = 0
    pending: int = 0
    adapters_published: int = 0
    balanced: bool = True

    @property
    def finished(self) -> int:
        """Return the number of events with a final outcome."""
        return self.learnt + self.dead_letters + self.duplicates + self.expired + self.left_out


class AccountsPoller:
    """A poller of the updater's metrics page; `latest` holds the newest accounts.

    Args:
        metrics_url: URL of the updater's metrics page.
        topics: the names of the topics.
    """

    def __init__(self, metrics_url: str, topics: Topics) -> None:
        self.latest = Accounts()
        self._metrics_url, self._topics = metrics_url, topics

    def refresh(self) -> None:
        """Poll the updater; if it is too busy to answer, the accounts stay as they are."""
        with suppress(httpx.HTTPError):
            page = internal_http.get(self._metrics_url, timeout=TIMEOUT_SECONDS).raise_for_status().text
            self.latest = parse_accounts(page, self._topics)


def parse_accounts(text: str, topics: Topics) -> Accounts:
    """Return the accounts in a metrics page.

    Args:
        text: the page, in the Prometheus text format.
        topics: the names of the topics.
    """
    events: Counter[tuple[str, str]] = Counter()  # (topic, outcome)
    published = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "headwater_events_total":
                events[sample.labels["topic"], sample.labels["outcome"]] += int(sample.value)
            elif sample.name == "headwater_events_pending":
                events[sample.labels["topic"], "pending"] += int(sample.value)
            elif sample.name == "headwater_adapters_total" and sample.labels["outcome"] == "published":
                published = int(sample.value)
    shoppers = (topics.impressions, topics.clicks, topics.purchases)

    def total(outcome: str) -> int:
        return sum(events[topic, outcome] for topic in shoppers)

    return Accounts(
        taken_in=total("in"),
        learnt=total("learnt"),
        dead_letters=total("dead_letter"),
        duplicates=total("duplicate"),
        expired=total("expired"),
        left_out=total("ignored") + total("forgotten") + total("quarantined"),
        pending=total("pending"),
        adapters_published=published,
        balanced=all(
            events[topic, "in"] == sum(events[topic, outcome] for outcome in (*FINAL_OUTCOMES, "pending"))
            for topic in {topic for topic, _ in events}
        ),
    )

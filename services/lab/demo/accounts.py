"""What became of every event, read from the updater's own metrics page."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from peft_adapters.registry import internal_http
from services.metrics.intake import EVENT_OUTCOMES
from streams.topics import Topics

TIMEOUT_SECONDS = 5.0
SETTLED = tuple(outcome for outcome in EVENT_OUTCOMES if outcome != "in")


@dataclass(frozen=True, slots=True)
class Accounts:
    """Events of shoppers (the catalogue aside) by what became of them.

    Attributes:
        taken_in: Events read.
        learnt: Events learnt from.
        dead_letters: Events refused.
        duplicates: Events dropped as seen before.
        expired: Events whose item never came.
        left_out: Events in quarantine, forgotten, or that say nothing.
        pending: Events not yet settled.
        adapters_published: Adapters that passed the gate.
        balanced: Whether ``in`` is the sum of all other outcomes and of what is pending, the catalogue's included.
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
    def settled(self) -> int:
        """Events that nothing more is to be done about."""
        return self.learnt + self.dead_letters + self.duplicates + self.expired + self.left_out


class Books:
    """The newest accounts of an updater.

    Args:
        metrics_url: Its metrics page.
        topics: The names of the topics.
    """

    def __init__(self, metrics_url: str, topics: Topics) -> None:
        self.now = Accounts()
        self._metrics_url, self._topics = metrics_url, topics

    def refresh(self) -> None:
        """Asks the updater; when it is too busy to answer, the accounts of before stand."""
        with suppress(httpx.HTTPError):
            page = internal_http.get(self._metrics_url, timeout=TIMEOUT_SECONDS).raise_for_status().text
            self.now = parse_accounts(page, self._topics)


def parse_accounts(text: str, topics: Topics) -> Accounts:
    """Reads a metrics page.

    Args:
        text: In the Prometheus text format.
        topics: The names of the topics.
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
            events[topic, "in"] == sum(events[topic, outcome] for outcome in (*SETTLED, "pending"))
            for topic in {topic for topic, _ in events}
        ),
    )

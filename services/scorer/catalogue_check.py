"""Checks that the catalogue topics keep every item, and that the catalogue covers most of the adapter's items."""

import threading

import structlog

from peft_adapters.serving.served_model import ServedModel
from streams.connection import KafkaConnection
from streams.errors import HeadwaterStreamError
from streams.topic_check import catalogue_problems
from streams.topics import Topics

CHECK_SECONDS = 60.0
FAR_SMALLER = 0.5  # of the adapter's items

log = structlog.get_logger(__name__)


class CatalogueCheck:
    """Checks the configuration of the catalogue topics at the start and once a minute.

    Without the right to read the configuration, or while Kafka is away, the last result stays.

    Args:
        connection: the connection to Kafka.
        topics: the names of the topics.

    Attributes:
        problem: the problem found last; None if there was none.
    """

    def __init__(self, connection: KafkaConnection, topics: Topics) -> None:
        self.problem: str | None = None
        self._connection, self._topics = connection, topics
        self._stop = threading.Event()

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Check until stopped."""
        while not self._stop.is_set():
            self._check()
            self._stop.wait(CHECK_SECONDS)

    def _check(self) -> None:
        try:
            problems = catalogue_problems(self._connection, self._topics)
        except HeadwaterStreamError as error:
            log.debug("catalogue_topics_not_checked", problem=str(error))
            return
        problem = "; ".join(problems) or None
        if problem is not None and problem != self.problem:
            log.warning("catalogue_topic_loses_items", problem=problem)
        self.problem = problem


def far_smaller(model: ServedModel) -> str | None:
    """Return a warning if the catalogue lacks most items that the adapter has learnt; None if it does not.

    Args:
        model: the served model, built over the catalogue.
    """
    learnt = len(model.state.item_ids)
    present = int(model.has_text[:learnt].sum())
    if present >= FAR_SMALLER * learnt:
        return None
    return (
        f"the catalogue holds {present:,} of the {learnt:,} items that the adapter has learnt, and only those can be "
        "ranked; publish the items again, and run `headwater topics check`"
    )

"""Checks of the catalogue: that its topics keep every item, and that it is not far smaller than the adapter's."""

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
    """Looks at the configuration of the catalogue topics, at the start and once a minute.

    Without the right to read the configuration, or while Kafka is away, nothing new is known.

    Args:
        connection: Which Kafka.
        topics: The names of the topics.

    Attributes:
        problem: What was last found wrong, None if nothing was.
    """

    def __init__(self, connection: KafkaConnection, topics: Topics) -> None:
        self.problem: str | None = None
        self._connection, self._topics = connection, topics
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have `run` return soon."""
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
    """Say so if the catalogue lacks most items that the adapter has learnt; None if it does not.

    Args:
        model: The model that is served, built over the catalogue.
    """
    learnt = len(model.state.item_ids)
    present = int(model.has_text[:learnt].sum())
    if present >= FAR_SMALLER * learnt:
        return None
    return (
        f"the catalogue holds {present:,} of the {learnt:,} items that the adapter has learnt, and only those can be "
        "ranked; publish the items again, and run `headwater topics check`"
    )

"""Encoding of items that arrived or changed into the worker's catalogue."""

import sqlite3
import threading

import structlog

from peft_adapters.ranking.catalogue import Catalogue
from services.metrics.scorer import ScorerMetrics
from services.scorer.live_items import LiveItems

log = structlog.get_logger(__name__)

ITEMS_CHUNK = 128  # texts encoded at a time: another process of this host may have done the next ones meanwhile
ITEMS_A_ROUND = 1_024  # so that an adapter never waits long for a catalogue that changes as a whole


class CatalogueEncoder:
    """Copies changes of the live catalogue to the catalogue that models are built over.

    Args:
        items: the live catalogue.
        catalogue: the catalogue of the worker's thread, in the same order as `items`.
        metrics: shows the size of the catalogue.
        interrupt: ends a round early when set.

    Attributes:
        changes: the number of items encoded since the start, repeats included.
    """

    def __init__(
        self, items: LiveItems, catalogue: Catalogue, metrics: ScorerMetrics, interrupt: threading.Event
    ) -> None:
        self.changes = 0
        self._items, self._catalogue, self._metrics, self._interrupt = items, catalogue, metrics, interrupt

    def encode_all(self) -> None:
        """Encode all items that are there."""
        self.encode(len(self._items))

    def encode(self, limit: int = ITEMS_A_ROUND) -> None:
        """Encode items that arrived or changed, in order of arrival.

        Args:
            limit: the number of items after which the round ends.
        """
        self._metrics.show_catalogue(self._items.present)
        end = self.changes + limit
        while self.changes < end and not self._interrupt.is_set():
            items = self._items.take_changes(ITEMS_CHUNK)
            if not items:
                return
            try:
                self._catalogue.upsert(items)
            except sqlite3.Error as error:  # the disk of the cache; the next round tries the same items again
                self._items.return_changes(items)
                log.warning("items_not_encoded", problem=str(error), items=len(items))
                return
            self.changes += len(items)

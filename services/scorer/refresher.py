"""Periodic refresh of an index in a thread of its own, with a cap on its share of processor time."""

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

CHECK_SECONDS = 0.25
_REST_FACTOR = 10  # an index that took a second is not refreshed again within ten


class Refresher:
    """Calls a refresh function until stopped.

    Args:
        name: the name of the index, for the log.
        refresh: a function that rebuilds the index if needed.
    """

    def __init__(self, name: str, refresh: Callable[[], None]) -> None:
        self._name, self._refresh = name, refresh
        self._stop = threading.Event()

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Refresh until stopped."""
        pause_seconds = CHECK_SECONDS
        while not self._stop.wait(pause_seconds):
            began = time.perf_counter()
            try:
                self._refresh()
            except Exception as error:  # the index built before stays in use
                log.error("index_not_made", index=self._name, problem=str(error), exc_info=error)
            pause_seconds = max(CHECK_SECONDS, _REST_FACTOR * (time.perf_counter() - began))

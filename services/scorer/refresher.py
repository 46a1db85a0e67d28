"""Keeps something up with what is served, in a thread of its own, and lets the rest of the process have its time."""

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.25
_REST = 10  # what took a second to make is not made again within ten


class Refresher:
    """Calls a function again and again.

    Args:
        name: Of what is kept, for the log.
        refresh: Makes it anew if that is needed.
    """

    def __init__(self, name: str, refresh: Callable[[], None]) -> None:
        self._name, self._refresh = name, refresh
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Go on until stopped."""
        pause_seconds = LOOK_SECONDS
        while not self._stop.wait(pause_seconds):
            began = time.perf_counter()
            try:
                self._refresh()
            except Exception as error:  # what was made before goes on to be used
                log.error("index_not_made", index=self._name, problem=str(error), exc_info=error)
            pause_seconds = max(LOOK_SECONDS, _REST * (time.perf_counter() - began))

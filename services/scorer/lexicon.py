"""Keeps the index of words up with the items, in a thread of its own."""

import threading
import time
from collections.abc import Callable

import structlog

from peft_adapters.lexical import LexicalIndex
from peft_adapters.serving import ServedModel

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.25
_REST = 10  # an index that took a second to make is not made again within ten


class Lexicon:
    """Indexes the words of the items that the served model has texts of.

    Args:
        served: Gives the model that is served; None before there is one.

    Attributes:
        words: The newest index, by rows of the worker's catalogue; None before the first is made.
    """

    def __init__(self, served: Callable[[], ServedModel | None]) -> None:
        self.words: LexicalIndex | None = None
        self._served = served
        self._seen: ServedModel | None = None
        self._texts: list[str] | None = None  # [rows of the worker's catalogue] that the index was made from
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Index what is new until stopped."""
        pause_seconds = LOOK_SECONDS
        while not self._stop.wait(pause_seconds):
            began = time.perf_counter()
            try:
                self.refresh()
            except Exception as error:  # queries go on to be answered from the index before
                log.error("words_not_indexed", problem=str(error), exc_info=error)
            pause_seconds = max(LOOK_SECONDS, _REST * (time.perf_counter() - began))

    def refresh(self) -> None:
        """Make the index anew if the texts of the served model's items are others than before."""
        model = self._served()
        if model is None or model is self._seen:
            return
        self._seen = model
        texts = [""] * len(model.row_of)
        for row, text in zip(model.catalogue_rows.tolist(), model.texts, strict=True):
            if text is not None:
                texts[row] = text
        if texts != self._texts:
            self.words, self._texts = LexicalIndex(texts), texts

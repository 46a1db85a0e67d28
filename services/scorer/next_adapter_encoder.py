"""Text vectors of adapters that are announced to come, made between two versions: their swap takes no longer then."""

import structlog

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import HeadwaterModelError
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.next_adapter_vectors import NextAdapterVectors
from peft_adapters.serving.model_builder import start_next_adapter_vectors
from peft_adapters.serving.served_model import ServedModel

log = structlog.get_logger(__name__)

TEXTS_A_ROUND = 64  # some hundredths of a second: an adapter that is announced meanwhile waits no longer


class NextAdapterEncoder:
    """Makes vectors ahead, for each scenario those of the adapter that its newest version announces.

    Args:
        encoder: Of the worker's thread.
        catalogue: Likewise.
    """

    def __init__(self, encoder: Encoder, catalogue: Catalogue) -> None:
        self._encoder, self._catalogue = encoder, catalogue
        self._coming: dict[str, NextAdapterVectors] = {}

    @property
    def is_behind(self) -> bool:
        """Whether there are vectors left to make."""
        return any(len(one.texts) < len(self._catalogue) for one in self._coming.values())

    def of(self, scenario: str) -> NextAdapterVectors | None:
        """What is made ahead for a scenario."""
        return self._coming.get(scenario)

    def follow(self, scenario: str, model: ServedModel) -> None:
        """Turn to what a version announces, once it is served."""
        try:
            coming = start_next_adapter_vectors(model, self._coming.get(scenario), self._encoder)
        except HeadwaterModelError as error:  # the version that is to bring it will be refused, and says so
            log.warning("adapter_ahead_not_usable", scenario=scenario, problem=str(error))
            coming = None
        self.drop(scenario)
        if coming is not None:
            self._coming[scenario] = coming

    def drop(self, scenario: str) -> None:
        """Make nothing more for a scenario."""
        self._coming.pop(scenario, None)

    def work(self) -> None:
        """Make a few vectors for each scenario, if any are left to make."""
        for scenario, one in list(self._coming.items()):
            try:
                one.advance(self._catalogue, TEXTS_A_ROUND)
            except (
                Exception
            ) as error:  # such as a full disk: the version that brings the adapter tries again, and tells
                log.warning("texts_not_made_ahead", scenario=scenario, problem=str(error), exc_info=error)
                self.drop(scenario)

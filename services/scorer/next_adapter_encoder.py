"""Text vectors of adapters that are announced ahead, encoded between two versions to shorten the swap."""

import structlog

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import HeadwaterModelError
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.next_adapter_vectors import NextAdapterVectors
from peft_adapters.serving.model_builder import start_next_adapter_vectors
from peft_adapters.serving.served_model import ServedModel

log = structlog.get_logger(__name__)

TEXTS_A_ROUND = 64  # some hundredths of a second: the longest that a new announcement waits


class NextAdapterEncoder:
    """Encodes the catalogue under the adapter that each scenario's newest version announces.

    Args:
        encoder: the encoder of the worker's thread.
        catalogue: the catalogue of the worker's thread.
    """

    def __init__(self, encoder: Encoder, catalogue: Catalogue) -> None:
        self._encoder, self._catalogue = encoder, catalogue
        self._vectors: dict[str, NextAdapterVectors] = {}

    @property
    def has_work(self) -> bool:
        """True while there are texts left to encode."""
        return any(len(vectors.texts) < len(self._catalogue) for vectors in self._vectors.values())

    def vectors(self, scenario: str) -> NextAdapterVectors | None:
        """Return the vectors of a scenario's next adapter, as far as encoded."""
        return self._vectors.get(scenario)

    def start(self, scenario: str, model: ServedModel) -> None:
        """Begin with the adapter that a version announces, after the version came into service."""
        try:
            vectors = start_next_adapter_vectors(model, self._vectors.get(scenario), self._encoder)
        except HeadwaterModelError as error:  # the version that brings the adapter will be refused and reported
            log.warning("adapter_ahead_not_usable", scenario=scenario, problem=str(error))
            vectors = None
        self.drop(scenario)
        if vectors is not None:
            self._vectors[scenario] = vectors

    def drop(self, scenario: str) -> None:
        """Discard the vectors of a scenario's next adapter."""
        self._vectors.pop(scenario, None)

    def encode_some(self) -> None:
        """Encode a few texts for each scenario that has texts left."""
        for scenario, vectors in list(self._vectors.items()):
            try:
                vectors.advance(self._catalogue, TEXTS_A_ROUND)
            except Exception as error:  # such as a full disk: the version with the adapter encodes and reports again
                log.warning("texts_not_made_ahead", scenario=scenario, problem=str(error), exc_info=error)
                self.drop(scenario)

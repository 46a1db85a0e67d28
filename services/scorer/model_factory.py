"""Construction of served models: fetch, verify, build and warm a version; refresh it when the catalogue changes."""

import threading
from collections.abc import Sequence

import structlog

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import BuildStoppedError, BundleFormatError
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.registry.bundle import Bundle
from peft_adapters.serving.model_builder import build_model, refresh_model
from peft_adapters.serving.previous_adapter_vectors import PreviousAdapterVectors
from peft_adapters.serving.served_model import ServedModel, require_finite_scores
from services.scorer.bundles import BundleSource
from services.scorer.catalogue_encoder import CatalogueEncoder
from services.scorer.model_slot import ModelSlot
from services.scorer.next_adapter_encoder import NextAdapterEncoder
from services.scorer.recommender import Recommender

log = structlog.get_logger(__name__)


class ModelFactory:
    """Builds models in the worker's thread.

    Args:
        encoder: the encoder of the worker's thread.
        catalogue: the catalogue of the worker's thread.
        bundles: reads versions from the registry.
        changes: counts the changes of the catalogue.
        recommender: answers the latest requests from a new model before it is served.
        next_adapter: holds text vectors that were encoded ahead.
        previous_vectors: keeps text vectors of former adapters.
        interrupt: abandons a build when set.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        catalogue: Catalogue,
        bundles: BundleSource,
        changes: CatalogueEncoder,
        recommender: Recommender,
        next_adapter: NextAdapterEncoder,
        previous_vectors: PreviousAdapterVectors,
        interrupt: threading.Event,
    ) -> None:
        self._encoder, self._catalogue, self._bundles, self._changes = encoder, catalogue, bundles, changes
        self._recommender, self._next_adapter = recommender, next_adapter
        self._previous_vectors, self._interrupt = previous_vectors, interrupt
        self._built_at: dict[int, int] = {}  # number of catalogue changes that a model has, by its identity

    def make(self, slot: ModelSlot, version: int) -> ServedModel:
        """Return a version that is verified, built and warmed.

        Args:
            slot: the models of the scenario, to build on.
            version: the adapter version.

        Raises:
            BuildStoppedError: something more urgent came up.
            BundleFormatError: the version is damaged, or an item has no finite score.
            RegistryError: the registry does not answer, or lacks a part of the version.
            OSError: the local disk failed.
        """
        model = self._built(slot, version)
        require_finite_scores(model)
        self._recommender.warm(model)
        return model

    def _built(self, slot: ModelSlot, version: int) -> ServedModel:
        """Build by deltas on a held model where they fit, else from the last full bundle."""
        bundles, base = self._bundles.fetch(slot.scenario, version, slot.models())
        try:
            return self._build(slot, bundles, base or slot.deployment.stable)
        except BundleFormatError as error:
            if bundles[0].manifest.kind == "full":
                raise
            log.warning("delta_does_not_fit", problem=str(error), remedy="building from the last full bundle")
        bundles, _ = self._bundles.fetch(slot.scenario, version, ())
        return self._build(slot, bundles, slot.deployment.stable)

    def _build(self, slot: ModelSlot, bundles: Sequence[Bundle], previous: ServedModel | None) -> ServedModel:
        model = build_model(
            bundles,
            previous=previous,
            catalogue=self._catalogue,
            encoder=self._encoder,
            stop=self._interrupt,
            next_adapter_vectors=self._next_adapter.vectors(slot.scenario),
            previous_adapter_vectors=self._previous_vectors,
        )
        self._built_at[id(model)] = self._changes.changes
        return model

    def refresh(self, slots: Sequence[ModelSlot]) -> None:
        """Serve the same versions over the catalogue as it is now."""
        for slot in slots:
            for model in {id(model): model for model in slot.deployment.models.values()}.values():
                if self._built_at.get(id(model)) == self._changes.changes or self._interrupt.is_set():
                    continue
                try:
                    new = refresh_model(model, catalogue=self._catalogue, encoder=self._encoder, stop=self._interrupt)
                except BuildStoppedError:
                    return
                except Exception as error:
                    log.error("items_not_refreshed", problem=str(error), exc_info=error)
                    return
                self._built_at[id(new)] = self._changes.changes
                slot.replace(model, new)
        held = {id(model) for slot in slots for model in slot.models()}
        self._built_at = {key: changes for key, changes in self._built_at.items() if key in held}

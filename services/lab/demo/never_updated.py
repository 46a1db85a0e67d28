"""The ranker in its initial state, never updated: the reference that the live one is compared with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.errors import RegistryError
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.shoppers import History, pad
from peft_adapters.registry.bundle import read_bundle
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import EncoderSettings
from services.items import catalogue_item
from services.lab.demo.errors import DemoError
from streams.events import Item


class NeverUpdated:
    """A ranker over the whole catalogue by an adapter that has learnt nothing.

    Args:
        model: the model built from that adapter.
        rows: row of each item in the model's catalogue; contexts consist of rows.
    """

    def __init__(self, model: ServedModel, rows: Mapping[str, int]) -> None:
        self.rows = dict(rows)
        self._model = model

    @torch.inference_mode()
    def ranks(self, contexts: Sequence[History], bought: Sequence[int]) -> list[int]:
        """Return the ranks, from 1, of the items bought; ties count against the item.

        Args:
            contexts: each shopper's recent items.
            bought: row of each item bought.
        """
        row_of = self._model.row_of
        scores = self._model.ranker.score(
            pad([(row_of[items].tolist() if items else [], ages, elapsed) for items, ages, elapsed in contexts])
        )
        target = scores.gather(1, torch.from_numpy(row_of[np.array(bought)])[:, None])
        return [int(place) for place in (scores >= target).sum(dim=1)]


def load_never_updated(
    *, registry_dir: Path, scenario: str, items: Sequence[Item], settings: EncoderSettings, copies: Path
) -> NeverUpdated:
    """Build the ranker from the first adapter that was published.

    Args:
        registry_dir: directory of the registry.
        scenario: scenario of the adapter.
        items: the catalogue to rank.
        settings: settings of the encoder.
        copies: directory for a copy of the adapter.

    Raises:
        DemoError: the first adapter is missing, or has learnt something.
    """
    registry = AdapterRegistry(str(registry_dir))
    try:
        bundle = read_bundle(registry.fetch(scenario, 1, copies), base_digest=None)
    except RegistryError as error:
        raise DemoError(f"the first adapter cannot be had: {error}") from error
    if bundle.manifest.events_learned:
        raise DemoError(
            f"the first adapter must have learnt nothing, it has learnt {bundle.manifest.events_learned} events"
        )
    torch.set_num_threads(1)  # leave the cores to the deployment
    encoder = Encoder(settings)
    cache = PrefixCache.from_settings(encoder)
    try:
        catalogue = Catalogue(cache)
        catalogue.upsert(catalogue_item(item) for item in items)
        return NeverUpdated(build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder), catalogue.rows)
    finally:
        cache.close()

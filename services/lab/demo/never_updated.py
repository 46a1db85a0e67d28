"""The same ranker with nothing updated since the start: what the live one is measured against."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.errors import RegistryError
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.shoppers import pad
from peft_adapters.registry.bundle import read_bundle
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import EncoderSettings
from services.items import catalogue_item
from services.lab.demo.errors import DemoError
from services.lab.demo.quality import Context
from streams.events import Item


class NeverUpdated:
    """Ranks the whole catalogue by an adapter that has learnt nothing, for ever.

    Args:
        model: Built from that adapter.
        rows: Row of each item in the catalogue that the model was built over: what contexts are made of.
    """

    def __init__(self, model: ServedModel, rows: Mapping[str, int]) -> None:
        self.rows = dict(rows)
        self._model = model

    @torch.inference_mode()
    def ranks(self, contexts: Sequence[Context], bought: Sequence[int]) -> list[int]:
        """Places, from 1, of what was bought; ties count against it.

        Args:
            contexts: Rows of each shopper's items, newest first, and their ages in sessions.
            bought: Row of each item bought.
        """
        own = self._model.row_of
        scores = self._model.ranker.score(
            pad([(own[items].tolist() if items else [], ages) for items, ages in contexts])
        )
        target = scores.gather(1, torch.from_numpy(own[np.array(bought)])[:, None])
        return [int(place) for place in (scores >= target).sum(dim=1)]


def load_never_updated(
    *, registry_dir: Path, scenario: str, items: Sequence[Item], settings: EncoderSettings, copies: Path
) -> NeverUpdated:
    """Builds it from the first adapter that was published.

    Args:
        registry_dir: Where the adapters are kept.
        scenario: Whose.
        items: The catalogue.
        settings: Of the encoder.
        copies: A directory for a copy of the adapter.

    Raises:
        DemoError: The first adapter is not there, or has learnt something.
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
    torch.set_num_threads(1)  # the cores are for the processes that are shown
    encoder = Encoder(settings)
    cache = PrefixCache.from_settings(encoder)
    try:
        catalogue = Catalogue(cache)
        catalogue.upsert(catalogue_item(item) for item in items)
        return NeverUpdated(build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder), catalogue.rows)
    finally:
        cache.close()

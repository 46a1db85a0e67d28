"""Inputs of offline work: the catalogue, users' earlier items, and a new learner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.data.dataset import read_items
from services.data.files import InputError, open_text
from services.data.rows import RefusedRows, table_rows
from services.items import catalogue_item
from streams.examples import Example

_WARM_UP_GAP_MS = 24 * 3_600_000  # so that no session spans warm-up and data


def read_catalogue(path: Path, *, refused: RefusedRows | None = None) -> list[CatalogueItem]:
    """Return the items in file order: ids, texts and, where they have any, vectors.

    Args:
        path: file of the items.
        refused: collects the rows that are not valid items; without it the first one is an error.
    """
    return [catalogue_item(item) for item in read_items(path, refused=refused)]


def read_warm_up(path: Path, known: set[str], before_ms: int) -> list[Example]:
    """Return users' earlier items (user_id, prior_items oldest first) as purchases a second apart, before `before_ms`.

    Raises:
        InputError: the file cannot be read, or lacks those columns.
    """
    pairs = [(user, item) for user, prior in _histories(path) for item in prior.split() if item in known]
    start = before_ms - _WARM_UP_GAP_MS - 1_000 * len(pairs)
    return [
        Example(
            event_id=f"warm-up-{index}",
            user_id=user,
            session_id=None,
            item_id=item,
            ts=start + 1_000 * index,
            kind="purchase",
            scenario="home",
            position=None,
            publish_ts_ms=0,
        )
        for index, (user, item) in enumerate(pairs)
    ]


def _histories(path: Path) -> Iterator[tuple[str, str]]:
    columns = ("user_id", "prior_items")
    with open_text(path) as text:
        for row in table_rows(text, path, required=columns, known=columns):
            if row.fault is not None:
                raise InputError(f"{path}, row {row.number}: {row.fault} (line {row.line})")
            yield row.cells["user_id"], row.cells["prior_items"]


def new_learner(encoder_settings: EncoderSettings, settings: LearnerSettings) -> Learner:
    """Return a learner with an empty catalogue, which caches frozen activations as the settings say."""
    encoder = Encoder(encoder_settings)
    return Learner(encoder, Catalogue(PrefixCache.from_settings(encoder)), settings)

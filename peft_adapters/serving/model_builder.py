"""Building of served models: a version is assembled beside the one that is served, from bundles and the catalogue.

A worker and an updater receive items in different orders, and each may know items that the other does not know yet. A
served model keeps the updater's order, because the rows of a delta refer to it, and appends the items that only the
worker knows. An item whose text has not arrived keeps its row and is never a candidate.

Text vectors are the expensive part. They are reused where neither the text nor the adapter has changed: from the
previous model, from vectors encoded ahead for an announced adapter, or from vectors stored under an earlier adapter.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder, MergedSuffix
from peft_adapters.errors import (
    BuildStoppedError,
    BundleBaseMismatchError,
    BundleFormatError,
    EncoderError,
    ModelValueError,
)
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.item_facts import ItemFacts
from peft_adapters.ranking.modalities import add_modalities, count_mismatched
from peft_adapters.ranking.next_adapter_vectors import NextAdapterVectors
from peft_adapters.ranking.ranker import FrozenRanker, Ranker
from peft_adapters.registry.bundle import Bundle, require_encoder
from peft_adapters.registry.manifest import Manifest
from peft_adapters.serving.model_state import ModelState, state_from_bundle
from peft_adapters.serving.previous_adapter_vectors import PreviousAdapterVectors, same_adapter
from peft_adapters.serving.served_model import ServedModel

_NO_ROW = -1
_STOP_CHUNK = 512  # text vectors computed between two checks of `stop`


@torch.inference_mode()
def build_model(
    bundles: Sequence[Bundle],
    *,
    previous: ServedModel | None,
    catalogue: Catalogue,
    encoder: Encoder,
    stop: threading.Event | None = None,
    next_adapter_vectors: NextAdapterVectors | None = None,
    previous_adapter_vectors: PreviousAdapterVectors | None = None,
) -> ServedModel:
    """Build a version; the model that is served meanwhile does not change.

    Args:
        bundles: a full bundle and the deltas on it, or deltas on `previous`, oldest first; at least one.
        previous: the model served now; its text vectors are reused where neither text nor adapter changed.
        catalogue: the worker's items.
        encoder: its adapter is set to that of the version, unless `previous` has the same.
        stop: ends the build when set.
        next_adapter_vectors: text vectors encoded ahead, reused if they were made under this version's adapter.
        previous_adapter_vectors: store of text vectors by adapter, read likewise; this version's are added to it.

    Raises:
        BuildStoppedError: `stop` was set before the end.
        BundleBaseMismatchError: a bundle was made for another encoder or another shape of adapter.
        BundleFormatError: a bundle does not build on the version before it, or its parts do not fit together.
    """
    state: ModelState | None = previous.state if previous is not None else None
    manifest = previous.manifest if previous is not None else None
    for bundle in bundles:
        _check_link(bundle, manifest, encoder)
        state = state_from_bundle(bundle, state if bundle.manifest.kind == "delta" else None, dim=encoder.dim)
        manifest = bundle.manifest
    if state is None or manifest is None:
        raise ModelValueError("`bundles` must hold at least one bundle, got none; give the version's chain")
    encode = _CatalogueEncoder(encoder, catalogue, stop)
    return _assembled(manifest, state, previous, encode, next_adapter_vectors, previous_adapter_vectors)


@torch.inference_mode()
def refresh_model(
    previous: ServedModel, *, catalogue: Catalogue, encoder: Encoder, stop: threading.Event | None = None
) -> ServedModel:
    """Rebuild a version over the catalogue as it is now: with new items, and new texts of known ones.

    Args:
        previous: the model served now.
        catalogue: the worker's items.
        encoder: its adapter is set to that of the version where texts are encoded.
        stop: ends the build when set.

    Raises:
        BuildStoppedError: `stop` was set before the end.
    """
    return _assembled(previous.manifest, previous.state, previous, _CatalogueEncoder(encoder, catalogue, stop))


def start_next_adapter_vectors(
    model: ServedModel, started: NextAdapterVectors | None, encoder: Encoder
) -> NextAdapterVectors | None:
    """Start encoding texts under the adapter that a model announces; None if it announces none.

    Args:
        model: the newest model that is served.
        started: vectors in progress, returned as they are if they are for the announced adapter.
        encoder: its adapter is set to the announced one.

    Raises:
        BundleBaseMismatchError: the adapter does not fit the encoder.
    """
    next_lora = model.state.next_lora
    if not next_lora:
        return None
    if started is not None and same_adapter(next_lora, started.lora):
        return started
    return NextAdapterVectors(next_lora, _merged_suffix(encoder, next_lora))


def build_ranker(state: ModelState, content_vectors: Tensor, facts: ItemFacts) -> FrozenRanker:
    """Build the ranker of a state over content vectors [items, dim]; items beyond the state's have zero residuals.

    Args:
        state: learned state of a version.
        content_vectors: [items, dim] text vectors plus the projected vectors of other modalities.
        facts: prices and words of the items.
    """
    counters = state.counters.copy()
    counters.grow(len(content_vectors))
    missing = len(content_vectors) - len(state.item_ids)
    residuals = {
        role: torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
        for role, rows in state.residuals.items()
    }
    ranker = Ranker(
        state.heads,
        state.global_preference,
        content_vectors,
        residuals,
        counters,
        state.second_stage,
        facts,
        state.neighbours,
    )
    return FrozenRanker(ranker, state.probabilities, is_fixed=True)


def _check_link(bundle: Bundle, parent: Manifest | None, encoder: Encoder) -> None:
    """Check that a bundle is made for this encoder and builds on the version before it."""
    manifest = bundle.manifest
    require_encoder(bundle, base_digest=encoder.base_digest, adapter_config=encoder.adapter_config())
    if manifest.builds_on is not None and (parent is None or parent.version != manifest.builds_on):
        found = "nothing" if parent is None else f"version {parent.version}"
        raise BundleFormatError(
            f"version {manifest.version} of {manifest.scenario!r}: expected to build on version {manifest.builds_on}, "
            f"found {found} before it"
        )


class _ItemRows(NamedTuple):
    """The rows of a served model and their places in the worker's catalogue; see `ServedModel` for the shapes."""

    item_ids: list[str]
    texts: list[str | None]
    catalogue_rows: IntArray
    row_of: IntArray


class _ReusableVectors(NamedTuple):
    """Text vectors that exist already under the adapter of the version that is built.

    Attributes:
        suffix: encoder layers above the split with that adapter.
        rows: row of each item's vector, by item id.
        texts: [rows] the texts that the vectors were made of.
        vectors: [rows or more, dim] unit vectors.
    """

    suffix: MergedSuffix
    rows: Mapping[str, int]
    texts: Sequence[str | None]
    vectors: Tensor


def _assembled(
    manifest: Manifest,
    state: ModelState,
    previous: ServedModel | None,
    encode: _CatalogueEncoder,
    next_adapter_vectors: NextAdapterVectors | None = None,
    previous_adapter_vectors: PreviousAdapterVectors | None = None,
) -> ServedModel:
    """Combine a learned state with the worker's items."""
    catalogue = encode.catalogue
    items = _item_rows(state, catalogue)
    same = previous if previous is not None and same_adapter(state.lora, previous.state.lora) else None
    reusable = _reusable_vectors(same, next_adapter_vectors, previous_adapter_vectors, state.lora, encode)
    suffix = reusable.suffix if reusable is not None else encode.suffix(state.lora)
    if same is not None and items.item_ids == same.item_ids and items.texts == same.texts:
        # Share the lists and the tensor: those of a large catalogue must not be in memory twice.
        items = items._replace(item_ids=same.item_ids, texts=same.texts)
        text_vectors = torch.from_numpy(same.text_vectors)
    else:
        text_vectors = _text_vectors(items, reusable, suffix, encode)
        if previous_adapter_vectors is not None:
            previous_adapter_vectors.add(state.lora, items.texts, text_vectors, items.row_of)
    content_vectors = add_modalities(
        text_vectors, items.catalogue_rows.tolist(), catalogue.modality_vectors, state.projections
    )
    ranker = build_ranker(state, content_vectors, catalogue.facts().of_rows(items.catalogue_rows))
    return ServedModel(
        manifest=manifest,
        state=state,
        item_ids=items.item_ids,
        rows={item_id: row for row, item_id in enumerate(items.item_ids)},
        texts=items.texts,
        text_vectors=text_vectors.numpy(),
        content_vectors=content_vectors,
        has_text=items.catalogue_rows != _NO_ROW,
        catalogue_rows=items.catalogue_rows,
        row_of=items.row_of,
        unused_vectors=count_mismatched(catalogue.modality_vectors.values(), state.projections),
        suffix=suffix,
        ranker=ranker,
        scorer=ranker.scorer,
    )


def _item_rows(state: ModelState, catalogue: Catalogue) -> _ItemRows:
    """Lay out the rows: the updater's items in its order, then those that only the worker knows."""
    updater_ids = set(state.item_ids)
    item_ids = [*state.item_ids, *(item_id for item_id in catalogue.ids if item_id not in updater_ids)]
    catalogue_rows = np.array([catalogue.rows.get(item_id, _NO_ROW) for item_id in item_ids], dtype=np.int64)
    texts = [None if row == _NO_ROW else catalogue.texts[row] for row in catalogue_rows.tolist()]
    has_text = catalogue_rows != _NO_ROW
    row_of = np.empty(len(catalogue), dtype=np.int64)
    row_of[catalogue_rows[has_text]] = np.flatnonzero(has_text)
    return _ItemRows(item_ids, texts, catalogue_rows, row_of)


def _reusable_vectors(
    same: ServedModel | None,
    next_adapter_vectors: NextAdapterVectors | None,
    previous_adapter_vectors: PreviousAdapterVectors | None,
    lora: dict[str, Tensor],
    encode: _CatalogueEncoder,
) -> _ReusableVectors | None:
    """Return text vectors that exist under an adapter: of a served model, encoded ahead, or stored; None if none do."""
    if same is not None:
        return _ReusableVectors(same.suffix, same.rows, same.texts, torch.from_numpy(same.text_vectors))
    if next_adapter_vectors is not None and same_adapter(lora, next_adapter_vectors.lora):
        ahead = next_adapter_vectors
        return _ReusableVectors(ahead.suffix, encode.catalogue.rows, ahead.texts, ahead.vectors)
    stored = None if previous_adapter_vectors is None else previous_adapter_vectors.get(lora)
    return None if stored is None else _ReusableVectors(encode.suffix(lora), encode.catalogue.rows, *stored)


def _text_vectors(
    items: _ItemRows, reusable: _ReusableVectors | None, suffix: MergedSuffix, encode: _CatalogueEncoder
) -> Tensor:
    """Return text vectors [items, dim]: copied where reusable, else encoded; zero where there is no text."""
    vectors = torch.zeros(len(items.item_ids), encode.dim)
    copied = set[int]() if reusable is None else _copy_unchanged(vectors, items, reusable)
    rows = [row for row in np.flatnonzero(items.catalogue_rows != _NO_ROW).tolist() if row not in copied]
    encode(vectors, rows, items.catalogue_rows, suffix)
    return vectors


def _copy_unchanged(vectors: Tensor, items: _ItemRows, reusable: _ReusableVectors) -> set[int]:
    """Copy the reusable vectors of items whose text has not changed; return their rows."""
    sources = [reusable.rows.get(item_id, _NO_ROW) for item_id in items.item_ids]
    unchanged = [
        row
        for row, source in enumerate(sources)
        if _NO_ROW < source < len(reusable.texts)
        and items.texts[row] is not None
        and reusable.texts[source] == items.texts[row]
    ]
    if unchanged:
        vectors[unchanged] = reusable.vectors[[sources[row] for row in unchanged]]
    return set(unchanged)


class _CatalogueEncoder:
    """Encodes texts of a catalogue under an adapter, in chunks, until `stop` is set."""

    def __init__(self, encoder: Encoder, catalogue: Catalogue, stop: threading.Event | None) -> None:
        self.dim, self.catalogue = encoder.dim, catalogue
        self._encoder, self._stop = encoder, stop

    def suffix(self, lora: dict[str, Tensor]) -> MergedSuffix:
        """Return the encoder layers above the split with an adapter merged in."""
        return _merged_suffix(self._encoder, lora)

    def __call__(self, vectors: Tensor, rows: Sequence[int], catalogue_rows: IntArray, suffix: MergedSuffix) -> None:
        """Encode the texts of `rows` and write them into `vectors` [items, dim]."""
        for start in range(0, len(rows), _STOP_CHUNK):
            if self._stop is not None and self._stop.is_set():
                raise BuildStoppedError("the build was stopped")
            chunk = list(rows[start : start + _STOP_CHUNK])
            vectors[chunk] = self.catalogue.vectors(suffix, catalogue_rows[chunk].tolist())


def _merged_suffix(encoder: Encoder, lora: dict[str, Tensor]) -> MergedSuffix:
    try:
        encoder.load_lora(lora)
    except EncoderError as error:
        raise BundleBaseMismatchError(str(error)) from error
    return encoder.merged()

"""What a worker answers from: one version of the model over the items it knows, built beside the one before.

A worker's items and an updater's come in different orders, and either may know some that the other does not yet. A
served model keeps the updater's order, because the rows of a delta mean just that, and puts the worker's others behind.
An item whose text has not come is kept in its row and never offered.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder, MergedSuffix
from peft_adapters.errors import BundleBaseMismatchError, BundleFormatError, EncoderError, HeadwaterModelError
from peft_adapters.ranking.calibration import INPUTS, Probabilities
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.counters import HALF_LIVES_EVENTS, PER_ITEM, Counters, IntArray
from peft_adapters.ranking.modalities import count_unfit, with_vectors
from peft_adapters.ranking.next_adapter_vectors import NextAdapterVectors
from peft_adapters.ranking.ranker import ROLES, FrozenRanker, Ranker
from peft_adapters.ranking.residual_rows import unpacked
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.ranking.tensor_rules import is_finite, require_tensors
from peft_adapters.registry.bundle import Bundle, Manifest, require_encoder
from peft_adapters.serving.previous_adapter_vectors import PreviousAdapterVectors, same_adapter
from peft_adapters.settings import FEATURES

_NO_ROW = -1
_HISTORY_ITEMS = 20  # of the shopper that a new model is tried with
_STOP_CHUNK = 512  # text vectors between two looks at `stop`


class BuildStoppedError(HeadwaterModelError):
    """A build was told to stop before its end."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What an updater has learnt up to a version, in its own rows: what the next delta changes.

    Attributes:
        item_ids: items in the updater's order.
        heads: [features] weights of the score.
        taste: [dim] what all shoppers like.
        residuals: by role fp16 [items, dim]; bundles bring them as int8.
        counters: the streaming counters.
        lora: the adapter under PEFT's names.
        projections: [dim, length] by modality.
        probabilities: what says how likely outcomes are; None before a list was learnt.
        next_lora: the adapter that a later version brings; empty while none is known.
    """

    item_ids: list[str]
    heads: Tensor
    taste: Tensor
    residuals: dict[str, Tensor]
    counters: Counters
    lora: dict[str, Tensor]
    projections: dict[str, Tensor]
    probabilities: Probabilities | None = None
    next_lora: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version, ready to answer; nothing in it changes any more.

    Attributes:
        manifest: of the version.
        learnt: what the next delta builds on.
        item_ids: [items] the updater's items in its order, then the worker's others.
        rows: row of each item.
        texts: [items] None where the worker has no text.
        text: [items, dim] unit vectors of texts alone, zero where there is no text.
        content: [items, dim] the same with what other modalities add.
        has_text: [items] whether an item may be a candidate at all.
        catalogue_rows: [items] row in the worker's catalogue, -1 where it is not.
        row_of: [catalogue rows] the inverse.
        unused_vectors: of other modalities, of another length than the version takes: left out.
        suffix: the version's adapter over the encoder's last layers: what a query in words goes through.
        ranker: scores.
    """

    manifest: Manifest
    learnt: Learnt
    item_ids: list[str]
    rows: Mapping[str, int]
    texts: list[str | None]
    text: Tensor
    content: Tensor
    has_text: npt.NDArray[np.bool_]
    catalogue_rows: IntArray
    row_of: IntArray
    unused_vectors: int
    suffix: MergedSuffix
    ranker: FrozenRanker

    @property
    def version(self) -> int:
        """Of the adapter."""
        return self.manifest.version

    def __len__(self) -> int:
        """How many rows there are, with those that have no text."""
        return len(self.item_ids)

    def context(self, catalogue_rows: Sequence[int], ages: Sequence[int]) -> Contexts:
        """One shopper's items, newest first, as this model numbers them; those it does not have are left out."""
        rows, own_ages = (np.array(own, dtype=np.int64) for own in (catalogue_rows, ages))
        known = rows < len(self.row_of)  # the others came after this model was built
        return Contexts(self.row_of[rows[known]][None], own_ages[known][None], np.empty((1, 0), dtype=np.int64))


@torch.inference_mode()
def build(
    bundles: Sequence[Bundle],
    *,
    previous: ServedModel | None,
    catalogue: Catalogue,
    encoder: Encoder,
    stop: threading.Event | None = None,
    ahead: NextAdapterVectors | None = None,
    before: PreviousAdapterVectors | None = None,
) -> ServedModel:
    """Build a version beside the one that is served, which stays as it is.

    Args:
        bundles: a full bundle and the deltas on it, or deltas on `previous`, oldest first; at least one.
        previous: what is served now; its text vectors are used again where neither text nor adapter changed.
        catalogue: the items that this worker knows.
        encoder: its adapter is set to that of the version, unless `previous` has the same.
        stop: ends the build when set.
        ahead: vectors of the worker's texts that were made for an adapter to come, used if it is this version's.
        before: those that were made under earlier adapters, used likewise; this version's are kept there.

    Raises:
        BuildStoppedError: `stop` was set before the end.
        BundleBaseMismatchError: a bundle was made for another encoder or another shape of adapter.
        BundleFormatError: a bundle does not build on what is before it, or its parts do not fit together.
    """
    learnt: Learnt | None = previous.learnt if previous is not None else None
    manifest = previous.manifest if previous is not None else None
    for bundle in bundles:
        _check_link(bundle, manifest, encoder)
        learnt = learnt_from(bundle, learnt if bundle.manifest.kind == "delta" else None, dim=encoder.dim)
        manifest = bundle.manifest
    if learnt is None or manifest is None:
        raise ValueError("`bundles` must hold at least one bundle, got none; give the version's chain")
    return _assembled(manifest, learnt, previous, catalogue, _Texts(encoder, stop), ahead, before)


def require_finite_scores(model: ServedModel) -> None:
    """Score every item that can be offered, for a new shopper and for one with a history.

    An item whose score is not finite would be missing from every list without notice.

    Raises:
        BundleFormatError: an item has no finite score, or no finite probability.
    """
    rows = np.flatnonzero(model.has_text)
    busiest = np.argsort(-model.ranker.counters.events, kind="stable")[:_HISTORY_ITEMS]
    for history in (busiest[:0], busiest):
        context = Contexts(history[None], np.zeros_like(history)[None], np.empty((1, 0), dtype=np.int64))
        scores, probabilities = model.ranker.judge(context, rows)
        for name, values in {"score": scores, **probabilities}.items():
            finite = int(np.isfinite(values).sum())
            if finite < len(rows):
                raise BundleFormatError(
                    f"version {model.version} of {model.manifest.scenario!r}: expected a finite {name} for each of "
                    f"{len(rows)} items, got {finite}; publish a full bundle from an intact learner"
                )


@torch.inference_mode()
def refreshed(
    previous: ServedModel, *, catalogue: Catalogue, encoder: Encoder, stop: threading.Event | None = None
) -> ServedModel:
    """The same version over the catalogue as it is now: new items, and new texts of old ones.

    Raises:
        BuildStoppedError: `stop` was set before the end.
    """
    return _assembled(previous.manifest, previous.learnt, previous, catalogue, _Texts(encoder, stop))


def _check_link(bundle: Bundle, before: Manifest | None, encoder: Encoder) -> None:
    """Whether a bundle is made for this encoder, and builds on the version before it."""
    manifest = bundle.manifest
    require_encoder(bundle, base_digest=encoder.base_digest, adapter_config=encoder.adapter_config())
    if manifest.builds_on is not None and (before is None or before.version != manifest.builds_on):
        found = "nothing" if before is None else f"version {before.version}"
        raise BundleFormatError(
            f"version {manifest.version} of {manifest.scenario!r}: expected to build on version {manifest.builds_on}, "
            f"found {found} before it"
        )


def learnt_from(bundle: Bundle, before: Learnt | None, *, dim: int) -> Learnt:
    """Check all tensors of a bundle, and apply it to what was learnt up to the version it builds on.

    Args:
        bundle: a full bundle, or a delta on `before`.
        before: state of the version that a delta builds on; None for a full bundle.
        dim: length of the encoder's vectors.

    Raises:
        BundleFormatError: a tensor breaks its rule, or the parts of the bundle do not fit together.
    """
    try:
        require_tensors(bundle.groups)
        return _merged(bundle, before, dim)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise BundleFormatError(
            f"version {bundle.manifest.version} of {bundle.manifest.scenario!r}: its parts do not fit together: "
            f"{reason}; publish a full bundle"
        ) from error


def _merged(bundle: Bundle, before: Learnt | None, dim: int) -> Learnt:
    item_ids = [*before.item_ids, *bundle.item_ids] if before else bundle.item_ids
    _require(len(set(item_ids)) == len(item_ids), "an item has two rows")
    heads = bundle.groups["heads"]["weights"].float()
    _require(heads.shape == (len(FEATURES),), f"heads have shape {tuple(heads.shape)}, not one weight a feature")
    taste = bundle.groups["heads"]["taste"].float()
    _require(taste.shape == (dim,), f"taste has shape {tuple(taste.shape)}, not that of an item's vector")
    lora = bundle.groups["adapter_model"]
    next_lora = bundle.groups.get("next_adapter", {})
    counters = before.counters.copy() if before else Counters()
    counters.apply(bundle.groups["counters"])
    _require(counters.popularity.shape == (len(HALF_LIVES_EVENTS), len(item_ids)), "popularity is not one an item")
    for name in PER_ITEM:
        _require(getattr(counters, name).shape == (len(item_ids),), f"counters `{name}` are not one an item")
    residuals = _merged_residuals(bundle.groups["residuals"], before, len(item_ids), dim)
    projections, probabilities = _projections(bundle, dim), probabilities_in(bundle)
    return Learnt(item_ids, heads, taste, residuals, counters, lora, projections, probabilities, next_lora)


def probabilities_in(bundle: Bundle) -> Probabilities | None:
    """What says how likely outcomes are; None where the bundle's learner had learnt no list.

    Raises:
        ValueError: there is something else under its name.
    """
    heads = bundle.groups["heads"]
    if "click" not in heads:
        return None
    known = Probabilities(heads["click"].float(), heads["purchase"].float() if "purchase" in heads else None)
    for weights in known:
        if weights is not None:
            _require(weights.shape == (INPUTS,), f"weights of a probability have shape {tuple(weights.shape)}")
    return known


def _projections(bundle: Bundle, dim: int) -> dict[str, Tensor]:
    projections = {name: weights.float() for name, weights in bundle.groups.get("projections", {}).items()}
    for name, weights in projections.items():
        _require(weights.ndim == 2 and len(weights) == dim, f"bad projection of {name}")
    return projections


def _merged_residuals(
    changed: Mapping[str, Tensor], before: Learnt | None, item_count: int, dim: int
) -> dict[str, Tensor]:
    residuals = {}
    for role in ROLES:
        rows, moved = unpacked(changed, role)
        _require(bool(((rows >= 0) & (rows < item_count)).all()), "a residual is of no item")
        moved = moved.half()
        _require(moved.shape == (len(rows), dim) and is_finite(moved), f"bad {role} residuals")
        table = torch.zeros(item_count, dim, dtype=torch.float16)
        if before is not None:
            table[: len(before.item_ids)] = before.residuals[role]
        table[rows] = moved
        residuals[role] = table
    return residuals


def _assembled(
    manifest: Manifest,
    learnt: Learnt,
    previous: ServedModel | None,
    catalogue: Catalogue,
    encode: _Texts,
    ahead: NextAdapterVectors | None = None,
    before: PreviousAdapterVectors | None = None,
) -> ServedModel:
    """Put what is learnt over the worker's items."""
    learnt_ids = set(learnt.item_ids)
    item_ids = [*learnt.item_ids, *(item_id for item_id in catalogue.ids if item_id not in learnt_ids)]
    catalogue_rows = np.array([catalogue.rows.get(item_id, _NO_ROW) for item_id in item_ids], dtype=np.int64)
    has_text = catalogue_rows != _NO_ROW
    texts = [None if row == _NO_ROW else catalogue.texts[row] for row in catalogue_rows.tolist()]
    row_of = np.empty(len(catalogue), dtype=np.int64)
    row_of[catalogue_rows[has_text]] = np.flatnonzero(has_text)
    adapted = previous if previous is not None and same_adapter(learnt.lora, previous.learnt.lora) else None
    made = _made(adapted, ahead, before, learnt.lora, catalogue, encode)
    suffix = made.suffix if made is not None else encode.suffix(learnt.lora)
    if adapted is not None and item_ids == adapted.item_ids and texts == adapted.texts:
        item_ids, texts, text = adapted.item_ids, adapted.texts, adapted.text  # a large catalogue's are not held twice
    else:
        text = torch.zeros(len(item_ids), encode.dim)
        kept = set[int]() if made is None else _keep_text(text, item_ids, texts, made)
        rows = [row for row in np.flatnonzero(has_text).tolist() if row not in kept]
        encode(text, rows, catalogue, catalogue_rows, suffix)
        if before is not None:
            before.keep(learnt.lora, texts, text, row_of)
    content = with_vectors(text, catalogue_rows.tolist(), catalogue.other_vectors, learnt.projections)
    return ServedModel(
        manifest=manifest,
        learnt=learnt,
        item_ids=item_ids,
        rows={item_id: row for row, item_id in enumerate(item_ids)},
        texts=texts,
        text=text,
        content=content,
        has_text=has_text,
        catalogue_rows=catalogue_rows,
        row_of=row_of,
        unused_vectors=count_unfit(catalogue.other_vectors.values(), learnt.projections),
        suffix=suffix,
        ranker=_ranker(learnt, content),
    )


class _Made(NamedTuple):
    """Text vectors that were made under an adapter."""

    suffix: MergedSuffix
    rows: Mapping[str, int]
    texts: Sequence[str | None]
    vectors: Tensor


def _made(
    adapted: ServedModel | None,
    ahead: NextAdapterVectors | None,
    before: PreviousAdapterVectors | None,
    lora: dict[str, Tensor],
    catalogue: Catalogue,
    encode: _Texts,
) -> _Made | None:
    """What is there already under an adapter: a model's that has it, what was made ahead, what was kept; or None."""
    if adapted is not None:
        return _Made(adapted.suffix, adapted.rows, adapted.texts, adapted.text)
    if ahead is not None and same_adapter(lora, ahead.lora):
        return _Made(ahead.suffix, catalogue.rows, ahead.texts, ahead.vectors)
    if before is not None and (kept := before.find(lora)) is not None:
        return _Made(encode.suffix(lora), catalogue.rows, *kept)
    return None


def _keep_text(text: Tensor, item_ids: Sequence[str], texts: Sequence[str | None], made: _Made) -> set[int]:
    """Copy the vectors that are made already where the text did not change; their rows."""
    before = [made.rows.get(item_id, _NO_ROW) for item_id in item_ids]
    kept = [
        row
        for row, old in enumerate(before)
        if _NO_ROW < old < len(made.texts) and texts[row] is not None and made.texts[old] == texts[row]
    ]
    if kept:
        text[kept] = made.vectors[[before[row] for row in kept]]
    return set(kept)


class _Texts:
    """Computes text vectors under an adapter, and looks up now and then whether it should go on."""

    def __init__(self, encoder: Encoder, stop: threading.Event | None) -> None:
        self.dim = encoder.dim
        self._encoder, self._stop = encoder, stop

    def suffix(self, lora: dict[str, Tensor]) -> MergedSuffix:
        """The layers above the split under an adapter."""
        try:
            self._encoder.load_lora(lora)
        except EncoderError as error:
            raise BundleBaseMismatchError(str(error)) from error
        return self._encoder.merged()

    def __call__(
        self, text: Tensor, rows: Sequence[int], catalogue: Catalogue, catalogue_rows: IntArray, suffix: MergedSuffix
    ) -> None:
        """Fill rows of `text` [items, dim]."""
        for start in range(0, len(rows), _STOP_CHUNK):
            if self._stop is not None and self._stop.is_set():
                raise BuildStoppedError("the build was told to stop")
            chunk = list(rows[start : start + _STOP_CHUNK])
            text[chunk] = catalogue.vectors(suffix, catalogue_rows[chunk].tolist())


def _ranker(learnt: Learnt, text: Tensor) -> FrozenRanker:
    counters = learnt.counters.copy()
    counters.grow(len(text))
    missing = len(text) - len(learnt.item_ids)
    residuals = {
        role: torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
        for role, rows in learnt.residuals.items()
    }
    ranker = Ranker(learnt.heads, learnt.taste, text, residuals, counters)
    return FrozenRanker(ranker, learnt.probabilities, is_fixed=True)


def texts_ahead(model: ServedModel, before: NextAdapterVectors | None, encoder: Encoder) -> NextAdapterVectors | None:
    """What is to be made ahead for the version that a model's updater announces; None where it announces none.

    Args:
        model: the newest that is served.
        before: what was being made ahead so far; it goes on where it is for the same adapter.
        encoder: its adapter is set to the one that comes.

    Raises:
        BundleBaseMismatchError: the adapter does not fit the encoder.
    """
    coming = model.learnt.next_lora
    if not coming:
        return None
    if before is not None and same_adapter(coming, before.lora):
        return before
    return NextAdapterVectors(coming, _Texts(encoder, None).suffix(coming))


def _require(held: bool, otherwise: str) -> None:
    if not held:
        raise ValueError(otherwise)

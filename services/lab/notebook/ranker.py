"""Ranking in process, without a scorer: from a learner, a bundle directory or a registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from peft_adapters.encoder.encoder import Encoder, MergedSuffix
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.errors import VersionNotFoundError
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.ranker import FrozenRanker
from peft_adapters.ranking.shoppers import UNKNOWN_GAP_MS, Contexts
from peft_adapters.registry.bundle import Bundle, read_bundle
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.serving.model_builder import build_model
from peft_adapters.settings import EncoderSettings
from services.client.answers import RankedItem, Ranking
from services.client.arguments import checked_ids, require_count, require_type
from services.lab.notebook.tables import Table, as_file
from services.lab.offline.inputs import read_catalogue
from services.scorer.bundles import BundleSource
from services.settings import load_settings

DEFAULT_SCENARIO = "home"
MANIFEST_NAME = "manifest.json"


class Ranker:
    """A frozen copy of a model that ranks items for sessions; what the learner learns later does not change it.

    Args:
        learner: the learner whose model is copied.

    Raises:
        TypeError: the learner is of another class.

    >>> import headwater  # doctest: +SKIP
    >>> headwater.Ranker(learner).recommend(5, session_items=["mug-1"]).item_ids  # doctest: +SKIP
    ['mug-2', 'cup-7', 'plate-3', 'tray-1', 'mug-9']
    """

    def __init__(self, learner: Learner) -> None:
        require_type("learner", learner, Learner, remedy="make one with headwater.learn(items, events)")
        self._setup(
            model=FrozenRanker(learner.ranker, learner.lists.outcomes.probabilities()),
            rows=dict(learner.catalogue.rows),
            rankable=np.arange(len(learner.catalogue)),
            version=0,
            scenario=DEFAULT_SCENARIO,
            encoder=learner.encoder,
            suffix=learner.lora_steps.served_suffix,
        )

    def _setup(
        self,
        *,
        model: FrozenRanker,
        rows: Mapping[str, int],
        rankable: IntArray,
        version: int,
        scenario: str,
        encoder: Encoder,
        suffix: MergedSuffix,
    ) -> None:
        self.version, self.scenario = version, scenario
        self._model, self._rows, self._rankable = model, rows, rankable
        self._item_ids = {row: item_id for item_id, row in rows.items()}
        self._queries, self._suffix = QueryEncoder(encoder), suffix

    def __repr__(self) -> str:
        """Return the version, the scenario and the number of items."""
        return f"Ranker(version={self.version}, scenario={self.scenario!r}, items={len(self)})"

    def __len__(self) -> int:
        """Return the number of items that can be ranked."""
        return len(self._rankable)

    def rank(
        self,
        candidates: Sequence[str],
        *,
        session_items: Sequence[str] = (),
        earlier_sessions: Sequence[Sequence[str]] = (),
        query: str | None = None,
    ) -> Ranking:
        """Return the candidates in order, best first, as `/v1/rank` would.

        Args:
            candidates: ids of the items to order.
            session_items: ids of the session's items, oldest first.
            earlier_sessions: ids of the items of each session before it, oldest first.
            query: words that the shopper searches for; None without a search.

        Raises:
            TypeError: an id is not a string.
        """
        candidates = checked_ids("candidates", candidates)
        named = np.array([self._rows.get(item_id, -1) for item_id in candidates], dtype=np.int64)
        is_known = np.isin(named, self._rankable)
        rows = np.unique(named[is_known])
        unknown = tuple(item_id for item_id, known in zip(candidates, is_known.tolist(), strict=True) if not known)
        if not len(rows):
            return self._ranking(rows, np.zeros(0, dtype=np.float32), {}, unknown)
        context = self._context(session_items, earlier_sessions)
        scores, probabilities = self._model.score_with_probabilities(context, rows, self._query_vector(query))
        order = np.argsort(-scores, kind="stable")
        by_outcome = {outcome: values[order] for outcome, values in probabilities.items()}
        return self._ranking(rows[order], scores[order], by_outcome, unknown)

    def recommend(
        self,
        k: int = 20,
        *,
        session_items: Sequence[str] = (),
        earlier_sessions: Sequence[Sequence[str]] = (),
        exclude: Sequence[str] = (),
    ) -> Ranking:
        """Return the `k` best items of the catalogue, as `/v1/recommend` would.

        Args:
            k: number of items.
            session_items: ids of the session's items, oldest first.
            earlier_sessions: ids of the items of each session before it, oldest first.
            exclude: ids of items that must not be in the list.

        Raises:
            TypeError: an id is not a string, or `k` is not a whole number.
            ValueError: `k` is below 1.
        """
        require_count("k", k, remedy="leave it out for 20 items")
        excluded = [self._rows[item_id] for item_id in checked_ids("exclude", exclude) if item_id in self._rows]
        rows = self._rankable[~np.isin(self._rankable, excluded)]
        best, scores = self._model.top_k(self._context(session_items, earlier_sessions), rows, k)
        return self._ranking(best[:k], scores[:k], {}, ())

    def _context(self, session: Sequence[str], earlier: Sequence[Sequence[str]]) -> Contexts:
        """Return one context: items newest first, each with the number of sessions since it."""
        sessions = [
            checked_ids("session_items", session),
            *(checked_ids("earlier_sessions", items) for items in reversed(earlier)),
        ]
        pairs = [
            (self._rows[item_id], age)
            for age, items in enumerate(sessions)
            for item_id in reversed(items)
            if item_id in self._rows
        ]
        items, ages = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        nothing = np.empty((1, 0), dtype=np.int64)
        return Contexts(items[None], ages[None], nothing, UNKNOWN_GAP_MS * ages[None])

    def _query_vector(self, query: str | None) -> FloatArray | None:
        return None if query is None else self._queries(query, self._suffix)[None].numpy()

    def _ranking(
        self, rows: IntArray, scores: FloatArray, probabilities: Mapping[str, FloatArray], unknown: tuple[str, ...]
    ) -> Ranking:
        items = [
            RankedItem(
                item_id=self._item_ids[row],
                score=float(scores[place]),
                **{f"{outcome}_probability": float(values[place]) for outcome, values in probabilities.items()},
            )
            for place, row in enumerate(rows.tolist())
        ]
        return Ranking(
            adapter_version=self.version, scenario=self.scenario, items=tuple(items), unknown_candidates=unknown
        )


def load_ranker(
    source: Path | str,
    *,
    items: Table,
    scenario: str = DEFAULT_SCENARIO,
    version: int | None = None,
    encoder: EncoderSettings | None = None,
) -> Ranker:
    """Load a published version and return a ranker of it.

    Args:
        source: directory of one full bundle, or the address of a registry: a path, an fsspec URL, or a registry
            process's `/v1/files`.
        items: the catalogue, a file or a data frame: bundles hold what was learnt of items, not their texts.
        scenario: scenario to load from a registry.
        version: version to load from a registry; None loads the latest.
        encoder: settings of the encoder that the version was trained on; None takes the environment's.

    Raises:
        TypeError: the encoder is of another class, or the items are neither a file nor a data frame.
        RegistryError: the registry does not answer, or has no such version.
        BundleError: a bundle does not verify, or was made for another encoder.
        InputError: the items cannot be read.
    """
    if encoder is not None:
        require_type("encoder", encoder, EncoderSettings, remedy="write headwater.EncoderSettings(model=...)")
    with as_file(items, "items") as path:
        texts = read_catalogue(path)
    model_encoder = Encoder(encoder or load_settings().encoder)
    catalogue = Catalogue(PrefixCache.from_settings(model_encoder))
    catalogue.upsert(texts)
    bundles = _bundles(source, scenario, version, model_encoder.base_digest)
    with torch.inference_mode():
        served = build_model(bundles, previous=None, catalogue=catalogue, encoder=model_encoder)
    ranker = Ranker.__new__(Ranker)
    ranker._setup(
        model=served.ranker,
        rows=dict(served.rows),
        rankable=np.flatnonzero(served.has_text),
        version=served.version,
        scenario=served.manifest.scenario,
        encoder=model_encoder,
        suffix=served.suffix,
    )
    return ranker


def _bundles(source: Path | str, scenario: str, version: int | None, base_digest: str) -> list[Bundle]:
    """Return the bundles that lead to a version, oldest first."""
    if Path(source, MANIFEST_NAME).is_file():
        return [read_bundle(Path(source), base_digest=base_digest)]
    registry = AdapterRegistry(str(source))
    if version is None:
        latest = registry.latest(scenario)
        if latest is None:
            raise VersionNotFoundError(registry.explain_absence(scenario))
        version = latest.version
    with TemporaryDirectory(prefix="headwater-") as directory:
        return BundleSource(registry, Path(directory), base_digest).fetch(scenario, version, held=())[0]

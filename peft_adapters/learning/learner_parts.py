"""The parts of a learner, and the composition of their states.

Every learnable part has `state_dict` and `load_state_dict`. Checkpoints, bundles, the gate and warm starts use the
composed dictionaries, so that a new part is added here and in its own module only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import ModelValueError
from peft_adapters.learning.counts_trial import CountsTrial
from peft_adapters.learning.list_steps import ListSteps
from peft_adapters.learning.lora_steps import LoraSteps
from peft_adapters.learning.positive_steps import PositiveSteps
from peft_adapters.learning.query_vectors import QueryVectorCache, Suffix
from peft_adapters.learning.second_stage_steps import SecondStageSteps
from peft_adapters.learning.state_dicts import Part, StateDict, Stateful, collect, distribute, split_tensors
from peft_adapters.ranking.calibration import Probabilities
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.modalities import (
    CatalogueItem,
    Projections,
    pack_prices,
    pack_vectors,
    unpack_prices,
    unpack_vectors,
)
from peft_adapters.ranking.ranker import ROLES, Ranker
from peft_adapters.ranking.residual_rows import dequantise_rows, quantise_rows
from peft_adapters.ranking.second_stage import SecondStage
from peft_adapters.ranking.session_neighbours import SessionNeighbours
from peft_adapters.ranking.shoppers import Shoppers
from peft_adapters.settings import FEATURES, SECOND_STAGE_FEATURES, LearnerSettings

Groups = dict[str, dict[str, Tensor]]  # tensors of a bundle by group


class LearnerParts:
    """The parts of one scenario's model, over one catalogue.

    Args:
        encoder: the frozen encoder; the learner owns its LoRA weights.
        catalogue: the items and their cached prefixes.
        settings: how to learn.

    Attributes:
        ranker: weights and counters that scores follow from.
        shoppers: bounded histories of shoppers.
        positives: steps on clicks and purchases.
        lists: steps on shown lists.
        lora_steps: steps of LoRA.
        second_stage: steps of the networks that re-rank the best candidates.
        counts_trial: halved counters on trial, after a drift alarm.
        projections: projections of vectors of other modalities.
        batches_learned: number of micro-batches of positives learnt so far.
        events_learned: number of clicks and purchases learnt so far.
        rate_factor: factor on the learning rates of residuals and LoRA, raised after drift.
        touched: by role, rows whose residuals moved since `mark_published`.
    """

    def __init__(self, encoder: Encoder, catalogue: Catalogue, settings: LearnerSettings) -> None:
        known = (*FEATURES, *SECOND_STAGE_FEATURES)
        unknown = set(settings.features) - set(known)
        if unknown:
            raise ModelValueError(f"`features` must be among {known}, got {sorted(unknown)}")
        self.encoder, self.catalogue, self.settings = encoder, catalogue, settings
        self.ranker = Ranker.empty(encoder.dim)
        self.ranker.heads *= torch.tensor([float(name in settings.features) for name in FEATURES])
        self.shoppers = Shoppers()
        self.batches_learned = 0
        self.events_learned = 0
        self.rate_factor = 1.0
        self.projections = Projections(
            encoder.dim,
            learning_rate=settings.projection_learning_rate,
            weight_decay=settings.projection_weight_decay,
        )
        self.positives = PositiveSteps(self.ranker, self.projections, catalogue, settings)
        self.lists = ListSteps(self.ranker, self.projections, catalogue, settings)
        self._queries = QueryVectorCache(encoder)
        self.lora_steps = LoraSteps(self.ranker, self.projections, catalogue, encoder, self._queries, settings)
        self.second_stage = SecondStageSteps(settings)
        self.counts_trial = CountsTrial()
        self.touched: dict[str, set[int]] = {role: set() for role in ROLES}

    # ---- the catalogue

    def add_items(self, items: Sequence[CatalogueItem]) -> None:
        """Add items or update known ones; they can be ranked from now on."""
        rows = self.catalogue.upsert([self.projections.drop_invalid_vectors(item) for item in items])
        self._grow()
        self._refresh(rows)

    def refit(self) -> None:
        """Fit restored weights to the catalogue: make room for items added since, and recompute all text vectors."""
        self._grow()
        self._refresh(range(len(self.catalogue)))

    def _grow(self) -> None:
        for part in (self.ranker, self.positives, self.lists):
            part.grow(len(self.catalogue))
        if self.counts_trial.counters is not None:
            self.counts_trial.counters.grow(len(self.catalogue))
        self.ranker.facts = self.catalogue.facts()

    def _refresh(self, rows: Sequence[int]) -> None:
        if self.lora_steps.next_adapter is not None:
            self.lora_steps.next_adapter.refresh(self.catalogue, rows)
        self._set_texts(rows, self.catalogue.vectors(self.lora_steps.served_suffix, rows))

    def _set_texts(self, rows: Sequence[int], text: Tensor) -> None:
        self.ranker.text[list(rows)] = self.projections.project(rows, text, self.catalogue.modality_vectors)

    # ---- search queries

    def query_vectors(self, queries: Sequence[str | None], suffix: Suffix) -> Tensor | None:
        """Return unit vectors [queries, dim] of search queries, zero for None; None if all are None.

        Args:
            queries: search query of each event; None for an event without one.
            suffix: suffix with an adapter merged into it, such as `lora_steps.served_suffix`.
        """
        return self._queries.vectors(queries, suffix)

    # ---- shoppers

    def forget(self, user_id: str) -> bool:
        """Delete what is kept of a shopper, and return whether there was anything.

        Kept batches and queries do not say whose they are, so all of them are deleted.
        """
        self._queries.clear()
        self.lora_steps.searches.clear()
        self.lora_steps.replay.clear()
        self.second_stage.clear_replay()
        self.ranker.neighbours.forget(self.shoppers.session_keys_of(user_id))
        return self.shoppers.forget(user_id)

    def reset_counts(self) -> None:
        """Forget all events and keep all weights: counters, sessions and shoppers are as before the first event."""
        self.ranker.counters, self.ranker.neighbours = Counters(), SessionNeighbours()
        self.ranker.counters.grow(len(self.catalogue))
        self.ranker.neighbours.grow(len(self.catalogue))
        self.shoppers = Shoppers()
        self.events_learned = 0

    @contextmanager
    def counts_restored(self) -> Iterator[None]:
        """Restore counters, sessions, shoppers and what is served, heads and second stage, on exit."""
        counters, neighbours = self.ranker.counters.copy(), self.ranker.neighbours.copy()
        trial = self.counts_trial.copy()
        shoppers = self.shoppers.state_dict()
        events, heads, second_stage = self.events_learned, self.ranker.heads.clone(), self.ranker.second_stage
        try:
            yield
        finally:
            self.ranker.counters, self.ranker.heads, self.events_learned = counters, heads, events
            self.ranker.second_stage, self.ranker.neighbours = second_stage, neighbours
            self.counts_trial = trial
            self.shoppers.load_state_dict(shoppers)

    # ---- state

    def learned_parts(self) -> dict[str, Stateful]:
        """Return the parts that learning moves, with their optimisers: what the gate can roll back. All tensors."""
        return {
            "ranker": self.ranker,
            "positives": self.positives,
            "lists": self.lists,
            "lora": self.lora_steps,
            "second_stage": self.second_stage,
            "projections": _flat(self.projections.state_dict, self.projections.load_state_dict),
        }

    def counted_parts(self) -> dict[str, Stateful]:
        """Return the parts that hold what was observed: a rollback leaves them as they are."""
        return {
            "counters": self.ranker.counters,
            "counts_trial": self.counts_trial,
            "session_neighbours": self.ranker.neighbours,
            "shoppers": self.shoppers,
            "list_counts": Part(self.lists.counts_state_dict, self.lists.load_counts),
            "text_vectors": Part(self.projections.text_state_dict, self.projections.load_text_state_dict),
            "lora_replay": self.lora_steps.replay,
            "searches": self.lora_steps.searches,
            "second_stage_replay": Part(self.second_stage.replay_state_dict, self.second_stage.load_replay),
            "lora_trial": self.lora_steps.trial,
            "next_adapter": Part(self.lora_steps.next_adapter_state_dict, self.lora_steps.load_next_adapter),
        }

    def state_dict(self) -> StateDict:
        """Return the whole state."""
        catalogue = {
            "items": list(zip(self.catalogue.ids, self.catalogue.texts, strict=True)),
            "vectors": pack_vectors(self.catalogue.modality_vectors),
        }
        if self.catalogue.prices:
            catalogue["prices"] = pack_prices(self.catalogue.prices)
        counts = {"batches_learned": self.batches_learned, "events_learned": self.events_learned}
        return {"catalogue": catalogue} | collect(self.learned_parts() | self.counted_parts()) | counts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state into a fresh learner.

        Raises:
            KeyError: the state lacks something that this learner has.
        """
        catalogue = state["catalogue"]
        vectors = unpack_vectors(split_tensors(catalogue["vectors"])[0]) if "vectors" in catalogue else {}
        prices = unpack_prices(catalogue.get("prices", {}))
        self.catalogue.upsert(
            (item_id, text, vectors.get(row, {}), prices.get(row))
            for row, (item_id, text) in enumerate(catalogue["items"])
        )
        self.ranker.grow(len(self.catalogue))
        self.ranker.facts = self.catalogue.facts()
        distribute(self.learned_parts() | self.counted_parts(), state)
        self.batches_learned, self.events_learned = state["batches_learned"], state["events_learned"]

    def learned_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the learned parts, named by their paths."""
        return split_tensors(collect(self.learned_parts()))[0]

    def roll_back(self, state: Mapping[str, Any]) -> None:
        """Restore the learned parts; counters, shoppers and the number of events stay.

        Replayed batches are discarded, because one of them may have damaged the weights.

        Args:
            state: states of the learned parts, possibly of an earlier and smaller catalogue.
        """
        distribute(self.learned_parts(), state)
        self.lora_steps.replay.clear()
        self.refit()

    # ---- bundles

    def bundle_groups(self, *, full: bool) -> Groups:
        """Return the tensors of a bundle.

        Args:
            full: whether the bundle holds everything that scores follow from, or what changed since `mark_published`.
        """
        residuals: dict[str, Tensor] = {}
        for role, table in self.ranker.residuals.items():
            residuals |= quantise_rows(role, table, range(len(table)) if full else self.touched[role])
        heads = {"weights": self.ranker.heads.clone(), "global_preference": self.ranker.global_preference.clone()}
        groups = self.lora_steps.bundle_groups() | {
            "heads": heads | self.lists.outcomes.bundle_tensors(),
            "residuals": residuals,
            "counters": self.ranker.counters.full() if full else self.ranker.counters.delta(),
        }
        projections = {name: weights.half() for name, weights in self.projections.served.items()}
        groups |= {"projections": projections} if projections else {}
        if self.settings.second_stage:
            neighbours = self.ranker.neighbours
            groups["session_neighbours"] = neighbours.full() if full else neighbours.delta()
        if self.ranker.second_stage.is_active:
            groups["second_stage"] = self.ranker.second_stage.tensors()
        return groups

    def load_bundle_groups(
        self, groups: Mapping[str, Mapping[str, Tensor]], item_ids: Sequence[str], probabilities: Probabilities | None
    ) -> None:
        """Start a fresh learner from the tensors of a full bundle. Optimisers start fresh, at settled rates.

        Args:
            groups: tensors of the bundle by group.
            item_ids: items of the bundle; they have no text until `add_items` is called with one.
            probabilities: weights of the outcome probabilities; None if the bundle has none.
        """
        heads = groups["heads"]["weights"].float()
        preference = groups["heads"]["global_preference"].float()
        self.lora_steps.load_published(groups, heads)
        self.projections.load(groups.get("projections", {}))
        self.add_items([(item_id, "") for item_id in item_ids])
        self.ranker.heads.copy_(heads)
        self.ranker.global_preference.copy_(preference)
        self.positives.load_published(heads, preference)
        self.lists.load_published(heads, preference)
        if probabilities is not None:
            self.lists.outcomes.load_published(probabilities)
        for role in ROLES:
            rows, residuals = dequantise_rows(groups["residuals"], role)
            self.ranker.residuals[role][rows] = residuals
        self.ranker.counters.apply(groups["counters"])
        if "session_neighbours" in groups:
            self.ranker.neighbours.apply(groups["session_neighbours"])
        self.ranker.second_stage = SecondStage.from_tensors(groups.get("second_stage", {}))
        self.second_stage.load_published(self.ranker.second_stage, self.listed_share)

    @property
    def listed_share(self) -> float:
        """The share of clicks and purchases that came in lists, where the alternatives are known."""
        counters = self.ranker.counters
        return min(1.0, float(counters.clicked.sum()) / max(1.0, float(counters.events.sum())))

    @property
    def requires_full_bundle(self) -> bool:
        """Return whether something changed since `mark_published` that a delta cannot express."""
        return self.ranker.counters.rewritten

    def mark_published(self) -> None:
        """Start a new delta: changes from now on go into the next bundle."""
        for rows in self.touched.values():
            rows.clear()
        self.ranker.counters.mark_published()
        self.ranker.neighbours.mark_published()


def _flat(save: Callable[[], StateDict], load: Callable[[dict[str, Tensor]], None]) -> Part:
    """Return a part whose state has paths as keys."""
    return Part(save, lambda state: load(split_tensors(state)[0]))

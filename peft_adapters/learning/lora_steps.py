"""Steps of LoRA, and the served snapshot of its weights.

Events without a search query are learnt under a head of its own, by a loss weighted by the share of text; searches by a
contrastive loss of query and item (`searches`). Each kind has a schedule that follows from what it can still teach.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder, MergedSuffix
from peft_adapters.learning.adapter_weights import half, have_same_effect, is_base, merged, scaled
from peft_adapters.learning.batches import Batch
from peft_adapters.learning.lora_replay import LoraBatch, LoraReplay, lora_batch
from peft_adapters.learning.lora_schedule import NOTHING_DUE, Due, Schedule, refreshes
from peft_adapters.learning.lora_trial import JudgedEvents, LoraTrial, judged_events
from peft_adapters.learning.losses import positives_losses
from peft_adapters.learning.query_vectors import QueryVectorCache, Suffix
from peft_adapters.learning.searches import Searches, SearchLog, search_loss
from peft_adapters.learning.state_dicts import StateDict
from peft_adapters.learning.step_features import Features, Side, positives_features
from peft_adapters.optimisers import HeadsOptimiser, LoraOptimiser
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.features import INITIAL_WEIGHTS
from peft_adapters.ranking.modalities import Projections, add_modalities
from peft_adapters.ranking.next_adapter_vectors import NextAdapterVectors
from peft_adapters.ranking.ranker import Ranker, text_evidence
from peft_adapters.settings import FEATURES, LearnerSettings

_LEAST_EVIDENCE = 1.0  # events; searches that teach less together are not worth a pass


class LoraSteps:
    """Steps of LoRA. Scores use a snapshot of the adapter, which is renewed every few steps.

    Args:
        ranker: model whose scores LoRA improves; read only.
        projections: projections added to text vectors; read only.
        catalogue: items and their cached prefixes.
        encoder: encoder whose LoRA weights are moved.
        queries: frozen activations of search queries.
        settings: how to learn.

    Attributes:
        heads: [features] head that LoRA learns under, fitted by plain likelihood. The focused loss of the served head
            would leave out the events that only texts can predict.
        heads_optimiser: optimiser of the weights of `heads`.
        optimiser: moves the LoRA weights.
        replay: earlier batches that are stepped on again.
        searches: what is known of each search query.
        schedule: when steps are due; its `frequency` is that of the trial.
        served: LoRA weights that scores use.
        served_suffix: suffix of the encoder with `served` merged into it.
        next_adapter: the snapshot that replaces `served` once all its item vectors are computed; None without one.
        trial: decides on the scale of the next snapshots, and on how often LoRA steps.
    """

    def __init__(
        self,
        ranker: Ranker,
        projections: Projections,
        catalogue: Catalogue,
        encoder: Encoder,
        queries: QueryVectorCache,
        settings: LearnerSettings,
    ) -> None:
        self._ranker, self._projections, self._catalogue = ranker, projections, catalogue
        self._encoder, self._queries, self._settings = encoder, queries, settings
        self._mask = torch.tensor([float(name in settings.features) for name in FEATURES])
        self.heads = torch.tensor([INITIAL_WEIGHTS[name] for name in FEATURES]) * self._mask
        self.heads_optimiser = HeadsOptimiser(self.heads, learning_rate=settings.heads_learning_rate)
        self.optimiser = LoraOptimiser(
            encoder.lora_parameters(),
            learning_rate=settings.lora_learning_rate / encoder.settings.lora_layers,
            weight_decay=settings.lora_weight_decay,
            kind=settings.lora_optimiser,
            warmup_steps=settings.lora_warmup_steps,
            accumulate=settings.lora_accumulate,
        )
        self.replay = LoraReplay(settings.lora_replay_batches)
        self.schedule = Schedule(every=settings.lora_every_events, slows=settings.lora_slowdown_steps)
        self.next_adapter: NextAdapterVectors | None = None
        self.trial = LoraTrial(is_tried=settings.lora and settings.lora_trial)
        self.searches = SearchLog(holds_out=self.trial.is_tried)
        self._base_suffix: MergedSuffix | None = None
        self._serve()

    def restart_heads(self) -> None:
        """Restart the rate schedule of the heads at its high start, and discard replayed batches and the trial."""
        self.heads_optimiser.restart()
        self.trial.renew()
        self.replay.clear()

    def step_heads(self, batch: Batch, features: Features) -> None:
        """Move the head that LoRA learns under; `features` are constant."""
        heads = self.heads.clone().requires_grad_()
        losses = positives_losses(batch, heads, features, batch.candidates, batch.log_expected)
        (gradient,) = torch.autograd.grad((batch.weight * losses).mean(), [heads])
        self.heads_optimiser.step(gradient * self._mask)

    def step_if_due(
        self,
        batch: Batch,
        searches: Searches | None,
        global_preference: Tensor,
        *,
        batches_learned: int,
        scale: float,
        rate_factor: float,
    ) -> None:
        """Take a step if one is due; every few steps, make the present weights the next adapter.

        The number of steps due follows from counters and from the evidence of searches, so the schedules need no state
        of their own.

        Args:
            batch: observed batch, not yet counted.
            searches: its searches, already recorded; None without any.
            global_preference: [dim] preference vector of all shoppers.
            batches_learned: number of batches before this one; it seeds the random draws.
            scale: factor on the length of the step where events have no query; without such a step if 0.
            rate_factor: the same where all have one.
        """
        self.schedule.frequency = self.trial.frequency
        seeds = (self._settings.seed, batches_learned)
        searched = NOTHING_DUE if searches is None else self._search(searches, seeds)
        share = 0.0 if batch.queries is None else sum(query is not None for query in batch.queries) / len(batch)
        browsed = self._browse(batch, global_preference, seeds) if share < 1 and scale > 0 else NOTHING_DUE
        if searched.step or browsed.step:
            self.optimiser.step(scale=scale if not searched.step else share * rate_factor + (1 - share) * scale)
        self._start_next_adapter(is_due=searched.refresh or browsed.refresh)

    def _start_next_adapter(self, *, is_due: bool) -> None:
        """Make the present weights the next adapter if that is due or the scale has changed."""
        lora = scaled(self._encoder.lora_state(), self.trial.scale)
        is_none = is_base(lora)
        if self.next_adapter is not None and is_base(self.next_adapter.lora) != is_none:
            self.next_adapter = None  # a snapshot of the earlier scale
        is_due |= self.trial.is_tried and self.serves_none != is_none
        if self.next_adapter is None and is_due and not have_same_effect(lora, self.served):
            self.next_adapter = NextAdapterVectors(lora, merged(self._encoder, lora))

    def events_to_judge(self, batch: Batch, *, batches_learned: int) -> JudgedEvents | None:
        """Return events of a batch to judge the adapter on; None if that is not due.

        Queries that LoRA has learnt are not judged, since it may know them by heart.

        Args:
            batch: observed batch, neither learnt nor counted.
            batches_learned: number of batches before this one; it seeds the random draws.
        """
        if not self.trial.count(batch) or (self.serves_none and is_base(self._encoder.lora_state())):
            return None
        queries = [None] * len(batch) if batch.queries is None else batch.queries
        is_new = np.array([query is None or not self.searches.knows(query) for query in queries])
        generator = np.random.default_rng([self._settings.seed, batches_learned, 6])
        return judged_events(batch, np.flatnonzero(is_new), self._ranker.counters, generator=generator)

    @property
    def serves_none(self) -> bool:
        """Return whether the served adapter changes nothing."""
        return is_base(self.served)

    @contextmanager
    def other_adapter(self, rows: IntArray) -> Iterator[Suffix]:
        """Rank some items by the trained adapter's texts where none is served, by the base's where one is.

        Args:
            rows: sorted rows of the items.
        """
        suffix: Suffix = self._encoder.suffix if self.serves_none else self._base()
        index, vectors = torch.from_numpy(rows), self._catalogue.vectors(suffix, rows.tolist())
        served = self._ranker.text[index]
        projected = add_modalities(vectors, rows.tolist(), self._catalogue.modality_vectors, self._projections.served)
        self._ranker.text[index] = projected
        try:
            yield suffix
        finally:
            self._ranker.text[index] = served

    def _base(self) -> MergedSuffix:
        """Return the suffix without an adapter."""
        if self._base_suffix is None:
            self._base_suffix = merged(self._encoder, scaled(self._encoder.lora_state(), 0.0))
        return self._base_suffix

    def _search(self, searches: Searches, seeds: tuple[int, int]) -> Due:
        """Add the gradients of a batch's searches if they are among those of the next step."""
        before = self.searches.evidence - searches.evidence
        due, next_due = self.schedule.steps(before), self.schedule.steps(self.searches.evidence)
        first = self.schedule.evidence_at(due + 1) - self.schedule.every  # of the evidence that the step is on
        if self.searches.evidence >= first and searches.evidence >= _LEAST_EVIDENCE:
            self._search_loss(searches, seeds).backward()  # type: ignore[no-untyped-call]
        return Due(next_due > due, refreshes(next_due) > refreshes(due))

    def _search_loss(self, searches: Searches, seeds: tuple[int, int]) -> Tensor:
        """Return the searches' share of a step's loss."""
        loss = search_loss(
            searches,
            self._queries.of_distinct(searches.queries, self._encoder.suffix),
            self._live_vectors,
            items=len(self._catalogue),
            generator=np.random.default_rng([*seeds, 5]),
        )
        return loss * min(1.0, searches.evidence / self.schedule.every)

    def _browse(self, batch: Batch, global_preference: Tensor, seeds: tuple[int, int]) -> Due:
        """Add the gradients of a batch if a step on events without a query is due."""
        events = self._ranker.counters.events
        counted = events + np.bincount(batch.items, minlength=len(events)).astype(np.float32)
        before, due = (self.schedule.steps(text_evidence(n)) for n in (events, counted))
        if due > before:
            self._add_gradients(batch, global_preference, seeds)
        refresh = self._settings.lora_refresh_steps * self._settings.lora_accumulate
        return Due(due > before, due // refresh > before // refresh)

    def advance_next_adapter(self) -> Tensor | None:
        """Compute some item vectors of the next adapter.

        Returns:
            All its vectors [items, dim] once they are computed; the adapter is served from then on. Else None.
        """
        next_adapter = self.next_adapter
        items = math.ceil(len(self._catalogue) / self._settings.lora_ahead_batches)
        if next_adapter is None or not next_adapter.advance(self._catalogue, max(1, items)):
            return None
        self.served, self.served_suffix = dict(next_adapter.lora), next_adapter.suffix
        self.next_adapter = None
        return next_adapter.vectors[: len(next_adapter.texts)]

    def _serve(self) -> None:
        """Serve the present LoRA weights."""
        self.served = self._encoder.lora_state()
        self.served_suffix = self._encoder.merged()

    def _add_gradients(self, batch: Batch, global_preference: Tensor, seeds: tuple[int, int]) -> None:
        """Add the gradients of a batch and of a replayed one to those of LoRA; heads and residuals are constant."""
        new = lora_batch(batch, *self._rows(batch, np.random.default_rng([*seeds, 1])))
        generator = np.random.default_rng([*seeds, 2])  # seeded by the step, as the draws of negatives are
        with self._encoder.lora_dropout(self._settings.lora_dropout, seed=int(generator.integers(2**63))):
            for part in (new, *self.replay.draw(generator)):
                self._loss(part, global_preference).backward()  # type: ignore[no-untyped-call]
        self.replay.add(new, generator)

    def _live_vectors(self, rows: IntArray) -> Tensor:
        """Return text vectors [rows, dim] of sorted rows under the trained weights, with gradients to them."""
        live = self._catalogue.vectors(self._encoder.suffix, rows.tolist())
        return self._projections.project_detached(live, rows.tolist(), self._catalogue.modality_vectors)

    def _loss(self, batch: LoraBatch, global_preference: Tensor) -> Tensor:
        """Return the cross-entropy on fewer candidates, each event weighted by the share of text in its item's vector.

        All candidates carry gradients. If only some did, LoRA would lower the loss by pulling those towards everyone.
        """
        live_rows = batch.live_rows
        live = self._live_vectors(live_rows)
        query = Side(self._ranker, "query", batch.context_rows, live_rows=live_rows, live=live)
        candidate = Side(self._ranker, "candidate", batch.columns, live_rows=live_rows, live=live)
        features = positives_features(batch, global_preference, query, candidate)
        losses = positives_losses(batch, self.heads, features, batch.columns, batch.log_expected)
        text_share = self._ranker.text_share(batch.items)
        return (batch.weight * text_share / text_share.mean() * losses).mean()

    def _rows(self, batch: Batch, generator: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return the candidates of the loss (positives and some negatives), and all rows whose texts carry gradients.

        At most `lora_items` rows: half for negatives, the rest for positives and the items of the contexts.
        """
        positives = np.unique(batch.items)
        others = np.setdiff1d(batch.candidates, positives, assume_unique=True)
        negatives = generator.permutation(others)[: self._settings.lora_items // 2]
        candidates = np.union1d(positives, negatives)
        weight = batch.affinity_weights.sum(dim=(0, 1)).numpy()
        context_rows = batch.context_rows[np.argsort(-weight, kind="stable")]
        room = max(0, self._settings.lora_items - len(candidates))
        return candidates, np.union1d(candidates, context_rows[~np.isin(context_rows, candidates)][:room])

    # ---- state

    def state_dict(self) -> StateDict:
        """Return heads, LoRA weights (trained and served) and optimiser states."""
        return {
            "heads": self.heads,
            "heads_optimiser": self.heads_optimiser.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "trained": self._encoder.lora_state(),
            "served": dict(self.served),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state. There is no next adapter afterwards; it has a state of its own."""
        self.heads.copy_(state["heads"])  # in place: the optimiser holds this tensor
        self.heads_optimiser.load_state_dict(state["heads_optimiser"])
        self.load_lora(state["trained"], state["served"])
        self.optimiser.load_state_dict(state["optimiser"])

    def next_adapter_state_dict(self) -> StateDict:
        """Return the next adapter and its vectors so far; nothing if there is none."""
        if self.next_adapter is None:
            return {}
        vectors = self.next_adapter.vectors[: len(self.next_adapter.texts)]
        return {"lora": dict(self.next_adapter.lora), "vectors": vectors}

    def load_next_adapter(self, state: Mapping[str, Any]) -> None:
        """Restore what `next_adapter_state_dict` returned."""
        self.next_adapter = None
        if not state:
            return
        vectors = state["vectors"]
        texts = self._catalogue.texts[: len(vectors)]
        self.next_adapter = NextAdapterVectors(state["lora"], merged(self._encoder, state["lora"]), texts, vectors)

    def load_lora(self, trained: Mapping[str, Tensor], served: Mapping[str, Tensor]) -> None:
        """Load LoRA weights; there is no next adapter afterwards.

        Args:
            trained: weights that steps move.
            served: weights that scores use.
        """
        self._encoder.load_lora(dict(served))
        self._serve()
        self._encoder.load_lora(dict(trained))
        self.next_adapter = None

    def bundle_groups(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors that a bundle holds: the served adapter, and the next one if there is one."""
        groups = {"adapter_model": half(self.served)}
        return groups if self.next_adapter is None else groups | {"next_adapter": half(self.next_adapter.lora)}

    def load_published(self, groups: Mapping[str, Mapping[str, Tensor]], heads: Tensor) -> None:
        """Start from the weights of a bundle, at the settled learning rate.

        Args:
            groups: tensors of the bundle.
            heads: [features] published head.
        """
        served = {name: weights.float() for name, weights in groups["adapter_model"].items()}
        trained = {name: weights.float() for name, weights in groups.get("next_adapter", {}).items()}
        self.load_lora(trained or served, served)
        self.trial.restart(is_applied=not is_base(trained or served))
        self.heads.copy_(heads)
        self.heads_optimiser.settle()

"""The incremental learner: learns from micro-batches, by moving heads, residuals and the LoRA adapter, and by counting.

A batch goes through three calls, in this order, so that it is always judged before it is learnt:

1. `observe` gives each event the context that a scorer would have had, then updates the shoppers' states.
2. `judge` ranks each event's item with the weights and counters from before the batch.
3. `learn` takes one step on the batch and counts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch, ListBatch, Positive, ShownList
from peft_adapters.learning.learner_parts import LearnerParts
from peft_adapters.learning.lists import JudgedLists, observe_lists
from peft_adapters.learning.positive_steps import sample_candidates
from peft_adapters.learning.positives import first_events, observe_positives
from peft_adapters.learning.searches import Searches
from peft_adapters.learning.second_stage_groups import EventGroups, event_groups
from peft_adapters.learning.second_stage_lists import ListGroups, known_list_features, list_groups, list_inputs
from peft_adapters.ranking.affinities import affinity_features, weighted_sum
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.ranker import Ranker
from peft_adapters.ranking.second_stage import SecondStage, rerank
from peft_adapters.ranking.second_stage_features import VectorTable
from peft_adapters.settings import FEATURES, PASSED_OVER

_LISTED_ENOUGH = 0.9  # share of events in lists from which on a step of LoRA costs more than it can still gain
_SERVED = torch.tensor([float(name not in PASSED_OVER) for name in FEATURES])  # scorers do not know the others


class Learner(LearnerParts):
    """One scenario's model while it learns; its parts, catalogue and state are those of `LearnerParts`.

    Args:
        encoder: the frozen encoder; the learner owns its LoRA weights.
        catalogue: the items and their cached prefixes.
        settings: how to learn.
    """

    # ---- positives

    def observe(self, examples: Sequence[Positive], *, whole: bool = True) -> Batch:
        """Return a micro-batch with contexts and counter features as of before each of its events.

        Args:
            examples: events of the batch, in order.
            whole: compute features of the whole catalogue, for judging, unless it exceeds `judged_items`; otherwise of
                the candidates that learning uses.

        Raises:
            KeyError: an item is not in the catalogue.
        """
        items = np.array([self.catalogue.rows[example.item_id] for example in examples], dtype=np.int64)
        candidates, log_expected = sample_candidates(
            items,
            self.ranker.counters,
            negatives=self.settings.negatives,
            seed=(self.settings.seed, self.batches_learned),
        )
        return observe_positives(
            examples,
            items,
            counters=self.ranker.counters,
            shoppers=self.shoppers,
            candidates=candidates,
            log_expected=log_expected,
            columns=self._judged_columns(candidates) if whole else candidates,
            query_vector=self._query_vector(examples),
        )

    def first_of(self, batch: Batch, count: int) -> Batch:
        """Return the first events of a batch just observed, with features of all rows that they are judged among."""
        columns = self._judged_columns(batch.candidates)
        return first_events(batch, count, counters=self.ranker.counters, columns=columns)

    def _judged_columns(self, candidates: IntArray) -> IntArray | None:
        """Return the rows that events are judged among; None is the whole catalogue."""
        return None if len(self.catalogue) <= self.settings.judged_items else candidates

    def _query_vector(self, events: Sequence[Positive] | Sequence[ShownList]) -> Tensor | None:
        """Return the vectors [events, dim] of search queries under the served adapter; None without any query."""
        return self.query_vectors([event.query for event in events], self.lora_steps.served_suffix)

    @torch.inference_mode()
    def judge(self, batch: Batch, ranker: Ranker | None = None, *, rows: IntArray | None = None) -> Tensor:
        """Return scores [events, columns], as in a ranking of all columns.

        Args:
            batch: observed batch that is not learnt yet.
            ranker: other weights to score with; None is the learner's own.
            rows: [items of `ranker`] their catalogue rows, if it has not the whole catalogue. Columns and context rows
                of the batch are then places among these.
        """
        ranker = self.ranker if ranker is None else ranker
        query, candidate = ranker.vectors("query", batch.context_rows), ranker.vectors("candidate", batch.columns)
        affinities = affinity_features(
            batch.affinity_weights,
            query,
            candidate,
            ranker.global_preference,
            ranker.text_share(batch.columns),
            batch.query_vector,
        )
        scores = weighted_sum(ranker.heads, batch.counter_features, affinities)
        if not ranker.second_stage.is_active:
            return scores
        context_rows = batch.context_rows if rows is None else rows[batch.context_rows]
        columns = batch.columns if rows is None or batch.columns is None else rows[batch.columns]
        features = self.ranker.second_stage_features()

        def more(places: Tensor) -> Tensor:
            values = features.features(
                batch.contexts,
                places.numpy() if columns is None else columns[places.numpy()],
                query=VectorTable(query.numpy(), context_rows),
                candidate=VectorTable(candidate.numpy(), columns),
            )
            return torch.from_numpy(values).transpose(0, 1)

        return rerank(
            scores,
            ranker.second_stage,
            counted=batch.counter_features,
            affinities=affinities,
            more=more,
        )

    def learn(self, batch: Batch, *, lora: bool = True) -> float:
        """Take one step on a batch, then count it.

        If the loss or a gradient is not finite, no weight changes; the batch is counted all the same.

        Args:
            batch: micro-batch as `observe` returned it.
            lora: whether LoRA takes a step if one is due, and the next adapter's vectors are advanced.

        Returns:
            Loss before the step, nats per event; NaN if the step was skipped.
        """
        if lora and self._teaches_lora(batch):
            self._judge_adapter(batch)
        searches = self.lora_steps.searches.add(batch)
        novelty = None if searches is None else searches.novelty
        groups = self._event_groups(batch, novelty)
        step = self.positives.step(batch, scale=self._scale(), novelty=novelty)
        self._mark_touched(step.moved_rows)
        if self.settings.lora and step.features is not None:
            self.lora_steps.step_heads(batch, step.features)
        if lora and math.isfinite(step.loss):
            self._step_lora(batch, searches)
        if groups is not None and math.isfinite(step.loss):
            self.second_stage.step(groups, number=self.batches_learned)
        self.batches_learned += 1
        self._serve_projections()
        self.count(batch)
        return step.loss

    @torch.inference_mode()
    def _event_groups(self, batch: Batch, novelty: Tensor | None) -> EventGroups | None:
        """Return what the second stage learns from, as of before the batch; None if it is off."""
        if not self.settings.second_stage:
            return None
        generator = np.random.default_rng([self.settings.seed, self.batches_learned, 4])
        return event_groups(batch, self.ranker, novelty=novelty, generator=generator)

    def count(self, batch: Batch) -> None:
        """Count a batch without learning from it."""
        for counters in self._all_counters():
            counters.update(batch.items, batch.before, batch.is_repeat)
        if self.settings.second_stage:
            self.ranker.neighbours.update(batch.items, batch.sessions, batch.ts_ms)
        self._blend()
        self.events_learned += len(batch)

    def _teaches_lora(self, batch: Batch) -> bool:
        """Return whether LoRA learns from a batch: where lists have nearly all events, from searches only."""
        return self.settings.lora and (batch.queries is not None or self.listed_share < _LISTED_ENOUGH)

    @torch.no_grad()
    def _judge_adapter(self, batch: Batch) -> None:
        """Judge the adapter against none by the whole score of a few events, if that is due."""
        steps = self.lora_steps
        events = steps.events_to_judge(batch, batches_learned=self.batches_learned)
        if events is None:
            return
        judged, gains = events.batch, events.gains(self.judge(events.batch))
        with steps.other_adapter(events.rows) as suffix:
            query_vector = None if judged.queries is None else self.query_vectors(judged.queries, suffix)
            gains -= events.gains(self.judge(replace(judged, query_vector=query_vector)))
        steps.trial.add(-gains if steps.serves_none else gains)

    def _all_counters(self) -> list[Counters]:
        """Return the counters, and the halved ones if they are on trial."""
        on_trial = self.counts_trial.counters
        return [self.ranker.counters] if on_trial is None else [self.ranker.counters, on_trial]

    def _step_lora(self, batch: Batch, searches: Searches | None) -> None:
        """Take a step of LoRA if one is due, and serve the next adapter once its vectors are computed."""
        if self._teaches_lora(batch):
            self.lora_steps.step_if_due(
                batch,
                searches,
                self.positives.global_preference,
                batches_learned=self.batches_learned,
                scale=self._scale() if self.listed_share < _LISTED_ENOUGH else 0.0,
                rate_factor=self.rate_factor,
            )
        vectors = self.lora_steps.advance_next_adapter()
        if vectors is not None:
            self._set_texts(range(len(self.catalogue)), vectors)

    def _serve_projections(self) -> None:
        """Serve the trained projections every few batches; items without vectors of other modalities are unchanged."""
        if self.projections.served and self.batches_learned % self.settings.projection_refresh_batches == 0:
            rows, vectors = self.projections.refresh_served(self.catalogue.modality_vectors)
            self.ranker.text[rows] = vectors

    def _mark_touched(self, moved_rows: Mapping[str, set[int]]) -> None:
        for role, rows in moved_rows.items():
            self.touched[role] |= rows

    # ---- blending of positives and lists

    def _blend(self) -> None:
        """Serve a blend of both kinds of steps, weighted by the share of events that came in lists."""
        self.ranker.heads = self._blended(self.positives.heads, self.lists.served_heads) * _SERVED
        self.ranker.global_preference = self._blended(self.positives.global_preference, self.lists.global_preference)
        is_on = self.settings.second_stage
        self.ranker.second_stage = self.second_stage.served(self.listed_share) if is_on else SecondStage.empty()

    def _blended(self, of_positives: Tensor, of_lists: Tensor) -> Tensor:
        share = self.listed_share
        return of_positives.lerp(of_lists, share) if share > 0 else of_positives.clone()

    def _scale(self) -> float:
        """Return the factor on steps of residuals and LoRA, which lists take over as far as they have the events."""
        return self.rate_factor * (1 - self.listed_share)

    # ---- drift

    def set_rate_factor(self, rate_factor: float) -> None:
        """Set the factor on the rates of residuals and LoRA; if it rises, the heads' schedules restart."""
        if rate_factor > self.rate_factor:
            self.restart_heads()
        self.rate_factor = rate_factor

    def adopt_counts(self) -> None:
        """Go on with the halved counters that are on trial, and without the sessions from before the trial."""
        if self.counts_trial.counters is not None:
            self.ranker.counters = self.counts_trial.counters
            self.ranker.neighbours.forget_before(self.counts_trial.sessions)
            self.counts_trial.end()

    def restart_heads(self) -> None:
        """Restart the rate schedules of all heads at their high start, and discard LoRA's replayed batches."""
        for part in (self.positives, self.lists, self.lora_steps):
            part.restart_heads()

    # ---- lists

    def observe_lists(self, lists: Sequence[ShownList]) -> ListBatch:
        """Return lists with contexts and counter features as of when each was shown.

        Raises:
            KeyError: an item is not in the catalogue.
        """
        return observe_lists(
            lists,
            rows=self.catalogue.rows,
            counters=self.ranker.counters,
            shoppers=self.shoppers,
            query_vector=self._query_vector(lists),
        )

    @torch.inference_mode()
    def judge_lists(self, batch: ListBatch) -> JudgedLists:
        """Score lists with all that is known of them, passed-over items included; probabilities are as served."""
        features = known_list_features(batch, self.ranker)
        scores = self._blended(self.positives.heads, self.lists.heads) @ features
        if self.ranker.second_stage.is_active:
            scores = scores + self.ranker.second_stage.output(list_inputs(batch, self.ranker, features))
        lengths = np.bincount(batch.owner, minlength=len(batch)).tolist()
        known = self.lists.outcomes.probabilities()
        inputs = self.lists.outcomes.inputs(batch, features, self.ranker.counters)
        return JudgedLists(list(torch.split(scores, lengths)), known(inputs) if known else {})

    def learn_lists(self, batch: ListBatch) -> float:
        """Take one step on lists, then count them. Their clicks were learnt before, as positives.

        If the loss or a gradient is not finite, no weight changes. Lists of weight 0 are neither learnt nor counted.

        Returns:
            Loss before the step, nats per list; NaN if the step was skipped.
        """
        if not len(batch):
            return 0.0
        groups = self._list_groups(batch)
        loss, moved_rows = self.lists.step(batch)
        self._mark_touched(moved_rows)
        if groups is not None and math.isfinite(loss):
            self.second_stage.step_lists(groups, number=self.lists.lists_learned)
        self.count_lists(batch)
        return loss

    @torch.inference_mode()
    def _list_groups(self, batch: ListBatch) -> ListGroups | None:
        """Return what the second stage learns from, as of before the lists are learnt; None if it is off."""
        if not self.settings.second_stage:
            return None
        return list_groups(batch, self.ranker, self.lists.examination, self.lists.feedback)

    def count_lists(self, batch: ListBatch) -> None:
        """Count lists without learning from them; those of weight 0 are not counted."""
        counted = batch.weight.numpy()[batch.owner] > 0
        for counters in self._all_counters():
            counters.update_shown(
                batch.items[counted],
                batch.clicked[counted],
                batch.bought[counted],
                is_correction=batch.is_correction[counted],
            )
        for user_id, shown_ms, items in batch.passed_over():
            self.shoppers.pass_over(user_id, shown_ms, items)
        self._blend()

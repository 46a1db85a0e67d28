"""The incremental learner: takes micro-batches in, moves heads, residuals and the LoRA adapter, counts.

A batch goes through three calls, in this order, so that it is always judged before it is learnt:

1. `observe` gives each event the context a scorer would have had, then moves the shoppers' states on.
2. `judge` ranks each event's item with the weights and counters that stood before the batch.
3. `learn` takes one step on the batch and counts it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import ModelValueError
from peft_adapters.learning.batches import Batch, ListBatch, Positive, ShownList
from peft_adapters.learning.list_steps import ListSteps
from peft_adapters.learning.lists import JudgedLists, observe_lists
from peft_adapters.learning.lora_steps import LoraSteps
from peft_adapters.learning.losses import Side, focused, list_features, positives_features, positives_losses
from peft_adapters.learning.query_vectors import Queries
from peft_adapters.optimisers import HeadsOptimiser, RowOptimiser, all_finite
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counters import PAIR_WINDOW_ITEMS, IntArray
from peft_adapters.ranking.features import (
    affinity_features,
    affinity_weights,
    context_weights,
    weighted_sum,
)
from peft_adapters.ranking.modalities import CatalogueItem, Projections
from peft_adapters.ranking.ranker import ROLES, Ranker
from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad
from peft_adapters.settings import FEATURES, PASSED_OVER, LearnerSettings

_LISTED_ENOUGH = 0.9  # share of events that lists account for, from which on LoRA costs more than it has left to learn
_SERVED = torch.tensor([float(name not in PASSED_OVER) for name in FEATURES])  # scorers do not know the others
_UNIFORM_SHARE = 0.5  # of the negatives' distribution; the other half is popularity


class Learner:
    """One scenario's model while it learns.

    Args:
        encoder: the frozen encoder; the learner owns its LoRA weights.
        catalogue: the items and their cached prefixes.
        settings: how to learn.
    """

    def __init__(self, encoder: Encoder, catalogue: Catalogue, settings: LearnerSettings) -> None:
        unknown = set(settings.features) - set(FEATURES)
        if unknown:
            raise ModelValueError(f"`features` must be among {FEATURES}, got {sorted(unknown)}")
        self.encoder, self.catalogue, self.settings = encoder, catalogue, settings
        self.ranker = Ranker.empty(encoder.dim)
        self.shoppers = Shoppers()
        self.batches_learned = 0
        self.events_learned = 0
        self.rate_factor = 1.0  # of residuals and LoRA; whoever raises it lowers it again, and keeps it
        self._mask = torch.tensor([float(name in settings.features) for name in FEATURES])
        self.ranker.heads *= self._mask
        self.catalogue_heads = self.ranker.heads.clone()  # the head that finds the next item in the whole catalogue
        self.heads_optimiser = HeadsOptimiser(self.catalogue_heads, learning_rate=settings.heads_learning_rate)
        self.catalogue_global_preference = (
            self.ranker.global_preference.clone()
        )  # the same for the global preference: what is shown is chosen already
        self.global_preference_optimiser = HeadsOptimiser(
            self.catalogue_global_preference, learning_rate=settings.global_preference_learning_rate
        )
        self.projections = Projections(
            encoder.dim,
            learning_rate=settings.projection_learning_rate,
            weight_decay=settings.projection_weight_decay,
        )
        self.lists = ListSteps(self.ranker, self.projections, catalogue, settings)
        self.row_optimisers = {
            role: RowOptimiser(learning_rate=settings.residual_learning_rate) for role in ROLES if settings.residuals
        }
        self.lora_steps = LoraSteps(self.ranker, self.projections, catalogue, encoder, settings)
        self._queries = Queries(encoder)
        self.touched: dict[str, set[int]] = {role: set() for role in ROLES}  # residuals moved since `mark_published`

    # ---- the catalogue

    def add_items(self, items: Sequence[CatalogueItem]) -> None:
        """Take in items, new ones or what has become of old ones; they can be ranked from now on."""
        rows = self.catalogue.upsert([self.projections.drop_invalid_vectors(item) for item in items])
        self._grow()
        self._refresh(rows)

    def refit(self) -> None:
        """Make what was put back fit the catalogue: room for items that came since, and all texts anew."""
        self._grow()
        self._refresh(range(len(self.catalogue)))

    def _grow(self) -> None:
        self.ranker.grow(len(self.catalogue))
        for optimiser in self.row_optimisers.values():
            optimiser.grow(len(self.catalogue))
        self.lists.grow(len(self.catalogue))

    def _refresh(self, rows: Sequence[int]) -> None:
        if self.lora_steps.ahead is not None:
            self.lora_steps.ahead.refresh(self.catalogue, rows)
        self._put_texts(rows, self.catalogue.vectors(self.lora_steps.served_suffix, rows))

    def _put_texts(self, rows: Sequence[int], text: Tensor) -> None:
        self.ranker.text[list(rows)] = self.projections.project(rows, text, self.catalogue.modality_vectors)

    # ---- a batch

    def observe(self, examples: Sequence[Positive], *, whole: bool = True) -> Batch:
        """Contexts and counter features of a batch, as things stood before each of its events.

        Args:
            examples: its events, in order.
            whole: features of the whole catalogue, for judging, where it is not too large; else of the candidates that
                learning takes.

        Raises:
            KeyError: an item is not in the catalogue.
        """
        items = np.array([self.catalogue.rows[example.item_id] for example in examples], dtype=np.int64)
        contexts, before, new_shopper = self._walk(examples, items)
        candidates, log_expected = self._sample(items)
        columns = self._judged_columns(candidates) if whole else candidates
        weights = context_weights(contexts, len(self.catalogue))
        rows = contexts.rows()
        return Batch(
            items=items,
            weight=torch.tensor([example.weight for example in examples], dtype=torch.float32),
            contexts=contexts,
            before=before,
            first_of_item=self.ranker.counters.events[items] == 0,
            new_shopper=new_shopper,
            item_count=len(self.catalogue),
            columns=columns,
            candidates=candidates,
            log_expected=log_expected,
            counter_features=CounterFeatures(self.ranker.counters).features(contexts, columns),
            affinity_weights=affinity_weights(weights, rows),
            context_rows=rows,
            query_vector=self._query_vector(examples),
        )

    def _judged_columns(self, candidates: IntArray) -> IntArray | None:
        """Candidates that events are judged among: None is the whole catalogue."""
        return None if len(self.catalogue) <= self.settings.judged_items else candidates

    def first_of(self, batch: Batch, count: int) -> Batch:
        """The first events of a batch that was just observed, with features of all that they are judged among."""
        kept, columns = slice(count), self._judged_columns(batch.candidates)
        own = batch.contexts
        contexts = Contexts(own.items[kept], own.ages[kept], own.passed[kept])
        return replace(
            batch,
            items=batch.items[kept],
            weight=batch.weight[kept],
            contexts=contexts,
            before=batch.before[kept],
            first_of_item=batch.first_of_item[kept],
            new_shopper=batch.new_shopper[kept],
            columns=columns,
            counter_features=CounterFeatures(self.ranker.counters).features(contexts, columns),
            affinity_weights=batch.affinity_weights[:, kept],
            query_vector=None if batch.query_vector is None else batch.query_vector[kept],
        )

    def _query_vector(self, events: Sequence[Positive] | Sequence[ShownList]) -> Tensor | None:
        """Vectors [events, dim] of what was searched for, as scores follow from LoRA now; None where nothing was."""
        return self._queries.vectors([event.query for event in events], self.lora_steps.served_suffix)

    def _walk(self, examples: Sequence[Positive], items: IntArray) -> tuple[Contexts, list[list[int]], np.ndarray]:
        """Contexts, earlier items of the session and first sights, in event order, moving the shoppers on."""
        contexts, passed, before, new = [], [], [], []
        for example, item in zip(examples, items.tolist(), strict=True):
            who = (example.user_id, example.session_id, example.ts)
            new.append(example.user_id not in self.shoppers)
            contexts.append(self.shoppers.context(*who))
            passed.append(self.shoppers.passed_over(example.user_id, example.ts))
            before.append(self.shoppers.session_before(*who, limit=PAIR_WINDOW_ITEMS))
            self.shoppers.update(*who, item)
        return pad(contexts, passed), before, np.array(new)

    def _sample(self, items: IntArray) -> tuple[IntArray, Tensor]:
        """Candidates of a step, and the log-Q correction of each (Bengio & Senécal 2008; Yi et al. 2019).

        Negatives come with replacement from half uniform, half popularity; `Q` is the probability to be drawn at all.
        """
        count, draws = len(self.catalogue), self.settings.negatives
        if count <= draws:
            return np.arange(count), torch.zeros(count)
        popularity = self.ranker.counters.popularity[-1].astype(np.float64)
        total = popularity.sum()
        probability = np.full(count, 1 / count) if total == 0 else popularity / total
        probability = _UNIFORM_SHARE / count + (1 - _UNIFORM_SHARE) * probability
        # Seeded by the step, not by a running state: a resumed learner draws what an unkilled one would have drawn.
        generator = np.random.default_rng([self.settings.seed, self.batches_learned])
        negatives = generator.choice(count, size=draws, p=probability / probability.sum())
        candidates = np.unique(np.concatenate([items, negatives]))
        expected = -np.expm1(draws * np.log1p(-probability[candidates]))
        return candidates, torch.from_numpy(np.log(expected)).float()

    @torch.inference_mode()
    def judge(self, batch: Batch, ranker: Ranker | None = None) -> Tensor:
        """Scores [events, columns] by weights and counters that have not learnt the batch; `ranker` brings others."""
        ranker = self.ranker if ranker is None else ranker
        query = ranker.vectors("query", batch.context_rows)
        candidate = ranker.vectors("candidate", batch.columns)
        affinities = affinity_features(
            batch.affinity_weights,
            query,
            candidate,
            ranker.global_preference,
            ranker.text_share(batch.columns),
            batch.query_vector,
        )
        return weighted_sum(ranker.heads, batch.counter_features, affinities)

    def learn(self, batch: Batch, *, lora: bool = True) -> float:
        """One step on a batch, then count it; the loss (nats an event) before the step.

        A batch whose loss or gradients are not finite moves nothing, its loss is no number, and it is counted.

        Args:
            batch: observed.
            lora: whether LoRA takes a step if one is due; else the step is put off.
        """
        loss = self._step(batch)
        if lora and math.isfinite(loss):
            self._learn_texts(batch)
        self.batches_learned += 1
        self._serve_projections()
        self.count(batch)
        return loss

    def count(self, batch: Batch) -> None:
        """Count a batch and learn nothing from it."""
        self.ranker.counters.update(batch.items, batch.before)
        self._blend()
        self.events_learned += len(batch)

    def _blend(self) -> None:
        """Serve heads and global preference of lists as far as lists account for what was clicked and bought."""
        self.ranker.heads = self._blended(self.catalogue_heads, self.lists.served_heads) * _SERVED
        self.ranker.global_preference = self._blended(self.catalogue_global_preference, self.lists.global_preference)

    def _blended(self, of_catalogue: Tensor, of_lists: Tensor) -> Tensor:
        share = self._listed_share()
        return of_catalogue.lerp(of_lists, share) if share > 0 else of_catalogue.clone()

    def _listed_share(self) -> float:
        """Share of clicks and purchases that came in lists, where what each was chosen over is known."""
        counters = self.ranker.counters
        return min(1.0, float(counters.clicked.sum()) / max(1.0, float(counters.events.sum())))

    def _scale(self) -> float:
        """Of the steps on residuals and LoRA: as far as lists account for the events, these are left to them."""
        return self.rate_factor * (1 - self._listed_share())

    def adapt_to_drift(self, rate_factor: float, *, halvings: int) -> None:
        """Learn the next batch faster, or no longer, and let what was counted weigh less, as drift asks for.

        Args:
            rate_factor: of residuals and LoRA; where it rises the heads' rates begin again at their high start.
            halvings: of all counts.
        """
        if rate_factor > self.rate_factor:
            self.restart_heads()
        self.rate_factor = rate_factor
        if halvings:
            self.ranker.counters.decay(halvings)

    def restart_heads(self) -> None:
        """Let the heads' rates begin again at their high start, as after a drift, and replay nothing from before."""
        self.heads_optimiser.restart()
        self.global_preference_optimiser.restart()
        self.lists.restart_heads()
        self.lora_steps.restart()

    def _learn_texts(self, batch: Batch) -> None:
        """A step of LoRA where one is due, and item vectors that follow it once they are made."""
        if self.settings.lora and self._listed_share() < _LISTED_ENOUGH:
            self.lora_steps.step_where_due(
                batch, self.catalogue_global_preference, batches_learned=self.batches_learned, scale=self._scale()
            )
        made = self.lora_steps.serve_when_made()
        if made is not None:
            self._put_texts(range(len(self.catalogue)), made)

    def _serve_projections(self) -> None:
        """Now and then let item vectors follow the projections; those of items without other vectors stay."""
        if self.projections.served and self.batches_learned % self.settings.projection_refresh_batches == 0:
            rows, vectors = self.projections.refresh_served(self.catalogue.modality_vectors)
            self.ranker.text[rows] = vectors

    def _step(self, batch: Batch) -> float:
        """Move heads, global preference, residuals and projections, texts standing still.

        As far as lists account for the events, all but the heads is left to them: a list says what was chosen over
        what, the catalogue at large says mostly what was shown. (Adaptive steps do not feel a loss made smaller, so the
        step itself is.)
        """
        heads, global_preference = (
            own.clone().requires_grad_() for own in (self.catalogue_heads, self.catalogue_global_preference)
        )
        rows = np.union1d(batch.context_rows, batch.candidates)
        live_rows, live = self.projections.project_trained(rows, self.catalogue.modality_vectors)
        query = Side(self.ranker, "query", batch.context_rows, live_rows=live_rows, live=live)
        candidate = Side(self.ranker, "candidate", batch.candidates, live_rows=live_rows, live=live)
        features = positives_features(batch, global_preference, query, candidate)
        losses = positives_losses(batch, heads, features, batch.candidates, batch.log_expected)
        loss = (batch.weight * focused(losses, self.settings.loss_focus)).mean()
        moved = [heads, global_preference, query.residual, candidate.residual, *self.projections.parameters()]
        gradients = torch.autograd.grad(loss, moved, allow_unused=True)
        if not all_finite(loss, gradients):
            return math.nan
        self.heads_optimiser.step(gradients[0] * self._mask)
        self.global_preference_optimiser.step(gradients[1], scale=self._scale())
        self._step_residuals((query, gradients[2]), (candidate, gradients[3]), scale=self._scale())
        self.projections.step(gradients[4:], scale=self._scale())
        if self.settings.lora:
            self.lora_steps.step_heads(batch, features.detach())
        return float(loss.detach())

    def _step_residuals(self, *sides: tuple[Side, Tensor | None], scale: float) -> None:
        for side, gradient in sides:
            if self.settings.residuals and gradient is not None:
                rows = torch.from_numpy(side.rows)
                self.row_optimisers[side.role].step(self.ranker.residuals[side.role], rows, gradient, scale=scale)
                self.touched[side.role].update(side.rows.tolist())

    # ---- lists

    def observe_lists(self, lists: Sequence[ShownList]) -> ListBatch:
        """Contexts and counter features of lists, as things stood when each was shown.

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
        """Scores by all that is known of each list, what was passed over before included; probabilities as served."""
        query = self.ranker.vectors("query", batch.context_rows)
        candidate = self.ranker.vectors("candidate", batch.items)
        share = self.ranker.text_share(batch.items)
        features = list_features(batch, self.ranker.global_preference, query, candidate, share)
        scores = self._blended(self.catalogue_heads, self.lists.heads) @ features
        lengths = np.bincount(batch.owner, minlength=len(batch)).tolist()
        known, inputs = (
            self.lists.outcomes.probabilities(),
            self.lists.outcomes.inputs(batch, features, self.ranker.counters),
        )
        return JudgedLists(list(torch.split(scores, lengths)), known(inputs) if known else {})

    def learn_lists(self, batch: ListBatch) -> float:
        """One step on lists, then count them; the loss (nats a list) before the step. Their clicks are learnt before.

        Where the loss or gradients are not finite nothing is moved and the loss is no number. Lists of no weight are
        neither learnt nor counted.
        """
        if not len(batch):
            return 0.0
        loss, touched = self.lists.step(batch)
        for role, rows in touched.items():
            self.touched[role] |= rows
        self.count_lists(batch)
        return loss

    def count_lists(self, batch: ListBatch) -> None:
        """Count lists and learn nothing from them; those of no weight are not counted."""
        counted = batch.weight.numpy()[batch.owner] > 0
        self.ranker.counters.update_shown(
            batch.items[counted],
            batch.clicked[counted],
            batch.bought[counted],
            is_correction=batch.is_correction[counted],
        )
        self._pass_over(batch)
        self._blend()

    def _pass_over(self, batch: ListBatch) -> None:
        """Keep what was passed over of lists that count; one of which nothing was clicked may not have been seen."""
        ends = np.cumsum(np.bincount(batch.owner, minlength=len(batch)))[:-1]
        lists = zip(np.split(batch.items, ends), np.split(batch.clicked, ends), strict=True)
        for user_id, ts_ms, weight, (items, clicked) in zip(
            batch.user_ids, batch.shown_ms, batch.weight.tolist(), lists, strict=True
        ):
            if weight > 0 and clicked.any():
                self.shoppers.pass_over(user_id, ts_ms, items[~clicked].tolist())

    def forget(self, user_id: str) -> bool:
        """Drop what is kept of a shopper; whether there was anything.

        Batches and searches that are kept do not say whose they are, so none of them is kept.
        """
        self._queries.clear()
        self.lora_steps.replay.clear()
        return self.shoppers.forget(user_id)

    def mark_published(self) -> None:
        """Begin a new delta: what changes from here on goes into the next bundle."""
        for rows in self.touched.values():
            rows.clear()
        self.ranker.counters.mark_published()

"""What moves LoRA: heads of its own, a loss where texts speak, steps as texts count, and what of it is served."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.learning.batches import Batch
from peft_adapters.learning.lora_replay import LoraBatch, LoraReplay, lora_batch
from peft_adapters.learning.losses import Features, Side, positives_features, positives_losses
from peft_adapters.optimisers import HeadsOptimiser, LoraOptimiser
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.counters import IntArray
from peft_adapters.ranking.features import INITIAL_WEIGHTS
from peft_adapters.ranking.modalities import Projections
from peft_adapters.ranking.next_adapter_vectors import NextAdapterVectors
from peft_adapters.ranking.ranker import Ranker, text_evidence
from peft_adapters.settings import FEATURES, LearnerSettings


class LoraSteps:
    """Steps of LoRA; scores follow a snapshot of it, which is renewed now and then.

    Args:
        ranker: whose scores LoRA is to better; read only.
        projections: what is added to texts; read only.
        catalogue: the items and their cached prefixes.
        encoder: whose LoRA weights are moved.
        settings: how to learn.

    Attributes:
        heads: [features] as the catalogue's, by plain likelihood: what LoRA learns under. Focus leaves what only texts
            can say out of sight.
        heads_optimiser: moves them.
        optimiser: moves LoRA.
        replay: batches kept.
        served: the LoRA that scores follow from.
        served_suffix: computes texts under it.
        ahead: the one that they are to follow from next, and how far its vectors are; None while there is none.
    """

    def __init__(
        self,
        ranker: Ranker,
        projections: Projections,
        catalogue: Catalogue,
        encoder: Encoder,
        settings: LearnerSettings,
    ) -> None:
        self._ranker, self._projections, self._catalogue = ranker, projections, catalogue
        self._encoder, self._settings = encoder, settings
        self._mask = torch.tensor([float(name in settings.features) for name in FEATURES])
        self.heads = torch.tensor([INITIAL_WEIGHTS[name] for name in FEATURES]) * self._mask
        self.heads_optimiser = HeadsOptimiser(self.heads, learning_rate=settings.heads_learning_rate)
        self.optimiser = LoraOptimiser(
            encoder.lora_parameters(),
            learning_rate=settings.lora_learning_rate,
            weight_decay=settings.lora_weight_decay,
            kind=settings.lora_optimiser,
            warmup_steps=settings.lora_warmup_steps,
            accumulate=settings.lora_accumulate,
        )
        self.replay = LoraReplay(settings.lora_replay_batches)
        self.ahead: NextAdapterVectors | None = None
        self._serve()

    def restart(self) -> None:
        """Let the heads' rate begin again at its high start, and replay nothing from before."""
        self.heads_optimiser.restart()
        self.replay.clear()

    def load_lora(self, lora: dict[str, Tensor], served: dict[str, Tensor]) -> None:
        """Put LoRA back: the one that is trained, and the one that scores follow from; no other is to come."""
        self._encoder.load_lora(served)
        self._serve()
        self._encoder.load_lora(lora)
        self.ahead = None

    def restore_ahead(self, lora: dict[str, Tensor], vectors: Tensor) -> None:
        """Put back what is to come, and the vectors [done, dim] that were made of it."""
        if not lora:
            return
        trained = self._encoder.lora_state()
        self._encoder.load_lora(lora)
        self.ahead = NextAdapterVectors(lora, self._encoder.merged(), self._catalogue.texts[: len(vectors)], vectors)
        self._encoder.load_lora(trained)

    def step_heads(self, batch: Batch, features: Features) -> None:
        """Move the heads that LoRA learns under; `features` stand still."""
        heads = self.heads.clone().requires_grad_()
        losses = positives_losses(batch, heads, features, batch.candidates, batch.log_expected)
        (gradient,) = torch.autograd.grad((batch.weight * losses).mean(), [heads])
        self.heads_optimiser.step(gradient * self._mask)

    def step_where_due(self, batch: Batch, global_preference: Tensor, *, batches_learned: int, scale: float) -> None:
        """Take a step if one is due; now and then LoRA as it stands then is what is to be served next.

        How many are due follows from the counters, so that nothing more is to be kept.

        Args:
            batch: not counted yet.
            global_preference: [dim] what all shoppers like.
            batches_learned: before this one; what is drawn follows from it.
            scale: of the step.
        """
        events = self._ranker.counters.events
        counted = events + np.bincount(batch.items, minlength=len(events)).astype(np.float32)
        before, due = (self._steps_due(text_evidence(n)) for n in (events, counted))
        if due > before:
            self._step(batch, global_preference, batches_learned, scale)
        refresh = self._settings.lora_refresh_steps * self._settings.lora_accumulate
        if due // refresh > before // refresh and self.ahead is None and self._moved():
            self.ahead = NextAdapterVectors(self._encoder.lora_state(), self._encoder.merged())

    def serve_when_made(self) -> Tensor | None:
        """Make some more of the vectors that are to come; all of them [items, dim] once they are made, and served."""
        ahead = self.ahead
        if ahead is None or not ahead.advance(self._catalogue, self._share_of_a_batch()):
            return None
        self.served, self.served_suffix, self.ahead = dict(ahead.lora), ahead.suffix, None
        return ahead.vectors[: len(ahead.texts)]

    def _share_of_a_batch(self) -> int:
        return max(1, math.ceil(len(self._catalogue) / self._settings.lora_ahead_batches))

    def _steps_due(self, evidence: float) -> int:
        """How many steps texts were worth so far: often while items are new, ever more seldom after."""
        slows = self._settings.lora_slowdown_steps
        return int(slows * math.log1p(evidence / (slows * self._settings.lora_every_events)))

    def _serve(self) -> None:
        """Make LoRA as it stands the one that scores follow from, until the next time."""
        self.served = self._encoder.lora_state()
        self.served_suffix = self._encoder.merged()

    def _moved(self) -> bool:
        trained = self._encoder.lora_state()
        return not all(torch.equal(value, trained[name]) for name, value in self.served.items())

    def _step(self, batch: Batch, global_preference: Tensor, batches_learned: int, scale: float) -> None:
        """Move LoRA, heads and residuals standing still; where batches are kept, by the gradient of one of them too."""
        seeds = (self._settings.seed, batches_learned)
        new = lora_batch(batch, *self._rows(batch, np.random.default_rng([*seeds, 1])))
        generator = np.random.default_rng([*seeds, 2])  # as draws of negatives are: by the step
        with self._encoder.lora_dropout(self._settings.lora_dropout, seed=int(generator.integers(2**63))):
            for part in (new, *self.replay.draw(generator)):
                self._loss(part, global_preference).backward()  # type: ignore[no-untyped-call]
        self.replay.take_in(new, generator)
        self.optimiser.step(scale=scale)

    def _loss(self, batch: LoraBatch, global_preference: Tensor) -> Tensor:
        """Cross-entropy on fewer candidates, each event weighed by the share that text has in its item.

        All candidates carry gradients: if only some did, LoRA would lower it by pulling those towards every shopper.
        """
        live_rows = batch.live_rows
        live = self._catalogue.vectors(self._encoder.suffix, live_rows.tolist())
        live = self._projections.project_detached(live, live_rows.tolist(), self._catalogue.modality_vectors)
        query = Side(self._ranker, "query", batch.context_rows, live_rows=live_rows, live=live)
        candidate = Side(self._ranker, "candidate", batch.columns, live_rows=live_rows, live=live)
        features = positives_features(batch, global_preference, query, candidate)
        losses = positives_losses(batch, self.heads, features, batch.columns, batch.log_expected)
        speaks = self._ranker.text_share(batch.items)
        return (batch.weight * speaks / speaks.mean() * losses).mean()

    def _rows(self, batch: Batch, generator: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Candidates of the loss (positives and some negatives), and all rows whose text it is trained on.

        Up to `lora_items` rows: half of them for negatives, the rest for what was bought and what was looked at before.
        """
        positives = np.unique(batch.items)
        others = np.setdiff1d(batch.candidates, positives, assume_unique=True)
        negatives = generator.permutation(others)[: self._settings.lora_items // 2]
        candidates = np.union1d(positives, negatives)
        weight = batch.affinity_weights.sum(dim=(0, 1)).numpy()
        looked_at = batch.context_rows[np.argsort(-weight, kind="stable")]
        room = max(0, self._settings.lora_items - len(candidates))
        return candidates, np.union1d(candidates, looked_at[~np.isin(looked_at, candidates)][:room])

"""The gate that a candidate adapter passes before it is published, and the rollback of a learner that keeps failing.

Every micro-batch is judged, before it is learnt, by the learner and by a copy of its published weights, the live
adapter. Neither has learnt those events. Rules, formulas and sources: docs/explanation/gate-and-drift.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch, take_columns
from peft_adapters.learning.evaluation import PrequentialEvaluator, log_probabilities
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.losses import generalised_cross_entropy
from peft_adapters.learning.state_dicts import StateDict, split_tensors
from peft_adapters.lifecycle.gate_rules import Evidence, judge_candidate
from peft_adapters.lifecycle.published_weights import PublishedWeights, group_norms
from peft_adapters.settings import GateSettings

Decision = Literal["published", "refused"]

_WORST = 10.0  # nats: bound of one event's difference, and its value if a score is not finite


class Gate:
    """Judge of a learner's candidates, which rolls the learner back after repeated refusals.

    The live adapter, which losses are compared with and which is rolled back to, is the newest published one that has
    proved itself. One published a moment ago is too close to the learner for a comparison, and may contain the fault.
    So the next published weights are kept as the successor, and become the live adapter once `window_events` events
    were judged since and a candidate still passes.

    Args:
        learner: the learner to judge; its present weights are the first that can be rolled back to.
        prequential: evaluator whose calibration counts.
        settings: rules and bounds.

    Attributes:
        refusals: number of consecutive refusals.
    """

    def __init__(self, learner: Learner, prequential: PrequentialEvaluator, settings: GateSettings) -> None:
        self._learner, self._prequential, self._settings = learner, prequential, settings
        self._differences: deque[float] = deque(maxlen=settings.window_events)
        # Compare by the loss that is learnt; the likelihood may fall meanwhile.
        self._focus = learner.settings.loss_focus
        self.refusals = 0
        self._reasons: list[str] = []  # of the newest refusal
        self._rollback: dict[str, Any] | None = None  # named in manifests up to the next published one
        self.anchor()

    def anchor(self) -> None:
        """Make the learner's present weights the live adapter."""
        self._live = self._successor = PublishedWeights.of(self._learner, self._calibration())
        self._since_successor = 0  # events judged

    def _advance(self) -> None:
        """Make the successor the live adapter once enough events were judged, and keep the next successor."""
        if self._since_successor >= self._settings.window_events:
            self._live = self._successor
            self._successor = PublishedWeights.of(self._learner, self._calibration())
            self._since_successor = 0

    # ---- measurements

    def update(self, batch: Batch, scores: Tensor) -> None:
        """Compare the learner and the live adapter on a batch that neither has learnt.

        Args:
            batch: the observed micro-batch that neither has learnt.
            scores: [events, columns] result of `Learner.judge(batch)`.
        """
        self._live.grow(self._learner.ranker.text)
        columns = batch.candidates
        places = columns if batch.columns is None else np.searchsorted(batch.columns, columns)
        rows = np.union1d(batch.context_rows, columns)
        own = replace(batch, columns=columns, counter_features=take_columns(batch.counter_features, places))
        narrowed = replace(
            own, columns=np.searchsorted(rows, columns), context_rows=np.searchsorted(rows, batch.context_rows)
        )
        live = self._live.ranker_of(rows, self._learner.ranker)
        live_scores = self._learner.judge(narrowed, live, rows=rows)
        # The best of the catalogue are re-ranked, and those of the candidates are others.
        is_reranked = batch.columns is None and self._learner.ranker.second_stage.is_active
        own_scores = self._learner.judge(own) if is_reranked else take_columns(scores, places)
        target = torch.from_numpy(np.searchsorted(columns, batch.items))[:, None]
        losses, live_losses = (
            generalised_cross_entropy(log_probabilities(each, batch.log_expected).gather(1, target)[:, 0], self._focus)
            for each in (own_scores, live_scores)
        )
        difference = (losses - live_losses).nan_to_num(nan=_WORST).clamp(-_WORST, _WORST)
        self._differences.extend(difference.tolist())
        self._since_successor += len(batch)

    def judge(self, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
        """Decide on the learner's present weights; nothing follows until `apply`.

        Args:
            groups: tensors of the candidate's bundle by group.
        """
        verdict = judge_candidate(groups, self._settings, self.evidence())
        self._reasons = verdict["reasons"] or self._reasons
        verdict |= {"live_events_learned": self._live.events_learned, "refusals_before": self.refusals}
        return verdict | ({} if self._rollback is None else {"went_back": self._rollback})

    def evidence(self) -> Evidence:
        """Return the measurements of the learner's present weights."""
        differences = torch.tensor(list(self._differences), dtype=torch.float64)
        count = len(differences)
        live = group_norms(self._live.weights)
        return Evidence(
            events=count,
            loss_difference=float(differences.mean()) if count else 0.0,
            standard_error=float(differences.std()) / math.sqrt(count) if count > 1 else 0.0,
            calibration=self._calibration(),
            live_calibration=self._live.calibration,
            norms={
                group: (norm, live[group])
                for group, norm in group_norms(self._learner.learned_tensors()).items()
                if group in live  # weights of an earlier release have no second stage
            },
        )

    def _calibration(self) -> float | None:
        return self._prequential.calibration(self._settings.window_events)

    # ---- decisions

    def apply(self, decision: Decision) -> dict[str, Any] | None:
        """Apply a decision on the learner's present weights.

        A replay calls this at the same places with the same decisions.

        Returns:
            Figures of the rollback if the learner was rolled back; else None.
        """
        if decision == "published":
            self.refusals, self._rollback = 0, None
            self._advance()
            return None
        self.refusals += 1
        if self.refusals < self._settings.refusals_before_rollback:
            return None
        return self._roll_back()

    def _roll_back(self) -> dict[str, Any]:
        """Restore the live adapter's weights and optimisers; counters, shoppers and the number of events stay."""
        self._live.roll_back(self._learner)
        self._rollback = {
            "after_refusals": self.refusals,
            "from_events_learned": self._learner.events_learned,
            "to_events_learned": self._live.events_learned,
        }
        self.refusals = 0
        self._successor, self._since_successor = self._live, 0
        self._differences.clear()  # they are of the discarded weights
        return self._rollback | {"reasons": self._reasons}

    # ---- state

    def state_dict(self) -> StateDict:
        """Return the whole state: tensors under `live` and `put_by` (the successor), figures beside them."""
        versions = {"live": self._live} | ({} if self._successor is self._live else {"put_by": self._successor})
        return {name: dict(version.weights) for name, version in versions.items()} | {
            "differences": list(self._differences),
            "refusals": self.refusals,
            "went_back": self._rollback,
            "since_put_by": self._since_successor,
            "published": {name: [version.events_learned, version.calibration] for name, version in versions.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        versions = {
            name: PublishedWeights(split_tensors(state[name])[0], events_learned, calibration)
            for name, (events_learned, calibration) in state["published"].items()
        }
        self._live = versions["live"]
        self._successor = versions.get("put_by", self._live)
        self._differences.clear()
        self._differences.extend(state["differences"])
        self.refusals, self._rollback = state["refusals"], state["went_back"]
        self._since_successor = state["since_put_by"]

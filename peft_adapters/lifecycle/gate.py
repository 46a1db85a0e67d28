"""The gate a candidate adapter passes before anyone hears of it, and the way back for a learner that keeps failing.

Every micro-batch is judged, before it is learnt, by the learner and by a copy of it as it was published: the live
adapter. Neither has learnt those events. The rules, the maths and its sources: docs/explanation/gate-and-drift.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.evaluation import PrequentialEvaluator, log_probabilities
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.losses import generalised_cross_entropy
from peft_adapters.lifecycle.checkpoint import learner_weights, restore_weights
from peft_adapters.ranking.counters import Counters, IntArray
from peft_adapters.ranking.modalities import contribution_norm
from peft_adapters.ranking.ranker import ROLES, Ranker
from peft_adapters.ranking.residual_rows import row_norms
from peft_adapters.ranking.tensor_rules import fault_of, is_finite, rule_of
from peft_adapters.settings import GateSettings as GateSettings

Decision = Literal["published", "refused"]
Rule = Literal["not_finite", "bound", "loss", "norm", "calibration"]
RULES: tuple[Rule, ...] = get_args(Rule)

_WORST = 10.0  # nats: one event counts no more than this, and so much where a score is no number
_NORM_FLOOR = 1.0  # a group smaller than this is free to grow; texts have norm 1
_HEADS = ("heads", "lists/outcomes.click.slow.weights", "lists/outcomes.purchase.slow.weights")
_HALVED = ("text", *(f"residuals.{role}" for role in ROLES))  # what is large is kept in half precision


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a candidate beside its tensors.

    Attributes:
        events: judged by candidate and live adapter alike.
        loss_difference: mean over them of the candidate's loss less the live adapter's, nats.
        standard_error: of that mean.
        calibration: mean predicted over observed; None before anything was judged.
        live_calibration: what it was when the live adapter was published.
        norms: of the candidate's groups, and of the live adapter's.
    """

    events: int
    loss_difference: float
    standard_error: float
    calibration: float | None
    live_calibration: float | None
    norms: Mapping[str, tuple[float, float]]


def judge_candidate(
    groups: Mapping[str, Mapping[str, Tensor]], settings: GateSettings, evidence: Evidence | None = None
) -> dict[str, Any]:
    """Decide on a candidate: `{"decision": "passed" | "refused", "reasons": [...], "rules": [...], ...}`.

    A candidate passes when all its numbers are finite, no norm is beyond its bound, and the evidence, where there is
    any, does not speak against it. `rules` are those that were broken, in a word each.
    """
    groups = {**groups, "residuals": {role: row_norms(groups["residuals"], role)[:, None] for role in ROLES}}
    broken: list[tuple[Rule, str]] = [("not_finite", reason) for reason in _not_finite(groups)]
    broken += [("bound", reason) for reason in _not_counts(groups.get("counters", {}))]
    broken += [("bound", reason) for reason in _beyond_bounds(groups, settings)]
    figures: dict[str, Any] = {}
    if evidence is not None:
        broken += _against(evidence, settings)
        figures = _figures(evidence, settings)
    return {
        "decision": "refused" if broken else "passed",
        "reasons": [reason for _, reason in broken],
        "rules": sorted({rule for rule, _ in broken}),
    } | figures


def _not_finite(groups: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    return [
        f"{group}.{name} has {int((~torch.isfinite(value)).sum())} values that are not finite"
        for group, tensors in groups.items()
        for name, value in tensors.items()
        if value.is_floating_point() and not is_finite(value)
    ]


def _not_counts(counters: Mapping[str, Tensor]) -> list[str]:
    """Faults of counters whose values are finite, yet cannot be counts."""
    reasons = []
    for name, value in counters.items():
        rule = rule_of(f"counters.{name}")
        fault = fault_of(value, rule) if rule is not None and is_finite(value) else None
        if fault is not None:
            reasons.append(f"counters.{name} {fault}")
    return reasons


def _beyond_bounds(groups: Mapping[str, Mapping[str, Tensor]], settings: GateSettings) -> list[str]:
    bounds: tuple[tuple[str, float, Callable[[Tensor], Tensor]], ...] = (
        ("heads", settings.max_head_weight, torch.abs),
        ("residuals", settings.max_residual_norm, _row_norms),
        ("adapter_model", settings.max_lora_norm, torch.linalg.vector_norm),
        ("projections", settings.max_projection_norm, contribution_norm),
    )
    reasons = []
    for group, limit, measure in bounds:
        for name, value in groups.get(group, {}).items():
            largest = float(measure(value.float()).max()) if value.is_floating_point() and value.numel() else 0.0
            if largest > limit:
                reasons.append(f"{group}.{name} reaches {largest:.3g}, the bound is {limit:g}")
    return reasons


def _against(evidence: Evidence, settings: GateSettings) -> list[tuple[Rule, str]]:
    """Rules that the evidence breaks, each with its reason."""
    broken: list[tuple[Rule, str]] = []
    allowed = settings.loss_tolerance + settings.standard_errors * evidence.standard_error
    if evidence.events >= settings.min_events and evidence.loss_difference > allowed:
        broken.append(
            (
                "loss",
                f"loss is {evidence.loss_difference:.3g} above the live adapter's over {evidence.events} events, "
                f"{allowed:.3g} are allowed",
            )
        )
    for group, (norm, live) in evidence.norms.items():
        limit = settings.max_norm_ratio * max(live, _NORM_FLOOR)
        if norm > limit:  # what is no number has its own rule
            broken.append(("norm", f"norm of {group} is {norm:.3g}, {limit:.3g} is allowed from {live:.3g}"))
    if evidence.calibration is not None and evidence.live_calibration is not None:
        allowed = abs(evidence.live_calibration - 1) + settings.max_calibration_error
        if evidence.events >= settings.min_events and abs(evidence.calibration - 1) > allowed:
            figures = f"{evidence.calibration:.3g}, {allowed:.3g} from 1 is allowed"
            broken.append(("calibration", f"predicted over observed is {figures}"))
    return broken


def _figures(evidence: Evidence, settings: GateSettings) -> dict[str, Any]:
    """The figures behind a decision, for the manifest; those of losses only where they were compared."""
    norms = {
        group: {"candidate": _number(norm), "live": _number(live)} for group, (norm, live) in evidence.norms.items()
    }
    figures: dict[str, Any] = {"events": evidence.events, "norms": norms}
    if evidence.events < settings.min_events:
        return figures | {
            "note": f"losses and calibration were not compared: {evidence.events} events, {settings.min_events} needed"
        }
    return figures | {
        "loss_difference": evidence.loss_difference,
        "standard_error": evidence.standard_error,
        "calibration": evidence.calibration,
        "live_calibration": evidence.live_calibration,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row_norms(value: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(value, dim=-1)
    return norms


class Gate:
    """Judges a learner's candidates by what it has watched, and takes the learner back where they keep failing.

    The live adapter that losses are compared with, and that is gone back to, is the newest published one that has stood
    the test: one published a moment ago is too near to the learner to tell anything, and may be what spoilt it. So the
    one published next is put by, and takes its place once `window_events` were judged since and it still passes.

    Args:
        learner: which one; as it stands, it is the first that can be gone back to.
        prequential: whose calibration counts.
        settings: the rules.

    Attributes:
        refusals: in a row so far.
    """

    def __init__(self, learner: Learner, prequential: PrequentialEvaluator, settings: GateSettings) -> None:
        self._learner, self._prequential, self._settings = learner, prequential, settings
        self._differences: deque[float] = deque(maxlen=settings.window_events)
        self._focus = learner.settings.loss_focus  # compared by what is learnt: plain likelihood may fall meanwhile
        self.refusals = 0
        self._why: list[str] = []  # of the newest refusal
        self._went_back: dict[str, Any] | None = None  # said in the manifests up to the next that is published
        self.anchor()

    def anchor(self) -> None:
        """Take the learner as it stands for the live adapter, whatever came before."""
        self._live = self._put_by = _Published.of(self._learner, self._calibration())
        self._since_put_by = 0  # events judged

    def _move_on(self) -> None:
        """Let what was put by become the live adapter once it has stood the test, and put the next by."""
        if self._since_put_by >= self._settings.window_events:
            self._live = self._put_by
            self._put_by = _Published.of(self._learner, self._calibration())
            self._since_put_by = 0

    # ---- what is watched

    def update(self, batch: Batch, scores: Tensor) -> None:
        """Take in a batch that is not yet learnt; scores are `Learner.judge(batch)`, [events, columns]."""
        self._live.grow(self._learner.ranker.text)
        columns = batch.candidates
        places = torch.from_numpy(columns if batch.columns is None else np.searchsorted(batch.columns, columns))
        rows = np.union1d(batch.context_rows, columns)
        narrowed = replace(
            batch,
            columns=np.searchsorted(rows, columns),
            context_rows=np.searchsorted(rows, batch.context_rows),
            counter_features=batch.counter_features[:, :, places],
        )
        own = torch.from_numpy(np.searchsorted(columns, batch.items))[:, None]
        losses, live_losses = (
            generalised_cross_entropy(log_probabilities(each, batch.log_expected).gather(1, own)[:, 0], self._focus)
            for each in (scores[:, places], self._learner.judge(narrowed, self._live.rows(rows, self._learner.ranker)))
        )
        worse = (losses - live_losses).nan_to_num(nan=_WORST).clamp(-_WORST, _WORST)
        self._differences.extend(worse.tolist())
        self._since_put_by += len(batch)

    def judge(self, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
        """Decide on the learner as it stands, whose tensors `groups` are; nothing follows until `settle`."""
        verdict = judge_candidate(groups, self._settings, self.evidence())
        self._why = verdict["reasons"] or self._why
        verdict |= {"live_events_learned": self._live.events_learned, "refusals_before": self.refusals}
        return verdict | ({} if self._went_back is None else {"went_back": self._went_back})

    def evidence(self) -> Evidence:
        """What is known of the learner as it stands."""
        differences = torch.tensor(list(self._differences), dtype=torch.float64)
        count = len(differences)
        live = _norms(self._live.weights)
        return Evidence(
            events=count,
            loss_difference=float(differences.mean()) if count else 0.0,
            standard_error=float(differences.std()) / math.sqrt(count) if count > 1 else 0.0,
            calibration=self._calibration(),
            live_calibration=self._live.calibration,
            norms={group: (norm, live[group]) for group, norm in _norms(learner_weights(self._learner)).items()},
        )

    def _calibration(self) -> float | None:
        return self._prequential.calibration(self._settings.window_events)

    # ---- what follows

    def settle(self, decision: Decision) -> dict[str, Any] | None:
        """Draw the consequence of a decision on the learner as it stands; what to say where it went back.

        Whoever wants to repeat a run calls this at the same places with the same decisions.
        """
        if decision == "published":
            self.refusals, self._went_back = 0, None
            self._move_on()
            return None
        self.refusals += 1
        if self.refusals < self._settings.refusals_before_rollback:
            return None
        return self._go_back()

    def _go_back(self) -> dict[str, Any]:
        """Put back weights and optimisers as they were; counters, shoppers and the count of events stay."""
        self._live.put_back(self._learner)
        self._went_back = {
            "after_refusals": self.refusals,
            "from_events_learned": self._learner.events_learned,
            "to_events_learned": self._live.events_learned,
        }
        self.refusals = 0
        self._put_by, self._since_put_by = self._live, 0
        self._differences.clear()  # of weights that are no more
        return self._went_back | {"reasons": self._why}

    # ---- what a checkpoint keeps

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it, as tensors and as JSON can hold it."""
        kept = {"live": self._live} | ({} if self._put_by is self._live else {"put_by": self._put_by})
        return {f"{which}/{name}": value for which, one in kept.items() for name, value in one.weights.items()}, {
            "differences": list(self._differences),
            "refusals": self.refusals,
            "went_back": self._went_back,
            "since_put_by": self._since_put_by,
            "published": {which: [one.events_learned, one.calibration] for which, one in kept.items()},
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        kept = {}
        for which, (events_learned, calibration) in state["published"].items():
            own = {name.removeprefix(f"{which}/"): t for name, t in tensors.items() if name.startswith(f"{which}/")}
            kept[which] = _Published(own, events_learned, calibration)
        self._live = kept["live"]
        self._put_by = kept.get("put_by", self._live)
        self._differences.clear()
        self._differences.extend(state["differences"])
        self.refusals, self._went_back = state["refusals"], state["went_back"]
        self._since_put_by = state["since_put_by"]


@dataclass(slots=True)
class _Published:
    """A learner's weights and optimisers as they were when it was published.

    Attributes:
        weights: `learner_weights`, what is large in half precision.
        events_learned: by then.
        calibration: then.
    """

    weights: dict[str, Tensor]
    events_learned: int
    calibration: float | None

    @classmethod
    def of(cls, learner: Learner, calibration: float | None) -> _Published:
        weights = learner_weights(learner)
        kept = {name: value.half() if name in _HALVED else value.clone() for name, value in weights.items()}
        return cls(kept, learner.events_learned, calibration)

    def grow(self, text: Tensor) -> None:
        """Give items that came since their text of today, [items, dim], and nothing learnt."""
        missing = len(text) - len(self.weights["text"])
        if missing > 0:
            blank = torch.zeros(missing, text.shape[1], dtype=torch.half)
            self.weights["text"] = torch.cat([self.weights["text"], text[-missing:].half()])
            for name in _HALVED[1:]:
                self.weights[name] = torch.cat([self.weights[name], blank])

    def rows(self, rows: IntArray, ranker: Ranker) -> Ranker:
        """The weights on some items of a ranker. Their counts are today's: what counts is not learnt."""
        counters = Counters()
        counters.events = ranker.counters.events[rows]
        index = torch.from_numpy(rows)
        return replace(
            ranker,
            heads=self.weights["heads"],
            global_preference=self.weights["lists/global_preference"],
            text=self.weights["text"][index].float(),
            residuals={role: self.weights[f"residuals.{role}"][index].float() for role in ROLES},
            counters=counters,
        )

    def put_back(self, learner: Learner) -> None:
        restore_weights(learner, {name: t.float() if name in _HALVED else t for name, t in self.weights.items()})
        learner.lora_steps.replay.clear()  # what spoilt the weights may be among it
        learner.refit()


def _norms(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Norm of each group: all heads, all LoRA matrices together, the mean of moved residuals, what projections add."""
    rows = torch.cat([_row_norms(weights[f"residuals.{role}"].float()) for role in ROLES])
    moved = rows[rows != 0]
    lora = [value for name, value in weights.items() if name.startswith("served_lora/")]
    added = [
        float(contribution_norm(value)) for name, value in weights.items() if name.startswith("projections/served/")
    ]
    return {
        "heads": float(torch.linalg.vector_norm(torch.cat([weights[name].float() for name in _HEADS]))),
        "residuals": float(moved.mean()) if len(moved) else 0.0,
        "projections": math.hypot(*added),
        "lora": math.sqrt(sum(float(value.float().square().sum()) for value in lora)),
    }

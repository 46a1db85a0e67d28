"""Drift detection: alarms where the prequential loss rises, and the response once halved counts rank better.

Two detectors read the losses in blocks: ADWIN (Bifet & Gavaldà 2007), which compares the parts of an adaptive window,
and Page-Hinkley (Page 1954), which accumulates deviations above the mean. Either raises an alarm, and only if losses
rise: an improving model drifts too. Formulas: docs/explanation/gate-and-drift.md.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import structlog
from river import drift

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.learner import Learner
from peft_adapters.settings import DriftSettings

DETECTORS = ("adwin", "page_hinkley")
Ending = Literal["recovered", "settled"]
BLOCK_EVENTS = 64  # a shopper's events are correlated, so detectors read the mean loss of a block
_FAST, _SLOW = 1 / 4, 1 / 64  # weights of the newest block in the two running means
_SETTLED_BLOCKS = 300
_GRACE_BLOCKS = 10
_PAGE_HINKLEY_SUMS = ("_sum_increase", "_sum_decrease", "_min_increase", "_max_decrease")

log = structlog.get_logger(__name__)


class DriftResponse(NamedTuple):
    """Response to the losses of a batch.

    Attributes:
        alarms: detectors that raised an alarm.
        ended: how the recovery from an earlier alarm ended; None if it has not ended, or there was no alarm.
        events: number of events that the recovery took.
        halvings: number of times that all counts were halved now.
    """

    alarms: tuple[str, ...] = ()
    ended: Ending | None = None
    events: int = 0
    halvings: int = 0


def respond_to_drift(learner: Learner, monitor: DriftMonitor, batch: Batch, losses: Sequence[float]) -> DriftResponse:
    """Watch a micro-batch that is learnt next, and adapt the learner to a drift.

    An alarm begins a trial of halved counts. Once they rank better, they replace the others, the learning rates rise,
    and the next trial begins, of counts halved further.

    Args:
        learner: the learner.
        monitor: its drift monitor.
        batch: observed events of the micro-batch, all or some.
        losses: loss of each of these events relative to chance, nats.
    """
    response = monitor.update(losses)
    if learner.counts_trial.judge(batch, learner.ranker):
        learner.adopt_counts()
        monitor.raise_rates()
        response = response._replace(halvings=monitor.halvings)
    if (response.alarms and learner.counts_trial.counters is None) or response.halvings:
        learner.counts_trial.begin(learner.ranker, monitor.halvings)
    learner.set_rate_factor(monitor.rate_factor)
    return response


class DriftMonitor:
    """Drift monitor of one scenario.

    Args:
        settings: thresholds, and the response to drift.

    Attributes:
        recovering: whether losses are still above their level before an alarm.
    """

    def __init__(self, settings: DriftSettings) -> None:
        self._settings = settings
        # river's detectors have no annotations.
        self._adwin: Any = drift.ADWIN(delta=settings.adwin_delta, clock=1, grace_period=_GRACE_BLOCKS)  # type: ignore[no-untyped-call]
        self._page_hinkley: Any = drift.PageHinkley(
            min_instances=_GRACE_BLOCKS,
            delta=settings.page_hinkley_delta,
            threshold=settings.page_hinkley_threshold,
            mode="up",
        )
        self._fast = self._slow = 0.0  # running means of the loss, nats
        self._open = (0.0, 0)  # sum and number of losses in the open block
        self._blocks = 0
        self._raised = 0  # batches left with raised rates
        self.recovering = False
        self._level = 0.0  # mean loss before the alarm
        self._since_alarm = 0  # blocks

    @property
    def halvings(self) -> int:
        """Return the number of times that counts on trial are halved."""
        return self._settings.forget_halvings

    @property
    def rate_factor(self) -> float:
        """Return the factor on the learning rates of the current batch."""
        return self._settings.rate_factor if self._raised > 0 else 1.0

    def update(self, losses: Sequence[float]) -> DriftResponse:
        """Add the losses of a batch that is not learnt yet.

        Args:
            losses: loss of each event relative to chance, nats.
        """
        if not self._settings.enabled or not losses:
            return DriftResponse()
        self._raised = max(0, self._raised - 1)
        alarms = {name for loss in losses for name in self._take(loss)}
        if alarms:
            return DriftResponse(alarms=tuple(sorted(alarms)))
        return self._check_recovery()

    def raise_rates(self) -> None:
        """Raise the learning rates for a while, from the next batch on."""
        self._raised = self._settings.raised_batches

    def _take(self, event_loss: float) -> list[str]:
        """Add the loss of an event, and return the detectors that raise an alarm."""
        total, count = self._open[0] + event_loss, self._open[1] + 1
        if count < BLOCK_EVENTS:
            self._open = (total, count)
            return []
        self._open = (0.0, 0)
        loss = total / count
        before = self._adwin.estimation
        self._adwin.update(loss)
        self._page_hinkley.update(loss)
        raised = {
            "adwin": self._adwin.drift_detected and self._adwin.estimation > before,
            "page_hinkley": self._page_hinkley.drift_detected,
        }
        alarms = [name for name in DETECTORS if raised[name]]
        if alarms and not self.recovering:
            self.recovering, self._level = True, self._slow
            self._since_alarm = 0
        self._blocks += 1
        self._since_alarm += 1
        self._fast += max(_FAST, 1 / self._blocks) * (loss - self._fast)
        self._slow += max(_SLOW, 1 / self._blocks) * (loss - self._slow)
        return alarms

    def _check_recovery(self) -> DriftResponse:
        """Return how a recovery ended: near the level before the alarm, or at a new level after a time limit."""
        # Before 1 / _FAST blocks the fast mean still includes losses from before the alarm.
        if not self.recovering or self._since_alarm < 1 / _FAST:
            return DriftResponse()
        recovered = self._fast <= self._level + self._settings.recovered_nats
        if not recovered and self._since_alarm < _SETTLED_BLOCKS:
            return DriftResponse()
        self.recovering = False
        return DriftResponse(ended="recovered" if recovered else "settled", events=BLOCK_EVENTS * self._since_alarm)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, bit for bit, as JSON can hold it."""
        page_hinkley = self._page_hinkley
        return {
            # ADWIN's window is in river's compiled code, which returns its fields as bytes. No pickle is involved.
            "river": version("river"),
            "adwin": base64.b64encode(self._adwin._helper.__getstate__()).decode(),
            "adwin_detected": self._adwin.drift_detected,
            "page_hinkley": {name: float(getattr(page_hinkley, name)) for name in _PAGE_HINKLEY_SUMS}
            | {"n": page_hinkley._x_mean.n, "mean": page_hinkley._x_mean._mean},
            "page_hinkley_detected": page_hinkley.drift_detected,
            "means": [self._fast, self._slow],
            "counts": [self._blocks, self._raised, self._since_alarm],
            "open": list(self._open),
            "recovering": self.recovering,
            "level": self._level,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state. The detectors start again if another release of river wrote it: their fields may differ."""
        self._fast, self._slow = state["means"]
        self._blocks, self._raised, self._since_alarm = state["counts"]
        self._open = (state["open"][0], state["open"][1])
        self.recovering, self._level = state["recovering"], state["level"]
        if state["river"] != version("river"):
            log.warning("drift_detectors_begin_anew", made_with=state["river"], here=version("river"))
            return
        self._adwin._helper.__setstate__(base64.b64decode(state["adwin"]))
        self._adwin._drift_detected = state["adwin_detected"]
        fields = dict(state["page_hinkley"])
        self._page_hinkley._x_mean.n, self._page_hinkley._x_mean._mean = fields.pop("n"), fields.pop("mean")
        for name, value in fields.items():
            setattr(self._page_hinkley, name, value)
        self._page_hinkley._drift_detected = state["page_hinkley_detected"]

"""Drift: when the losses of events that were not yet learnt rise for good, learning hurries for a while.

Two detectors watch the losses, block by block: ADWIN (Bifet & Gavaldà 2007), which compares the parts of a window of
its own choosing, and Page-Hinkley (Page 1954), which adds up what goes beyond the mean. Either raises an alarm, and
only where losses rise: a model that gets better drifts too. The maths: docs/explanation/gate-and-drift.md.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import structlog
from river import drift

from peft_adapters.settings import DriftSettings

DETECTORS = ("adwin", "page_hinkley")
Ending = Literal["recovered", "settled"]
BLOCK_EVENTS = 64  # a shopper's events are alike: what is watched is the mean loss of so many
_FAST, _SLOW = 1 / 4, 1 / 64  # weight of the newest block in the two running means
_SETTLED_BLOCKS = 300
_GRACE_BLOCKS = 10
_CONFIRM_BLOCKS = 32  # bursts of other shoppers cost as much as a drift does, and are over by then
_PAGE_HINKLEY_SUMS = ("_sum_increase", "_sum_decrease", "_min_increase", "_max_decrease")

log = structlog.get_logger(__name__)


class Seen(NamedTuple):
    """What came of a batch.

    Attributes:
        alarms: detectors that raised one.
        ended: how the search for the level before an earlier alarm ended; None where it goes on, or there is none.
        events: that it took.
        halvings: how often counts are to be halved now.
    """

    alarms: tuple[str, ...] = ()
    ended: Ending | None = None
    events: int = 0
    halvings: int = 0


class DriftMonitor:
    """Watches the losses of one scenario.

    Args:
        settings: what counts as drift, and what follows.

    Attributes:
        recovering: whether losses are still above where they were before an alarm.
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
        self._open = (0.0, 0)  # sum and number of the losses of the block that is not full
        self._blocks = 0
        self._raised = 0  # batches that still adapt_to_drift
        self.recovering = False
        self._level = 0.0  # mean loss before the alarm
        self._since_alarm = 0  # blocks
        self._lost = 0.0  # sum of the losses of these
        self._acted = False  # something was done about the alarm

    @property
    def rate_factor(self) -> float:
        """By how much learning rates are raised for the batch at hand."""
        return self._settings.rate_factor if self._raised > 0 else 1.0

    def update(self, losses: Sequence[float]) -> Seen:
        """Take in the losses (nats over chance) of a batch that is not yet learnt."""
        if not self._settings.enabled or not losses:
            return Seen()
        self._raised = max(0, self._raised - 1)
        alarms = {name for loss in losses for name in self._take(loss)}
        halvings = self._act()
        if alarms:
            return Seen(alarms=tuple(sorted(alarms)), halvings=halvings)
        return self._look_for_recovery()._replace(halvings=halvings)

    def _take(self, event_loss: float) -> list[str]:
        """Detectors that an event's loss makes raise an alarm."""
        total, count = self._open[0] + event_loss, self._open[1] + 1
        if count < BLOCK_EVENTS:
            self._open = (total, count)
            return []
        self._open = (0.0, 0)
        loss = total / count
        before = self._adwin.estimation
        self._adwin.update(loss)
        self._page_hinkley.update(loss)
        found = {
            "adwin": self._adwin.drift_detected and self._adwin.estimation > before,
            "page_hinkley": self._page_hinkley.drift_detected,
        }
        alarms = [name for name in DETECTORS if found[name]]
        if alarms and not self.recovering:
            self.recovering, self._acted, self._level = True, False, self._slow
            self._since_alarm, self._lost = 0, 0.0
        self._blocks += 1
        self._since_alarm += 1
        self._lost += loss
        self._fast += max(_FAST, 1 / self._blocks) * (loss - self._fast)
        self._slow += max(_SLOW, 1 / self._blocks) * (loss - self._slow)
        return alarms

    def _act(self) -> int:
        """Hurry, once an alarm, where losses stay up; how often counts are to be halved with it."""
        if not self.recovering or self._acted or self._since_alarm < _CONFIRM_BLOCKS:
            return 0
        known, left = -self._level, -self._lost / self._since_alarm  # nats over chance, before and since
        if known <= 0 or left > (1 - self._settings.confirm_share) * known:
            return 0
        self._acted, self._raised = True, self._settings.raised_batches
        return self._settings.forget_halvings

    def _look_for_recovery(self) -> Seen:
        """Recovered: near the mean before the alarm. Settled: not within so many events, and taken as it is."""
        # The fast mean is of what came since the alarm only once as many blocks have come as it looks back on.
        if not self.recovering or self._since_alarm < 1 / _FAST:
            return Seen()
        recovered = self._fast <= self._level + self._settings.recovered_nats
        if not recovered and self._since_alarm < _SETTLED_BLOCKS:
            return Seen()
        self.recovering = False
        return Seen(ended="recovered" if recovered else "settled", events=BLOCK_EVENTS * self._since_alarm)

    # ---- what a checkpoint keeps

    def state_dict(self) -> dict[str, Any]:
        """All of it, bit for bit, as JSON can hold it."""
        page_hinkley = self._page_hinkley
        return {
            # ADWIN's window lives in river's compiled part, which gives its fields as bytes; there is no pickle in it.
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
            "lost": self._lost,
            "acted": self._acted,
            "level": self._level,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state. The detectors start anew if another release of river wrote it: their fields may differ."""
        self._fast, self._slow = state["means"]
        self._blocks, self._raised, self._since_alarm = state["counts"]
        self._open = (state["open"][0], state["open"][1])
        self.recovering, self._level = state["recovering"], state["level"]
        self._lost, self._acted = state["lost"], state["acted"]
        if state["river"] != version("river"):
            log.warning("drift_detectors_begin_anew", made_with=state["river"], here=version("river"))
            return
        self._adwin._helper.__setstate__(base64.b64decode(state["adwin"]))
        self._adwin._drift_detected = state["adwin_detected"]
        own = dict(state["page_hinkley"])
        self._page_hinkley._x_mean.n, self._page_hinkley._x_mean._mean = own.pop("n"), own.pop("mean")
        for name, value in own.items():
            setattr(self._page_hinkley, name, value)
        self._page_hinkley._drift_detected = state["page_hinkley_detected"]

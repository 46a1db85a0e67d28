"""Immediate application of rollouts to the models that are held."""

import threading

from peft_adapters.registry.rollout import Rollout
from services.scorer.refusals import Refusals
from services.scorer.serving_table import ServingTable


class RolloutApplier:
    """Applies a rollout in the thread that received it, without waiting for the worker's current build.

    Args:
        table: the models that are served.
        refusals: the refused versions; a new rollout clears them, so that each is tried again at once.
        interrupt: set when the rollout needs a version that must be built: the worker abandons its current build.
    """

    def __init__(self, table: ServingTable, refusals: Refusals, interrupt: threading.Event) -> None:
        self._table, self._refusals, self._interrupt = table, refusals, interrupt

    def apply(self, rollout: Rollout) -> None:
        """Swap every arm whose version is held."""
        self._refusals.clear()
        slot = self._table.slot(rollout.scenario)
        if slot is not None and slot.apply(rollout, None):
            self._interrupt.set()

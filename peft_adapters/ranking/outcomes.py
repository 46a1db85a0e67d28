"""Probabilities of the outcomes of a shown item: a click, and a purchase after it."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.special import expit

from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.settings import FEATURES

OUTCOMES = ("click", "purchase")
INPUTS = len(FEATURES) + 3  # see `calibration.outcome_inputs`


def outcome_probabilities(log_odds: Sequence[FloatArray]) -> dict[str, FloatArray]:
    """Return the probability [...] of each outcome, by name.

    Args:
        log_odds: log odds [...] of a click and, if known, of a purchase after a click.
    """
    click = expit(log_odds[0])
    if len(log_odds) == 1:
        return {"click": click}
    return {"click": click, "purchase": click * expit(log_odds[1])}

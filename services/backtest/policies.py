"""The rivals of a backtest, each the same learner with parts left out."""

from __future__ import annotations

from typing import Any

from peft_adapters.settings import AFFINITY_FEATURES, COUNTER_FEATURES, LearnerSettings

_TEXT_ONLY: dict[str, Any] = {"residuals": False, "lora": False}

POLICIES: dict[str, dict[str, Any]] = {
    # Everything learns.
    "live": {},
    # The live ranker with the adapter off: what LoRA is worth.
    "live-without-lora": {"lora": False},
    # The base model's text alone, nothing learnt.
    "frozen": {"features": AFFINITY_FEATURES, "heads_learning_rate": 0.0, "taste_learning_rate": 0.0} | _TEXT_ONLY,
    # Popularity at both half-lives under a head fitted as live's is; where lists are shown, click-through so far.
    "popularity": {"features": ("popularity_fast", "popularity_slow", "click_through")} | _TEXT_ONLY,
    # All streaming counters under a head fitted as live's is.
    "cooccurrence": {"features": COUNTER_FEATURES} | _TEXT_ONLY,
}


def policy_settings(base: LearnerSettings, policy: str, seed: int) -> LearnerSettings:
    """The learner's settings under a policy; the whole catalogue is always judged."""
    return base.model_copy(update={"seed": seed, "judged_items": 2**62} | POLICIES[policy])

"""Policies of a backtest: the parts that learn, how long they learn, and when the learnt state is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from peft_adapters.settings import (
    AFFINITY_FEATURES,
    COUNTER_FEATURES,
    FEATURES,
    SECOND_STAGE_FEATURES,
    SECOND_STAGE_GROUPS,
    LearnerSettings,
)
from services.settings import SettingsError

_TEXT_ONLY: dict[str, Any] = {"second_stage": False, "residuals": False, "lora": False, "projection_learning_rate": 0.0}

# Settings of the learner that each policy overrides.
POLICIES: dict[str, dict[str, Any]] = {
    # Everything learns.
    "live": {},
    # The live ranker without LoRA.
    "live-without-lora": {"lora": False},
    # The live ranker's linear score alone.
    "live-without-second-stage": {"second_stage": False},
    # Text similarity of the base model; nothing learns.
    "frozen": {
        "features": AFFINITY_FEATURES,
        "heads_learning_rate": 0.0,
        "global_preference_learning_rate": 0.0,
        "list_global_preference_learning_rate": 0.0,
    }
    | _TEXT_ONLY,
    # Popularity at both half-lives and, with lists, click-through, under a head fitted like the live one.
    "popularity": {"features": ("popularity_fast", "popularity_slow", "click_through")} | _TEXT_ONLY,
    # All streaming counters under a head fitted like the live one.
    "cooccurrence": {"features": COUNTER_FEATURES} | _TEXT_ONLY,
}
_LEAVE_OUT = "live-without"  # the live ranker without some features
RULES = (*POLICIES, "stale", "nightly", "river", "stan", "lambdamart")
_STALE_PERCENT = 50.0


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy to compare.

    Attributes:
        name: the name in reports.
        rule: the kind of policy, one of `RULES`.
        publish_every_batches: micro-batches between two publications; the published copy ranks.
        learns_percent: percentage of the stream's clicks and purchases after which learning stops.
        nightly: whether to publish at each midnight (UTC) of event time instead.
        left_out: features that are not used.
    """

    name: str
    rule: str
    publish_every_batches: int = 1
    learns_percent: float = 100.0
    nightly: bool = False
    left_out: tuple[str, ...] = ()


def parse_policies(texts: Sequence[str]) -> list[Policy]:
    """Return the policies that a user named, such as `live`, `live:50`, `stale:30` or `river`.

    Raises:
        SettingsError: a policy is not known, its value is invalid, or it is named twice.
    """
    unknown = [text for text in texts if text.partition(":")[0] not in (*RULES, _LEAVE_OUT)]
    if unknown:
        raise SettingsError(f"`--policies` must be among {', '.join(RULES)}, got {', '.join(unknown)}")
    policies = [_parsed(text) for text in texts]
    names = [policy.name for policy in policies]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(
            f"`--policies` must name each policy once, got {', '.join(twice)} more than once in {','.join(texts)}; "
            "leave one out (`live` is `live:1`, `stale` is `stale:50`)"
        )
    return policies


def require_installed(policies: Sequence[Policy]) -> None:
    """Check that the packages of policies are installed, before hours of runs.

    Raises:
        SettingsError: LightGBM is not installed.
    """
    if any(policy.rule == "lambdamart" for policy in policies) and find_spec("lightgbm") is None:
        raise SettingsError(
            "the policy `lambdamart` needs LightGBM, which is not installed; pip install 'headwater[rivals]', or leave "
            "the policy out"
        )


def _parsed(text: str) -> Policy:
    rule, colon, value = text.partition(":")
    if rule == "live":
        every = _interval(text, value) if colon else 1
        return Policy("live" if every == 1 else f"live:{every}", rule, publish_every_batches=every)
    if rule == "stale":
        percent = _percent(text, value) if colon else _STALE_PERCENT
        name = "stale" if percent == _STALE_PERCENT else f"stale:{percent:g}"
        return Policy(name, rule, learns_percent=percent)
    if rule == _LEAVE_OUT:
        return Policy(text, rule, left_out=_left_out(text, value))
    if colon:
        raise SettingsError(f"`--policies`: {rule} takes no value, got `{text}`; write `{rule}`")
    return Policy(rule, rule, nightly=rule == "nightly")


def _interval(text: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise SettingsError(
            f"`--policies`: K of live:K must be a whole number of micro-batches, at least 1, got `{text}`; "
            "write for example `live:10`"
        )
    return int(value)


def _left_out(text: str, value: str) -> tuple[str, ...]:
    """Return the features that names joined by `+` stand for, each of a feature or a group of the second stage."""
    names = value.split("+")
    unknown = [name for name in names if name not in (*FEATURES, *SECOND_STAGE_FEATURES, *SECOND_STAGE_GROUPS)]
    if unknown:
        raise SettingsError(
            f"`--policies`: live-without takes features and groups ({', '.join(SECOND_STAGE_GROUPS)}) joined by +, got "
            f"`{text}`; write for example `live-without:price+words_last`"
        )
    return tuple(feature for name in names for feature in SECOND_STAGE_GROUPS.get(name, (name,)))


def _percent(text: str, value: str) -> float:
    try:
        percent = float(value)
    except ValueError:
        percent = -1.0
    if not 0 < percent < 100:
        raise SettingsError(
            f"`--policies`: X of stale:X must be a percentage above 0 and below 100, got `{text}`; "
            "write for example `stale:30`"
        )
    return percent


def policy_settings(base: LearnerSettings, rule: str, seed: int, *, left_out: tuple[str, ...] = ()) -> LearnerSettings:
    """Return the learner's settings for the rule of a policy; the whole catalogue is always judged.

    Args:
        base: settings before the policy changes them.
        rule: rule of the policy.
        seed: seed of the run.
        left_out: features that are not used.
    """
    settings = base.model_copy(update={"seed": seed, "judged_items": 2**62} | POLICIES.get(rule, {}))
    used = tuple(feature for feature in settings.features if feature not in left_out)
    return settings.model_copy(update={"features": used})

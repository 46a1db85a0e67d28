"""Policies as a user names them."""

import pytest

from peft_adapters.settings import LearnerSettings
from services.lab.backtest.policies import RULES, Policy, parse_policies, policy_settings
from services.settings import SettingsError


def test_every_rule_is_a_policy_by_its_name_alone() -> None:
    assert [policy.name for policy in parse_policies(RULES)] == list(RULES)


def test_values_are_taken_from_behind_the_colon() -> None:
    live, stale = parse_policies(["live:50", "stale:12.5"])
    assert live == Policy("live:50", "live", publish_every_batches=50)
    assert stale == Policy("stale:12.5", "stale", learns_percent=12.5)


def test_a_value_that_is_the_default_changes_nothing() -> None:
    assert parse_policies(["live:1", "stale:50"]) == parse_policies(["live", "stale"])
    assert parse_policies(["stale"])[0].learns_percent == 50


def test_only_nightly_waits_for_the_night() -> None:
    assert [policy.name for policy in parse_policies(RULES) if policy.nightly] == ["nightly"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", r"must be among live, .*, river, stan, lambdamart, got best"),
        (
            "live:0",
            r"K of live:K must be a whole number of micro-batches, at least 1, got `live:0`; write .* `live:10`",
        ),
        ("live:", "got `live:`"),
        ("live:1.5", "got `live:1.5`"),
        ("stale:0", r"X of stale:X must be a percentage above 0 and below 100, got `stale:0`; write .* `stale:30`"),
        ("stale:100", "got `stale:100`"),
        ("stale:half", "got `stale:half`"),
        ("stale:nan", "got `stale:nan`"),
        ("live-without:", "joined by \\+, got `live-without:`; write .* `live-without:price\\+words_last`"),
        ("live-without:price+prices", "got `live-without:price\\+prices`"),
        ("frozen:3", "frozen takes no value, got `frozen:3`; write `frozen`"),
    ],
)
def test_what_is_no_policy_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_policies(["live-without-lora", text])


def test_features_and_groups_can_be_left_out() -> None:
    (policy,) = parse_policies(["live-without:price+words_last+repeat"])
    assert policy.left_out == ("price_difference", "price_distance", "words_last", "repeat")
    settings = policy_settings(LearnerSettings(), policy.rule, 0, left_out=policy.left_out)
    assert {*LearnerSettings().features} - {*settings.features} == {*policy.left_out}


def test_a_policy_under_two_names_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"name each policy once, got live more than once in live,live:1"):
        parse_policies(["live", "live:1"])


@pytest.mark.parametrize("rule", RULES)
def test_the_learner_of_a_policy_can_rank_the_whole_catalogue(rule: str) -> None:
    settings = policy_settings(LearnerSettings(judged_items=10, seed=5), rule, 3)
    assert settings.judged_items > 10**9
    assert settings.seed == 3


def test_when_a_copy_is_published_changes_nothing_in_the_learner() -> None:
    assert policy_settings(LearnerSettings(), "nightly", 0) == policy_settings(LearnerSettings(), "live", 0)

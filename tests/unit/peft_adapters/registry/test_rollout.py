"""The rollout document and the changes that can be made to it."""

import pytest
from pydantic import ValidationError

from peft_adapters.errors import RolloutError
from peft_adapters.registry.rollout import Canary, Rollout, Shadow, parse_rollout, rollout_bytes

FOLLOWS = Rollout(scenario="home")


def test_a_pinned_version_answers_all_until_it_is_unpinned() -> None:
    pinned = FOLLOWS.pinned(3, changed_by="ann", reason="7 is odd")
    assert (pinned.revision, pinned.stable_version, pinned.changed_by, pinned.reason) == (1, 3, "ann", "7 is odd")
    assert (FOLLOWS.stable_or(9), pinned.stable_or(9)) == (9, 3)
    followed = pinned.unpinned()
    assert (followed.revision, followed.stable_version, followed.changed_by) == (2, None, "")
    assert followed.changed_at_ms > 0


def test_a_canary_holds_the_stable_version_and_ends_when_promoted_pinned_or_stopped() -> None:
    canary = FOLLOWS.with_canary(Canary(percent=5), latest=7)
    assert (canary.stable_version, canary.versions) == (7, frozenset({7}))
    assert canary.promoted(latest=9).model_dump(include={"stable_version", "canary"}) == {
        "stable_version": 9,
        "canary": None,
    }
    named = FOLLOWS.with_canary(Canary(version=8, percent=5), latest=7)
    assert named.versions == {7, 8}
    assert named.promoted(latest=9).stable_version == 8
    assert named.pinned(2).canary is None
    assert named.unpinned().canary is None
    stopped = named.with_canary(None, latest=9)
    assert (stopped.stable_version, stopped.canary) == (7, None)


def test_a_shadow_of_the_latest_holds_the_stable_version_and_one_of_another_does_not() -> None:
    assert FOLLOWS.with_shadow(Shadow(), latest=7).stable_version == 7
    named = FOLLOWS.with_shadow(Shadow(version=4), latest=7)
    assert (named.stable_version, named.versions) == (None, frozenset({4}))
    assert named.pinned(4).shadow is None
    assert named.pinned(5).shadow == Shadow(version=4)
    assert FOLLOWS.with_shadow(Shadow(), latest=7).unpinned().shadow is None
    assert named.with_shadow(None, latest=7).shadow is None


def test_arms_that_are_the_stable_version_are_refused() -> None:
    with pytest.raises(RolloutError, match="`canary` must be another version than the stable one, got 7 for both"):
        FOLLOWS.with_canary(Canary(version=7, percent=5), latest=7)
    with pytest.raises(RolloutError, match="`shadow` must be another version"):
        FOLLOWS.pinned(3).with_shadow(Shadow(version=3), latest=7)
    with pytest.raises(RolloutError, match="no canary to promote"):
        FOLLOWS.promoted(latest=7)
    with pytest.raises(ValidationError, match="needs a pinned `stable_version`"):
        Rollout(scenario="home", canary=Canary(percent=5))


@pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(percent: float) -> None:
    with pytest.raises(ValidationError, match="percent"):
        Canary(percent=percent)


def test_a_text_too_long_is_refused_by_name() -> None:
    with pytest.raises(RolloutError, match="`reason`: String should have at most 500"):
        FOLLOWS.pinned(3, reason="x" * 501)


def test_it_travels_as_json_and_another_scenarios_is_refused() -> None:
    rollout = FOLLOWS.with_canary(Canary(percent=0.5, auto_rollback=True), latest=7)
    assert parse_rollout(rollout_bytes(rollout), scenario="home", source="there") == rollout
    with pytest.raises(RolloutError, match="expected the rollout of 'ads', found that of 'home'"):
        parse_rollout(rollout_bytes(rollout), scenario="ads", source="there")
    for data in (b"", b"{", b"[]", b'{"scenario": "home", "stable": 1}', b'{"scenario": "../x"}'):
        with pytest.raises(RolloutError, match="there: expected a rollout"):
            parse_rollout(data, scenario="home", source="there")

"""Changes of a rollout as people ask for them."""

from pathlib import Path

import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import RolloutConflictError, RolloutError, VersionNotFoundError
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Canary, Rollout, Shadow
from services.registry.changes import (
    PATHS,
    EndCanary,
    EndShadow,
    Pin,
    Promote,
    Rollback,
    StartCanary,
    StartShadow,
    Unpin,
    apply_change,
)


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    registry = AdapterRegistry(str(tmp_path / "registry"))
    for version in (2, 5, 7):
        registry.publish(tmp_path / str(version), write_small_bundle(tmp_path / str(version), version))
    return registry


def test_each_has_a_route_of_its_own() -> None:
    changes = ("pin", "unpin", "rollback", "canary", "canary/end", "shadow", "shadow/end", "promote")
    assert tuple(PATHS.values()) == changes


def test_a_rollback_goes_to_the_version_before_the_one_that_is_served(registry: AdapterRegistry) -> None:
    back = apply_change(registry, "home", Rollback(reason="worse"), by="ann")
    assert (back.stable_version, back.reason, back.changed_by) == (5, "worse", "ann")
    assert apply_change(registry, "home", Rollback(), by="ann").stable_version == 2
    with pytest.raises(RolloutError, match="nothing earlier than version 2 is kept"):
        apply_change(registry, "home", Rollback(), by="ann")
    assert registry.rollout("home").revision == 2
    assert apply_change(registry, "home", Unpin(), by="ann").stable_version is None


def test_a_rollback_from_a_canary_goes_to_the_stable_version(registry: AdapterRegistry) -> None:
    apply_change(registry, "home", Pin(version=2), by="ann")
    apply_change(registry, "home", StartCanary(percent=50), by="ann")
    back = apply_change(registry, "home", Rollback(), by="ann")
    assert (back.stable_version, back.canary) == (2, None)


def test_a_named_rollback_goes_there_and_not_forward(registry: AdapterRegistry) -> None:
    assert apply_change(registry, "home", Rollback(version=2), by="ann").stable_version == 2
    with pytest.raises(RolloutError, match="`version` must be below 2, which is served, got 5; pin it"):
        apply_change(registry, "home", Rollback(version=5), by="ann")
    apply_change(registry, "home", StartCanary(version=7, percent=1), by="ann")
    assert apply_change(registry, "home", Rollback(version=5), by="ann").stable_version == 5


def test_a_version_that_was_never_published_is_refused(registry: AdapterRegistry) -> None:
    for change in (Pin(version=3), Rollback(version=3), StartCanary(version=3, percent=5), StartShadow(version=3)):
        with pytest.raises(VersionNotFoundError, match="no version 3"):
            apply_change(registry, "home", change, by="ann")
    with pytest.raises(VersionNotFoundError, match="nothing has been published for scenario 'ads'"):
        apply_change(registry, "ads", Unpin(), by="ann")


def test_canary_and_shadow_begin_and_end(registry: AdapterRegistry) -> None:
    canary = apply_change(registry, "home", StartCanary(version=5, percent=0.5, auto_rollback=True), by="ann")
    assert (canary.stable_version, canary.canary) == (7, Canary(version=5, percent=0.5, auto_rollback=True))
    both = apply_change(registry, "home", StartShadow(version=2), by="ann")
    assert (both.canary, both.shadow) == (canary.canary, Shadow(version=2))
    assert apply_change(registry, "home", EndShadow(), by="ann").shadow is None
    assert apply_change(registry, "home", EndCanary(), by="ann").canary is None
    apply_change(registry, "home", StartCanary(version=5, percent=5), by="ann")
    assert apply_change(registry, "home", Promote(), by="ann").stable_version == 5


def test_a_change_can_be_made_dependent_on_what_was_seen(registry: AdapterRegistry) -> None:
    apply_change(registry, "home", Pin(version=5, if_revision=0), by="ann")
    with pytest.raises(RolloutConflictError, match="must be that of the rollout of 'home', 1, got 0"):
        apply_change(registry, "home", Pin(version=7, if_revision=0), by="ben")
    assert registry.rollout("home").changed_by == "ann"


def test_a_name_too_long_is_cut(registry: AdapterRegistry) -> None:
    assert len(apply_change(registry, "home", Unpin(), by="x" * 2_000).changed_by) == 500
    assert registry.rollout("home") != Rollout(scenario="home")

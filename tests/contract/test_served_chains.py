"""What is to be served is verified first, by every change and on every kind of access; a refusal writes nothing."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import RegistryError
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from peft_adapters.registry.signing import Signer, Verifier, generate_key_pair
from services.registry.app import create_app
from services.registry.changes import (
    Change,
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
from services.registry.client import DirectClient, HttpClient, RegistryClient
from services.settings import Settings
from services.web.server import running

HOUR_MS = 3_600_000


def publish(root: Path, version: int, *, delta: bool = False, snapshot: int = 1, **fields: object) -> AdapterRegistry:
    registry = AdapterRegistry(str(root / "registry"))
    directory = root / f"made-{version}"
    registry.publish(
        directory,
        write_small_bundle(directory, version, delta=delta, snapshot=snapshot, **fields),  # type: ignore[arg-type]
    )
    return registry


@contextmanager
def reached(kind: str, registry: AdapterRegistry) -> Iterator[RegistryClient]:
    if kind == "process":
        with running(create_app(registry)) as url:
            yield HttpClient(url, None)
    else:
        own = {"url": registry.url, "announce_rollouts": False}
        yield DirectClient(Settings.model_validate({"registry": own}), registry.url)


@pytest.fixture(params=["directory", "process"])
def access(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryClient]:
    """Versions 1 (full), 2 and 3 (deltas on it) and 4 (full)."""
    publish(tmp_path, 1)
    publish(tmp_path, 2, delta=True)
    publish(tmp_path, 3, delta=True)
    registry = publish(tmp_path, 4)
    with reached(request.param, registry) as found:
        yield found


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("manifest.json", Path.unlink, "no version 2"),
    ("manifest.json", lambda path: path.write_bytes(b"{}"), "manifest.json"),
    ("residuals.safetensors", Path.unlink, "residuals.safetensors is gone"),
    ("residuals.safetensors", flip_a_byte, "residuals.safetensors: expected sha256"),
    ("residuals.safetensors", lambda path: os.truncate(path, 10), "residuals.safetensors: expected .* bytes, found 10"),
    (
        "items.json",
        lambda path: path.write_bytes(path.read_bytes() + b" "),
        "items.json: expected .* bytes, found more",
    ),
]


@pytest.mark.parametrize(("name", "damage", "cause"), DAMAGES)
@pytest.mark.parametrize(
    "change",
    [Pin(version=3), Rollback(version=3), Rollback(), StartCanary(version=3, percent=5), StartShadow(version=3)],
)
def test_a_damaged_link_refuses_the_version_that_builds_on_it(
    access: RegistryClient, tmp_path: Path, change: Change, name: str, damage: Callable[[Path], object], cause: str
) -> None:
    damage(tmp_path / "registry" / "home" / "00000002" / name)
    with pytest.raises(
        RegistryError, match=rf"version 3 of 'home' cannot be served, .* version 2, which .*{cause}"
    ) as got:
        access.change("home", change)
    assert str(tmp_path) not in str(got.value)
    assert not (tmp_path / "registry" / "home" / "ROLLOUT.json").exists()
    assert access.change("home", Pin(version=1)).stable_version == 1


def test_a_version_that_is_not_there_is_named(access: RegistryClient, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="holds no version 9 of scenario 'home'"):
        access.change("home", Pin(version=9))
    assert not (tmp_path / "registry" / "home" / "ROLLOUT.json").exists()


def test_a_canary_that_was_damaged_meanwhile_is_not_promoted_but_can_be_ended(
    access: RegistryClient, tmp_path: Path
) -> None:
    access.change("home", StartCanary(version=3, percent=5))
    flip_a_byte(tmp_path / "registry" / "home" / "00000003" / "residuals.safetensors")
    with pytest.raises(RegistryError, match="version 3 of 'home' cannot be served"):
        access.change("home", Promote())
    assert access.registry.rollout("home").canary is not None
    assert access.change("home", EndCanary()).canary is None


def test_a_damaged_version_that_is_left_stops_no_change(access: RegistryClient, tmp_path: Path) -> None:
    access.change("home", Pin(version=4))
    access.change("home", StartShadow(version=3))
    (tmp_path / "registry" / "home" / "00000002" / "manifest.json").unlink()
    assert access.change("home", Rollback(version=1)).stable_version == 1
    assert access.change("home", EndShadow()).shadow is None
    (tmp_path / "registry" / "home" / "00000001" / "manifest.json").unlink()
    assert access.change("home", Unpin()).stable_version is None


def test_a_latest_version_that_is_damaged_is_no_canary(access: RegistryClient, tmp_path: Path) -> None:
    access.change("home", Pin(version=3))
    flip_a_byte(tmp_path / "registry" / "home" / "00000004" / "residuals.safetensors")
    with pytest.raises(RegistryError, match="version 4 of 'home' cannot be served"):
        access.change("home", StartCanary(percent=5))


def test_a_link_that_is_not_signed_refuses_the_version(tmp_path: Path) -> None:
    private, public = generate_key_pair(tmp_path / "keys")
    publish(tmp_path, 1)
    registry = publish(tmp_path, 2, sign=Signer(private))
    verify = Verifier([public], require=True)
    assert apply_change(registry, "home", Pin(version=2), by="ann", verify=verify).stable_version == 2
    with pytest.raises(RegistryError, match="version 1 of 'home' cannot be served"):
        apply_change(registry, "home", Pin(version=1), by="ann", verify=verify)


class TestBackInTime:
    """Versions 1 to 5, published five, four, three, two and one hours ago."""

    @pytest.fixture(params=["directory", "process"])
    def access(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryClient]:
        self.now_ms = time.time_ns() // 1_000_000
        for version in range(1, 6):
            registry = publish(tmp_path, version, published_at_ms=self.now_ms - (6 - version) * HOUR_MS)
        with reached(request.param, registry) as found:
            yield found

    @pytest.mark.parametrize(("to", "version"), [("2h", 4), ("150m", 3), ("4h", 2), ("239m", 2), ("5h", 1)])
    def test_it_is_the_newest_version_up_to_then(self, access: RegistryClient, to: str, version: int) -> None:
        rollout: Rollout = access.change("home", Rollback(to=to, reason="worse"))
        assert (rollout.stable_version, rollout.reason) == (version, "worse")
        assert access.registry.rollout("home") == rollout

    def test_a_time_of_day(self, access: RegistryClient) -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now_ms / 1_000 - 3.5 * 3_600))
        assert access.change("home", Rollback(to=moment)).stable_version == 2

    def test_what_was_deleted_is_passed_over(self, access: RegistryClient, tmp_path: Path) -> None:
        (tmp_path / "registry" / "home" / "00000004" / "manifest.json").unlink()
        assert access.change("home", Rollback(to="90m")).stable_version == 3

    def test_further_back_than_what_is_kept_names_the_oldest(self, access: RegistryClient) -> None:
        oldest = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now_ms // 1_000 - 5 * 3_600))
        with pytest.raises(RegistryError, match=f"the oldest that is kept is version 1, published at {oldest}"):
            access.change("home", Rollback(to="3d"))
        assert access.registry.rollout("home").revision == 0

    def test_what_is_served_already_is_no_rollback(self, access: RegistryClient) -> None:
        with pytest.raises(RegistryError, match=r"version 5, published at .*a rollback must go below version 5"):
            access.change("home", Rollback(to="1m"))
        access.change("home", Pin(version=2))
        with pytest.raises(RegistryError, match=r"version 4, published at .*a rollback must go below version 2"):
            access.change("home", Rollback(to="2h"))

    @pytest.mark.parametrize(
        ("fields", "rule"),
        [
            ({"to": "2h", "version": 1}, "`version` or `to`, got both"),
            ({"to": "2999-01-01T00:00:00Z"}, "must be a time in the past"),
            ({"to": "2026-02-31T00:00:00Z"}, "a time must be RFC 3339"),
        ],
    )
    def test_a_time_that_cannot_be_is_refused(self, access: RegistryClient, fields: dict[str, Any], rule: str) -> None:
        with pytest.raises(RegistryError, match=rule):
            access.change("home", Rollback(**fields))
        assert access.registry.rollout("home").revision == 0


@pytest.mark.parametrize("to", ["soon", "", "2 h", "1767225600", "2026-01-01", "2026-01-01T00:00:00"])
def test_what_is_no_time_is_refused(to: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Rollback(to=to)

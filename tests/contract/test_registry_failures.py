"""A store that fails at each step of a publication: nothing becomes visible, and publishing again completes it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import BundleDigestError, RegistryUnavailableError
from peft_adapters.registry.bundle import read_bundle
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.retention import Retention
from peft_adapters.registry.stores import FsspecStore

FILES_OF_A_BUNDLE = 4
WRITES_OF_A_PUBLICATION = FILES_OF_A_BUNDLE + 2  # the manifest, then LATEST


class FullStore(FsspecStore):
    """A store that accepts `room` writes, then has no space left."""

    def __init__(self, url: str, *, room: int) -> None:
        super().__init__(url)
        self.room = room
        self.written: list[str] = []

    def write(self, path: str, data: bytes) -> None:
        self._take(path)
        super().write(path, data)

    def upload(self, path: str, source: Path) -> None:
        self._take(path)
        super().upload(path, source)

    def _take(self, path: str) -> None:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        self.room -= 1
        self.written.append(path)


class ForgetfulStore(FsspecStore):
    """A store that returns other bytes than it took for each path that ends in `ending`."""

    def __init__(self, url: str, *, ending: str) -> None:
        super().__init__(url)
        self._ending = ending

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        return self._changed(path, super().read(path, limit_bytes=limit_bytes))

    def chunks(self, path: str, *, limit_bytes: int) -> Iterator[bytes]:
        return (self._changed(path, chunk) for chunk in super().chunks(path, limit_bytes=limit_bytes))

    def _changed(self, path: str, data: bytes) -> bytes:
        return data[:-1] if path.endswith(self._ending) else data


class BrokenStore(FsspecStore):
    """A store whose reads break off in the middle of each file."""

    def chunks(self, path: str, *, limit_bytes: int) -> Iterator[bytes]:
        yield next(super().chunks(path, limit_bytes=limit_bytes))[:10]
        raise TimeoutError("timed out")


@pytest.fixture
def root(tmp_path: Path) -> str:
    root = str(tmp_path / "registry")
    AdapterRegistry(root).publish(tmp_path / "first", write_small_bundle(tmp_path / "first", 1))
    return root


@pytest.mark.parametrize("room", range(WRITES_OF_A_PUBLICATION))
def test_a_full_store_keeps_the_version_before_and_the_next_try_ends_the_work(
    root: str, tmp_path: Path, room: int
) -> None:
    store = FullStore(root, room=room)
    second = write_small_bundle(tmp_path / "second", 2)
    with pytest.raises(RegistryUnavailableError, match="No space left") as caught:
        AdapterRegistry(root, store=store).publish(tmp_path / "second", second)
    assert isinstance(caught.value.__cause__, OSError)

    reader = AdapterRegistry(root)
    latest = reader.latest("home")
    assert latest is not None
    assert latest.version == 1
    assert reader.versions("home") == ([1] if room < WRITES_OF_A_PUBLICATION - 1 else [1, 2])
    for version in reader.versions("home"):
        read_bundle(reader.fetch("home", version, tmp_path / "cache"), base_digest="base-1")

    store.room = WRITES_OF_A_PUBLICATION
    AdapterRegistry(root, store=store).publish(tmp_path / "second", second)
    assert reader.latest("home") == second


def test_files_come_first_then_the_manifest_then_latest(tmp_path: Path) -> None:
    store = FullStore(str(tmp_path / "registry"), room=WRITES_OF_A_PUBLICATION)
    manifest = write_small_bundle(tmp_path / "made", 3)
    AdapterRegistry("unused", store=store).publish(tmp_path / "made", manifest)
    assert set(store.written[:FILES_OF_A_BUNDLE]) == {f"home/00000003/{name}" for name in manifest.files}
    assert store.written[FILES_OF_A_BUNDLE:] == ["home/00000003/manifest.json", "home/LATEST"]


def test_a_store_that_returns_other_files_never_shows_the_version(root: str, tmp_path: Path) -> None:
    forgetful = AdapterRegistry(root, store=ForgetfulStore(root, ending=".safetensors"))
    with pytest.raises(BundleDigestError, match="nothing was published"):
        forgetful.publish(tmp_path / "second", write_small_bundle(tmp_path / "second", 2))
    assert AdapterRegistry(root).versions("home") == [1]


def test_a_store_that_returns_another_manifest_never_advances_latest(root: str, tmp_path: Path) -> None:
    forgetful = AdapterRegistry(root, store=ForgetfulStore(root, ending="00000002/manifest.json"))
    with pytest.raises(BundleDigestError, match="other bytes than it took"):
        forgetful.publish(tmp_path / "second", write_small_bundle(tmp_path / "second", 2))
    latest = AdapterRegistry(root).latest("home")
    assert latest is not None
    assert latest.version == 1


def test_a_download_cut_short_leaves_the_destination_as_it_was(root: str, tmp_path: Path) -> None:
    good = AdapterRegistry(root).fetch("home", 1, tmp_path / "cache")
    (good / "items.json").write_text("damaged")
    with pytest.raises(RegistryUnavailableError, match=r"cannot read home/00000001/.*timed out"):
        AdapterRegistry(root, store=BrokenStore(root)).fetch("home", 1, tmp_path / "cache")
    assert (good / "items.json").read_text() == "damaged"
    assert [path.name for path in good.parent.iterdir()] == ["00000001"]


class TiredStore(FsspecStore):
    """A store that removes `strength` times, then fails."""

    strength = 0

    def remove(self, path: str) -> None:
        if self.strength == 0:
            raise OSError("too tired")
        self.strength -= 1
        super().remove(path)


@pytest.mark.parametrize("strength", range(6))  # two removals for each of three versions
def test_pruning_cut_short_leaves_only_versions_that_can_be_built(tmp_path: Path, strength: int) -> None:
    store = TiredStore(str(tmp_path / "registry"))
    registry = AdapterRegistry("unused", store=store)
    for version in (1, 2, 3, 4):
        manifest = write_small_bundle(tmp_path / str(version), version, delta=version in (2, 3))
        registry.publish(tmp_path / str(version), manifest)
    store.strength = strength
    with pytest.raises(RegistryUnavailableError, match="too tired"):
        registry.prune("home", Retention(versions=1))
    for version in registry.versions("home"):
        registry.chain("home", version)
    store.strength = 6
    registry.prune("home", Retention(versions=1))
    assert sorted(path.name for path in (tmp_path / "registry/home").iterdir()) == ["00000004", "LATEST"]

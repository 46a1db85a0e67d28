"""One contract for every kind of store: published to files or memory, read from there or over HTTP."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import (
    BundleDigestError,
    BundleFormatError,
    BundleSizeError,
    BundleVersionError,
    RegistryAddressError,
    RegistryReadOnlyError,
    RegistryUnavailableError,
    ScenarioNameError,
    VersionConflictError,
    VersionNotFoundError,
)
from peft_adapters.registry.bundle import Manifest, read_bundle
from peft_adapters.registry.manifest import check_scenario
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.retention import Retention
from services.registry.app import create_app
from services.web.server import running


class Registry:
    """A registry opened by its publisher and by its readers."""

    def __init__(self, root: str, reader: AdapterRegistry, workshop: Path) -> None:
        self.root = root
        self.writer = AdapterRegistry(root)
        self.reader = reader
        self._workshop = workshop

    def make(self, version: int, *, seed: int = 0, **fields: object) -> tuple[Path, Manifest]:
        directory = self._workshop / f"{version}-{seed}"
        return directory, write_small_bundle(directory, version, seed=seed, **fields)  # type: ignore[arg-type]

    def publish(self, version: int, *, seed: int = 0, **fields: object) -> Manifest:
        directory, manifest = self.make(version, seed=seed, **fields)
        self.writer.publish(directory, manifest)
        return manifest

    def overwrite(self, path: str, data: bytes) -> None:
        """Overwrite a file in the store, bypassing the registry."""
        fs, root = fsspec.core.url_to_fs(self.root)
        fs.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{root}/{path}", data)

    def content(self, path: str) -> bytes:
        fs, root = fsspec.core.url_to_fs(self.root)
        return bytes(fs.cat_file(f"{root}/{path}"))


@pytest.fixture(params=["file", "memory", "http"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    root = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "registry")
    writer = AdapterRegistry(root)
    if request.param != "http":
        yield Registry(root, writer, tmp_path / "made")
        return
    with running(create_app(writer)) as url:
        yield Registry(root, AdapterRegistry(f"{url}/v1/files"), tmp_path / "made")


class TestRegistryContract:
    def test_an_empty_registry_has_nothing_and_says_so(self, registry: Registry) -> None:
        registry.reader.check()
        assert registry.reader.latest("home") is None
        assert registry.reader.versions("home") == []
        with pytest.raises(VersionNotFoundError, match="no version 1 of scenario 'home'"):
            registry.reader.manifest("home", 1)

    def test_what_is_published_can_be_listed_and_fetched(self, registry: Registry, tmp_path: Path) -> None:
        first, second = registry.publish(1), registry.publish(2)
        assert registry.reader.latest("home") == second
        assert registry.reader.versions("home") == [1, 2]
        assert registry.reader.manifest("home", 1) == first

        copy = registry.reader.fetch("home", 1, tmp_path / "cache")

        assert copy == tmp_path / "cache/home/00000001"
        assert read_bundle(copy, base_digest="base-1").manifest == first
        made, fetched = tmp_path / "made/1-0", {path.name for path in copy.iterdir()}
        assert fetched == {path.name for path in made.iterdir()}
        assert all((copy / name).read_bytes() == (made / name).read_bytes() for name in fetched)
        assert [path.name for path in copy.parent.iterdir()] == ["00000001"]

    def test_the_layout_is_what_people_find_there(self, registry: Registry) -> None:
        registry.publish(12)
        assert registry.content("home/LATEST") == b"12\n"
        assert registry.content("home/00000012/items.json") == b'[\n "item-12"\n]'

    def test_scenarios_do_not_see_each_other(self, registry: Registry) -> None:
        registry.publish(1)
        registry.publish(7, scenario="ads")
        assert (registry.reader.versions("home"), registry.reader.versions("ads")) == ([1], [7])

    def test_publishing_the_same_again_changes_nothing(self, registry: Registry) -> None:
        first = registry.publish(1)
        second = registry.publish(2)
        again = registry.publish(1, watermark_ms=77)  # the same files, so the same digest
        assert again.digest == first.digest
        assert registry.reader.manifest("home", 1) == first
        assert registry.reader.latest("home") == second

    def test_a_version_is_never_given_other_content(self, registry: Registry, tmp_path: Path) -> None:
        first = registry.publish(1)
        with pytest.raises(VersionConflictError, match=r"already holds version 1 .*publish under a new version"):
            registry.publish(1, seed=9)
        assert registry.reader.manifest("home", 1) == first
        copy = registry.reader.fetch("home", 1, tmp_path / "cache")
        assert read_bundle(copy, base_digest=None).manifest == first

    def test_publishing_again_ends_what_was_cut_short_before_latest(self, registry: Registry) -> None:
        registry.publish(1)
        second = registry.publish(2)
        registry.overwrite("home/LATEST", b"1\n")
        registry.publish(2)
        assert registry.reader.latest("home") == second

    def test_a_chain_goes_from_the_last_full_version_through_the_deltas(self, registry: Registry) -> None:
        registry.publish(1)
        registry.publish(2, delta=True)
        registry.publish(3)
        registry.publish(4, delta=True, snapshot=3)
        registry.publish(5, delta=True, snapshot=3)
        registry.publish(9, delta=True, snapshot=3, parent=5)
        chains = {version: registry.reader.chain("home", version) for version in (1, 2, 3, 9)}
        assert chains == {1: [1], 2: [1, 2], 3: [3], 9: [3, 4, 5, 9]}
        with pytest.raises(VersionNotFoundError):
            registry.reader.chain("home", 6)

    def test_a_delta_without_its_parent_is_not_published(self, registry: Registry) -> None:
        with pytest.raises(VersionNotFoundError, match="no version 1"):
            registry.publish(2, delta=True)
        registry.publish(3)
        with pytest.raises(BundleFormatError, match=r"expected `snapshot` 3 .*found 1"):
            registry.publish(4, delta=True, snapshot=1)
        assert registry.reader.versions("home") == [3]

    def test_a_refused_candidate_is_kept_and_never_announced(self, registry: Registry) -> None:
        live = registry.publish(1)
        registry.writer.keep_refused(*registry.make(2))
        registry.writer.keep_refused(*registry.make(2, seed=1))
        assert registry.reader.versions("home") == [1]
        assert registry.reader.latest("home") == live
        with pytest.raises(VersionNotFoundError):
            registry.reader.manifest("home", 2)
        kept = registry.content("home/refused/00000002/residuals.safetensors")
        assert kept == (registry.make(2, seed=1)[0] / "residuals.safetensors").read_bytes()
        registry.publish(2, seed=2)
        assert registry.reader.versions("home") == [1, 2]

    def test_pruning_keeps_the_newest_and_what_their_chains_need(self, registry: Registry, tmp_path: Path) -> None:
        registry.publish(1)
        registry.publish(2, delta=True)
        registry.publish(3)
        for version in (4, 5, 6):
            registry.publish(version, delta=True, snapshot=3)
            registry.writer.keep_refused(*registry.make(version, seed=1))
        assert registry.writer.prune("home", Retention(versions=1)) == [1, 2]
        assert registry.reader.versions("home") == [3, 4, 5, 6]
        for version in registry.reader.chain("home", 6):
            registry.reader.fetch("home", version, tmp_path / "cache")
        assert registry.content("home/refused/00000006/items.json")
        with pytest.raises(FileNotFoundError):
            registry.content("home/refused/00000005/items.json")
        with pytest.raises(FileNotFoundError):
            registry.content("home/00000001/items.json")
        registry.publish(7)
        assert registry.writer.prune("home", Retention(versions=1)) == [3, 4, 5, 6]
        assert registry.writer.prune("home", Retention(versions=5)) == []
        with pytest.raises(ValueError, match="`versions` must be at least 1, got 0"):
            registry.writer.prune("home", Retention(versions=0))

    def test_pruning_keeps_the_first_full_version_of_each_minute_so_far_back(self, registry: Registry) -> None:
        for version in (1, 29, 30, 35, 61, 62, 95, 130):  # two seconds each
            registry.publish(version)
        registry.publish(131, delta=True, snapshot=130)
        registry.publish(132, delta=True, snapshot=130)
        assert registry.writer.prune("home", Retention(versions=1, minutes=3)) == [1, 29, 30, 35, 62]
        assert registry.writer.prune("home", Retention(versions=1, minutes=3)) == []
        registry.publish(160)
        assert registry.writer.prune("home", Retention(versions=1, minutes=2)) == [61, 95, 131, 132]
        assert registry.reader.versions("home") == [130, 160]

    def test_pruning_keeps_to_a_size_and_to_what_is_served(self, registry: Registry) -> None:
        for version in range(1, 11):
            registry.publish(version)
        registry.writer.set_rollout(registry.writer.rollout("home").pinned(2))
        size_bytes = sum(entry.bytes for entry in registry.reader.manifest("home", 10).files.values())
        retention = Retention(versions=8, minutes=60, size_bytes=int(4.5 * size_bytes))
        assert registry.writer.prune("home", retention) == [1, 3, 4, 5, 6, 7]
        assert registry.reader.versions("home") == [2, 8, 9, 10]

    def test_pruning_does_not_stop_at_an_older_version_that_is_damaged(self, registry: Registry) -> None:
        for version in (1, 31, 61, 91):
            registry.publish(version)
        registry.overwrite("home/00000031/manifest.json", b"{}")
        assert registry.writer.prune("home", Retention(versions=1, minutes=10)) == [31]

    def test_pruning_clears_what_a_pruning_cut_short_left(self, registry: Registry) -> None:
        registry.publish(2)
        registry.overwrite("home/00000001/items.json", b"[]")  # its manifest has been removed
        registry.overwrite("home/00000003/items.json", b"[]")  # its manifest is not written yet
        assert registry.writer.prune("home", Retention(versions=1)) == []
        with pytest.raises(FileNotFoundError):
            registry.content("home/00000001/items.json")
        assert registry.content("home/00000003/items.json")

    def test_a_damaged_file_is_refused_and_leaves_nothing_behind(self, registry: Registry, tmp_path: Path) -> None:
        registry.publish(1)
        path = "home/00000001/residuals.safetensors"
        good = registry.content(path)
        for damaged, error in [(good[:-1] + b"x", BundleDigestError), (good + b"x" * 9, BundleSizeError)]:
            registry.overwrite(path, damaged)
            # Over HTTP the registry process sends no more bytes than the manifest records, so the copy is valid.
            if error is BundleSizeError and registry.reader is not registry.writer:
                continue
            with pytest.raises(error):
                registry.reader.fetch("home", 1, tmp_path / "cache")
        assert list((tmp_path / "cache").rglob("*.safetensors")) == []
        registry.overwrite(path, good)
        registry.reader.fetch("home", 1, tmp_path / "cache")

    def test_a_good_copy_is_used_and_a_damaged_one_replaced(self, registry: Registry, tmp_path: Path) -> None:
        registry.publish(1, metrics={"auc": float("nan")})
        copy = registry.reader.fetch("home", 1, tmp_path / "cache")
        inode = copy.stat().st_ino
        assert registry.reader.fetch("home", 1, tmp_path / "cache").stat().st_ino == inode
        (copy / "items.json").write_bytes(b"[]")
        assert registry.reader.fetch("home", 1, tmp_path / "cache") == copy
        read_bundle(copy, base_digest="base-1")

    def test_a_cache_is_itself_a_registry_to_start_from(self, registry: Registry, tmp_path: Path) -> None:
        registry.publish(1)
        registry.publish(2, delta=True)
        for version in registry.reader.chain("home", 2):
            registry.reader.fetch("home", version, tmp_path / "cache")
        cache = AdapterRegistry(str(tmp_path / "cache"))
        assert cache.chain("home", cache.versions("home")[-1]) == [1, 2]

    @pytest.mark.parametrize("name", ["", "..", "../home", "Home", "a/b", "a" * 65, "höme", "home\n", "home?x"])
    def test_a_name_that_is_no_scenario_s(self, registry: Registry, tmp_path: Path, name: str) -> None:
        for ask in (
            lambda: registry.reader.latest(name),
            lambda: registry.reader.versions(name),
            lambda: registry.reader.chain(name, 1),
            lambda: registry.reader.fetch(name, 1, tmp_path),
            lambda: registry.writer.prune(name, Retention(versions=1)),
        ):
            with pytest.raises(ScenarioNameError, match="`scenario` must be 1 to 64"):
                ask()
        assert check_scenario("home-page_2") == "home-page_2"

    def test_what_is_published_is_read_back_before_it_counts(self, registry: Registry) -> None:
        registry.publish(1)
        directory, manifest = registry.make(2)
        with (directory / "residuals.safetensors").open("r+b") as file:
            file.write(b"\0")
        with pytest.raises(BundleDigestError, match=r"residuals.safetensors: expected sha256 .*nothing was published"):
            registry.writer.publish(directory, manifest)
        assert registry.reader.versions("home") == [1]


@pytest.fixture(params=["file", "memory"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    root = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "registry")
    return Registry(root, AdapterRegistry(root), tmp_path / "made")


class TestDamagedManifests:
    """Errors that only a direct reader can distinguish; over HTTP each is an error of the server."""

    def test_a_manifest_of_the_future(self, stored: Registry) -> None:
        stored.publish(1)
        stored.overwrite("home/00000001/manifest.json", b'{"format_version": 3}')
        with pytest.raises(BundleVersionError, match="upgrade this one"):
            stored.reader.latest("home")

    def test_a_manifest_under_another_version_s_name(self, stored: Registry) -> None:
        stored.publish(1)
        stored.overwrite("home/00000002/manifest.json", stored.content("home/00000001/manifest.json"))
        with pytest.raises(BundleFormatError, match="expected version 2 of 'home', found version 1 of 'home'"):
            stored.reader.manifest("home", 2)

    @pytest.mark.parametrize("text", [b"", b"one", b"-1", b"1.5", b"\xff"])
    def test_a_latest_that_is_no_number(self, stored: Registry, text: bytes) -> None:
        stored.overwrite("home/LATEST", text)
        with pytest.raises(BundleFormatError, match="LATEST: expected a version number, found"):
            stored.reader.latest("home")

    def test_a_latest_that_is_not_there(self, stored: Registry) -> None:
        stored.publish(1)
        stored.overwrite("home/LATEST", b"2\n")
        with pytest.raises(VersionNotFoundError, match="LATEST names version 2"):
            stored.reader.latest("home")

    def test_a_file_that_is_gone(self, stored: Registry, tmp_path: Path) -> None:
        stored.publish(1)
        fs, root = fsspec.core.url_to_fs(stored.root)
        fs.rm(f"{root}/home/00000001/items.json")
        with pytest.raises(VersionNotFoundError, match=r"items.json is gone"):
            stored.reader.fetch("home", 1, tmp_path / "cache")


def test_over_http_nothing_can_be_changed(tmp_path: Path) -> None:
    registry = AdapterRegistry("http://127.0.0.1:9/v1/files")
    for change in (registry.keep_refused, AdapterRegistry("http://127.0.0.1:9/v1/files").keep_refused):
        with pytest.raises(RegistryReadOnlyError, match="is read-only"):
            change(tmp_path, write_small_bundle(tmp_path / "made"))


def test_a_registry_process_that_is_not_there(tmp_path: Path) -> None:
    registry = AdapterRegistry("http://127.0.0.1:9/v1/files")
    for ask in (registry.check, lambda: registry.latest("home"), lambda: registry.versions("home")):
        with pytest.raises(
            RegistryUnavailableError, match=r"registry http://127.0.0.1:9/v1/files cannot .*try again"
        ) as caught:
            ask()
        assert isinstance(caught.value.__cause__, OSError)


def test_a_store_nobody_can_open() -> None:
    with pytest.raises(RegistryAddressError, match=r"`registry_url` 'no-such-store://root' cannot be opened: .*give a"):
        AdapterRegistry("no-such-store://root")


def test_a_root_that_is_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("not a directory")
    with pytest.raises(RegistryUnavailableError):
        AdapterRegistry(str(tmp_path / "root")).check()


def test_the_registry_may_be_moved_while_nobody_looks(tmp_path: Path) -> None:
    first = Registry(str(tmp_path / "a"), AdapterRegistry(str(tmp_path / "a")), tmp_path / "made")
    manifest = first.publish(1)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert AdapterRegistry((tmp_path / "b").as_uri()).latest("home") == manifest

"""Any history of publishing, refusing, pruning and crashes: readers see complete, ordered, buildable versions."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from small_bundle import write_small_bundle

from peft_adapters.errors import RegistryUnavailableError, VersionConflictError
from peft_adapters.registry.bundle import Manifest, read_bundle
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.retention import Retention
from peft_adapters.registry.stores import FsspecStore


class MortalStore(FsspecStore):
    """A store that crashes at its n-th change; that change and all later ones do not happen."""

    changes_to_live: float = float("inf")

    def write(self, path: str, data: bytes) -> None:
        self._live()
        super().write(path, data)

    def upload(self, path: str, source: Path) -> None:
        self._live()
        super().upload(path, source)

    def remove(self, path: str) -> None:
        self._live()
        super().remove(path)

    def _live(self) -> None:
        if self.changes_to_live <= 0:
            raise OSError("dead")
        self.changes_to_live -= 1


class RegistryHistory(RuleBasedStateMachine):
    """A state machine that compares a registry with a model of the history it should have."""

    def __init__(self) -> None:
        super().__init__()
        self.workshop = Path(tempfile.mkdtemp())
        self.published: dict[int, Manifest] = {}
        self.latest = 0

    @initialize(kind=st.sampled_from(["file", "memory"]))
    def open(self, kind: str) -> None:
        root = self.workshop / "registry"
        self.store = MortalStore(f"memory://{root}" if kind == "memory" else str(root))
        self.registry = AdapterRegistry(str(root), store=self.store)

    def make(self, version: int, *, delta: bool = False, seed: int = 0) -> tuple[Path, Manifest]:
        snapshot = self.published[version - 1].snapshot if delta else version
        directory = self.workshop / f"{version}-{delta}-{seed}"
        return directory, write_small_bundle(directory, version, delta=delta, snapshot=snapshot, seed=seed)

    @rule(delta=st.booleans(), changes_to_live=st.integers(0, 9))
    def publish_the_next_after_dying_once(self, delta: bool, changes_to_live: int) -> None:
        version = self.latest + 1
        directory, manifest = self.make(version, delta=delta and self.latest in self.published)
        self.store.changes_to_live = changes_to_live
        try:
            self.registry.publish(directory, manifest)
        except RegistryUnavailableError:
            assert changes_to_live < len(manifest.files) + 2
            found = self.registry.latest("home")
            assert (found.version if found else 0) == self.latest
        self.store.changes_to_live = float("inf")
        self.registry.publish(directory, manifest)
        self.published[version] = manifest
        self.latest = version

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def publish_an_old_one_again(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.published)))
        manifest = self.published[version]
        self.registry.publish(self.workshop / "not-even-read", manifest)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def publish_other_content_under_an_old_version(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.published)))
        try:
            self.registry.publish(*self.make(version, seed=1))
        except VersionConflictError:
            return
        raise AssertionError(f"version {version} was given other content")

    @rule(ahead=st.integers(1, 3), seed=st.integers(2, 3))
    def refuse_a_candidate(self, ahead: int, seed: int) -> None:
        self.registry.keep_refused(*self.make(self.latest + ahead, seed=seed))

    @precondition(lambda self: self.published)
    @rule(keep=st.integers(1, 4), changes_to_live=st.integers(0, 6))
    def prune_dying_once(self, keep: int, changes_to_live: int) -> None:
        newest = sorted(self.published)[-keep:]
        needed = {link for version in newest for link in self.registry.chain("home", version)}
        self.store.changes_to_live = changes_to_live
        try:
            self.registry.prune("home", Retention(versions=keep))
        except RegistryUnavailableError:
            self.store.changes_to_live = float("inf")
            assert needed <= set(self.registry.versions("home"))
            self.every_version_can_be_built()
            self.registry.prune("home", Retention(versions=keep))
        self.store.changes_to_live = float("inf")
        self.published = {version: self.published[version] for version in needed}

    @invariant()
    def versions_are_what_was_published_and_not_pruned(self) -> None:
        assert self.registry.versions("home") == sorted(self.published)

    @invariant()
    def latest_is_the_newest_ever_published(self) -> None:
        assert self.registry.latest("home") == self.published.get(self.latest)

    @invariant()
    def every_version_can_be_built(self) -> None:
        for version in self.registry.versions("home"):
            links = [self.registry.manifest("home", link) for link in self.registry.chain("home", version)]
            assert [link.kind for link in links] == ["full"] + ["delta"] * (len(links) - 1)
            assert [link.parent for link in links[1:]] == [link.version for link in links[:-1]]
            assert {link.snapshot for link in links} == {links[0].version}

    def teardown(self) -> None:
        for version, manifest in self.published.items():
            copy = self.registry.fetch("home", version, self.workshop / "cache")
            assert read_bundle(copy, base_digest="base-1").manifest == manifest
        shutil.rmtree(self.workshop)


RegistryHistory.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestRegistryHistory = RegistryHistory.TestCase

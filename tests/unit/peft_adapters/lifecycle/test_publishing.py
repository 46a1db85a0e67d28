"""Publishing: full first, then deltas that add up to the learner; what is refused or fails goes with the next."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from tiny_model import Bought, paired_stream, tiny_encoder, tiny_learner

from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.errors import BundleDigestError, FencedError, RegistryUnavailableError, VersionNotFoundError
from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.checkpoint import load_checkpoint, save_checkpoint
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.lifecycle.publishing import Publisher
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.ranker import ROLES
from peft_adapters.ranking.residual_rows import dequantise_rows, quantise_rows
from peft_adapters.registry.bundle import Bundle, Manifest, read_bundle
from peft_adapters.registry.ownership import Owner
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.retention import Retention
from peft_adapters.registry.signing import Signer, Verifier, generate_key_pair
from peft_adapters.registry.stores import FsspecStore
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import GateSettings, LearnerSettings

ITEMS = 20
SETTINGS = LearnerSettings(
    lora_every_events=1, lora_refresh_steps=2, lora_ahead_batches=1, lora_items=16, lora_learning_rate=0.01
)
WRITES_OF_A_PUBLICATION = 9  # seven files, the manifest, LATEST


class FullStore(FsspecStore):
    """Takes `room` writes, then has no space left."""

    room = 1_000

    def write(self, path: str, data: bytes) -> None:
        self._take()
        super().write(path, data)

    def upload(self, path: str, source: Path) -> None:
        self._take()
        super().upload(path, source)

    def _take(self) -> None:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        self.room -= 1


class UntidyStore(FsspecStore):
    """Removes nothing."""

    def remove(self, path: str) -> None:
        raise PermissionError(13, "Permission denied", path)


class ForgetfulStore(FsspecStore):
    """Gives back other bytes than it took, until it is well again."""

    well = False

    def chunks(self, path: str, *, limit_bytes: int) -> Any:
        for chunk in super().chunks(path, limit_bytes=limit_bytes):
            yield chunk if self.well else chunk[:-1]


class Press:
    """A learner, its publisher, and a reader of the registry they publish to."""

    def __init__(
        self,
        directory: Path,
        *,
        store: type[FsspecStore] = FsspecStore,
        settings: LearnerSettings = SETTINGS,
        **publisher: Any,
    ) -> None:
        self.directory = directory
        self.store = store(str(directory / "registry"))
        self.registry = AdapterRegistry(str(directory / "registry"))
        self.learner = tiny_learner(settings, items=ITEMS)
        self.publisher = self.new_publisher(self.learner, **publisher)
        self._learnt = 0

    def new_publisher(self, learner: Learner, **settings: Any) -> Publisher:
        return Publisher(
            learner,
            AdapterRegistry("of the test", store=self.store),
            scenario="home",
            owner=Owner(lineage="of the test", epoch=1),
            staging=self.directory / "staging",
            gate=Gate(learner, PrequentialEvaluator(), GateSettings()),
            **settings,
        )

    def learn(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.learner.learn(self.learner.observe(paired_stream(20, items=ITEMS, seed=self._learnt)))
            self._learnt += 1

    def candidate(self, *, hr20: float = 0.5) -> tuple[Path, Manifest]:
        return self.publisher.candidate(offsets={"clicks/0": self._learnt}, watermark_ms=9, metrics={"hr20": hr20})

    def publish(self, **metrics: float) -> Manifest:
        directory, manifest = self.candidate(**metrics)
        self.publisher.publish(directory, manifest)
        return manifest

    def latest(self) -> Manifest:
        latest = self.registry.latest("home")
        assert latest is not None
        return latest

    def bundles(self, version: int) -> list[Bundle]:
        chain = self.registry.chain("home", version)
        base = self.learner.encoder.base_digest
        return [read_bundle(self.registry.fetch("home", v, self.directory / "cache"), base_digest=base) for v in chain]

    def served(self, version: int) -> ServedModel:
        """As a worker builds it from the registry alone."""
        encoder = tiny_encoder()
        catalogue = Catalogue(PrefixCache(encoder, None))
        own = self.learner.catalogue
        catalogue.upsert(list(zip(own.ids, own.texts, strict=True)))
        return build_model(self.bundles(version), previous=None, catalogue=catalogue, encoder=encoder)

    def assert_served_is_the_learner(self, version: int) -> None:
        served, ranker = self.served(version), self.learner.ranker
        assert served.item_ids == self.learner.catalogue.ids
        assert torch.equal(served.state.heads, ranker.heads)
        for role in ROLES:
            _, rounded = dequantise_rows(quantise_rows(role, ranker.residuals[role], range(len(ranker))), role)
            assert torch.equal(served.state.residuals[role], rounded.half())
        for mine, theirs in (
            (served.state.counters.full(), ranker.counters.full()),
            (served.state.lora, {name: own.half() for name, own in self.learner.lora_steps.served.items()}),
        ):
            assert mine.keys() == theirs.keys()
            assert [name for name, value in mine.items() if not torch.equal(value, theirs[name])] == []


@pytest.fixture
def press(tmp_path: Path) -> Press:
    return Press(tmp_path)


def test_the_first_version_is_full_be_there_nothing_learnt(press: Press) -> None:
    manifest = press.publish()
    assert (manifest.version, manifest.kind, manifest.parent, manifest.snapshot) == (1, "full", None, 1)
    assert (manifest.gate["decision"], manifest.gate["reasons"]) == ("passed", [])
    assert press.latest() == manifest
    press.assert_served_is_the_learner(1)


def test_a_manifest_says_what_was_learnt_from_where(press: Press) -> None:
    press.learn(3)
    manifest = press.publish(hr20=math.nan)
    assert (manifest.events_learned, manifest.offsets, manifest.watermark_ms) == (60, {"clicks/0": 3}, 9)
    assert manifest.base_digest == press.learner.encoder.base_digest
    assert math.isnan(press.latest().metrics["hr20"])


def test_a_chain_of_deltas_equals_the_learner(press: Press) -> None:
    press.publish()
    for version in range(2, 7):
        press.learn()
        if version == 4:
            press.learner.add_items([("new", "oak bird"), ("item-1", "another text")])
        if version == 5:
            press.learner.learn(press.learner.observe([Bought("user-1", None, "new", 10**9)]))
        manifest = press.publish()
        assert (manifest.version, manifest.kind, manifest.parent, manifest.snapshot) == (
            version,
            "delta",
            version - 1,
            1,
        )
        press.assert_served_is_the_learner(version)
    assert [bundle.item_ids for bundle in press.bundles(6)][3:] == [["new"], [], []]


def test_a_delta_holds_only_what_changed(press: Press) -> None:
    press.learn(3)
    press.publish()
    press.learner.learn(press.learner.observe([Bought("new-user", None, "item-0", 10**9)]))
    counts = press.bundles(press.publish().version)[1].groups["counters"]
    assert counts["transition.row"].numel() == 0
    press.publish()
    nothing = press.bundles(3)[2]
    assert [nothing.groups["residuals"][f"{role}.rows"].numel() for role in ROLES] == [0, 0]
    press.assert_served_is_the_learner(3)


def test_the_lora_that_comes_next_travels_ahead_of_its_version(tmp_path: Path) -> None:
    press = Press(tmp_path, settings=SETTINGS.model_copy(update={"lora_ahead_batches": 3}))
    coming = []
    for version in range(1, 4):
        press.learn()
        press.publish()
        coming.append(press.bundles(version)[-1].groups.get("next_adapter", {}))
        press.assert_served_is_the_learner(version)
    served = press.served(3).state.lora
    assert [bool(own) for own in coming] == [True, True, False]
    for own in coming[:2]:
        assert own.keys() == served.keys()
        assert all(torch.equal(value, served[name]) for name, value in own.items())


def test_a_full_one_comes_once_counts_were_forgotten(press: Press) -> None:
    kinds = []
    for halvings in (0, 0, 3, 0):
        press.learn()
        if halvings:
            press.learner.counts_trial.begin(press.learner.ranker, halvings)
            press.learner.adopt_counts()
        kinds.append(press.publish().kind)
        press.assert_served_is_the_learner(press.latest().version)
    assert kinds == ["full", "delta", "full", "delta"]


def test_a_full_one_comes_again_every_so_many_versions(tmp_path: Path) -> None:
    press = Press(tmp_path, snapshot_every=3)
    kinds = []
    for _ in range(7):
        press.learn()
        kinds.append(press.publish().kind)
    assert kinds == ["full", "delta", "delta", "full", "delta", "delta", "full"]
    press.assert_served_is_the_learner(7)
    press.assert_served_is_the_learner(press.publish().version)


def test_old_versions_go_when_a_full_one_comes(tmp_path: Path) -> None:
    press = Press(tmp_path, snapshot_every=2, retention=Retention(versions=2))
    for _ in range(5):
        press.publish()
    assert press.registry.versions("home") == [3, 4, 5]  # 3 is what 4 builds on
    assert list((tmp_path / "staging").iterdir()) == []


class TestRefused:
    def refuse(self, press: Press) -> Manifest:
        directory, manifest = press.candidate()
        assert manifest.gate["decision"] == "refused"
        press.publisher.keep_refused(directory, manifest)
        return manifest

    def test_a_refused_candidate_is_kept_aside_and_is_no_version(self, press: Press) -> None:
        first = press.publish()
        press.learn()
        press.learner.ranker.heads[0] = math.nan
        refused = self.refuse(press)
        assert (press.latest(), press.registry.versions("home")) == (first, [1])
        kept = press.directory / "registry" / "home" / "refused" / f"{refused.version:08d}"
        assert read_bundle(kept, base_digest=refused.base_digest).manifest == refused
        assert refused.gate["reasons"] == ["heads.weights has 1 values that are not finite"]

    def test_what_passed_is_signed_and_what_was_refused_is_not(self, tmp_path: Path) -> None:
        private, public = generate_key_pair(tmp_path / "keys")
        press = Press(tmp_path, sign=Signer(private))
        press.publish()
        Verifier([public], require=True)(press.latest())
        press.learner.ranker.heads[0] = math.nan
        assert self.refuse(press).signature is None

    def test_a_refused_first_candidate_leaves_the_registry_empty(self, press: Press) -> None:
        press.learner.ranker.heads[0] = math.inf
        self.refuse(press)
        assert press.registry.latest("home") is None

    def test_its_changes_go_with_the_next_that_passes(self, press: Press) -> None:
        press.publish()
        press.learner.add_items([("new", "oak bird")])
        press.learn()
        good = press.learner.ranker.heads[0].item()
        press.learner.ranker.heads[0] = math.nan
        assert self.refuse(press).version == 2
        press.learner.ranker.heads[0] = good
        manifest = press.publish()
        assert (manifest.version, manifest.kind, manifest.parent) == (2, "delta", 1)
        press.assert_served_is_the_learner(2)

    def test_refused_again_and_again_takes_no_more_room(self, press: Press) -> None:
        press.publish()
        press.learner.positives.heads[0] = math.nan  # the trained ones, which those that score follow
        for _ in range(3):
            press.learn()
            self.refuse(press)
        assert [path.name for path in (press.directory / "registry/home/refused").iterdir()] == ["00000002"]


class TestFailingRegistry:
    @pytest.mark.parametrize("kind", ["full", "delta"])
    @pytest.mark.parametrize("room", [0, 3, 6, 7])
    def test_changes_stay_for_the_next(self, tmp_path: Path, room: int, kind: str) -> None:
        press = Press(tmp_path, store=FullStore)
        store = press.store
        assert isinstance(store, FullStore)
        first = press.publish() if kind == "delta" else None
        press.learn()
        press.learner.add_items([("new", "oak bird")])
        store.room = room
        with pytest.raises(RegistryUnavailableError, match="No space left"):
            press.publish()
        assert press.registry.latest("home") == first
        press.learn()
        store.room = 1_000
        manifest = press.publish()
        assert manifest.kind == kind
        assert press.latest() == manifest
        press.assert_served_is_the_learner(manifest.version)
        press.learn()
        press.assert_served_is_the_learner(press.publish().version)

    def test_a_version_cut_short_before_latest_keeps_its_number(self, tmp_path: Path) -> None:
        press = Press(tmp_path, store=FullStore)
        assert isinstance(press.store, FullStore)
        press.publish()
        press.learn()
        press.store.room = WRITES_OF_A_PUBLICATION - 1
        with pytest.raises(RegistryUnavailableError, match="cannot advance LATEST"):
            press.publish()
        press.learn()
        press.store.room = 1_000
        manifest = press.publish()
        assert (manifest.version, manifest.parent, manifest.kind) == (3, 1, "delta")
        assert press.registry.chain("home", 3) == [1, 3]

    def test_a_store_that_gives_back_other_bytes_is_tried_again(self, tmp_path: Path) -> None:
        press = Press(tmp_path, store=ForgetfulStore)
        assert isinstance(press.store, ForgetfulStore)
        press.learn()
        with pytest.raises(BundleDigestError, match="nothing was published"):
            press.publish()
        press.store.well = True
        assert press.publish().version == 2  # what lies under 1 is nobody's
        press.assert_served_is_the_learner(2)

    def test_one_that_came_back_empty_is_not_begun_anew(self, press: Press) -> None:
        first = press.publish()
        (press.directory / "registry").rename(press.directory / "away")
        press.learn()
        with pytest.raises(RegistryUnavailableError, match="holds no version any more, 1 was published to it"):
            press.candidate()
        assert not (press.directory / "registry").exists()
        (press.directory / "away").rename(press.directory / "registry")
        assert (press.publish().parent, press.latest().version) == (first.version, 2)

    @pytest.mark.parametrize("learnt", [0, 1])
    def test_one_that_is_lost_before_the_upload_fences_nobody(self, press: Press, learnt: int) -> None:
        for _ in range(learnt):
            press.publish()
            press.learn()
        directory, manifest = press.candidate()
        (press.directory / "registry").rename(press.directory / "away")
        with pytest.raises((RegistryUnavailableError, VersionNotFoundError)):  # its owner is gone, or a delta's parent
            press.publisher.publish(directory, manifest)
        assert press.registry.versions("home") == []

    def test_who_is_fenced_before_the_upload_makes_nothing_visible(self, press: Press) -> None:
        press.publish()
        press.learn()
        directory, manifest = press.candidate()
        press.registry.claim("home", Owner(lineage="of the test", epoch=2))
        with pytest.raises(FencedError, match=r"expected epoch 1 as its owner, found .*epoch=2"):
            press.publisher.publish(directory, manifest)
        assert (press.registry.versions("home"), press.latest().version) == ([1], 1)

    def test_a_store_that_removes_nothing_stops_no_publication(self, tmp_path: Path) -> None:
        press = Press(tmp_path, store=UntidyStore, snapshot_every=1, retention=Retention(versions=1))
        with capture_logs() as lines:
            for version in (1, 2, 3):
                press.learn()
                assert press.publish().version == version
        assert press.registry.versions("home") == [1, 2, 3]
        assert {line["event"] for line in lines if line["log_level"] == "warning"} == {"registry_not_pruned"}


def test_after_a_restart_the_version_goes_on_with_a_full_bundle(press: Press) -> None:
    press.learn(2)
    press.publish()
    press.learn()
    press.publish()
    press.learn()  # and this was not published when it ended
    save_checkpoint(press.directory / "checkpoints", 1, press.learner, {})
    press.learner = tiny_learner(SETTINGS)
    load_checkpoint(press.directory / "checkpoints", 1, press.learner)
    press.publisher = press.new_publisher(press.learner)
    manifest = press.publish()
    assert (manifest.version, manifest.kind, manifest.parent, manifest.snapshot) == (3, "full", 2, 3)
    press.assert_served_is_the_learner(3)
    press.learn()
    manifest = press.publish()
    assert (manifest.version, manifest.kind, manifest.parent) == (4, "delta", 3)
    press.assert_served_is_the_learner(4)


def test_what_another_published_meanwhile_is_built_on_by_nothing(press: Press) -> None:
    press.publish()
    other = press.new_publisher(press.learner)
    directory, manifest = other.candidate(offsets={}, watermark_ms=0, metrics={})
    other.publish(directory, manifest)
    press.learn()
    assert (press.publish().kind, press.latest().version) == ("full", 3)
    press.assert_served_is_the_learner(3)

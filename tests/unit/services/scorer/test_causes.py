"""Why a scorer cannot serve what it should: each cause is named truly, and the problem ends with the cause."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from learnt_chain import Publications
from prometheus_client import CollectorRegistry
from scorer_stage import ITEMS, Stage, until
from tiny_model import tiny_encoder

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.registry.bundle import read_manifest
from peft_adapters.registry.manifest import FileEntry, table_digest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from services.metrics.scorer import ScorerMetrics
from services.registry.app import create_app as registry_app
from services.scorer import following
from services.scorer.app import create_app
from services.scorer.following import RegistryFollower
from services.settings.scorer import ScorerSettings
from services.web.server import running as serving


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def stage(tmp_path: Path, encoder: Encoder) -> Stage:
    return Stage(tmp_path, encoder)


@contextmanager
def followed(stage: Stage, url: str | None = None) -> Iterator[None]:
    """The whole of a scorer that looks at its registry: the worker, and beside it the follower."""
    registry: AdapterRegistry = stage.registry
    if url is not None:
        registry = stage.bundles._registry = AdapterRegistry(f"{url}/v1/files")
    follower = RegistryFollower(registry, stage.announcements, poll_seconds=0.05)
    thread = threading.Thread(target=follower.run)
    thread.start()
    try:
        with stage.running():
            yield
    finally:
        follower.stop()
        thread.join(40)


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(following, "WAIT_SECONDS", 0.5)


def root(stage: Stage) -> Path:
    return stage.directory / "registry"


def version_directory(stage: Stage, version: int) -> Path:
    return root(stage) / "home" / f"{version:08d}"


def rewrite(directory: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((directory / name).read_text())
    edit(raw)
    raw["digest"] = table_digest({name: FileEntry(**entry) for name, entry in raw["files"].items()})
    (directory / name).write_text(json.dumps(raw))


def other_base(stage: Stage) -> None:
    other = Publications(stage.directory / "other", tiny_encoder(lora_layers=2))
    other.learner.add_items(ITEMS)
    directory = other.full(2)
    stage.registry.publish(directory, read_manifest(directory))
    stage.announcements.update_latest(read_manifest(directory))


def spoilt(stage: Stage, spoil: Callable[[Path], object]) -> None:
    """Publish a second version, and damage it in the registry before it is announced."""
    manifest = stage.publish(2, full=True, announce=False)
    spoil(version_directory(stage, 2))
    stage.announcements.update_latest(manifest)


def flipped_byte(directory: Path) -> None:
    data = bytearray((directory / "heads.safetensors").read_bytes())
    data[-1] ^= 1
    (directory / "heads.safetensors").write_bytes(data)


def cut_short(directory: Path) -> None:
    file = directory / "counters.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def absurd_manifest(directory: Path) -> None:
    rewrite(directory, "manifest.json", lambda raw: raw.update(events_learned=10**40))


def not_finite(stage: Stage) -> None:
    stage.publications.learner.ranker.counters.matrices["transition"].scale(float("nan"))
    stage.publish(2, full=True)


def put_away(stage: Stage) -> Path:
    """Move the registry elsewhere; returns where it was."""
    root(stage).rename(stage.directory / "away")
    return root(stage)


def bring_back(stage: Stage) -> None:
    if root(stage).is_dir():
        root(stage).rmdir()
    root(stage).unlink(missing_ok=True)
    (stage.directory / "away").rename(root(stage))


@dataclass(frozen=True)
class Case:
    """A cause: how it comes about, what is said, and how it goes."""

    begin: Callable[[Stage], object]
    says: str
    end: Callable[[Stage], object]


def publish_a_good_one(stage: Stage) -> None:
    if root(stage).exists():
        stage.publications = stage.new_publications("mended")
    stage.publish(3, full=True)


def overflowing(stage: Stage) -> None:
    stage.publications.learner.ranker.heads.fill_(3e38)
    directory = stage.publications.full(2)
    stage.registry.publish(directory, read_manifest(directory))
    stage.announcements.update_latest(read_manifest(directory))


CASES = {
    "another base model": Case(
        other_base, "version 2 of 'home' is refused: version 2 was made for another base model", publish_a_good_one
    ),
    "a flipped byte": Case(
        lambda stage: spoilt(stage, flipped_byte),
        "version 2 of 'home' is refused: <registry>/home/00000002/heads.safetensors: expected sha256",
        publish_a_good_one,
    ),
    "a file cut short": Case(
        lambda stage: spoilt(stage, cut_short),
        "version 2 of 'home' is refused: <registry>/home/00000002/counters.safetensors: expected",
        publish_a_good_one,
    ),
    "a missing file": Case(
        lambda stage: spoilt(stage, lambda directory: (directory / "heads.safetensors").unlink()),
        "version 2 of 'home' is refused: <registry>/home/00000002/heads.safetensors is gone",
        publish_a_good_one,
    ),
    "a manifest with an absurd number": Case(
        lambda stage: spoilt(stage, absurd_manifest),
        "<registry>/home/00000002/manifest.json: not a manifest of format 2: `events_learned`",
        publish_a_good_one,
    ),
    "a manifest that is no JSON": Case(
        lambda stage: spoilt(stage, lambda directory: (directory / "manifest.json").write_text("{")),
        "version 2 of 'home' is refused: <registry>/home/00000002/manifest.json: expected a JSON object",
        publish_a_good_one,
    ),
    "a value that is not finite": Case(
        not_finite, "counters.transition.count must hold finite values", publish_a_good_one
    ),
    "finite weights whose scores are not": Case(
        overflowing, "version 2 of 'home': expected a finite score for each of 12 items", publish_a_good_one
    ),
    "a missing version": Case(
        lambda stage: spoilt(stage, shutil.rmtree),
        "version 2 of 'home' is refused: <registry> holds no version 2 of scenario 'home'",
        publish_a_good_one,
    ),
    "a pin to a version that does not exist": Case(
        lambda stage: stage.announcements.update_rollout(Rollout(scenario="home", revision=1, stable_version=77)),
        "version 77 of 'home' is refused: <registry> holds no version 77 of scenario 'home'",
        lambda stage: stage.announcements.update_rollout(Rollout(scenario="home", revision=2)),
    ),
    "a missing registry": Case(
        put_away,
        "the registry is missing: the directory <registry> does not exist",
        bring_back,
    ),
    "an empty registry": Case(
        lambda stage: put_away(stage).mkdir(),
        "the registry is empty: <registry> holds no version of scenario 'home'",
        bring_back,
    ),
    "a registry without its pointer": Case(
        lambda stage: (root(stage) / "home" / "LATEST").rename(stage.directory / "away"),
        "the registry is damaged: <registry> holds 1 versions of scenario 'home' and no LATEST",
        lambda stage: (stage.directory / "away").rename(root(stage) / "home" / "LATEST"),
    ),
    "a registry that cannot be read": Case(
        lambda stage: put_away(stage).write_text("in the way"),
        "the registry does not answer: registry <registry> cannot read home/ROLLOUT.json: [Errno 20] Not a directory",
        bring_back,
    ),
}


def said(stage: Stage) -> str:
    return "; ".join(stage.health.problems().get(name, "") for name in ("registry", "adapter"))


@pytest.mark.parametrize("name", CASES)
def test_a_running_scorer_keeps_what_it_has_names_the_cause_and_clears_it(stage: Stage, name: str) -> None:
    case = CASES[name]
    stage.publish(1, full=True)
    with followed(stage):
        until(lambda: stage.version == 1)
        until(lambda: said(stage) == "; ")
        case.begin(stage)
        until(lambda: case.says in said(stage))
        assert said(stage).strip("; ").endswith("version 1 is served")
        assert "\n" not in said(stage)
        assert str(stage.directory) not in said(stage)  # anyone may ask /readyz
        assert stage.version == 1
        case.end(stage)
        until(lambda: said(stage) == "; ")
        assert stage.version in (1, 3)


def test_a_file_that_is_repaired_in_place_is_served_without_another_publication(stage: Stage) -> None:
    stage.publish(1, full=True)
    with followed(stage):
        until(lambda: stage.version == 1)
        spoilt(stage, flipped_byte)
        until(lambda: "version 2 of 'home' is refused" in said(stage))
        flipped_byte(version_directory(stage, 2))
        until(lambda: stage.version == 2)
        assert said(stage) == "; "
    assert stage.count("refused") == 1  # however often it was tried


STARTS = ["another base model", "a flipped byte", "a file cut short", "a missing file", "a value that is not finite"]
STARTS += [
    "finite weights whose scores are not",
    "a manifest with an absurd number",
    "a manifest that is no JSON",
    "a missing version",
]


@pytest.mark.parametrize("heard", ["from Kafka", "from the registry"])
@pytest.mark.parametrize("name", STARTS)
def test_a_scorer_that_starts_with_a_bad_newest_version_goes_back_to_the_last_good_one(
    stage: Stage, encoder: Encoder, name: str, heard: str
) -> None:
    stage.publish(1, full=True)
    CASES[name].begin(stage)
    if heard == "from the registry":
        stage.announcements._announced.clear()
        stage.announcements.follow("home")
    with followed(stage):
        until(lambda: stage.version == 1)
        until(lambda: "is refused: " in said(stage) and said(stage).strip("; ").endswith("version 1 is served"))
        stage.reader.caught_up.set()
        until(lambda: stage.health.missing() is None)
        app = create_app(stage.service, ScorerSettings(), ScorerMetrics(CollectorRegistry()), CollectorRegistry())
        with serving(app) as url:
            answer = httpx.get(f"{url}/readyz").json()
        assert (answer["status"], answer["adapter_version"]) == ("ready", 1)
        assert any("is refused: " in problem for problem in answer["problems"])
        assert str(stage.directory) not in str(answer)  # anyone may ask
        publish_a_good_one(stage)
        until(lambda: stage.version == 3)
        until(lambda: said(stage) == "; ")


def test_it_goes_back_past_deltas_that_build_on_what_is_damaged(stage: Stage) -> None:
    stage.publish(1, full=True)
    stage.publish(2)
    stage.publish(3)
    stage.publish(4)
    flipped_byte(version_directory(stage, 3))
    with followed(stage):
        until(lambda: stage.version == 2)
        until(
            lambda: "version 4 of 'home' is refused" in said(stage) and "version 3 of 'home' is refused" in said(stage)
        )
        assert said(stage).endswith("version 2 is served")
        flipped_byte(version_directory(stage, 3))
        until(lambda: stage.version == 4)
        until(lambda: said(stage) == "; ")


def test_of_a_pinned_version_that_is_bad_it_goes_back_and_never_forward(stage: Stage) -> None:
    for version in (1, 2, 3):
        stage.publish(version, full=True)
    flipped_byte(version_directory(stage, 2))
    stage.announcements.update_rollout(Rollout(scenario="home", revision=1, stable_version=2))
    with followed(stage):
        until(lambda: stage.version == 1)
        assert "version 2 of 'home' is refused" in said(stage)


def test_with_nothing_that_verifies_it_is_not_ready_and_says_why(stage: Stage) -> None:
    stage.publish(1, full=True)
    cut_short(version_directory(stage, 1))
    with followed(stage):
        until(lambda: "version 1 of 'home' is refused" in said(stage))
        until(lambda: "nothing is served yet" in said(stage))
        assert "version 1 of 'home' is refused" in (stage.health.missing() or "")
        publish_a_good_one(stage)
        until(lambda: stage.version == 3)
        until(lambda: said(stage) == "; ")


@pytest.mark.parametrize("name", ["a missing registry", "an empty registry", "a registry that cannot be read"])
def test_a_scorer_that_starts_without_its_registry_says_so_and_serves_once_it_is_there(stage: Stage, name: str) -> None:
    case = CASES[name]
    stage.publish(1, full=True, announce=False)
    case.begin(stage)
    with followed(stage):
        until(lambda: case.says in said(stage))
        assert said(stage).strip("; ").endswith("nothing is served yet")
        case.end(stage)
        until(lambda: stage.version == 1)
        until(lambda: said(stage) == "; ")


class TestOverHttp:
    @pytest.mark.parametrize("damage", [flipped_byte, cut_short, absurd_manifest])
    def test_a_bad_newest_version_is_named_and_the_last_good_one_served(
        self, stage: Stage, damage: Callable[[Path], None]
    ) -> None:
        stage.publish(1, full=True, announce=False)
        stage.publish(2, full=True, announce=False)
        damage(version_directory(stage, 2))
        with serving(registry_app(AdapterRegistry(str(root(stage))))) as url, followed(stage, url):
            until(lambda: stage.version == 1)
            until(lambda: "is refused: " in said(stage))
            stage.publications = stage.new_publications("mended")
            stage.publish(3, full=True, announce=False)
            until(lambda: stage.version == 3)
            until(lambda: said(stage) == "; ")

    def test_an_empty_one_and_one_that_is_away_are_told_apart(self, stage: Stage) -> None:
        registry = AdapterRegistry(str(root(stage)))
        with serving(registry_app(registry)) as url, followed(stage, url):
            until(lambda: "the registry is empty: " in said(stage))
            stage.publish(1, full=True, announce=False)
            until(lambda: stage.version == 1)
            until(lambda: said(stage) == "; ")
        with followed_again(stage, url):
            until(lambda: "the registry does not answer: " in said(stage) and "refused" in said(stage))
            assert url not in said(stage)
            assert "version 1 is served" in said(stage)


@contextmanager
def followed_again(stage: Stage, url: str) -> Iterator[None]:
    """The follower alone, of a registry process that has ended."""
    follower = RegistryFollower(AdapterRegistry(f"{url}/v1/files"), stage.announcements, poll_seconds=0.05)
    thread = threading.Thread(target=follower.run)
    thread.start()
    try:
        yield
    finally:
        follower.stop()
        thread.join(40)


LATEST_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda home: shutil.rmtree(home.parent), "the registry is missing: the directory <registry> "),
    "without LATEST": (
        lambda home: (home / "LATEST").unlink(),
        "the registry is damaged: <registry> holds 1 versions of scenario 'home' and no LATEST",
    ),
    "LATEST names nothing": (
        lambda home: (home / "LATEST").write_text("99"),
        "home/LATEST names version 99, which the registry does not hold; put that version back, or write the number of "
        "the newest, 1, into home/LATEST",
    ),
    "LATEST is empty": (
        lambda home: (home / "LATEST").write_text(""),
        "home/LATEST: expected a version number, found b''; write one there",
    ),
}


@pytest.mark.parametrize("through", ["a registry process", "a directory"])
@pytest.mark.parametrize("name", LATEST_CASES)
def test_what_is_wrong_with_the_registry_is_named_the_same_through_its_process(
    stage: Stage, name: str, through: str, tmp_path: Path
) -> None:
    damage, says = LATEST_CASES[name]
    stage.publish(1, full=True)
    shutil.copytree(root(stage), tmp_path / "copy")
    with (
        serving(registry_app(AdapterRegistry(str(root(stage))))) as url,
        followed(stage, url if through == "a registry process" else None),
    ):
        until(lambda: stage.version == 1)
        damage(root(stage) / "home")
        until(lambda: says in said(stage))
        assert str(stage.directory) not in said(stage)
        assert "the registry is empty" not in said(stage)
        shutil.copytree(tmp_path / "copy", root(stage), dirs_exist_ok=True)
        until(lambda: said(stage) == "; ")

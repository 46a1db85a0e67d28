"""`headwater adapters` by its own address and through a registry process: look, change, and tell Kafka."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from small_bundle import write_small_bundle
from structlog.testing import capture_logs
from typer.testing import CliRunner

from peft_adapters.errors import (
    BundleError,
    BundleSignatureError,
    RegistryError,
    RegistryUnavailableError,
    VersionNotFoundError,
)
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout, parse_rollout
from peft_adapters.registry.signing import Signer
from services.cli import app
from services.registry.app import create_app
from services.web.server import running
from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.embedded_broker import EmbeddedBroker
from streams.topics import Topics

START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
BASE = {name: None for name in os.environ if name.startswith("HEADWATER_")}


class Desk:
    """Where an SRE sits: a registry of three versions, as a directory or behind a process."""

    def __init__(self, registry: AdapterRegistry, url: str) -> None:
        self.registry = registry
        self.env: dict[str, str | None] = BASE | {
            "HEADWATER_REGISTRY__URL": url,
            "HEADWATER_REGISTRY__ANNOUNCE_ROLLOUTS": "false",
        }

    def run(self, *arguments: str) -> str:
        result = CliRunner().invoke(app, ["adapters", *arguments], env=self.env)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    def rollout(self) -> Rollout:
        return self.registry.rollout("home")


def three_versions(directory: Path) -> AdapterRegistry:
    registry = AdapterRegistry(str(directory / "registry"))
    for version in (1, 2, 3):
        chain = {"delta": True} if version == 2 else {}
        manifest = write_small_bundle(
            directory / str(version),
            version,
            published_at_ms=START_MS + 2_000 * version,
            metrics={"ndcg10": 0.1 * version, "roc_auc": float("nan")},
            **chain,
        )
        registry.publish(directory / str(version), manifest)
    return registry


@pytest.fixture(autouse=True)
def _logging_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command's logging would outlive the stream it writes to."""
    monkeypatch.setattr("services.logs.configure_logging", lambda **_: None)
    with capture_logs():
        yield


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    registry = three_versions(tmp_path)
    return Desk(registry, registry.url)


@pytest.fixture
def behind_a_process(tmp_path: Path) -> Iterator[Desk]:
    registry = three_versions(tmp_path)
    with running(create_app(registry)) as url:
        yield Desk(registry, url)


def test_the_list_says_what_each_version_is(desk: Desk) -> None:
    desk.run("canary", "--percent", "5", "--version", "2")
    lines = desk.run("list").splitlines()
    assert lines[0] == "home: answers come from version 3, pinned"
    assert lines[1] == "  canary: version 2 answers 5 % of shoppers"
    assert lines[-3].split()[:2] == ["1", "full"]
    assert lines[-2].endswith("canary 5%")
    assert lines[-1].endswith("latest, stable")
    found = json.loads(desk.run("list", "--json"))
    assert [row["is"] for row in found["versions"]] == ["", "canary 5%", "latest, stable"]
    assert found["versions"][0]["ndcg10"] == 0.1


def test_an_empty_registry_has_nothing_to_list(desk: Desk) -> None:
    assert desk.run("list", "--scenario", "ads").splitlines()[-1] == "nothing has been published yet"
    with pytest.raises(VersionNotFoundError, match="nothing has been published"):
        desk.run("show", "--scenario", "ads")


def test_a_version_is_shown_whole(desk: Desk) -> None:
    shown = json.loads(desk.run("show", "2"))
    assert (shown["chain"], shown["roles"], shown["manifest"]["parent"]) == ([1, 2], [], 1)
    assert json.loads(desk.run("show"))["roles"] == ["latest", "stable"]
    with pytest.raises(VersionNotFoundError):
        desk.run("show", "9")


def test_two_versions_are_compared_down_to_their_tensors(desk: Desk) -> None:
    found = json.loads(desk.run("diff", "1", "3", "--tensors", "--json"))
    assert found["metrics"] == {"ndcg10": [0.1, pytest.approx(0.3)]}
    assert found["tensors"]["adapter_model/lora_A.weight"]["relative"] > 0.1
    assert found["events_learned"] == 10
    same = json.loads(desk.run("diff", "2", "2", "--tensors", "--json"))
    assert set(same["tensors"]["adapter_model/lora_A.weight"].values()) == {0.0}
    text = desk.run("diff", "1", "3", "--tensors")
    assert "+10 events learnt" in text
    assert "0.1000 ->     0.3000" in text
    assert "adapter_model/lora_A.weight" in text


def test_a_version_is_verified_with_all_that_it_builds_on(desk: Desk, tmp_path: Path) -> None:
    lines = desk.run("verify", "2").splitlines()
    assert lines == [f"version {link}: 4 files match their digests; unsigned" for link in (1, 2)]
    private, public = (line.split()[2] for line in desk.run("new-key", str(tmp_path / "keys")).splitlines())
    manifest = write_small_bundle(tmp_path / "4", 4, sign=Signer(Path(private)))
    desk.registry.publish(tmp_path / "4", manifest)
    assert desk.run("verify", "--public-key", public).rstrip().endswith("good")
    assert manifest.signature is not None
    assert manifest.signature.key_id in desk.run("list").splitlines()[-1]
    with pytest.raises(BundleSignatureError, match="version 1 of 'home'"):
        desk.run("verify", "2", "--public-key", public)
    residuals = tmp_path / "registry" / "home" / "00000003" / "residuals.safetensors"
    residuals.write_bytes(residuals.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="residuals"):
        desk.run("verify", "3")


def test_changes_are_made_and_said(desk: Desk) -> None:
    said = desk.run("rollback", "--reason", "click-through fell")
    assert said.splitlines()[0] == "home: answers come from version 2, pinned"
    assert said.splitlines()[1].endswith("click-through fell")
    assert said.splitlines()[2].startswith("no worker is visible: ")
    assert desk.rollout().stable_version == 2
    desk.run("canary", "--percent", "2.5", "--auto-rollback")
    assert desk.rollout().canary is not None
    desk.run("promote")
    assert desk.rollout().stable_version == 3
    desk.run("canary", "--percent", "5", "--version", "1")
    desk.run("canary", "--end")
    desk.run("shadow", "--version", "1")
    assert desk.rollout().shadow is not None
    desk.run("shadow", "--end")
    desk.run("pin", "1")
    assert (desk.rollout().stable_version, desk.rollout().shadow) == (1, None)
    desk.run("unpin", "--if-revision", "8")
    assert desk.rollout().stable_version is None


def test_a_rollback_goes_back_in_time(desk: Desk) -> None:
    said = desk.run("rollback", "--to", "2026-01-01T00:00:05Z").splitlines()  # version 2 is of the fourth second
    assert said[0] == "home: answers come from version 2, pinned"
    assert said[2] == "  version 2 was published at 2026-01-01T00:00:04Z"
    assert desk.rollout().stable_version == 2
    with pytest.raises(RegistryError, match="the oldest that is kept is version 1, published at 2026-01-01T00:00:02Z"):
        desk.run("rollback", "--to", "2026-01-01T00:00:01Z")
    for arguments in (("--to", "soon"), ("1", "--to", "2h"), ("--to", "2026-01-01")):
        with pytest.raises(SystemExit) as ended:
            desk.run("rollback", *arguments)
        assert ended.value.code == 2
    assert desk.rollout().revision == 1


def test_changes_are_told_to_the_audit_log(desk: Desk, tmp_path: Path) -> None:
    desk.env["HEADWATER_SECURITY__AUDIT_LOG"] = str(tmp_path / "audit.jsonl")
    desk.run("pin", "2", "--reason", "calm")
    began, done = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (began["action"], began["asked"], done["outcome"]) == (
        "adapters.pin",
        {"reason": "calm", "version": 2},
        "done",
    )
    assert began["by"] == desk.rollout().changed_by != ""


def test_what_cannot_be_is_said(desk: Desk) -> None:
    with pytest.raises(RegistryError, match="no version 9"):
        desk.run("pin", "9")
    with pytest.raises(RegistryError, match="no canary to promote"):
        desk.run("promote")
    with pytest.raises(RegistryError, match="if_revision"):
        desk.run("unpin", "--if-revision", "3")
    assert desk.rollout().revision == 0


def test_it_is_the_same_behind_a_process(behind_a_process: Desk, tmp_path: Path) -> None:
    desk = behind_a_process
    assert desk.run("rollback", "--reason", "worse").splitlines()[0] == "home: answers come from version 2, pinned"
    assert (desk.rollout().stable_version, desk.rollout().reason) == (2, "worse")
    assert desk.run("list").splitlines()[-2].endswith("stable")
    assert json.loads(desk.run("show"))["manifest"]["version"] == 2
    assert desk.run("verify").count("match their digests") == 2
    with pytest.raises(RegistryError, match="status 404: no such version"):
        desk.run("pin", "9")
    with pytest.raises(RegistryError, match="status 409: `if_revision`"):
        desk.run("unpin", "--if-revision", "3")


def test_a_process_that_is_away_is_said() -> None:
    desk = Desk(AdapterRegistry("memory://none"), "http://127.0.0.1:1")
    with pytest.raises(RegistryUnavailableError, match=r"POST http://127.0.0.1:1/v1/adapters/home/unpin"):
        desk.run("unpin")


def test_the_api_key_goes_along(tmp_path: Path) -> None:
    seen: list[str] = []
    application = create_app(three_versions(tmp_path))

    @application.middleware("http")
    async def note(request, call_next):  # type: ignore[no-untyped-def]
        seen.append(request.headers.get("authorization", ""))
        return await call_next(request)

    with running(application) as url:
        desk = Desk(AdapterRegistry("memory://none"), f"{url}/v1/files")
        desk.env["HEADWATER_REGISTRY__API_KEY"] = "hw_key"
        desk.run("pin", "1")
        desk.run("list")
    assert set(seen) == {"Bearer hw_key"}


def test_a_change_is_told_on_the_topic(
    embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path
) -> None:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    topics = make_topics(connection)
    desk = Desk(registry := three_versions(tmp_path), registry.url)
    desk.env |= {
        "HEADWATER_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "HEADWATER_REGISTRY__ANNOUNCE_ROLLOUTS": "true",
    } | {f"HEADWATER_TOPICS__{name.upper()}": topic for name, topic in topics.model_dump(exclude={"dialects"}).items()}
    desk.run("pin", "2")
    with closing(PartitionConsumer(connection, [topics.adapters])) as consumer:
        records = consumer.poll(10)
    assert [record.key for record in records] == [b"home/rollout"]
    assert parse_rollout(records[0].value or b"", scenario="home", source="topic") == desk.rollout()


def test_without_kafka_the_change_is_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.registry.announcement.TIMEOUT_SECONDS", 0.2)
    desk = Desk(registry := three_versions(tmp_path), registry.url)
    desk.env |= {"HEADWATER_BOOTSTRAP_SERVERS": "127.0.0.1:1", "HEADWATER_REGISTRY__ANNOUNCE_ROLLOUTS": "true"}
    desk.run("pin", "2")
    assert desk.rollout().stable_version == 2

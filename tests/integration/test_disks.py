"""Processes on full and read-only disks: one sentence with the path, no traceback, and a clean resume."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import httpx
import pytest
from collector_process import CollectorProcess, arrived
from collector_process import wait_until as collector_wait_until
from small_disk import SmallDisk, small_disk
from tiny_model import tiny_bert
from updater_shop import Shop, events, items

from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.topics import Topics

PROCESS_SECONDS = 120


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


def environment(broker: EmbeddedBroker, **ours: object) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    places = {
        "HEADWATER_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "HEADWATER_ENCODER__MODEL": tiny_bert(),
        "HEADWATER_ENCODER__LORA_RANK": 4,
        "HEADWATER_PRIVACY__SECRET": "only for tests",
        "HEADWATER_UPDATER__METRICS_PORT": 0,
        "HEADWATER_STATE__METRICS_PORT": 0,
        "HEADWATER_SCORER__PORT": 0,
        "HEADWATER_COLLECTOR__PORT": 0,
    }
    return inherited | {name: str(value) for name, value in (places | ours).items() if value is not None}


STARTS = {
    "updater, checkpoints": (["updater"], {"HEADWATER_UPDATER__CHECKPOINT_DIR": "checkpoints"}, "checkpoints/home"),
    "updater, prefix cache": (["updater"], {"HEADWATER_ENCODER__CACHE_DIR": "cache"}, "cache/prefix.sqlite"),
    "scorer, prefix cache": (["scorer"], {"HEADWATER_ENCODER__CACHE_DIR": "cache"}, "cache/prefix.sqlite"),
    "updater, secret": (["updater"], {"HEADWATER_PRIVACY__SECRET_FILE": "secret"}, "secret"),
    "scorer, secret": (["scorer"], {"HEADWATER_PRIVACY__SECRET_FILE": "secret"}, "secret"),
    "state writer, secret": (["state-writer"], {"HEADWATER_PRIVACY__SECRET_FILE": "secret"}, "secret"),
    "collector, spool": (["collector"], {"HEADWATER_COLLECTOR__SPOOL_PATH": "spool.db"}, "spool.db"),
    "keys": (["keys", "new", "x", "--scope", "read"], {"HEADWATER_SECURITY__KEYS_FILE": "keys.json"}, "keys.json"),
    "signing key": (["adapters", "new-key", "{disk}/signing"], {}, "signing"),
}  # fmt: skip


@pytest.mark.parametrize("state", ["full", "read-only"])
@pytest.mark.parametrize("case", STARTS)
def test_a_start_on_a_full_or_read_only_disk_ends_with_one_sentence(
    disk: SmallDisk, embedded_broker: EmbeddedBroker, tmp_path: Path, case: str, state: str
) -> None:
    command, places, named = STARTS[case]
    disk.fill() if state == "full" else disk.make_read_only()
    ours: dict[str, object] = {
        "HEADWATER_UPDATER__CHECKPOINT_DIR": tmp_path / "elsewhere",
        "HEADWATER_ENCODER__CACHE_DIR": tmp_path / "cache",
    }
    ours |= {name: disk.path / place for name, place in places.items()}
    if "HEADWATER_PRIVACY__SECRET_FILE" in ours:
        ours["HEADWATER_PRIVACY__SECRET"] = None
    log = tmp_path / "stderr"
    arguments = [part.format(disk=disk.path) for part in command]
    process = _context().Process(target=_run, args=(arguments, environment(embedded_broker, **ours), log))
    process.start()
    process.join(PROCESS_SECONDS)
    process.kill()
    process.join()
    assert process.exitcode in (1, 2), log.read_text()
    assert "Traceback" not in log.read_text()
    (said,) = [line for line in log.read_text().splitlines() if line.startswith("headwater: ")]
    assert str(disk.path / named) in said
    assert any(reason in said for reason in ("No space left", "Read-only", "is full", "readonly", "unable to open"))


def _context() -> ForkServerContext:
    """Children of a process that has the libraries loaded: a start takes a fraction of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["services.cli", "services.updater.command", "services.scorer.command"])
    return context


def _run(arguments: list[str], environ: dict[str, str], log: Path) -> None:
    from services.cli import main

    os.environ.clear()
    os.environ.update(environ)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["headwater", *arguments]
    main()


@pytest.fixture
def shop(kafka_connection: KafkaConnection, make_topics: Callable[..., Topics], tmp_path: Path) -> Shop:
    return Shop(kafka_connection, make_topics(kafka_connection, partitions=2), tmp_path / "shop")


def test_an_updater_whose_disk_fills_up_ends_and_goes_on_where_it_was(shop: Shop, disk: SmallDisk) -> None:
    shop.directory.mkdir()
    shop.send(*items(20), *events(30))
    with shop.process(checkpoint_dir=disk.path) as updater:
        updater.wait_for("learnt", 30)
        disk.fill()
        shop.send(*events(60, first=30))
        assert updater.ended() == 1
        told = updater.log()
    assert "Traceback" not in told
    assert f"headwater: {'journal' if 'headwater: journal' in told else 'checkpoint'} {disk.path}" in told
    with shop.process(checkpoint_dir=disk.path, log="full.log") as still_full:
        assert still_full.ended() == 1
        assert "Traceback" not in still_full.log()
    disk.make_room()
    with shop.process(checkpoint_dir=disk.path, log="again.log") as again:
        again.wait_for("learnt", 90)
        assert again.end() == 0
    assert shop.latest().events_learned == 90


def test_a_collector_whose_disk_fills_up_refuses_says_so_and_goes_on(
    kafka_connection: KafkaConnection, make_topics: Callable[..., Topics], disk: SmallDisk, tmp_path: Path
) -> None:
    topics = make_topics(kafka_connection)
    with CollectorProcess(kafka_connection, topics, tmp_path, spool_path=disk.path / "spool.db") as collector:
        collector.accept([click(0)])
        collector_wait_until(lambda: collector.forwarded() == 1, what="forwarded")
        disk.fill()
        refused = collector.client.post("/v1/events", json={"events": [click(n) for n in range(1, 200)]})
        assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert str(disk.path / "spool.db") in collector.ready()["problems"]["spool"]
        disk.make_room()
        assert "problems" not in collector.ready()
        collector.accept([click(n) for n in range(1, 200)])
        collector_wait_until(lambda: collector.forwarded() == 200, what="forwarded")
        assert collector.end() == 0
        assert "Traceback" not in collector.log()
    assert arrived(kafka_connection, topics.clicks) == {"u": [f"e{n}" for n in range(200)]}


def click(number: int) -> dict[str, object]:
    return {"type": "click", "event_id": f"e{number}", "user_id": "u", "item_id": f"item {number} {'x' * 60}"}


def test_without_a_writable_temporary_directory_a_sentence_names_tmpdir(embedded_broker: EmbeddedBroker) -> None:
    """In a mount namespace of its own, in which every candidate is read-only."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("a mount namespace cannot be made here")
    candidates = [path for path in ("/tmp", "/var/tmp", "/usr/tmp") if Path(path).exists()]  # noqa: S108
    read_only = " && ".join(f"mount --bind {path} {path} && mount -o remount,ro,bind {path}" for path in candidates)
    scorer = [sys.executable, "-m", "services.cli", "scorer"]
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{read_only} && cd /proc && exec "$@"', "sh", *scorer],
        env=environment(embedded_broker, PYTHONPATH=Path.cwd(), TMPDIR=None),
        capture_output=True, text=True, timeout=PROCESS_SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("headwater: ")]
    assert "no temporary directory can be made" in said
    assert "TMPDIR" in said

"""The demo in a shortened form: real processes, real broker, real purchases."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient

from streams.connection import KafkaConnection, open_client
from streams.topics import Topics

HEADWATER = str(Path(sys.executable).with_name("headwater"))
RUN_SECONDS = 240
KEYS = {
    "events_replayed", "events_learned", "dead_letters", "adapters_published", "adapters_served_by_each_scorer",
    "hr20_live", "hr20_never_updated", "ndcg20_live", "ndcg20_never_updated", "freshness_p50_seconds",
    "freshness_p95_seconds", "requests_total", "requests_failed", "rank_p50_ms", "rank_p99_ms",
}  # fmt: skip


def demo(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [HEADWATER, "demo", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def processes_naming(text: str) -> list[str]:
    """Running processes that have `text` in their command line, or a file open whose path has it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            files = [str(descriptor.readlink()) for descriptor in (process / "fd").iterdir()]
        except OSError:  # it ended meanwhile
            continue
        if any(text in each for each in (line, *files)):
            found.append(line)
    return found


def wait_until(condition: Any, within_seconds: float) -> None:
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def test_a_short_demo_keeps_what_it_claims_and_leaves_nothing_behind(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "summary.json"
    arguments = ["--max-events", "1500", "--rate", "150", "--work-dir", str(work), "--summary-json", str(out)]
    with demo(*arguments) as process:
        said, _ = process.communicate(timeout=RUN_SECONDS)
    logs = "".join(f"\n--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted((work / "logs").glob("*.log")))
    assert process.returncode == 0, said + logs
    assert "✓ Every event was learnt, and learnt once: 1,500 published" in said
    assert "✗" not in said
    summary = json.loads(out.read_text())
    assert set(summary) == KEYS
    assert summary["events_replayed"] == summary["events_learned"] == 1500
    assert summary["dead_letters"] == summary["requests_failed"] == 0
    assert summary["requests_total"] >= 100
    assert summary["adapters_published"] >= 2
    assert len(summary["adapters_served_by_each_scorer"]) == 2
    assert min(summary["adapters_served_by_each_scorer"]) >= 2
    assert 0 < summary["freshness_p50_seconds"] <= summary["freshness_p95_seconds"]
    assert 0 < summary["rank_p50_ms"] <= summary["rank_p99_ms"]
    assert 0 < summary["hr20_live"] < 1
    assert 0 < summary["hr20_never_updated"] < 1
    assert processes_naming(str(work)) == []
    assert {log.name for log in (work / "logs").iterdir()} == {
        "registry.log", "updater.log", "scorer-1.log", "scorer-2.log"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "status", "said_before"), [(signal.SIGINT, 130, ""), (signal.SIGTERM, 143, "replaying")]
)
def test_a_signal_ends_it_and_all_its_processes(
    tmp_path: Path, number: signal.Signals, status: int, said_before: str
) -> None:
    """Once while processes are being started, once while they are at work."""
    work = tmp_path / "work"
    temporary = {**os.environ, "TMPDIR": str(tmp_path)}
    with demo("--rate", "50", "--work-dir", str(work), env=temporary) as process:
        assert process.stdout is not None
        try:
            wait_until(lambda: len(processes_naming(str(work))) >= 4, RUN_SECONDS)  # itself, broker, registry, updater
            while said_before and said_before not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(number)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert processes_naming(str(work)) == []
    assert list(tmp_path.glob("headwater*")) == []  # nothing of ours in the temporary directory either


def test_a_process_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    registry = tmp_path / "settings.toml"
    registry.write_text('[encoder]\nmodel = "/no/such/encoder"\n')
    with demo("--max-events", "1500", "--work-dir", str(tmp_path / "work"), "--config", str(registry)) as process:
        said, _ = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 1
    assert "ended with status" in said
    assert "/no/such/encoder" in said
    assert processes_naming(str(tmp_path / "work")) == []


def test_a_work_directory_that_is_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("mine")
    with demo("--work-dir", str(tmp_path)) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "`--work-dir` must be empty" in said
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


@pytest.mark.kafka
def test_on_a_kafka_that_is_given_it_has_topics_of_its_own_and_removes_them(apache_kafka: Any, tmp_path: Path) -> None:
    arguments = ["--max-events", "400", "--rate", "100", "--work-dir", str(tmp_path / "work")]
    servers = apache_kafka.connection.bootstrap_servers
    with demo(*arguments, "--bootstrap-servers", servers) as process:
        wait_until(lambda: len(topics_of_demos(apache_kafka.connection)) == len(Topics().names()), RUN_SECONDS)
        said, _ = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 0, said
    assert "400 published, 400 taken in = 400 learnt" in said
    assert not (tmp_path / "work" / "broker").exists()
    wait_until(lambda: topics_of_demos(apache_kafka.connection) == [], 10)


def topics_of_demos(connection: KafkaConnection) -> list[str]:
    admin = open_client(KafkaAdminClient, connection)
    try:
        return [topic for topic in admin.list_topics() if topic.startswith("headwater-demo-")]
    finally:
        admin.close()

"""The README's own commands, in the README's own order, on an Apache Kafka that has no topics."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_model import tiny_bert

ROOT = Path(__file__).parents[3]
START_SECONDS = 120
SMALL = {"HEADWATER_ENCODER__LORA_RANK": "4", "HEADWATER_UPDATER__METRICS_PORT": "0", "OMP_NUM_THREADS": "1"}


def commands_of(section: str) -> list[str]:
    """Commands of the shell blocks of a section."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    body = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", body, flags=re.S)
    return [line.split("   #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def shell(mortal_apache_kafka: Any, tmp_path: Path) -> dict[str, str]:
    """An environment in which `headwater` is this code, and Kafka a broker without topics."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "headwater"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m services.cli "$@"\n')
    command.chmod(0o755)
    return (
        os.environ
        | SMALL
        | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HEADWATER_ENCODER__MODEL": str(tiny_bert()),
            "HEADWATER_BOOTSTRAP_SERVERS": f"127.0.0.1:{mortal_apache_kafka.port}",
        }
    )


@pytest.fixture
def start(shell: dict[str, str], tmp_path: Path) -> Iterator[Callable[[str], Callable[[], str]]]:
    """Start a command of the README that goes on running; gives its log."""
    with ExitStack() as running:

        def run(command: str) -> Callable[[], str]:
            log = tmp_path / f"{command.split()[1]}.log"
            output = running.enter_context(log.open("wb"))
            process = subprocess.Popen(["/bin/sh", "-c", f"exec {command}"], cwd=tmp_path, env=shell, stdout=output,
                                       stderr=output)  # fmt: skip
            running.callback(process.wait, 60)
            running.callback(process.terminate)
            return lambda: log.read_text(encoding="utf-8")

        yield run


def do(command: str, shell: dict[str, str], directory: Path) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=directory, env=shell, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def until(holds: Callable[[], bool], logs: list[Callable[[], str]]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "\n".join(log()[-3_000:] for log in logs)
        time.sleep(0.2)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def address(log: Callable[[], str]) -> str:
    found = re.search(r"^listening (\S+) (\d+)$", log(), flags=re.M)
    return f"http://{found[1]}:{found[2]}" if found else ""


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_run_it_on_your_own_kafka_and_publish_your_first_event(
    shell: dict[str, str], start: Callable[[str], Callable[[], str]], tmp_path: Path, free_port: int
) -> None:
    own = [line for line in commands_of("Run it on your own Kafka") if line.startswith("headwater ")]
    topics, updater, registry, scorer = own[:4]
    assert [line.split()[1] for line in own] == ["topics", "updater", "registry", "scorer", "demo"]
    do(topics, shell, tmp_path)
    logs = [start(updater)]
    logs.append(start(registry.replace("8084", str(free_port))))
    until(lambda: bool(address(logs[1])), logs)
    logs.append(start(scorer.replace("8084", str(free_port)).replace("8080", "0")))
    for line in commands_of("Publish your first event"):
        if line.startswith("echo "):
            assert do(line, shell, tmp_path).startswith("1 events delivered")
    until(lambda: ready(address(logs[2])), logs)
    answer = httpx.post(
        f"{address(logs[2])}/v1/recommend", json={"user_id": "ann", "session_items": ["mug-1"], "k": 5}, trust_env=False
    )
    assert answer.status_code == 200
    ready_now = httpx.get(f"{address(logs[2])}/readyz", trust_env=False).json()
    assert ready_now["problems"] == []
    assert not any("Traceback" in log() for log in logs)


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_a_file_of_items_and_one_of_events_go_in_and_defaults_meet(
    shell: dict[str, str], start: Callable[[str], Callable[[], str]], tmp_path: Path
) -> None:
    rows = "".join(f"u{n % 5};2026-11-01T10:00:{n:02}Z;click;i{n % 7}\n" for n in range(40))
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},mug {n}\n" for n in range(7)))
    (tmp_path / "clicks.csv").write_bytes(("user_id;timestamp;event_type;item_id\n" + rows).encode("utf-16"))
    assert do("headwater publish items.csv --kind item", shell, tmp_path).startswith("7 events delivered")
    assert do("headwater publish clicks.csv --kind click", shell, tmp_path).startswith("40 events delivered")
    assert do("headwater replay --items items.csv", shell, tmp_path).startswith("7 items and 0 events delivered")
    states = json.loads(do("headwater topics check --json", shell, tmp_path))
    assert all(state["exists"] and not state["problems"] for state in states)
    logs = [start("headwater updater"), start("headwater scorer --port 0")]
    until(lambda: bool(address(logs[1])) and ready(address(logs[1])), logs)
    assert "Traceback" not in logs[0]() + logs[1]()

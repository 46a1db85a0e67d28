"""`headwater collector` as a process, and what has arrived on its topics."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import httpx
from forked import ForkedCommand
from prometheus_client.parser import text_string_to_metric_families

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.topics import Topics

WAIT_SECONDS = 40.0


class CollectorProcess:
    """One over a spool in `directory`; killed when a test leaves it behind."""

    def __init__(self, connection: KafkaConnection, topics: Topics, directory: Path, **collector: object) -> None:
        kafka = connection.model_dump(exclude_defaults=True) | {"bootstrap_servers": connection.bootstrap_servers}
        if connection.sasl_password is not None:
            kafka["sasl_password"] = connection.sasl_password.get_secret_value()
        section = {"spool_path": directory / "spool.db", "port": 0} | collector
        sections = {"KAFKA": kafka, "TOPICS": topics.model_dump(exclude_defaults=True), "COLLECTOR": section}
        variables = {
            f"HEADWATER_{name}__{k.upper()}": str(v) for name, part in sections.items() for k, v in part.items()
        }
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")} | variables
        self._log = directory / "collector.log"

    def __enter__(self) -> Self:
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = ForkedCommand(["collector"], env=self.env, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        address = self._process.stdout.readline().split()
        assert address[:1] == ["listening"], self.log()
        self.client = httpx.Client(base_url=f"http://{address[1]}:{address[2]}", timeout=20)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            sys.stderr.write(self.log())
        self.client.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def accept(self, events: Iterable[dict[str, Any]]) -> None:
        """Posts a batch that is taken whole."""
        body = {"events": list(events)}
        answer = self.client.post("/v1/events", json=body)
        assert answer.status_code == 202, answer.text
        assert answer.json()["accepted"] == len(body["events"])

    def end(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = WAIT_SECONDS) -> int:
        """Its exit status after a signal."""
        self._process.send_signal(number)
        return self._process.wait(seconds)

    def ready(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.get("/readyz").raise_for_status().json()
        return answer

    def log(self) -> str:
        return self._log.read_bytes()[self._log_start :].decode()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def forwarded(self) -> int:
        """Events confirmed since its start, as its metrics page has it."""
        families = text_string_to_metric_families(self.client.get("/metrics").raise_for_status().text)
        samples = [sample for family in families for sample in family.samples]
        return int(sum(s.value for s in samples if s.name == "headwater_collector_forwarded_total"))


def wait_until(condition: Callable[[], bool], *, what: str, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def arrived(connection: KafkaConnection, topic: str) -> dict[str, list[str]]:
    """Ids of the events on a topic by key, each in the order of the log."""
    with closing(PartitionConsumer(connection, [topic])) as consumer:
        ids: dict[str, list[str]] = {}
        while any(consumer.lag().values()):
            for record in consumer.poll(0.5):
                assert record.key is not None
                assert record.value is not None
                ids.setdefault(record.key.decode(), []).append(json.loads(record.value)["event_id"])
        return ids


def first_copies(event_ids: Iterable[str]) -> list[str]:
    """Without repeats: what is left downstream."""
    return list(dict.fromkeys(event_ids))

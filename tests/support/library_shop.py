"""A running shop for tests of the library: broker, updater and scorer, each a real process over a tiny encoder."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from forked import ForkedCommand
from tiny_model import tiny_bert

import headwater
from streams.embedded_broker import EmbeddedBroker

ITEMS = [f"item-{n}" for n in range(12)]
SECONDS = 90.0


class Shop(NamedTuple):
    """Addresses of a running shop."""

    bootstrap_servers: str
    scorer_url: str
    registry: Path
    items: Path


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    return inherited | {"HEADWATER_ENCODER__MODEL": str(tiny_bert()), "HEADWATER_ENCODER__LORA_RANK": "4"} | more


@contextmanager
def running_shop(directory: Path) -> Iterator[Shop]:
    """Yield a shop whose updater has published an adapter, and whose scorer serves it."""
    with EmbeddedBroker(directory / "broker") as broker:
        servers = broker.bootstrap_servers
        env = environment(
            HEADWATER_BOOTSTRAP_SERVERS=servers,
            HEADWATER_ENCODER__CACHE_DIR=str(directory / "cache"),
            HEADWATER_UPDATER__BATCH_EVENTS="10",
            HEADWATER_UPDATER__METRICS_PORT="0",
            HEADWATER_GUARD__BURST_EVENTS="1000",
        )
        publish(servers, directory)
        registry = directory / "registry"
        options = ["--checkpoint-dir", str(directory / "checkpoints"), "--registry-url", str(registry)]
        with (directory / "log").open("w") as log:
            updater = ForkedCommand(["updater", *options], env=env, stdout=log, stderr=log)
            scorer = ForkedCommand(
                ["scorer", "--registry-url", str(registry), "--port", "0"],
                env=env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert scorer.stdout is not None
        try:
            line = scorer.stdout.readline().split()
            assert line[:1] == ["listening"], (directory / "log").read_text()
            url = f"http://{line[1]}:{line[2]}"
            with headwater.HeadwaterClient(url, timeout_seconds=SECONDS) as client:
                until(lambda: len(client.rank(ITEMS).item_ids) == len(ITEMS))
            yield Shop(servers, url, registry, directory / "items.csv")
        finally:
            for process in (updater, scorer):
                process.kill()
                process.wait()
            scorer.stdout.close()


def publish(servers: str, directory: Path) -> None:
    rows = ["item_id,title"]
    with headwater.EventProducer(headwater.KafkaConnection(bootstrap_servers=servers)) as producer:
        for number, item_id in enumerate(ITEMS):
            title = f"a blue mug {number}"
            rows.append(f"{item_id},{title}")
            producer.send(headwater.Item(event_id=item_id, ts=1, item_id=item_id, kind="product", title=title))
        now_ms = time.time_ns() // 1_000_000
        for number in range(40):
            item_id = ITEMS[number % len(ITEMS)]
            click = {"event_id": f"click-{number}", "ts": now_ms, "user_id": f"user-{number % 7}", "item_id": item_id}
            producer.send(headwater.Click.model_validate(click))
    (directory / "items.csv").write_text("\n".join(rows) + "\n")


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except headwater.RequestRefusedError:
            pass
        time.sleep(0.2)
    raise AssertionError("the shop did not begin to rank")

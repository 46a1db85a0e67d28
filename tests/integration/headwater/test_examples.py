"""Every example runs as its docstring says: against a real broker, a real updater and a real scorer."""

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from forked import ForkedCommand
from tiny_model import tiny_bert

import headwater
from streams.embedded_broker import EmbeddedBroker

EXAMPLES = Path(__file__).parents[3] / "examples"
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


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop whose updater has published what it learnt, and whose scorer serves it."""
    directory = tmp_path_factory.mktemp("shop")
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


def output(
    name: str, *arguments: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, **env: str
) -> str:
    for variable, value in environment(**env).items():
        patch.setenv(variable, value)
    path = next(EXAMPLES.glob(f"{name}_*.py"))
    patch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


def test_examples_are_numbered_without_a_gap() -> None:
    assert [path.name[:2] for path in sorted(EXAMPLES.glob("*.py"))] == [f"{n:02}" for n in range(1, 8)]


def test_01_publishes(shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"HEADWATER_BOOTSTRAP_SERVERS": shop.bootstrap_servers}
    assert output("01", capsys=capsys, patch=monkeypatch, **env) == "published 2 events\n"


def test_02_ranks(shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"HEADWATER_SCORER_URL": shop.scorer_url}
    lines = output("02", "item-1", "item-2", capsys=capsys, patch=monkeypatch, **env).splitlines()
    assert lines[0].startswith("adapter ")
    assert {"item-1", "item-2"} == set(lines[0].partition(" ranks ")[2].split(", "))
    assert lines[1].startswith("recommended beside item-1: item-")
    assert sum(line.startswith("found item-") for line in lines) == 3
    assert lines[-1].startswith("item-1 scores ")


def test_03_learns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = output("03", "300", capsys=capsys, patch=monkeypatch).strip()
    assert found.count("'") == 10  # five ids


def test_04_backtests(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "04_backtest.py"), "300"],
        cwd=EXAMPLES.parent,
        env=environment(HEADWATER_ENCODER__CACHE_DIR=str(tmp_path), PYTHONPATH=str(EXAMPLES.parent)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == ["live", "cooccurrence", "popularity"]


def test_05_loads(shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = output("05", str(shop.registry), str(shop.items), capsys=capsys, patch=monkeypatch).splitlines()
    assert lines[0].endswith("of home ranks 12 items")


def test_06_fills_a_page(shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"HEADWATER_SCORER_URL": shop.scorer_url}
    assert output("06", capsys=capsys, patch=monkeypatch, **env).count("item-") == 15


def test_06_shows_bestsellers_while_the_scorer_is_away(
    free_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"HEADWATER_SCORER_URL": f"http://127.0.0.1:{free_port}"}
    lines = output("06", capsys=capsys, patch=monkeypatch, **env).splitlines()
    assert lines[-3:] == ["22423, 85123A"] * 3
    assert "showing bestsellers: no ranking from" in lines[0]


def test_07_compares_encoders(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = output("07", "200", str(tiny_bert(seed=1)), capsys=capsys, patch=monkeypatch).splitlines()
    assert len([line for line in lines if ": NDCG@20 0." in line]) == 2

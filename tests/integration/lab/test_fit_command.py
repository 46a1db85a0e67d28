"""`headwater fit` as its user runs it: killed and gone on with, and what an updater and a backtest begin from."""

import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_model import paired_stream, tiny_bert, titled
from updater_shop import Shop, events, items

from peft_adapters.errors import BundleFormatError, CheckpointError
from peft_adapters.lifecycle.warm_start import LEARNER_NAME
from peft_adapters.settings import EncoderSettings
from services.lab.backtest.fitted_start import backtest_start
from services.lab.offline.inputs import new_learner
from services.metrics.series import new_registry
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings
from services.updater.loop import Updater
from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.privacy import PrivacySettings
from streams.topics import Topics

EVENTS, NEW_EVENTS = 300, 20
SECRET = "of these tests"  # noqa: S105


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    with (directory / "items.csv").open("w", newline="") as file:
        rows = [(item_id.replace("item-", "i"), title) for item_id, title in titled(20)]
        csv.writer(file).writerows([("item_id", "title"), *rows])
    with (directory / "events.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("timestamp_ms", "user_id", "session_id", "event_type", "item_id"))
        for event in paired_stream(EVENTS, items=20, seed=1):
            item_id = event.item_id.replace("item-", "i")
            writer.writerow((event.ts + 10**12, event.user_id, event.session_id, "purchase", item_id))
    return directory


def begin_fit(data: Path, out: str, *options: str, max_epochs: int = 6) -> "subprocess.Popen[str]":
    files = ["--items", "items.csv", "--events", "events.csv", "--out", out, "--encoder", str(tiny_bert())]
    stops = ["--max-epochs", str(max_epochs), "--patience", "6"]
    ours = {"ENCODER__LORA_RANK": "4", "ENCODER__CACHE_DIR": str(data / "cache"), "PRIVACY__SECRET": SECRET}
    env = os.environ | {f"HEADWATER_{name}": value for name, value in ours.items()}
    command = [sys.executable, "-m", "services.cli", "fit", *files, *stops, *options]
    env["PYTHONPATH"] = str(Path.cwd())
    return subprocess.Popen(command, cwd=data, env=env, stderr=subprocess.PIPE, text=True)


def fitted(data: Path, out: str, *options: str, **stops: int) -> str:
    """Its words, once it has ended well."""
    process = begin_fit(data, out, *options, **stops)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def warm(data: Path) -> Path:
    assert "NDCG@20" in fitted(data, "warm")
    return data / "warm"


def report(directory: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((directory / "fit.json").read_text(), parse_constant=pytest.fail)
    return parsed


def test_it_reports_before_and_after(warm: Path) -> None:
    found = report(warm)
    assert found["events"] == {"train": 210, "validation": 45, "test": 45}
    assert found["test"]["after"]["ndcg20"] > found["test"]["before"]["ndcg20"]
    assert set(found["test"]["after"]) >= {"auc", "ndcg20", "hr20"}
    best = max(epoch["validation"]["ndcg20"] for epoch in found["epochs"])
    assert found["epochs"][found["best_epoch"] - 1]["validation"]["ndcg20"] == best
    assert found["events_learned"] == EVENTS  # each once, whatever the number of epochs


def test_killed_in_the_middle_it_ends_bit_for_bit_as_unkilled(data: Path, warm: Path) -> None:
    process = begin_fit(data, "killed")
    while not (data / "killed" / ".fit" / f"{2:010d}").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (data / "killed" / "manifest.json").exists()
    assert "fit_resumed" in fitted(data, "killed")
    assert report(data / "killed")["bundle"] == report(warm)["bundle"]
    ours, theirs = (next((place / LEARNER_NAME).iterdir()) for place in (data / "killed", warm))
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    states = [json.loads((place / "state.json").read_text())["learner"] for place in (ours, theirs)]
    assert states[0] == states[1]


def test_other_arguments_in_the_same_place_are_refused(data: Path, warm: Path) -> None:
    process = begin_fit(data, "warm", max_epochs=7)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "use the same arguments, or give another --out" in said


def begin_updater(shop: Shop, start_from: Path, *, secret: str = SECRET) -> Updater:
    settings = shop.settings(start_from=start_from, max_events=EVENTS + NEW_EVENTS)
    settings = settings.model_copy(update={"privacy": PrivacySettings.model_validate({"secret": secret})})
    return Updater(settings, UpdaterMetrics(new_registry(), topics=shop.topics), threading.Event())


@pytest.fixture
def shop(embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path) -> Shop:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    shop = Shop(connection, make_topics(connection, partitions=1), tmp_path)
    shop.send(*items(25), *events(NEW_EVENTS))
    return shop


def test_an_updater_goes_on_from_it(shop: Shop, warm: Path) -> None:
    begin_updater(shop, warm).run()
    published = shop.announced()
    assert published[0].events_learned >= EVENTS
    assert published[-1].events_learned == EVENTS + NEW_EVENTS
    again = begin_updater(shop, warm / "nowhere")  # with a checkpoint, it is not looked at
    again.run()
    assert again.learner.events_learned == EVENTS + NEW_EVENTS
    assert len(again.learner.catalogue) == 25


def test_an_updater_with_another_secret_does_not_begin(shop: Shop, warm: Path) -> None:
    with pytest.raises(CheckpointError, match="the one that the fit was made with"):
        begin_updater(shop, warm, secret="of another place").run()  # noqa: S106


def test_a_backtest_neither_learns_nor_judges_again_what_the_fit_has_learnt(data: Path) -> None:
    fitted(data, "first", "--first-percent", "40", max_epochs=1)
    settings = Settings(
        encoder=EncoderSettings(model=str(tiny_bert()), lora_rank=4, cache_dir=data / "cache"),
        privacy=PrivacySettings.model_validate({"secret": SECRET}),
    )
    start = backtest_start(settings, data / "first", data / "events.csv")
    learner = new_learner(settings.encoder, settings.learner)
    start.begin(learner)
    assert start.learnt == 0.4
    assert learner.events_learned == 0.4 * EVENTS
    assert "user-1" in learner.shoppers  # under the name that the data has
    (data / "others.csv").write_text("seq,user_id,event_type,item_id\n1,u,purchase,i1\n")
    assert backtest_start(settings, data / "first", data / "others.csv").learnt == 0.0
    with pytest.raises(BundleFormatError, match="run `headwater fit`"):
        backtest_start(settings, data, data / "events.csv")

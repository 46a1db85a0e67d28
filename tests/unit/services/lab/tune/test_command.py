"""`headwater tune`: a study that can be gone on with, and a winner that is a settings file."""

import csv
from pathlib import Path
from typing import Any

import pytest
from tiny_model import paired_stream, tiny_bert, titled

from peft_adapters.settings import EncoderSettings
from services.lab.tune import command
from services.settings import Settings, SettingsError, load_settings
from streams.privacy import PrivacySettings

SECRET = "of these tests"  # noqa: S105


def settings(tmp_path: Path) -> Settings:
    encoder = EncoderSettings(model=str(tiny_bert()), lora_rank=4, cache_dir=tmp_path / "cache")
    return Settings(encoder=encoder, privacy=PrivacySettings.model_validate({"secret": SECRET}))


def tuned(tmp_path: Path, out: str, trials: int) -> float:
    files: dict[str, Any] = {"items": tmp_path / "items.csv", "events": tmp_path / "events.csv", "out": tmp_path / out}
    return command.run(settings(tmp_path), **files, trials=trials, first_percent=100.0)


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> None:
    with (tmp_path / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title"), *titled(20)])
    with (tmp_path / "events.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("timestamp_ms", "user_id", "session_id", "event_type", "item_id"))
        for event in paired_stream(120, items=20, seed=1):
            writer.writerow((event.ts + 10**12, event.user_id, event.session_id, "purchase", event.item_id))


def test_a_search_gone_on_with_ends_as_one_that_was_not_cut_short(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    whole = tuned(tmp_path, "whole", 3)
    tuned(tmp_path, "parts", 1)
    assert tuned(tmp_path, "parts", 3) == whole
    winner = tmp_path / "whole" / command.WINNER_NAME
    assert (tmp_path / "parts" / command.WINNER_NAME).read_text() == winner.read_text()
    found = load_settings(winner)
    assert found.learner != Settings().learner
    assert found.updater.batch_events == found.fit.batch_events


@pytest.mark.parametrize(("kind", "rate"), [("adamw", 0.002), ("sgd", 0.6)])
def test_the_winner_names_the_optimiser_and_a_rate_of_its_size(tmp_path: Path, kind: str, rate: float) -> None:
    winner = tmp_path / "tuned.toml"
    chosen = {"learner.lora_optimiser": kind, "learner.lora_learning_rate": 0.002, "fit.batch_events": 64}
    winner.write_text(command._toml(chosen | {"learner.lora_dropout": 0.1, "learner.lora_accumulate": 2}))
    found = load_settings(winner)
    assert found.learner.lora_optimiser == kind
    assert found.learner.lora_learning_rate == pytest.approx(rate)
    assert (found.learner.lora_dropout, found.learner.lora_accumulate) == (0.1, 2)
    assert found.updater.batch_events == 64


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'headwater\[tune\]'"):
        tuned(tmp_path, "out", 1)

"""`headwater checkpoints`: what it shows of a directory, and its exit status."""

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tiny_model import tiny_learner
from typer.testing import CliRunner, Result

from peft_adapters.settings import LearnerSettings
from services.cli import app
from services.updater.checkpoint_store import CheckpointStore


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two checkpoints of scenario `home`."""
    directory = tmp_path_factory.mktemp("kept")
    with closing(CheckpointStore(directory / "home", keep_checkpoints=2, stop=threading.Event())) as home:
        for number in (1, 2):
            home.save(tiny_learner(LearnerSettings(), items=2), {"offsets": {"clicks/0": 7 * number}})
    return directory


def run(command: str, directory: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["checkpoints", command, "--checkpoint-dir", str(directory), *more])


def rows(directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("list", directory, "--json").stdout)["checkpoints"]
    return found


def test_each_checkpoint_is_shown_with_all_that_is_known_of_it(kept: Path) -> None:
    older, newest = rows(kept)
    assert (older["number"], newest["number"]) == (1, 2)
    assert newest["epoch"] == 1
    assert newest["offsets"] == {"clicks/0": 14}
    assert newest["events_learned"] == 0
    assert newest["usable"] is True
    assert newest["problem"] is None
    assert newest["size_bytes"] > 1_000
    assert 0 <= newest["age_seconds"] < 600
    told = run("list", kept).stdout.splitlines()
    assert told[0].split() == ["EPOCH", "NUMBER", "AGE", "SIZE", "EVENTS", "USABLE", "OFFSETS"]
    assert told[2].endswith("yes     clicks/0=14")


def test_verify_ends_with_a_failure_only_if_none_can_be_used(kept: Path) -> None:
    assert run("verify", kept).exit_code == 0
    older, newest = sorted(kept.glob("home/00000001/[0-9]*"))
    for path in (newest, older):
        (path / "model.safetensors").write_bytes(b"torn")
        said = run("verify", kept)
        assert f"checkpoint {path} is damaged: model.safetensors is not the file that SHA256SUMS names" in said.stdout
        assert said.exit_code == (0 if path == newest else 1)
    assert run("list", kept).exit_code == 0


def test_without_checkpoints_it_says_so_and_verify_fails(tmp_path: Path) -> None:
    said = run("list", tmp_path)
    assert (said.exit_code, said.stdout) == (0, f"no checkpoints in {tmp_path / 'home'}\n")
    assert run("verify", tmp_path).exit_code == 1

"""Every example runs as its docstring says: against a real broker, a real updater and a real scorer."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from library_shop import Shop, environment
from tiny_model import tiny_bert

EXAMPLES = Path(__file__).parents[3] / "examples"


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
    assert [path.name[:2] for path in sorted(EXAMPLES.glob("*.py"))] == [f"{n:02}" for n in range(1, 9)]


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


def test_08_checks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert output("08", capsys=capsys, patch=monkeypatch) == "the learner keeps the contract\n"

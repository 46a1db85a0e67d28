"""The wheel in an empty environment: it publishes and ranks without torch, and says which extra a process needs."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from library_shop import Shop

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, sys
from headwater import Click, EventProducer, HeadwaterClient, KafkaConnection

servers, url = sys.argv[1:]
with EventProducer(KafkaConnection(bootstrap_servers=servers)) as producer:
    producer.send(Click(event_id="from-the-wheel", ts="2026-01-31T09:00:00Z", user_id="ann", item_id="item-1"))
with HeadwaterClient(url, timeout_seconds=20) as client:
    ranked = client.rank(["item-1", "item-2"], session_items=["item-3"]).item_ids
print(json.dumps({"delivered": producer.delivered, "ranked": ranked, "torch": "torch" in sys.modules}))
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=280)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment that holds the wheel and what it depends on, nothing else."""
    directory = tmp_path_factory.mktemp("wheel")
    wheel = run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", directory, ROOT),
        cwd=directory,
    )
    assert wheel.returncode == 0, wheel.stderr
    venv.create(directory / "venv", with_pip=True)
    programs = directory / "venv" / "bin"
    found = next(directory.glob("headwater-*.whl"))
    installed = run(programs / "python", "-m", "pip", "install", "--quiet", found, cwd=directory)
    assert installed.returncode == 0, installed.stderr
    return programs


def test_it_publishes_and_ranks_without_torch(light: Path, shop: Shop, tmp_path: Path) -> None:
    done = run(light / "python", "-c", PROGRAM, shop.bootstrap_servers, shop.scorer_url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["delivered"], sorted(answer["ranked"]), answer["torch"]) == (1, ["item-1", "item-2"], False)


def test_nothing_heavy_is_installed(light: Path, tmp_path: Path) -> None:
    listed = run(light / "python", "-m", "pip", "list", "--format", "json", cwd=tmp_path)
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert not names & {"torch", "transformers", "peft", "numpy", "scipy", "fastapi"}


def test_a_process_whose_extra_is_missing_names_it(light: Path, tmp_path: Path) -> None:
    for command, extra in (("updater", "updater"), ("scorer", "scorer"), ("collector", "web")):
        done = run(light / "headwater", command, cwd=tmp_path)
        assert done.returncode != 0
        assert f"pip install 'headwater[{extra}]'" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_operators_commands_work(light: Path, shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "clicks.jsonl").write_text('{"type": "click", "user_id": "bob", "item_id": "item-2"}\n')
    options = ("--bootstrap-servers", shop.bootstrap_servers)
    done = run(light / "headwater", "publish", "clicks.jsonl", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

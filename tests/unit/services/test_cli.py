"""The command line: fast help, clear errors, and options that reach the settings."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services import cli
from services.operate.publish import command as publish_command
from services.settings import Settings

COMMANDS = [
    "schema",
    "publish",
    "replay",
    "registry",
    "collector",
    "updater",
    "scorer",
    "demo",
    "backtest",
    "fit",
    "tune",
    "dead-letters",
    "adapters",
    "keys",
    "topics",
]
PARTS = [f"dead-letters {part}" for part in ("list", "show", "replay", "purge")]
PARTS += [f"adapters {part}" for part in ("list", "show", "diff", "pin", "unpin", "rollback", "canary", "shadow")]
PARTS += ["adapters promote"]
PARTS += [f"topics {part}" for part in ("create", "check")]
PARTS += [f"keys {part}" for part in ("new", "list", "revoke")]


class Outcome:
    """What a run of the command line left behind."""

    def __init__(self, status: object, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process, without touching its logging."""
    monkeypatch.setattr("services.logs.configure_logging", lambda **_: None)
    # What another test has set up writes to a stream that is closed by now, and would say so here.
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["headwater", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(ended.value.code or 0, captured.out, captured.err)

    return run


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from services.cli import main\n"
        "sys.argv = ['headwater', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'kafka', 'fastapi', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "sys.stderr.write(' '.join(sorted(heavy)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS + PARTS)
def test_every_command_teaches_by_example(run: Any, command: str) -> None:
    outcome = run(*command.split(), "--help")
    assert outcome.status == 0
    assert "Example: " in outcome.out
    assert f"headwater {command}" in outcome.out


def test_schema_prints_one_kind_or_all(run: Any) -> None:
    click = json.loads(run("schema", "click").out)
    assert "item_id" in click["required"]
    assert set(json.loads(run("schema").out)) == {"impression", "click", "purchase", "item"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schema", "view"], "'view' is not one of"),
        (["publish"], "Missing argument"),
        (["replay", "--items", "a.csv", "--events", "b.csv", "--rate", "1", "--speed-up", "2"], "exclude each other"),
        (["replay", "--items", "a.csv", "--events", "b.csv", "--rate", "0"], "0.01"),
        (["publish", "-", "--bootstrap-servers", "nowhere"], "must be host:port"),
        (["scorer", "--port", "70000"], "65535"),
        (["publish", "-", "--scenario", "home"], "No such option"),
        (["dead-letters", "list", "--since", "soon"], "a time must be RFC 3339 with its UTC offset, or how long ago"),
        (["dead-letters", "purge", "--reason", "bad"], "a reason must be one of malformed_json, invalid_schema"),
        (["dead-letters", "replay", "--mended", "a.jsonl", "--limit", "1"], "leave the filters out"),
        (["dead-letters", "replay", "--mended", "none.jsonl"], "none.jsonl cannot be read"),
        (["adapters", "canary"], "give --percent above 0, or --end"),
        (["adapters", "canary", "--percent", "0"], "give --percent above 0, or --end"),
        (["adapters", "canary", "--percent", "5", "--end"], "give --percent above 0, or --end"),
        (["adapters", "shadow", "--version", "5", "--end"], "give --version, or --end"),
        (["adapters", "pin", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_usage_is_status_2_and_says_why(run: Any, arguments: list[str], message: str) -> None:
    outcome = run(*arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_an_unreachable_broker_is_status_1_and_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(publish_command, "BROKER_TIMEOUT_SECONDS", 0.3)
    file = tmp_path / "clicks.jsonl"
    file.write_text('{"type": "click", "user_id": "u", "item_id": "i"}\n')
    outcome = run("publish", str(file), "--bootstrap-servers", "127.0.0.1:1")
    assert outcome.status == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith("headwater: ")
    assert "127.0.0.1:1" in last
    assert "Traceback" not in outcome.err


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for what is slow to start, and keeps what each command was given."""
    calls: dict[str, Any] = {}

    def record(*settings: Settings, **options: Any) -> int:
        calls.update(options, settings=settings[0] if settings else None)
        return 3

    for command in ("registry", "demo", "backtest"):
        monkeypatch.setitem(sys.modules, f"services.{command}.command", SimpleNamespace(run=record))
    return calls


def test_registry_options_outrank_its_settings(run: Any, called: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "headwater.toml"
    config.write_text('[registry]\nurl = "s3://adapters"\nport = 9000\n')
    assert run("registry", "--config", str(config), "--port", "0").status == 0
    registry = called["settings"].registry
    assert (registry.url, registry.host, registry.port) == ("s3://adapters", "127.0.0.1", 0)


def test_demo_passes_its_options_on_and_ends_with_its_status(run: Any, called: dict[str, Any]) -> None:
    outcome = run(
        "demo", "--rate", "100", "--max-events", "50", "--keep", "--summary-json", "s.json", "--work-dir", "w"
    )
    assert outcome.status == 3
    assert called.pop("settings").scenario == "home"
    assert called == {
        "rate": 100.0,
        "max_events": 50,
        "keep": True,
        "summary_json": Path("s.json"),
        "work_dir": Path("w"),
    }


def test_backtest_passes_its_options_on(run: Any, called: dict[str, Any]) -> None:
    data = ["--items", "i.csv", "--events", "e.csv", "--warm-up", "w.csv"]
    choice = ["--policies", "live, frozen", "--seeds", "2", "--batch-events", "64", "--encoder", "elsewhere"]
    assert run("backtest", *data, *choice, "--json", "o.json", "--ranks", "r.csv.gz").status == 0
    assert called.pop("settings").encoder.model == "elsewhere"
    assert called == {
        "items": Path("i.csv"),
        "events": Path("e.csv"),
        "warm_up": Path("w.csv"),
        "policies": ["live", "frozen"],
        "max_events": None,
        "seeds": 2,
        "batch_events": 64,
        "click_window_seconds": 600.0,
        "label_delay_seconds": 0.0,
        "judge_after": 0.0,
        "start": None,
        "json_path": Path("o.json"),
        "ranks_path": Path("r.csv.gz"),
        "report_dir": None,
        "strict": False,
    }


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(publish_command, "run", broken)
    monkeypatch.setattr(sys, "argv", ["headwater", "publish", "-"])
    monkeypatch.setattr("services.logs.configure_logging", lambda **_: None)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_version_is_printed(run: Any) -> None:
    outcome = run("--version")
    assert outcome.status == 0
    assert re.fullmatch(r"headwater \d+\.\d+\.\d+\S*\n", outcome.out)

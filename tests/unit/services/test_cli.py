"""The command line: fast help, clear errors, and options that reach the settings."""

import importlib
import json
import logging
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import peft_adapters
import services
import streams
from peft_adapters.errors import EncoderError, HeadwaterModelError
from services import cli
from services.audit import AuditError
from services.errors import HeadwaterServiceError, UsageError
from services.operate.publish import command as publish_command
from services.settings import Settings, SettingsError
from streams.errors import HeadwaterStreamError, TopicError

ROOTS = (HeadwaterServiceError, HeadwaterStreamError, HeadwaterModelError)


def command_paths(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of every group and command, such as ("dead-letters", "list")."""
    group = group or typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from command_paths(command, (*path, name))


COMMANDS = [" ".join(path) for path in command_paths()]
TOP = [command for command in COMMANDS if " " not in command]


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
    assert all(f"  {command} " in done.stdout for command in TOP)


def test_help_groups_commands_by_who_runs_them(run: Any) -> None:
    sections = re.findall(r"^(\w+):\n((?:  .*\n)+)", run("--help").out, re.MULTILINE)
    names = {title: re.findall(r"^  ([a-z-]+)", rows, re.MULTILINE) for title, rows in sections}
    assert names["Processes"] == ["updater", "scorer", "registry", "collector", "state-writer"]
    assert names["Lab"] == ["demo", "backtest", "fit", "tune", "bench"]
    assert {"publish", "adapters", "keys"} < set(names["Operate"])
    assert sorted(names["Processes"] + names["Operate"] + names["Lab"]) == sorted(TOP)


GROUPS = sorted({command.split()[0] for command in COMMANDS if " " in command})


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_summaries_of_commands_are_not_cut_off(run: Any, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert not re.findall(r"^  .*\.\.\.$", run(*group.split(), "--help").out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
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
    monkeypatch.setattr("services.producers.BROKER_TIMEOUT_SECONDS", 0.3)
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

    for process in ("registry", "lab.demo", "lab.backtest"):
        monkeypatch.setitem(sys.modules, f"services.{process}.command", SimpleNamespace(run=record))
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
        "judge_queries": None,
        "judge_queries_every": None,
        "start": None,
        "json_path": Path("o.json"),
        "ranks_path": Path("r.csv.gz"),
        "report_dir": None,
        "strict": False,
    }


def error_classes() -> list[type[Exception]]:
    """All public exceptions that are defined in the three packages."""
    for package in (peft_adapters, services, streams):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    pending: list[type[Any]] = [Exception]
    known: dict[str, type[Exception]] = {}
    while pending:
        for error in pending.pop().__subclasses__():
            name = f"{error.__module__}.{error.__qualname__}"
            if name not in known:
                known[name] = error
                pending.append(error)
    ours = {"services", "streams", "peft_adapters"}
    return [e for name, e in sorted(known.items()) if name.split(".")[0] in ours and not e.__name__.startswith("_")]


@pytest.fixture
def run_failing(run: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command that raises an error."""

    def run_failing(error: Exception) -> Outcome:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(publish_command, "run", fail)
        outcome: Outcome = run("publish", "-")
        return outcome

    return run_failing


def test_every_error_raised_on_purpose_is_one_line_and_a_status(run_failing: Any) -> None:
    errors = error_classes()
    assert {AuditError, SettingsError, EncoderError, TopicError} <= set(errors)
    for kind in errors:
        assert issubclass(kind, ROOTS), f"{kind.__module__}.{kind.__name__} derives from no root"
        outcome = run_failing(kind.__new__(kind, "no room\nat all; make some"))
        assert outcome.err == "headwater: no room at all; make some\n", kind
        assert outcome.status == (2 if issubclass(kind, UsageError) else 1), kind


def test_a_bug_is_reported_as_one_with_its_traceback(run_failing: Any) -> None:
    outcome = run_failing(ZeroDivisionError("by nothing"))
    assert outcome.status == 1
    *before, last = outcome.err.splitlines()
    assert before[0] == "Traceback (most recent call last):"
    assert "in fail" in "".join(before)
    assert before[-1] == "ZeroDivisionError: by nothing"
    assert last.startswith(
        "headwater: internal error, a bug in Headwater: ZeroDivisionError: by nothing; please report"
    )


def test_version_is_printed(run: Any) -> None:
    outcome = run("--version")
    assert outcome.status == 0
    assert re.fullmatch(r"headwater \d+\.\d+\.\d+\S*\n", outcome.out)

"""Commands work on ASCII terminals and in the C locale; files are UTF-8 whatever the locale."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import SecretStr
from rich.console import Console
from typer.main import get_command

from services import cli
from services.data.dataset import read_items
from services.options import utf8_text
from streams.privacy import PrivacySettings, pseudonymiser

PLAIN = {
    "LC_ALL": "C",
    "LANG": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "TERM": "dumb",
    "NO_COLOR": "1",
}


def commands() -> Iterator[list[str]]:
    for name, command in get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        yield [name]
        for part in getattr(command, "commands", {}):
            yield [name, part]


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        env=os.environ | PLAIN,
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_every_help_is_printed_on_an_ascii_terminal() -> None:
    script = "import sys\nfrom services import cli\n" + "".join(
        f"sys.argv = {['headwater', *command, '--help']!r}\ntry:\n    cli.main()\nexcept SystemExit as end:\n"
        "    assert not end.code\n"
        for command in commands()
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | PLAIN, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.isascii()


def test_an_error_that_names_a_character_outside_ascii_is_one_line(tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item_id,titel\n1,Café\n", encoding="utf-8")
    done = run("replay", "--items", str(items), "--events", str(tmp_path / "día.csv"))
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    items.write_text("item_id,Título\n1,Café\n", encoding="utf-8")
    done = run("replay", "--items", str(items))
    assert done.returncode == 2
    assert b"T\\xedtulo" in done.stderr
    assert b"Traceback" not in done.stderr


def test_files_are_read_as_utf8(tmp_path: Path) -> None:
    config = tmp_path / "headwater.toml"
    config.write_text('# Größe\n[topics]\nclicks = "größe"\n', encoding="utf-8")
    done = run("publish", "-", "--config", str(config))
    assert done.returncode == 2
    assert b"topics.clicks" in done.stderr


def test_ids_on_the_command_line_are_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.options.os.fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert utf8_text("änn".encode().decode("ascii", "surrogateescape")) == "änn"
    assert utf8_text("änn") == "änn"
    with pytest.raises(typer.BadParameter, match=r"must be UTF-8, got '\\xe4nn'"):
        utf8_text("änn".encode("latin-1").decode("ascii", "surrogateescape"))


@pytest.mark.parametrize("user_id", ["", "a" * 257, b"\xe4nn"])
def test_a_shopper_is_forgotten_by_an_id_that_events_can_have(user_id: str | bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "forget", user_id],
        env=os.environ | PLAIN,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"'USER_ID': must " in done.stderr


def test_the_name_of_a_replayed_file_may_be_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"pr\xe4is.csv")
    path.write_text("item_id,title\n1,Mug\n")
    assert [item.event_id for item in read_items(path)] == [r"pr\xe4is-1"]


def test_a_secret_in_the_environment_is_the_same_in_any_locale() -> None:
    def fingerprint(secret: str) -> str:
        return pseudonymiser(PrivacySettings(secret=SecretStr(secret))).fingerprint()

    said = "geheimnüß"
    assert fingerprint(said.encode().decode("ascii", "surrogateescape")) == fingerprint(said)


def test_the_demo_s_summary_uses_marks_that_the_terminal_has() -> None:
    from services.lab.demo.summary import Claim, mark_of

    ascii_console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert mark_of(ascii_console, Claim("c", True)).isascii()
    assert "✓" in mark_of(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8")), Claim("c", True))

"""`headwater keys`, as a person uses it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.operate.keys import keys
from services.web.access.keys import KeysError, KeysFile


@pytest.fixture(autouse=True)
def logging_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.logs.configure_logging", lambda **_: None)


def run(*arguments: str) -> list[list[str]]:
    done = CliRunner().invoke(keys, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    [[token]] = run("new", "shop", "--scope", "read", "--scope", "events", "--days", "30", "--keys-file", file)
    assert KeysFile(Path(file)).read().find(token) is not None
    [row] = run("list", "--keys-file", file)
    assert row[:4] == [token[3:11], "shop", "events,read", "good"]
    assert token not in str(row)
    assert run("revoke", token[3:11], "--keys-file", file) == [[f"{token[3:11]} of shop is revoked"]]
    assert run("list", "--keys-file", file)[0][3] == "revoked"


def test_the_file_may_come_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_SECURITY__KEYS_FILE", str(tmp_path / "keys.json"))
    run("new", "shop", "--scope", "admin")
    assert [row[2] for row in run("list")] == ["admin"]


def test_without_a_file_it_says_how_to_name_one() -> None:
    with pytest.raises(KeysError, match="give --keys-file"):
        run("list")

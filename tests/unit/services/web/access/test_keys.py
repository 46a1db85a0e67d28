"""Keys: made, found, revoked, and kept as hashes in a file that only its owner can change."""

import json
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.web.access.keys import KeysError, KeysFile
from services.web.access.scopes import Scope


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "keys.json"


def test_a_key_is_found_by_what_is_shown_and_kept_as_a_hash(path: Path) -> None:
    token = KeysFile(path).make("shop", [Scope.read, Scope.events])
    text = path.read_text()
    assert token not in text
    assert token.rpartition("_")[2] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = KeysFile(path).read().find(token)
    assert key is not None
    assert (key.name, key.scopes) == ("shop", (Scope.events, Scope.read))
    assert key.id in token
    assert key.state(datetime.now(UTC)) == "good"


@pytest.mark.parametrize(
    "change", [lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"), str.upper, lambda token: token + " "]
)
def test_what_is_not_quite_the_key_is_none(path: Path, change: object) -> None:
    token = KeysFile(path).make("shop", [Scope.read])
    assert callable(change)
    assert KeysFile(path).read().find(change(token)) is None


@pytest.mark.parametrize("token", ["", "hw_", "hw_00000000_" + "0" * 64, "ä" * 200])
def test_nonsense_is_no_key(path: Path, token: str) -> None:
    KeysFile(path).make("shop", [Scope.read])
    assert KeysFile(path).read().find(token) is None


def test_keys_expire_and_are_revoked(path: Path) -> None:
    file = KeysFile(path)
    brief, other = file.make("shop", [Scope.read], days=1), file.make("shop", [Scope.read])
    now = datetime.now(UTC)
    key = file.read().find(brief)
    assert key is not None
    assert key.state(now) == "good"
    assert key.state(now + timedelta(days=1, seconds=1)) == "expired"
    assert file.revoke(key.id).state(now) == "revoked"
    first = file.read().find(brief)
    assert first is not None
    assert first.state(now) == "revoked"
    assert file.revoke(key.id).revoked_at == first.revoked_at  # twice says when it was first
    left = file.read().find(other)
    assert left is not None
    assert left.state(now) == "good"


def test_a_key_that_nobody_has_cannot_be_revoked(path: Path) -> None:
    KeysFile(path).make("shop", [Scope.read])
    with pytest.raises(KeysError, match="no key with the id '00000000'"):
        KeysFile(path).revoke("00000000")


@pytest.mark.parametrize(
    ("name", "scopes"), [("a b", [Scope.read]), ("", [Scope.read]), ("x" * 65, [Scope.read]), ("shop", [])]
)
def test_a_key_needs_a_plain_name_and_a_scope(path: Path, name: str, scopes: list[Scope]) -> None:
    with pytest.raises(KeysError, match=r"no key can be made: `(name|scopes)`"):
        KeysFile(path).make(name, scopes)
    assert not path.exists()


def test_whom_it_may_be_read_by_stays_as_it_was(path: Path) -> None:
    KeysFile(path).make("shop", [Scope.read])
    path.chmod(0o644)
    KeysFile(path).make("shop", [Scope.read])
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_that_others_can_change_is_not_believed(path: Path) -> None:
    KeysFile(path).make("shop", [Scope.read])
    path.chmod(0o620)
    with pytest.raises(KeysError, match="writable by its owner alone, got mode -rw--w----"):
        KeysFile(path).read()
    path.chmod(0o444)  # as secrets are mounted
    assert KeysFile(path).read().keys


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Invalid JSON"),
        ('{"keyz": []}', "`keyz`"),
        ('{"keys": [{"id": "1"}]}', "`keys.0.id`"),
        ("twice", "must be unique"),
    ],
)
def test_what_is_no_keys_file_is_told_without_what_it_holds(path: Path, text: str, fault: str) -> None:
    KeysFile(path).make("shop", [Scope.read])
    if text == "twice":
        kept = json.loads(path.read_text())["keys"]
        text = json.dumps({"keys": kept * 2})
    path.write_text(text)
    with pytest.raises(KeysError, match=fault) as refused:
        KeysFile(path).read()
    assert "sha256" not in str(refused.value) or fault == "`keys.0.id`"


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    tokens: list[str] = []
    makers = [
        threading.Thread(target=lambda: tokens.append(KeysFile(path).make("shop", [Scope.read]))) for _ in range(8)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    keys = KeysFile(path).read()
    assert len(keys.keys) == 8
    assert all(keys.find(token) for token in tokens)
    assert {found.name for found in path.parent.iterdir()} == {path.name, f".{path.name}.lock"}

"""Pseudonyms and their secret."""

import hashlib
import hmac
import stat
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from streams.errors import SecretError
from streams.privacy import PrivacySettings, Pseudonymiser, pseudonymiser


def test_a_pseudonym_is_half_an_hmac_and_the_same_each_time() -> None:
    hidden = Pseudonymiser(b"secret-of-a-shop")
    expected = hmac.new(b"secret-of-a-shop", "zoë".encode(), hashlib.sha256).hexdigest()[:32]
    assert hidden("zoë") == hidden("zoë") == expected


def test_another_secret_gives_other_pseudonyms_and_another_fingerprint() -> None:
    one, other = Pseudonymiser(b"secret-of-a-shop"), Pseudonymiser(b"secret-of-another")
    assert one("ann") != other("ann")
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint() == Pseudonymiser(b"secret-of-a-shop").fingerprint()


def test_a_secret_that_is_set_makes_no_file_and_shows_nowhere(tmp_path: Path) -> None:
    settings = PrivacySettings(secret="correct-horse", secret_file=tmp_path / "secret")  # noqa: S106
    assert pseudonymiser(settings)("ann") == Pseudonymiser(b"correct-horse")("ann")
    assert not settings.secret_file.exists()
    assert "correct-horse" not in repr(settings) + settings.model_dump_json()
    with pytest.raises(ValidationError, match="at least 8"):
        PrivacySettings(secret="short")  # noqa: S106


def test_without_one_a_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    settings = PrivacySettings(secret_file=tmp_path / "new" / "secret")
    first = pseudonymiser(settings)
    assert stat.S_IMODE(settings.secret_file.stat().st_mode) == 0o600
    assert len(bytes.fromhex(settings.secret_file.read_text())) == 32
    assert pseudonymiser(settings)("ann") == first("ann")
    assert [path.name for path in settings.secret_file.parent.iterdir()] == ["secret"]


def test_processes_that_start_at_once_have_the_same_secret(tmp_path: Path) -> None:
    settings = PrivacySettings(secret_file=tmp_path / "secret")
    together, fingerprints = threading.Barrier(8), list[str]()

    def start() -> None:
        together.wait(10)
        fingerprints.append(pseudonymiser(settings).fingerprint())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(fingerprints) == 8
    assert len(set(fingerprints)) == 1


@pytest.mark.parametrize("spoil", ["empty", "directory"])
def test_a_secret_that_cannot_be_had_is_named_with_a_remedy(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "secret"
    path.mkdir() if spoil == "directory" else path.write_text("\n")
    with pytest.raises(SecretError, match=r"`privacy.secret_file` .*; (set|write)"):
        pseudonymiser(PrivacySettings(secret_file=path))

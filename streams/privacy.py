"""Pseudonyms: what ids of users and sessions become as they enter, so that nothing behind the door knows them.

HMAC-SHA-256 (RFC 2104) with the deployment's secret: the same id always gives the same pseudonym, and without the
secret nobody can tell whose it is, not even by trying all ids.
"""

import hmac
import os
import re
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from streams.errors import SecretError

CACHED_IDS = 65_536
PSEUDONYM_BYTES = 16
MADE_DIGITS = 64  # hexadecimal, of a secret made here
MIN_BYTES = 8
_FINGERPRINT = "headwater fingerprint"
_CUT_SHORT = re.compile(rb"[0-9a-f]{1,%d}" % (MADE_DIGITS - 1))  # without the end of the line

PayloadPolicy = Literal["keep", "redact", "drop"]


class PrivacySettings(BaseModel):
    """How user ids are hidden."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: SecretStr | None = Field(
        default=None, min_length=MIN_BYTES, description="of the deployment, the same for all its processes"
    )
    secret_file: Path = Field(
        default=Path(".headwater/user-id-secret"), description="holds the secret where none is set; made at first use"
    )
    dead_letter_payload: PayloadPolicy = Field(
        default="keep", description="keep, redact (ids become pseudonyms) or drop the bytes of refused records"
    )


class Pseudonymiser:
    """Turn ids into pseudonyms: 32 hex digits.

    Args:
        secret: of the deployment.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        # A method cannot be cached by itself without keeping its object alive; recent shoppers come again and again.
        self._cached = lru_cache(maxsize=CACHED_IDS)(self._hashed)

    def __call__(self, user_id: str) -> str:
        """The pseudonym of an id."""
        return self._cached(user_id)

    def fingerprint(self) -> str:
        """Tells one secret from another, and nothing about it."""
        return self._hashed(_FINGERPRINT)

    def _hashed(self, text: str) -> str:
        return hmac.digest(self._secret, text.encode(), "sha256")[:PSEUDONYM_BYTES].hex()


def pseudonymiser(settings: PrivacySettings, *, make: bool = True) -> Pseudonymiser:
    """The pseudonymiser of a deployment.

    Args:
        settings: hold the secret, or say where it is.
        make: whether a secret that is nowhere is made, and kept in `secret_file`.

    Raises:
        SecretError: the file cannot be read or made, or holds no secret.
    """
    if settings.secret is not None:
        # In a locale of ASCII alone, what the environment holds beyond it comes as surrogate escapes: the same bytes.
        return Pseudonymiser(settings.secret.get_secret_value().encode(errors="surrogateescape"))
    return Pseudonymiser(_kept_secret(settings.secret_file, make=make))


def _kept_secret(path: Path, *, make: bool) -> bytes:
    try:
        if make and not path.exists():
            _make_secret(path)
        content = path.read_bytes()
    except OSError as error:
        raise SecretError(
            f"`privacy.secret_file` {path} cannot be read{' or made' if make else ''}: {error.strerror}; "
            "set `privacy.secret`, or give rights there"
        ) from error
    secret = content.strip()
    if not secret:
        raise SecretError(
            f"`privacy.secret_file` {path} must hold a secret, it is empty; write one, or put the file back from a copy"
        )
    if len(secret) < MIN_BYTES or _CUT_SHORT.fullmatch(content):
        raise SecretError(
            f"`privacy.secret_file` {path} looks cut short: it must hold {MIN_BYTES} bytes or more and, if they are "
            f"hexadecimal digits and fewer than {MADE_DIGITS}, end with a newline; put the file back from a copy"
        )
    return secret


def _make_secret(path: Path) -> None:
    """Written aside and linked into place, so that of two processes that start at once one makes it for both."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(MADE_DIGITS // 2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink()

"""Pseudonyms that replace the ids of users and sessions on entry, so that no later part sees the originals.

HMAC-SHA-256 (RFC 2104) with the deployment's secret: the same id always yields the same pseudonym, and without the
secret nobody can find the id, not even by trying all ids.
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
GENERATED_DIGITS = 64  # hexadecimal digits of a secret that is generated here
MIN_BYTES = 8
_FINGERPRINT = "headwater fingerprint"
_CUT_SHORT = re.compile(rb"[0-9a-f]{1,%d}" % (GENERATED_DIGITS - 1))  # without the end of the line

PayloadPolicy = Literal["keep", "redact", "drop"]


class PrivacySettings(BaseModel):
    """Settings of pseudonyms and of personal data in dead letters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: SecretStr | None = Field(
        default=None,
        min_length=MIN_BYTES,
        description="secret of the pseudonyms, the same for all processes",
    )
    secret_file: Path = Field(
        default=Path(".headwater/user-id-secret"),
        description="file with the secret if none is set; created on first use",
    )
    dead_letter_payload: PayloadPolicy = Field(
        default="keep", description="keep, redact (ids become pseudonyms) or drop the bytes of rejected records"
    )


class Pseudonymiser:
    """A function from ids to pseudonyms of 32 hexadecimal digits.

    Args:
        secret: the secret of the deployment.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        # Cached per object: a cache on the method itself would keep the object alive. Recent shoppers return often.
        self._cached = lru_cache(maxsize=CACHED_IDS)(self._hash)

    def __call__(self, user_id: str) -> str:
        """Return the pseudonym of an id."""
        return self._cached(user_id)

    def fingerprint(self) -> str:
        """Return a text that identifies the secret without revealing it."""
        return self._hash(_FINGERPRINT)

    def _hash(self, text: str) -> str:
        return hmac.digest(self._secret, text.encode(), "sha256")[:PSEUDONYM_BYTES].hex()


def pseudonymiser(settings: PrivacySettings, *, make: bool = True) -> Pseudonymiser:
    """Return the pseudonymiser of a deployment.

    Args:
        settings: the secret, or the file that contains it.
        make: whether to generate a missing secret and write it to `secret_file`.

    Raises:
        SecretError: if the file cannot be read or created, or contains no secret.
    """
    if settings.secret is not None:
        # In an ASCII locale, other characters of the environment are surrogate escapes, which encode to the same bytes.
        return Pseudonymiser(settings.secret.get_secret_value().encode(errors="surrogateescape"))
    return Pseudonymiser(_read_secret(settings.secret_file, make=make))


def _read_secret(path: Path, *, make: bool) -> bytes:
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
            f"hexadecimal digits and fewer than {GENERATED_DIGITS}, end with a newline; put the file back from a copy"
        )
    return secret


def _make_secret(path: Path) -> None:
    """Write the secret to a temporary file and link it into place, so that concurrent processes share one secret."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(GENERATED_DIGITS // 2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()

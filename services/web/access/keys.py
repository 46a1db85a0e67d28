"""API keys and the file that stores their names, scopes and hashes, but not the keys themselves.

A key is 256 random bits, so a plain SHA-256 is enough: it cannot be guessed, and a hash for passwords (scrypt, Argon2)
would make every request expensive to check.
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.errors import UsageError
from services.faults import one_line
from services.web.access.scopes import Scope

KEY_BYTES = 32
OWNER_ONLY = 0o600

_TOKEN = re.compile(r"hw_([0-9a-f]{8})_[0-9a-f]{64}")
_NO_HASH = hashlib.sha256(b"").hexdigest()


class KeysError(UsageError):
    """A keys file cannot be used, or a key cannot be made or found in it."""


class Key(BaseModel):
    """One key as the file stores it.

    Attributes:
        id: the part of the key that is not secret.
        name: the name of the holder.
        scopes: the calls that it allows.
        sha256: the hash of the whole key.
        created_at: the time when it was made.
        expires_at: the time from which it is invalid; None never.
        revoked_at: the time when it was revoked; None if it was not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern="^[0-9a-f]{8}$")
    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def state(self, now: datetime) -> Literal["good", "expired", "revoked"]:
        """Return `good`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "good"


class Keys(BaseModel):
    """All keys of a deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _ids_are_unique(self) -> "Keys":
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ValueError("`id` must be unique; remove the repeated one")
        return self

    def find(self, token: str) -> Key | None:
        """Return the key with this token in whatever state, in constant time; None if there is no such key."""
        form = _TOKEN.fullmatch(token)
        key = next((key for key in self.keys if form is not None and key.id == form[1]), None)
        same = hmac.compare_digest(_hashed(token), key.sha256 if key else _NO_HASH)
        return key if same else None


class KeysFile:
    """The keys file, which is replaced as a whole by one process at a time.

    Args:
        path: the path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Keys:
        """Return all keys.

        Raises:
            KeysError: the file is missing, cannot be read, is not a keys file, or is writable by others.
        """
        try:
            with self._path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read()
        except OSError as error:
            raise self._unusable(f"must be readable, got: {error.strerror or error}") from error
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise self._unusable(f"must be writable by its owner alone, got mode {stat.filemode(mode)}; chmod go-w it")
        try:
            return Keys.model_validate_json(data)
        except ValidationError as error:
            raise self._unusable(f"must be a keys file, got: {one_line(error)}") from None

    def make(self, name: str, scopes: Collection[Scope], *, days: float | None = None) -> str:
        """Make a key and return its token, which is not stored.

        Args:
            name: the name of the holder; the old and the new key share it during a rotation.
            scopes: the calls that it allows.
            days: the days until it expires; None never.

        Raises:
            KeysError: the file cannot be used, or an argument breaks a rule.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        key_id = secrets.token_hex(4)
        token = f"hw_{key_id}_{secrets.token_hex(KEY_BYTES)}"
        expires_at = None if days is None else now + timedelta(days=days)
        try:
            key = Key(
                id=key_id,
                name=name,
                scopes=tuple(sorted(set(scopes))),
                sha256=_hashed(token),
                created_at=now,
                expires_at=expires_at,
            )
        except ValidationError as error:
            raise KeysError(f"no key can be made: {one_line(error)}") from None
        self._change(lambda keys: Keys(keys=(*keys.keys, key)))
        return token

    def revoke(self, key_id: str) -> Key:
        """Revoke a key and return it.

        Args:
            key_id: the id of the key.

        Raises:
            KeysError: the file cannot be used, or holds no such key.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        known = {key.id: key for key in self.read().keys}
        if key_id not in known:
            raise self._unusable(f"has no key with the id {key_id!r}; see `headwater keys list`")
        revoked = known[key_id].model_copy(update={"revoked_at": known[key_id].revoked_at or now})
        self._change(lambda keys: Keys(keys=tuple(revoked if key.id == key_id else key for key in keys.keys)))
        return revoked

    def _change(self, change: Callable[[Keys], Keys]) -> None:
        """Read, change and replace the file under a lock."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._path.with_name(f".{self._path.name}.lock")):
                changed = change(self.read() if self._path.exists() else Keys())
                self._replace(changed.model_dump_json(indent=2, exclude_none=True).encode() + b"\n")
        except OSError as error:
            raise self._unusable(f"must be writable, got: {error.strerror or error}") from error

    def _replace(self, data: bytes) -> None:
        # The file holds hashes alone, so its owner may have made it readable for others: keep the mode.
        mode = stat.S_IMODE(self._path.stat().st_mode) if self._path.exists() else OWNER_ONLY
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def _unusable(self, rule: str) -> KeysError:
        return KeysError(f"`security.keys_file` {self._path} {rule}")


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, OWNER_ONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

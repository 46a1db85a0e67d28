"""The manifest of a bundle: its identity, its place in its chain, and the digest of every file.

Free of torch, so that processes which only transfer bundles start fast.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from peft_adapters.errors import (
    BundleDigestError,
    BundleFormatError,
    BundlePathError,
    BundleSizeError,
    BundleVersionError,
    ScenarioNameError,
)

FORMAT_VERSION: Literal[2] = 2
MANIFEST_NAME = "manifest.json"
SCENARIO_PATTERN = "[a-z0-9_-]{1,64}"
MANIFEST_LIMIT_BYTES = 16 * 2**20
MAX_VERSION = 10**12  # a directory name has at most 255 characters
MAX_COUNT = 2**53 - 1  # the largest integer that every JSON reader represents exactly
MAX_TIME_MS = 253_402_300_799_999  # the last millisecond of the year 9999
MAX_FILE_BYTES = 2**40
MAX_ENTRIES = 10_000  # entries of a mapping in a manifest
_MAX_DEPTH = 8  # nesting depth of the values in `gate`
_FAULTS_SHOWN = 3
_SHOWN_CHARS = 60  # characters of a value in an error message
SIGNED_PREFIX = b"headwater manifest 1\n"  # domain separation: the signature is valid for nothing else

# No separator, no leading dot, two suffixes: such a name cannot leave its directory or name a pickle.
_FILE_NAME = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}(\.safetensors|\.json)")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[int, Field(ge=1, le=MAX_VERSION)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
TimeMs = Annotated[int, Field(ge=0, le=MAX_TIME_MS)]


class FileEntry(BaseModel):
    """The digest and size of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class Signature(BaseModel):
    """The signature of a manifest.

    Attributes:
        key_id: identifies the signing key: the first 16 hex digits of the SHA-256 of its public half.
        ed25519: the signature over `signed_bytes`, base64 (RFC 8032).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: str = Field(pattern="^[0-9a-f]{16}$")
    ed25519: str = Field(pattern="^[A-Za-z0-9+/]{86}==$")


class Manifest(BaseModel):
    """The description of a bundle: its place in its chain, the events it has learnt, and the digest of every file."""

    # NaN is written as the string "NaN", because JSON has no such number.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    format_version: Literal[2] = FORMAT_VERSION
    scenario: str = Field(pattern=f"^{SCENARIO_PATTERN}$")
    version: Version
    kind: Literal["full", "delta"]
    parent: Version | None = None
    snapshot: Version
    digest: Sha256
    base_digest: str = Field(min_length=1, max_length=256)
    offsets: dict[str, Count] = Field(max_length=MAX_ENTRIES)
    watermark_ms: TimeMs
    published_at_ms: TimeMs
    events_learned: Count
    metrics: dict[str, float] = Field(default={}, max_length=MAX_ENTRIES)
    gate: dict[str, Any] = {}
    secret_fingerprint: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")  # of `privacy.secret`
    code_version: str = Field(default_factory=lambda: installed_version("headwater"), max_length=256)
    files: dict[str, FileEntry] = Field(max_length=MAX_ENTRIES)
    signature: Signature | None = None

    @property
    def builds_on(self) -> int | None:
        """The version that must be loaded before this one; None for a full bundle."""
        return self.parent if self.kind == "delta" else None

    @field_validator("files")
    @classmethod
    def _names_stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            check_file_name(name)
        return files

    @field_validator("gate")
    @classmethod
    def _gate_is_bounded(cls, gate: dict[str, Any]) -> dict[str, Any]:
        _require_bounded(gate, depth=0)
        return gate

    @model_validator(mode="after")
    def _chain_runs_backwards(self) -> Self:
        if self.parent is not None and self.parent >= self.version:
            raise ValueError(f"`parent` must be older than version {self.version}, got {self.parent}")
        if self.kind == "full" and self.snapshot != self.version:
            raise ValueError(f"`snapshot` of a full bundle is its own version {self.version}, got {self.snapshot}")
        if self.kind == "delta" and (self.parent is None or self.snapshot > self.parent):
            raise ValueError(
                f"a delta needs a `parent`, and a `snapshot` not after it; got {self.parent} and {self.snapshot}"
            )
        return self


def read_manifest(directory: Path) -> Manifest:
    """Read a bundle's manifest and check that it is consistent; the other files are not read.

    Raises:
        BundleFormatError: the manifest is missing or invalid; subclasses name a foreign version or an unsafe path.
        BundleDigestError: the digest does not match the table of files.
    """
    path = directory / MANIFEST_NAME
    try:
        return parse_manifest(path.read_bytes(), source=str(path))
    except FileNotFoundError as error:
        raise BundleFormatError(
            f"{path}: expected a manifest, found none; the bundle was not written to its end, fetch it again"
        ) from error


def parse_manifest(data: bytes, *, source: str) -> Manifest:
    """Parse and check a manifest.

    Args:
        data: the bytes of the manifest.
        source: name of the data in error messages.

    Raises:
        BundleFormatError: the manifest is invalid; subclasses name a foreign version or an unsafe path.
        BundleDigestError: the digest does not match the table of files.
    """
    try:
        raw = json.loads(data)
        format_version = raw["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleFormatError(
            f"{source}: expected a JSON object with `format_version`, found {data[:40]!r}; fetch the bundle again"
        ) from error
    if format_version != FORMAT_VERSION:
        raise BundleVersionError(
            f"{source}: expected format_version {FORMAT_VERSION}, found {_shortened(format_version)}; "
            "read it with the release that wrote it, or upgrade this one; to publish bundles of this release, use an "
            "empty registry"
        )
    return _validated(raw, source)


def verify_copy(directory: Path) -> Manifest:
    """Check every file of a bundle against its manifest without parsing any, and return the manifest.

    Raises:
        BundleError: a file is missing, damaged or invalid.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest.files.items():
        verified_bytes(directory / name, entry)
    return manifest


def verified_bytes(path: Path, entry: FileEntry) -> bytes:
    """Read a file, check its size and digest, and return its bytes.

    Args:
        path: path of the file.
        entry: its size and digest, from the manifest.

    Raises:
        BundleSizeError: the file is missing, too short or too long.
        BundleDigestError: the digest differs.
    """
    # Read once, then verify and parse the same bytes, so that a file changed in between is never used.
    try:
        size_bytes = path.stat().st_size
        data = path.read_bytes() if size_bytes == entry.bytes else b""
    except FileNotFoundError as error:
        raise BundleSizeError(f"{path}: expected {entry.bytes} bytes, found no file; fetch the bundle again") from error
    if size_bytes != entry.bytes:
        raise BundleSizeError(
            f"{path}: expected {entry.bytes} bytes, found {size_bytes}; the copy is incomplete, fetch the bundle again"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != entry.sha256:
        raise BundleDigestError(
            f"{path}: expected sha256 {entry.sha256}, found {sha256}; the copy is damaged, fetch the bundle again"
        )
    return data


def manifest_bytes(manifest: Manifest) -> bytes:
    """Serialise a manifest, for the file in the bundle and for HTTP.

    Optional fields without a value are left out, so that releases which do not know them can read it.
    """
    return manifest.model_dump_json(indent=1, exclude=_absent(manifest)).encode()


def _absent(manifest: Manifest) -> set[str]:
    """Return the optional fields without a value, which are neither written nor signed."""
    return {name for name in ("signature", "secret_fingerprint") if getattr(manifest, name) is None}


def signed_bytes(manifest: Manifest) -> bytes:
    """Return the bytes that a signature covers: all fields set in the manifest, except the signature.

    Fields that are not set are left out, so that a release which knows more fields can still verify it.
    """
    fields = json.loads(manifest.model_dump_json(exclude={"signature"} | _absent(manifest), exclude_unset=True))
    return SIGNED_PREFIX + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def table_digest(files: Mapping[str, FileEntry]) -> str:
    """Return the SHA-256 over the table of files, sorted by name: the identity of a bundle's content.

    >>> table_digest({})
    'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """
    lines = (f"{name} {entry.sha256} {entry.bytes}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_file_name(name: str) -> str:
    """Return `name` if a bundle may hold a file of that name.

    Raises:
        BundlePathError: the name could leave the directory, or is neither safetensors nor JSON.
    """
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST_NAME:
        raise BundlePathError(
            f"file name: expected <letters, digits, _ or ->.safetensors or .json in lower case, found {name!r}; "
            "do not load this bundle, and publish it again with plain names"
        )
    return name


def check_scenario(name: str) -> str:
    """Return `name` if it is a valid name of a scenario.

    Raises:
        ScenarioNameError: the name cannot be both a directory and a URL segment.
    """
    if not re.fullmatch(SCENARIO_PATTERN, name):
        raise ScenarioNameError(
            f"`scenario` must be 1 to 64 of the characters a-z, 0-9, _ and -, got {name!r}; rename the scenario"
        )
    return name


def _validated(raw: Any, source: str) -> Manifest:
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        raise BundleFormatError(
            f"{source}: not a manifest of format {FORMAT_VERSION}: {_faults(error)}; publish the version again"
        ) from error
    expected = table_digest(manifest.files)
    if manifest.digest != expected:
        raise BundleDigestError(
            f"{source}: expected digest {expected} for its table of files, found {manifest.digest}; fetch it again"
        )
    return manifest


def _require_bounded(value: Any, *, depth: int) -> None:
    """Check free-form JSON: numbers within what JSON readers represent, and limited nesting.

    Raises:
        ValueError: a number is too large, or values are nested too deeply.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"values must be nested at most {_MAX_DEPTH} deep")
    if isinstance(value, int) and abs(value) > MAX_COUNT:
        raise ValueError(f"numbers must be at most {MAX_COUNT} in size")
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        _require_bounded(part, depth=depth + 1)


def _faults(error: ValidationError) -> str:
    """Return the first validation errors of a manifest on one line, each with field, rule and value."""
    faults = error.errors(include_url=False)
    shown = [
        f"`{'.'.join(map(str, fault['loc']))}`: {fault['msg'].removeprefix('Value error, ')}, got "
        f"{_shortened(fault['input'])}"
        for fault in faults[:_FAULTS_SHOWN]
    ]
    more = [f"and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
    return "; ".join(shown + more)


def _shortened(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return f"{type(value).__name__} of {len(value)}"
    text = f"a number of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > 10**50 else repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"

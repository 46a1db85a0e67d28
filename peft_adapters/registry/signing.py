"""Signatures of manifests (Ed25519, RFC 8032), so that readers need not trust everyone who can write to a registry.

A manifest holds the digest of every file of its bundle, so its signature covers the whole bundle. Keys are PEM files,
read by the package `cryptography`, which is needed only if `signing` is configured.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peft_adapters.durable import path_in_errors
from peft_adapters.errors import BundleSignatureError, SigningKeyError
from peft_adapters.registry.manifest import Manifest, Signature, manifest_bytes, parse_manifest, signed_bytes
from peft_adapters.settings import SigningSettings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PRIVATE_KEY_NAME = "signing-key.pem"
PUBLIC_KEY_NAME = "signing-key.pub.pem"

SignatureState = Literal["good", "unsigned", "unknown key", "bad"]


class Signer:
    """Signs manifests.

    Args:
        path: PEM file of a private Ed25519 key.

    Raises:
        SigningKeyError: the file does not hold such a key, or `cryptography` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._key = _private_key(path)
        self._key_id = key_id(self._key.public_key())

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the manifest with its signature."""
        # Sign the manifest as readers parse it, so that both sides cover the same fields.
        parsed = parse_manifest(manifest_bytes(manifest), source="manifest")
        ed25519 = base64.b64encode(self._key.sign(signed_bytes(parsed))).decode()
        return parsed.model_copy(update={"signature": Signature(key_id=self._key_id, ed25519=ed25519)})


class Verifier:
    """Verifies the signatures of manifests against known keys.

    Args:
        paths: PEM files of public Ed25519 keys.
        require: refuse manifests that none of the keys signed; a wrong signature is always refused.

    Raises:
        SigningKeyError: a file does not hold such a key, or `cryptography` is not installed.
    """

    def __init__(self, paths: Sequence[Path], *, require: bool) -> None:
        keys = [_public_key(path) for path in paths]
        self._keys, self._require = {key_id(key): key for key in keys}, require

    def __call__(self, manifest: Manifest) -> None:
        """Check that a manifest may be used.

        Raises:
            BundleSignatureError: the signature is wrong, or missing or by an unknown key although required.
        """
        state = self.signature_state(manifest)
        if state == "good" or (state != "bad" and not self._require):
            return
        found = "none" if manifest.signature is None else f"one by {manifest.signature.key_id}"
        raise BundleSignatureError(
            f"version {manifest.version} of {manifest.scenario!r}: expected a good signature by one of "
            f"{', '.join(self._keys) or 'no keys'}, found {found} ({state}); do not use it and look into who wrote it; "
            "if the updater has a new key, add its public half to `signing.public_keys`"
        )

    def signature_state(self, manifest: Manifest) -> SignatureState:
        """Return the state of a manifest's signature."""
        from cryptography.exceptions import InvalidSignature

        signature = manifest.signature
        if signature is None:
            return "unsigned"
        key = self._keys.get(signature.key_id)
        if key is None:
            return "unknown key"
        try:
            key.verify(base64.b64decode(signature.ed25519), signed_bytes(manifest))
        except InvalidSignature:
            return "bad"
        return "good"


def load_signer(settings: SigningSettings) -> Signer | None:
    """Return the signer with the configured private key; None if no key is configured.

    Raises:
        SigningKeyError: the file does not hold a private key, or `cryptography` is not installed.
    """
    return None if settings.private_key is None else Signer(settings.private_key)


def load_verifier(settings: SigningSettings) -> Verifier | None:
    """Return a verifier with the configured public keys; None if no keys are configured.

    Raises:
        SigningKeyError: a file does not hold a public key, or `cryptography` is not installed.
    """
    return Verifier(settings.public_keys, require=settings.require_signature) if settings.public_keys else None


def generate_key_pair(directory: Path) -> tuple[Path, Path]:
    """Generate a key pair and return its two files, private (readable by its owner alone) and public.

    Args:
        directory: directory of the two files; created if it does not exist.

    Raises:
        SigningKeyError: a key file exists already, or `cryptography` is not installed.
        OSError: the disk failed.
    """
    _require_package()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / PRIVATE_KEY_NAME, directory / PUBLIC_KEY_NAME
    for path, data, mode in zip(paths, (private, public), (0o600, 0o644), strict=True):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise SigningKeyError(f"{path} is there already; name another directory, or move that key away") from error
        with path_in_errors(path), os.fdopen(descriptor, "wb") as file:
            file.write(data)
    return paths


def key_id(key: Ed25519PublicKey) -> str:
    """Return the id of a key: the first 16 hex digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _private_key(path: Path) -> Ed25519PrivateKey:
    data = _read(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:  # TypeError: the key is encrypted with a password
        raise _invalid_key(path, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _invalid_key(path, "private")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    data = _read(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except ValueError as error:
        raise _invalid_key(path, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _invalid_key(path, "public")
    return key


def _read(path: Path) -> bytes:
    _require_package()
    try:
        return path.read_bytes()
    except OSError as error:
        raise SigningKeyError(
            f"{path} cannot be read: {error.strerror or error}; `signing` names it as a key"
        ) from error


def _invalid_key(path: Path, half: str) -> SigningKeyError:
    return SigningKeyError(
        f"{path}: expected a {half} Ed25519 key as PEM without a password, found something else; make a pair with "
        "`headwater adapters new-key`"
    )


def _require_package() -> None:
    try:
        import cryptography  # noqa: F401 - only to check that it is installed
    except ImportError as error:
        raise SigningKeyError(
            "keys of `signing` need the package cryptography, which is not installed; pip install 'headwater[signing]'"
        ) from error

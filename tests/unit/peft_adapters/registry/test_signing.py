"""Signatures of manifests: the fields they cover, changes they detect, and invalid key files."""

import json
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import ValidationError
from small_bundle import write_small_bundle

from peft_adapters.errors import BundleFormatError, BundleSignatureError, SigningKeyError
from peft_adapters.registry.bundle import read_bundle, read_manifest
from peft_adapters.registry.manifest import Manifest, manifest_bytes, parse_manifest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.signing import Signer, Verifier, generate_key_pair, load_signer, load_verifier
from peft_adapters.settings import SigningSettings


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return generate_key_pair(tmp_path / "keys")


@pytest.fixture
def signed(keys: tuple[Path, Path], tmp_path: Path) -> Manifest:
    metrics = {"auc": 0.7, "ndcg10": float("nan"), "loss": float("inf")}
    gate = {"decision": "passed", "loss_difference": 1e-17, "rules": []}
    return write_small_bundle(tmp_path / "bundle", sign=Signer(keys[0]), metrics=metrics, gate=gate)


def test_a_signed_bundle_verifies_wherever_its_manifest_has_been(
    keys: tuple[Path, Path], signed: Manifest, tmp_path: Path
) -> None:
    verify = Verifier([keys[1]], require=True)
    verify(signed)
    verify(read_manifest(tmp_path / "bundle"))
    verify(parse_manifest(manifest_bytes(signed), source="topic"))
    verify(Manifest.model_validate_json(signed.model_dump_json()))
    reordered = dict(reversed(json.loads(manifest_bytes(signed)).items()))
    verify(parse_manifest(json.dumps(reordered).encode(), source="another writer"))
    assert read_bundle(tmp_path / "bundle", base_digest="base-1").manifest.signature == signed.signature


def test_a_fingerprint_is_signed_and_one_that_is_missing_is_not_written(
    keys: tuple[Path, Path], signed: Manifest
) -> None:
    sign, verify = Signer(keys[0]), Verifier([keys[1]], require=True)
    for fingerprint in ("a" * 32, None):
        manifest = sign(signed.model_copy(update={"secret_fingerprint": fingerprint, "signature": None}))
        read = parse_manifest(manifest_bytes(manifest), source="topic")
        verify(read)
        assert read.secret_fingerprint == fingerprint
        assert ("secret_fingerprint" in json.loads(manifest_bytes(manifest))) == (fingerprint is not None)


def test_without_a_key_a_bundle_says_nothing_of_signatures(tmp_path: Path) -> None:
    write_small_bundle(tmp_path)
    assert "signature" not in json.loads((tmp_path / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2, "snapshot": 2},
        {"scenario": "ads"},
        {"base_digest": "base-2"},
        {"secret_fingerprint": "0" * 32},
        {"metrics": {"auc": 0.9}},
        {"gate": {"decision": "refused"}},
        {"files": {}, "digest": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"metrics": None},
    ],
)
def test_whatever_is_changed_the_signature_does_not_survive(
    keys: tuple[Path, Path], signed: Manifest, change: dict[str, object]
) -> None:
    raw = json.loads(manifest_bytes(signed)) | change
    changed = parse_manifest(
        json.dumps({name: value for name, value in raw.items() if value is not None}).encode(), source="changed"
    )
    for require in (True, False):
        with pytest.raises(BundleSignatureError, match=r"of '(home|ads)'.*\(bad\)"):
            Verifier([keys[1]], require=require)(changed)


def test_who_requires_a_signature_refuses_what_none_of_the_keys_signed(
    keys: tuple[Path, Path], signed: Manifest, tmp_path: Path
) -> None:
    other = generate_key_pair(tmp_path / "other")[1]
    unsigned = signed.model_copy(update={"signature": None})
    for manifest, state in ((unsigned, "unsigned"), (signed, "unknown key")):
        assert Verifier([other], require=False).signature_state(manifest) == state
        Verifier([other], require=False)(manifest)
        with pytest.raises(BundleSignatureError, match=rf"\({state}\)"):
            Verifier([other], require=True)(manifest)
    Verifier([other, keys[1]], require=True)(signed)


def test_a_registry_gives_no_manifest_that_is_not_signed_as_it_must_be(keys: tuple[Path, Path], tmp_path: Path) -> None:
    writer = AdapterRegistry(str(tmp_path / "registry"))
    for version, sign in ((1, Signer(keys[0])), (2, None)):
        directory = tmp_path / str(version)
        writer.publish(directory, write_small_bundle(directory, version, sign=sign))
    reader = AdapterRegistry(writer.url, verify=Verifier([keys[1]], require=True))
    assert reader.manifest("home", 1).signature is not None
    reader.fetch("home", 1, tmp_path / "copy")
    for read in (lambda: reader.latest("home"), lambda: reader.fetch("home", 2, tmp_path / "copy")):
        with pytest.raises(BundleSignatureError, match="version 2 of 'home'"):
            read()
    assert not (tmp_path / "copy" / "home" / "00000002").exists()


def test_a_signature_that_is_no_signature_is_no_manifest(signed: Manifest) -> None:
    raw = json.loads(manifest_bytes(signed))
    for wrong in (
        {"key_id": "0" * 16, "ed25519": "AA=="},
        {"key_id": "x", "ed25519": raw["signature"]["ed25519"]},
        "AA",
    ):
        with pytest.raises(BundleFormatError):
            parse_manifest(json.dumps(raw | {"signature": wrong}).encode(), source="wrong")


def test_keys_are_made_once_and_the_private_one_is_for_its_owner(keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"PRIVATE" not in public.read_bytes()
    before = private.read_bytes()
    with pytest.raises(SigningKeyError, match="is there already"):
        generate_key_pair(private.parent)
    assert private.read_bytes() == before


def test_files_that_are_no_keys_are_named(keys: tuple[Path, Path], tmp_path: Path) -> None:
    nonsense, other = tmp_path / "nonsense.pem", tmp_path / "x25519.pem"
    nonsense.write_text("no key")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other.write_bytes(X25519PrivateKey.generate().private_bytes(pem, pkcs8, serialization.NoEncryption()))
    for path in (nonsense, other, keys[1]):
        with pytest.raises(SigningKeyError, match=f"{path}: expected a private Ed25519 key"):
            Signer(path)
    for path in (nonsense, keys[0]):
        with pytest.raises(SigningKeyError, match=f"{path}: expected a public Ed25519 key"):
            Verifier([path], require=False)
    with pytest.raises(SigningKeyError, match="cannot be read: No such file"):
        Signer(tmp_path / "none.pem")


def test_settings_name_the_keys(keys: tuple[Path, Path], signed: Manifest) -> None:
    assert (load_signer(SigningSettings()), load_verifier(SigningSettings())) == (None, None)
    both = SigningSettings(private_key=keys[0], public_keys=(keys[1],), require_signature=True)
    sign, verify = load_signer(both), load_verifier(both)
    assert sign is not None
    assert verify is not None
    verify(sign(signed.model_copy(update={"signature": None})))
    with pytest.raises(ValidationError, match="`require_signature` must come with at least one of `public_keys`"):
        SigningSettings(require_signature=True)


def test_without_the_package_it_says_what_to_install(keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(SigningKeyError, match="pip install 'headwater"):
        Signer(keys[0])

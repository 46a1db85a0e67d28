"""Damaged, foreign and hostile bundles are refused, each with its own error class and a remedy."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import (
    BundleBaseMismatchError,
    BundleDigestError,
    BundleError,
    BundleFormatError,
    BundlePathError,
    BundleSizeError,
    BundleVersionError,
)
from peft_adapters.registry.bundle import FileEntry, read_bundle, read_manifest
from peft_adapters.registry.manifest import MANIFEST_NAME, parse_manifest, table_digest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_small_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def refuse(directory: Path, error: type[BundleError], message: str, *, base_digest: str | None = "base-1") -> None:
    with pytest.raises(error, match=message) as caught:
        read_bundle(directory, base_digest=base_digest)
    assert type(caught.value) is error  # the class itself, not a subclass


def edit_manifest(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as an attacker would, with a digest that matches the changed table."""
    raw = json.loads((directory / MANIFEST_NAME).read_text())
    edit(raw)
    raw["digest"] = table_digest({name: FileEntry(**entry) for name, entry in raw["files"].items()})
    (directory / MANIFEST_NAME).write_text(json.dumps(raw))


def add_file(directory: Path, name: str, data: bytes) -> None:
    """Add a file to a bundle, with its true digest in the manifest."""
    (directory / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit_manifest(directory, lambda raw: raw["files"].update({name: entry}))


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "residuals.safetensors", "adapter_config.json", "items.json"]
)
@pytest.mark.parametrize("where", [0, -1])
def test_a_flipped_byte(directory: Path, name: str, where: int) -> None:
    data = bytearray((directory / name).read_bytes())
    data[where] ^= 1
    (directory / name).write_bytes(data)
    refuse(directory, BundleDigestError, rf"{name}: expected sha256 \w+, found \w+; .*fetch the bundle again")


def test_a_truncated_file(directory: Path) -> None:
    path = directory / "residuals.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuse(directory, BundleSizeError, r"residuals.safetensors: expected \d+ bytes, found \d+; .*fetch")


def test_a_file_with_bytes_after_its_end(directory: Path) -> None:
    path = directory / "residuals.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    refuse(directory, BundleSizeError, r"residuals.safetensors: expected \d+ bytes, found \d+")


def test_a_missing_file(directory: Path) -> None:
    (directory / "items.json").unlink()
    refuse(directory, BundleSizeError, r"items.json: expected \d+ bytes, found no file")


def test_another_base_model(directory: Path) -> None:
    message = "expected base_digest base-2, found base-1; serve it with the encoder it was trained on"
    refuse(directory, BundleBaseMismatchError, message, base_digest="base-2")
    assert read_bundle(directory, base_digest=None).manifest.base_digest == "base-1"


@pytest.mark.parametrize("version", [1, 3, 0, "2", None, [2]])
def test_a_format_of_another_time(directory: Path, version: object) -> None:
    edit_manifest(directory, lambda raw: raw.update(format_version=version, what_the_future_brings=True))
    refuse(directory, BundleVersionError, "expected format_version 2, found .*upgrade this one")


UNSAFE_NAMES = (
    "../heads.safetensors|..|/etc/passwd.json|a/b.json|a\\b.json|C:a.json|.json|x.json\n|x\0.json|é.json|x.bin"
)
STRANGE_NAMES = "manifest.json|HEADS.safetensors|con..json"


@pytest.mark.parametrize("name", [*UNSAFE_NAMES.split("|"), *STRANGE_NAMES.split("|")])
def test_a_file_name_that_could_leave_the_directory(directory: Path, name: str) -> None:
    outside = directory.parent / "heads.safetensors"
    outside.write_bytes((directory / "residuals.safetensors").read_bytes())
    entry = {"sha256": hashlib.sha256(outside.read_bytes()).hexdigest(), "bytes": outside.stat().st_size}
    edit_manifest(directory, lambda raw: raw["files"].update({name: entry}))
    refuse(directory, BundlePathError, "file name: expected .*, found ")


def test_a_table_of_files_that_is_not_the_digest_s(directory: Path) -> None:
    raw = json.loads((directory / MANIFEST_NAME).read_text())
    del raw["files"]["residuals.safetensors"]
    (directory / MANIFEST_NAME).write_text(json.dumps(raw))
    refuse(directory, BundleDigestError, r"manifest.json: expected digest \w+ for its table of files, found \w+")


NO_MANIFESTS = [
    *(b"", b"{", b"[]", b"null", b'"x"', b"{}", b"\xff\xfe", b"[" * 100_000),
    *(b'{"format_version": 2}', b'{"format_version": 2, "files": 3}', b'{"format_version": 2, "files": {"a.json": 1}}'),
]


@pytest.mark.parametrize("data", NO_MANIFESTS, ids=range(len(NO_MANIFESTS)))
def test_bytes_that_are_no_manifest(directory: Path, data: bytes) -> None:
    (directory / MANIFEST_NAME).write_bytes(data)
    refuse(directory, BundleFormatError, "manifest")


def test_a_directory_without_a_manifest(directory: Path) -> None:
    (directory / MANIFEST_NAME).unlink()
    refuse(directory, BundleFormatError, "expected a manifest, found none; .*fetch it again")


@pytest.mark.parametrize("data", [b"{}", b'["a", 1]', b"not json", b"null"])
def test_items_that_are_no_list_of_ids(directory: Path, data: bytes) -> None:
    add_file(directory, "items.json", data)
    refuse(directory, BundleFormatError, "items.json: not the JSON")


def test_a_bundle_without_items_or_adapter_config(directory: Path) -> None:
    edit_manifest(directory, lambda raw: raw["files"].pop("adapter_config.json"))
    refuse(directory, BundleFormatError, "adapter_config.json: not the JSON")


def test_a_pickle_under_an_honest_name_is_never_run(directory: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    add_file(directory, "heads.safetensors", pickle.dumps(Bomb()))
    refuse(directory, BundleFormatError, "heads.safetensors: expected safetensors")
    assert not (tmp_path / "ran").exists()


def test_tensors_of_a_number_type_that_torch_does_not_have(directory: Path) -> None:
    header = json.dumps({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    add_file(directory, "heads.safetensors", len(header).to_bytes(8, "little") + header + b"\0")
    refuse(directory, BundleFormatError, "heads.safetensors: expected safetensors")


def test_files_that_the_manifest_does_not_name_are_left_alone(directory: Path) -> None:
    (directory / "notes.txt").write_text("nothing of ours")
    assert "notes" not in read_bundle(directory, base_digest="base-1").groups


def test_a_manifest_alone_is_checked_as_in_its_bundle(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert manifest == read_bundle(directory, base_digest="base-1").manifest
    with pytest.raises(BundleFormatError, match="wire: expected a JSON object"):
        parse_manifest(b"<html>", source="wire")

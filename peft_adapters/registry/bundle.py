"""The bundle: one published adapter as a directory that PEFT itself can load.

Beside PEFT's two files it holds the other tensor groups, the items new since the parent, and a manifest that names
every file with its size and SHA-256. Tensors are safetensors and all else is JSON, so no code is in a bundle.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError

from peft_adapters.durable import durable_file, sync_directory
from peft_adapters.earlier_formats import bundle_of_0_1, bundle_of_0_2
from peft_adapters.errors import BundleBaseMismatchError, BundleFormatError
from peft_adapters.registry.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    check_file_name,
    manifest_bytes,
    read_manifest,
    table_digest,
    verified_bytes,
)
from peft_adapters.registry.tensor_rules import require_finite

__all__ = [
    "Bundle",
    "FileEntry",
    "Groups",
    "Manifest",
    "read_bundle",
    "read_manifest",
    "require_encoder",
    "write_bundle",
]

ADAPTER_CONFIG_NAME = "adapter_config.json"
ITEMS_NAME = "items.json"
SAME_ADAPTER = (
    "r",
    "lora_alpha",
    "target_modules",
    "use_rslora",
)  # if these differ, so does what the tensors mean

_T = TypeVar("_T")
_ITEM_IDS = TypeAdapter(list[str])
_ADAPTER_CONFIG = TypeAdapter(dict[str, Any])

Groups = Mapping[str, Mapping[str, np.ndarray | torch.Tensor]]


class Bundle(NamedTuple):
    """A bundle that has been read and verified."""

    manifest: Manifest
    groups: dict[str, dict[str, torch.Tensor]]
    item_ids: list[str]
    adapter_config: dict[str, Any]


def write_bundle(
    directory: Path,
    *,
    groups: Groups,
    adapter_config: Mapping[str, Any],
    item_ids: list[str],
    sign: Callable[[Manifest], Manifest] | None = None,
    **fields: Any,
) -> Manifest:
    """Write a bundle, its manifest last, so that a directory with a manifest is complete.

    The same content gives the same bytes and the same digest, independent of the order of mappings. Files left in
    `directory` by an interrupted write are overwritten.

    Args:
        directory: directory of the bundle; created if it does not exist.
        groups: tensors by group; each group becomes `<group>.safetensors`.
        adapter_config: configuration of PEFT, `LoraConfig.to_dict()`.
        item_ids: ids of the items new since the parent.
        sign: returns the manifest with a signature; None leaves it unsigned.
        **fields: further fields of `Manifest`: `scenario`, `version`, `kind`, `snapshot`, `base_digest` and so on.

    Raises:
        BundlePathError: a group's name cannot be a file name.
        pydantic.ValidationError: a manifest field is missing, unknown or out of range.
        OSError: the disk failed.
    """
    contents = {ADAPTER_CONFIG_NAME: _json_bytes(adapter_config), ITEMS_NAME: _json_bytes(item_ids)}
    contents |= {f"{group}.safetensors": _tensor_bytes(tensors) for group, tensors in groups.items()}
    files = {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in contents.items()
    }
    for name in files:
        check_file_name(name)
    manifest = Manifest(files=files, digest=table_digest(files), **fields)
    manifest = manifest if sign is None else sign(manifest)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    for name, data in contents.items():
        with durable_file(directory / name) as file:
            file.write(data)
    with durable_file(directory / MANIFEST_NAME) as file:
        file.write(manifest_bytes(manifest))
    sync_directory(directory)
    return manifest


def read_bundle(directory: Path, *, base_digest: str | None) -> Bundle:
    """Read a bundle, and verify all files before any is parsed.

    Args:
        directory: the bundle's directory. Files the manifest does not name are ignored.
        base_digest: digest of the encoder that the bundle must be made for; None skips this check.

    Raises:
        BundleVersionError: the format is not one that this release reads.
        BundlePathError: a file name could leave the directory.
        BundleFormatError: the manifest or a file cannot be parsed, or a value is not finite.
        BundleSizeError: a file is missing, too short or too long.
        BundleDigestError: a file or the table of files does not match its digest.
        BundleBaseMismatchError: the bundle was made for another encoder.
    """
    manifest = read_manifest(directory)
    if base_digest is not None and manifest.base_digest != base_digest:
        raise BundleBaseMismatchError(
            f"{directory / MANIFEST_NAME}: expected base_digest {base_digest}, found {manifest.base_digest}; "
            "serve it with the encoder it was trained on, or start a new chain for this encoder"
        )
    contents = {name: verified_bytes(directory / name, entry) for name, entry in manifest.files.items()}
    groups = bundle_of_0_1(
        {
            name.removesuffix(".safetensors"): _tensors(directory / name, data)
            for name, data in contents.items()
            if name.endswith(".safetensors")
        }
    )
    if manifest.gate.get("decision") != "refused":  # refused candidates are stored for inspection
        _require_finite(directory, groups)
    item_ids = _parse_json(directory / ITEMS_NAME, contents.get(ITEMS_NAME), _ITEM_IDS)
    adapter_config = _parse_json(directory / ADAPTER_CONFIG_NAME, contents.get(ADAPTER_CONFIG_NAME), _ADAPTER_CONFIG)
    return Bundle(manifest, bundle_of_0_2(groups), item_ids, adapter_config)


def require_encoder(bundle: Bundle, *, base_digest: str, adapter_config: Mapping[str, Any]) -> None:
    """Check that a bundle was made for an encoder and for an adapter of the same shape.

    Args:
        bundle: the bundle to check.
        base_digest: digest of the encoder.
        adapter_config: configuration of the encoder's adapter.

    Raises:
        BundleBaseMismatchError: the bundle was made for another encoder or another shape of adapter.
    """
    manifest = bundle.manifest
    name = f"version {manifest.version} of {manifest.scenario!r}"
    if manifest.base_digest != base_digest:
        raise BundleBaseMismatchError(
            f"{name}: expected base_digest {base_digest}, found {manifest.base_digest}; "
            "use it with the encoder it was trained on"
        )
    for key in SAME_ADAPTER:
        if bundle.adapter_config.get(key) != adapter_config.get(key):
            raise BundleBaseMismatchError(
                f"{name}: expected `{key}` {adapter_config.get(key)!r} in its adapter_config, found "
                f"{bundle.adapter_config.get(key)!r}; use the `encoder.lora_*` settings it was trained with"
            )


def _tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a data type that torch does not have
        raise BundleFormatError(f"{path}: expected safetensors, found {error!r}; publish the bundle again") from error


def _require_finite(directory: Path, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    try:
        require_finite(groups)
    except ValueError as error:
        raise BundleFormatError(f"{directory}: {error}; publish a full bundle from an intact learner") from error


def _parse_json(path: Path, data: bytes | None, kind: TypeAdapter[_T]) -> _T:
    try:
        return kind.validate_json(data or b"")
    except ValidationError as error:
        raise BundleFormatError(
            f"{path}: not the JSON a bundle holds under this name: {error}; publish it again"
        ) from error


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, default=_sorted_list).encode()


def _sorted_list(value: object) -> list[Any]:
    # PEFT holds target modules in sets, whose order differs between processes.
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"`adapter_config` must hold JSON values and sets, got {type(value).__name__}")


def _tensor_bytes(tensors: Mapping[str, np.ndarray | torch.Tensor]) -> bytes:
    # Copies, because safetensors refuses tensors that share memory, and torch warns of read-only arrays.
    return safetensors.torch.save(
        {
            name: (torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.detach().cpu())
            .contiguous()
            .clone()
            for name, value in tensors.items()
        }
    )

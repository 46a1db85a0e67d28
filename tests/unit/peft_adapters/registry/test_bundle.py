import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from small_bundle import write_small_bundle

from peft_adapters.durable import durable_file
from peft_adapters.errors import BundleFormatError, BundlePathError
from peft_adapters.registry import bundle as bundle_module
from peft_adapters.registry.bundle import Manifest, read_bundle, write_bundle

FIELDS: dict[str, Any] = {
    "scenario": "home",
    "version": 1,
    "kind": "full",
    "snapshot": 1,
    "base_digest": "base-1",
    "offsets": {"headwater.clicks/0": 7},
    "watermark_ms": 1_000,
    "published_at_ms": 2_000,
    "events_learned": 3,
}


def write(directory: Path, **changes: Any) -> Manifest:
    content: dict[str, Any] = {"groups": {"heads": {"w": np.ones(2)}}, "adapter_config": {}, "item_ids": []}
    return write_bundle(directory, **(content | FIELDS | changes))


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    frozen = np.array([1.5, -2.5], dtype=np.float32)
    frozen.flags.writeable = False
    shared = torch.arange(6, dtype=torch.int64).reshape(2, 3)
    groups: dict[str, dict[str, np.ndarray | torch.Tensor]] = {
        "adapter_model": {"half": torch.tensor([1.0, 3.14], dtype=torch.float16), "brain": torch.ones(1).bfloat16()},
        "heads": {"frozen": frozen, "grad": torch.ones(2, requires_grad=True), "flag": np.array([True, False])},
        "residuals": {"rows": np.zeros((0, 3), dtype=np.float32), "shared": shared, "view": shared.T},
        "counters": {},
    }
    config = {"r": 4, "target_modules": {"b", "a"}}
    written = write(tmp_path, groups=groups, adapter_config=config, item_ids=["ä", "b"], metrics={"auc": 0.5})

    read = read_bundle(tmp_path, base_digest="base-1")

    assert read.manifest == written
    assert read.manifest.metrics == {"auc": 0.5}
    assert read.item_ids == ["ä", "b"]
    assert read.adapter_config == {"r": 4, "target_modules": ["a", "b"]}
    assert read.groups.keys() == groups.keys()
    for group, tensors in groups.items():
        assert read.groups[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            expected = torch.as_tensor(np.array(tensor)) if isinstance(tensor, np.ndarray) else tensor.detach()
            assert read.groups[group][name].dtype == expected.dtype
            assert torch.equal(read.groups[group][name], expected)


def test_the_digest_follows_the_content_and_not_the_order_it_came_in(tmp_path: Path) -> None:
    a, b = {"x": np.ones(2), "y": np.zeros(3)}, {"z": np.arange(4)}
    first = write(tmp_path / "1", groups={"heads": a, "counters": b})
    second = write(tmp_path / "2", groups={"counters": b, "heads": dict(reversed(a.items()))}, watermark_ms=9)
    other = write(tmp_path / "3", groups={"heads": a, "counters": {"z": np.arange(4) + 1}})
    assert first.digest == second.digest
    assert first.digest != other.digest


def test_the_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    # Sets of strings come out in another order under another hash seed.
    code = (
        "import sys, pathlib, numpy as np; from peft_adapters.registry.bundle import write_bundle;"
        "print(write_bundle(pathlib.Path(sys.argv[1]), groups={'heads': {'w': np.ones(2)}}, item_ids=[], "
        f"adapter_config={{'target_modules': {{'query', 'key', 'value', 'dense'}}}}, **{FIELDS!r}).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_a_measure_that_is_no_number_travels_as_json_everybody_reads(tmp_path: Path) -> None:
    write(tmp_path, metrics={"auc": float("nan"), "loss": float("inf")})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "manifest.json").read_text(), parse_constant=refuse)
    metrics = read_bundle(tmp_path, base_digest=None).manifest.metrics
    assert np.isnan(metrics["auc"])
    assert metrics["loss"] == float("inf")


class FullDisk:
    """Stands in for `durable_file`: takes `room` files, then has no space left."""

    def __init__(self, room: int) -> None:
        self.room = room

    @contextmanager
    def __call__(self, path: Path) -> Iterator[BinaryIO]:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        self.room -= 1
        with durable_file(path) as file:
            yield file


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_a_write_cut_short_leaves_no_manifest_and_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    write(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, "durable_file", FullDisk(room))
        with pytest.raises(OSError, match="No space"):
            write(tmp_path, groups={"heads": {"w": np.zeros(2)}})
    with pytest.raises(BundleFormatError, match="not written to its end"):
        read_bundle(tmp_path, base_digest=None)
    assert write(tmp_path) == read_bundle(tmp_path, base_digest=None).manifest


def test_a_durable_file_is_whole_or_what_it_was_before(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(TypeError), durable_file(target) as file:  # noqa: PT012 - the first write must succeed
        file.write(b"half")
        file.write(None)  # type: ignore[call-overload]
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("group", ["../heads", "Heads", "", ".heads", "heads.bin", "a" * 65, "manifest/x"])
def test_a_group_that_cannot_be_a_file_name_is_refused_before_anything_is_written(tmp_path: Path, group: str) -> None:
    with pytest.raises(BundlePathError, match="file name"):
        write(tmp_path / "b", groups={group: {"w": np.ones(1)}})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 0}, "greater than or equal to 1"),
        ({"scenario": "../home"}, "pattern"),
        ({"kind": "delta", "version": 2, "snapshot": 1}, "needs a `parent`"),
        ({"kind": "delta", "version": 2, "snapshot": 2, "parent": 1}, "`snapshot` not after it"),
        ({"kind": "delta", "version": 2, "snapshot": 1, "parent": 2}, "`parent` must be older than version 2"),
        ({"kind": "full", "version": 2, "snapshot": 1}, "its own version 2"),
        ({"colour": "blue"}, "Extra inputs"),
    ],
)
def test_a_manifest_against_the_rules_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        write(tmp_path / "b", **changes)
    assert not (tmp_path / "b").exists()


def test_a_full_bundle_may_name_the_version_before_it_and_builds_on_none(tmp_path: Path) -> None:
    assert write_small_bundle(tmp_path / "full", 5, parent=4).builds_on is None
    assert write_small_bundle(tmp_path / "delta", 6, delta=True, snapshot=5).builds_on == 5

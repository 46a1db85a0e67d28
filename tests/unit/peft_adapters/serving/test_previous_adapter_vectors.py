"""The store of text vectors of earlier adapters: exact, bounded, and tolerant of a failing disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from peft_adapters.serving.previous_adapter_vectors import PreviousAdapterVectors

TEXTS = ["mug", "tin", "lamp"]
ROWS = np.array([2, 0, 1])
BYTES = 3 * 4 * 4  # of the vectors of one adapter: three rows of four float32


def adapter(weight: float) -> dict[str, Tensor]:
    return {"lora_A": torch.full((2, 2), weight)}


def vectors(weight: float) -> Tensor:
    return torch.arange(12.0).reshape(3, 4) + weight


def filled_store(directory: Path, weights: list[float], *, most: int = 2) -> PreviousAdapterVectors:
    store = PreviousAdapterVectors(directory / "texts", max_bytes=most * BYTES)
    for weight in weights:
        store.add(adapter(weight), TEXTS, vectors(weight), ROWS)
    return store


def files(directory: Path) -> int:
    return len(list((directory / "texts").iterdir()))


def test_they_come_back_bit_for_bit_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    kept = filled_store(tmp_path, [1.0, 2.0]).get(adapter(1.0))
    assert kept is not None
    assert kept[0] == ["lamp", "mug", "tin"]
    assert torch.equal(kept[1], vectors(1.0)[[2, 0, 1]])


def test_of_an_adapter_never_kept_there_is_nothing(tmp_path: Path) -> None:
    store = filled_store(tmp_path, [1.0])
    assert store.get(adapter(3.0)) is None
    assert store.get({"other": torch.ones(2, 2)}) is None


def test_beyond_the_limit_the_longest_unused_goes_with_its_file(tmp_path: Path) -> None:
    store = filled_store(tmp_path, [1.0, 2.0])
    assert store.get(adapter(1.0)) is not None
    store.add(adapter(3.0), TEXTS, vectors(3.0), ROWS)
    assert [store.get(adapter(weight)) is not None for weight in (1.0, 2.0, 3.0)] == [True, False, True]
    assert files(tmp_path) == 2


def test_what_is_kept_is_not_written_again(tmp_path: Path) -> None:
    store = filled_store(tmp_path, [1.0, 2.0, 2.0, 1.0, 2.0])
    assert files(tmp_path) == 2
    assert store.get(adapter(1.0)) is not None


@pytest.mark.parametrize("most", [0, 1])
def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path, most: int) -> None:
    store = PreviousAdapterVectors(tmp_path / "texts", max_bytes=most * (BYTES - 1))
    store.add(adapter(1.0), TEXTS, vectors(1.0), ROWS)
    assert store.get(adapter(1.0)) is None
    assert not (tmp_path / "texts").exists()


def test_a_disk_that_does_not_take_them_is_logged_and_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("a file where the directory is to be")
    with capture_logs() as logs:
        store = filled_store(tmp_path, [1.0])
    assert [entry["event"] for entry in logs] == ["text_vectors_not_stored"]
    assert store.get(adapter(1.0)) is None


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_file_that_cannot_be_read_is_logged_once_and_given_up(tmp_path: Path, damage: bytes | None) -> None:
    store = filled_store(tmp_path, [1.0])
    (path,) = (tmp_path / "texts").iterdir()
    path.unlink() if damage is None else path.write_bytes(damage)
    with capture_logs() as logs:
        assert store.get(adapter(1.0)) is None
        assert store.get(adapter(1.0)) is None
    assert [entry["event"] for entry in logs] == ["stored_text_vectors_unreadable"]
    store.add(adapter(1.0), TEXTS, vectors(1.0), ROWS)
    assert store.get(adapter(1.0)) is not None

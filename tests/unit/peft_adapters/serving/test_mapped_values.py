"""Values that processes share: the same bits for all, whole or not at all."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counted_vectors import ITEMS
from learnt_chain import Publications, catalogue_of
from random_networks import random_networks

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import MappedValueError
from peft_adapters.ranking.shoppers import pad
from peft_adapters.serving.mapped_values import map_value, write_value
from peft_adapters.serving.model_builder import build_model

CONTEXT = pad([([1, 2], [0, 1])])


def value() -> dict[str, Any]:
    return {"ids": ["a", "b"], "empty": np.zeros((0, 3)), "table": np.arange(12, dtype=np.float32).reshape(3, 4)}


def test_a_value_comes_back_as_it_was(tmp_path: Path) -> None:
    write_value(tmp_path / "value", value())
    mapped = map_value(tmp_path / "value")
    assert mapped["ids"] == ["a", "b"]
    for name in ("empty", "table"):
        np.testing.assert_array_equal(mapped[name], value()[name])
        assert mapped[name].dtype == value()[name].dtype
    assert mapped["table"].flags.aligned
    assert [path.name for path in tmp_path.iterdir()] == ["value"]


def test_who_writes_to_an_array_changes_nobody_elses(tmp_path: Path) -> None:
    write_value(tmp_path / "value", value())
    one, other = map_value(tmp_path / "value"), map_value(tmp_path / "value")
    one["table"][:] = -1
    np.testing.assert_array_equal(other["table"], value()["table"])
    np.testing.assert_array_equal(map_value(tmp_path / "value")["table"], value()["table"])


def test_a_value_outlives_its_successor(tmp_path: Path) -> None:
    write_value(tmp_path / "value", value())
    mapped = map_value(tmp_path / "value")
    write_value(tmp_path / "value", {"table": np.zeros(3)})
    np.testing.assert_array_equal(mapped["table"], value()["table"])
    assert map_value(tmp_path / "value")["table"].shape == (3,)


@pytest.mark.parametrize("kept", [0, 10, 40, 200, -64, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    write_value(tmp_path / "value", value())
    whole = (tmp_path / "value").read_bytes()
    (tmp_path / "value").write_bytes(whole[:kept])
    with pytest.raises(MappedValueError, match=r"value .*write the value again"):
        map_value(tmp_path / "value")


def test_what_fails_leaves_the_file_before_it(tmp_path: Path) -> None:
    write_value(tmp_path / "value", value())
    with pytest.raises((AttributeError, TypeError)):
        write_value(tmp_path / "value", lambda: None)
    assert map_value(tmp_path / "value")["ids"] == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["value"]


@pytest.mark.parametrize("precomputed", [True, False])
def test_a_scorer_gives_the_same_bits_in_a_process_without_torch(
    tmp_path: Path, publications: Publications, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, precomputed: bool
) -> None:
    if not precomputed:
        monkeypatch.setattr("peft_adapters.ranking.ranker.PRECOMPUTED_ITEMS", 0)
    publications.learner.add_items(ITEMS)
    for _ in range(4):
        publications.learn(64)
    bundle = publications.read(publications.full(1))
    catalogue = catalogue_of(encoder, ITEMS)
    linear = build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder).ranker.scorer
    scorer = replace(linear, networks=random_networks(1, (0.8, 0.3)).kernel())
    write_value(tmp_path / "scorer", scorer)
    expected = scorer.score_with_probabilities(CONTEXT, None, None)[0]
    code = """
import sys
from pathlib import Path
import numpy as np
from peft_adapters.ranking.shoppers import pad
from peft_adapters.serving.mapped_values import map_value

scores, _ = map_value(Path(sys.argv[1])).score_with_probabilities(pad([([1, 2], [0, 1])]), None, None)
assert "torch" not in sys.modules
sys.stdout.buffer.write(scores.tobytes())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "scorer")]
    answered = subprocess.run(command, check=True, capture_output=True).stdout
    assert answered == expected.tobytes()

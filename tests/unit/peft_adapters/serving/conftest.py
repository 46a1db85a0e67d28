"""An encoder for all tests of a file, and publications of their own for each."""

from pathlib import Path

import pytest
from learnt_chain import Publications
from tiny_model import tiny_encoder

from peft_adapters.encoder.encoder import Encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def publications(tmp_path: Path) -> Publications:
    return Publications(tmp_path)

"""Rankers of published versions: from a bundle directory and from a registry's chain, and what is refused."""

from pathlib import Path

import pandas as pd
import pytest
from learnt_chain import Publications
from tiny_model import tiny_bert, titled

import headwater
from headwater import EncoderSettings, Ranker
from peft_adapters.errors import BundleBaseMismatchError, VersionNotFoundError
from peft_adapters.registry.bundle import read_manifest
from peft_adapters.registry.registry import AdapterRegistry

ITEMS = titled(12)
FRAME = pd.DataFrame(ITEMS, columns=["item_id", "title"])
ENCODER = EncoderSettings(model=str(tiny_bert()), lora_rank=4, cache_dir=None)


@pytest.fixture
def published(tmp_path: Path) -> tuple[str, Publications]:
    """A registry with a full version 1 and a delta 2 on it, and what made them."""
    publications, registry = Publications(tmp_path / "made"), AdapterRegistry(str(tmp_path / "registry"))
    publications.learner.add_items(ITEMS)
    for version in (1, 2):
        publications.learn(30)
        directory = publications.full(1) if version == 1 else publications.delta(2)
        registry.publish(directory, read_manifest(directory))
    return registry.url, publications


def test_the_latest_of_a_chain_ranks_as_its_learner(published: tuple[str, Publications]) -> None:
    url, publications = published
    loaded = headwater.load_ranker(url, items=FRAME, encoder=ENCODER)
    assert (loaded.version, loaded.scenario, len(loaded)) == (2, "home", len(ITEMS))
    expected = Ranker(publications.learner).recommend(12, session_items=["item-3"])
    found = loaded.recommend(12, session_items=["item-3"])
    assert [item.score for item in found.items] == pytest.approx([item.score for item in expected.items], abs=0.05)


def test_a_version_and_a_bundle_directory_can_be_named(published: tuple[str, Publications], tmp_path: Path) -> None:
    url, _ = published
    first = headwater.load_ranker(url, items=FRAME, encoder=ENCODER, version=1)
    alone = headwater.load_ranker(tmp_path / "made" / "1-full", items=FRAME, encoder=ENCODER)
    assert first.version == alone.version == 1
    assert first.recommend(12) == alone.recommend(12)


def test_another_encoder_is_refused_with_the_remedy(published: tuple[str, Publications]) -> None:
    other = EncoderSettings(model=str(tiny_bert(seed=1)), lora_rank=4, cache_dir=None)
    with pytest.raises(BundleBaseMismatchError, match=r"made for another base model.*give it the `encoder` settings"):
        headwater.load_ranker(published[0], items=FRAME, encoder=other)


def test_a_version_that_is_not_there_is_named(published: tuple[str, Publications], tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError, match="7"):
        headwater.load_ranker(published[0], items=FRAME, encoder=ENCODER, version=7)
    with pytest.raises(VersionNotFoundError, match="search"):
        headwater.load_ranker(published[0], items=FRAME, encoder=ENCODER, scenario="search")

"""Items with vectors of other modalities, from a broker to a published adapter and over a restart."""

from collections.abc import Callable
from pathlib import Path

import pytest
from updater_shop import Shop, events, items, wait_until

from peft_adapters.registry.bundle import read_bundle
from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.events import Item
from streams.topics import Topics


@pytest.fixture
def shop(embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path) -> Shop:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    return Shop(connection, make_topics(connection, partitions=1), tmp_path)


def pictured(plain: Item, length: int) -> Item:
    return plain.model_copy(update={"vectors": {"image": [float(place) for place in range(1, length + 1)]}})


def test_projections_are_published_and_a_wrong_length_is_a_dead_letter_before_and_after_a_restart(shop: Shop) -> None:
    plain = items(20)
    shop.send(*(pictured(one, 6) for one in plain[:10]), *plain[10:], pictured(plain[3], 5), *events(60))
    with shop.process() as updater:
        updater.wait_for("learnt", 60)
        assert updater.value("headwater_dead_letters_total", reason="wrong_vector") == 1
        assert updater.end() == 0
    with shop.process() as updater:
        shop.send(pictured(plain[12], 7), *events(30, first=60))
        updater.wait_for("learnt", 90)
        wait_until(lambda: shop.latest().events_learned == 90, what="all of it published")
        assert updater.end() == 0
    letters = shop.letters()
    assert [letter.reason for letter in letters] == ["wrong_vector"] * 2
    assert [letter.error.split(", ")[-1] for letter in letters] == [f"got {n}; keep to one length" for n in (5, 7)]
    latest = shop.latest()
    fetched = shop.registry.fetch("home", latest.version, shop.directory / "fetched")
    bundle = read_bundle(fetched, base_digest=latest.base_digest)
    assert "projections.safetensors" in latest.files
    assert bundle.groups["projections"]["image"].shape[1] == 6
    assert bundle.groups["projections"]["image"].any()

"""Topics compressed with each codec are learnt."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from updater_shop import Shop, events, items, wait_until

from streams.topics import Topics


@pytest.mark.kafka
def test_topics_that_compress_are_learnt(apache_kafka: Any, make_topics: Callable[..., Topics], tmp_path: Path) -> None:
    """The codecs change while the updater runs, as an operator changes them."""
    shop = Shop(apache_kafka.connection, make_topics(apache_kafka.connection), tmp_path)
    clicks, purchases, learnt = shop.topics.clicks, shop.topics.purchases, 0
    shop.send(*items(20))
    with shop.process(publish_seconds=0.5) as updater:
        for number, codec in enumerate(("snappy", "lz4", "zstd", "gzip")):
            with closing(KafkaAdminClient(**shop.connection.client_options())) as admin:
                admin.alter_configs(
                    [
                        ConfigResource(ConfigResourceType.TOPIC, topic, configs={"compression.type": codec})
                        for topic in (clicks, purchases, shop.topics.items)
                    ]
                )
            shop.send(*events(30, first=30 * number))
            learnt += 30
            wait_until(
                lambda: updater.counts(clicks)["learnt"] + updater.counts(purchases)["learnt"] == learnt,  # noqa: B023
                what=f"{learnt} learnt after {codec}",
            )

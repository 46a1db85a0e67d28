"""Killed at any moment and started again, it ends bit for bit where a run ends that was never killed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from crash_replay import CrashReplay, differences
from updater_shop import Shop

from streams.connection import KafkaConnection
from streams.topics import Topics


@pytest.fixture
def replay(kafka_connection: KafkaConnection, make_topics: Callable[..., Topics], tmp_path: Path) -> CrashReplay:
    return CrashReplay(Shop(kafka_connection, make_topics(kafka_connection, partitions=2), tmp_path), seed=7)


@pytest.mark.timeout(3_000)
def test_it_ends_where_an_unkilled_run_ends(replay: CrashReplay, kills: int) -> None:
    deaths = []
    for kill in range(kills):
        replay.send(20)
        if kill == kills // 2:
            replay.shop.send(*replay.traffic.later_items())
        deaths.append(replay.die())
    replay.send(30)
    replay.finish()
    replay.note_slices()
    announced, letters = replay.shop.announced(), replay.shop.letters()
    unkilled = replay.unkilled()
    replay.finish(unkilled)

    shop = replay.shop
    assert differences(shop.directory / "checkpoints" / "home", unkilled.updater.checkpoint_dir / "home") == [], deaths
    kept = shop.checkpointed()
    clicks, purchases, impressions = shop.topics.clicks, shop.topics.purchases, shop.topics.impressions
    counts = {(topic, outcome): count for topic, outcome, count in kept["intake"]["joiner"]["counts"]}
    learnt = counts[clicks, "learnt"] + counts[purchases, "learnt"]
    assert learnt == kept["events_learned"] == len(replay.traffic.positives)  # none lost, none twice
    assert counts[impressions, "learnt"] > 0
    refused = sum(count for _, outcome, count in kept["intake"]["outcomes"] if outcome == "dead_letter")
    assert len({letter.record_key() for letter in letters}) == refused > 0
    versions = [manifest.version for manifest in announced]
    assert versions == sorted(versions)
    assert shop.latest().events_learned == learnt
    for life in shop.directory.glob("life-*.log"):
        assert "Traceback" not in life.read_text()
        assert "shopper-" not in life.read_text()  # no raw id in any log

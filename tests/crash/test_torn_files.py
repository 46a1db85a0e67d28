"""Files torn between two runs of an updater: it falls back one step, and ends bit for bit in the same state."""

from collections.abc import Callable
from pathlib import Path

import pytest
from crash_replay import CrashReplay
from updater_shop import Shop, newest_checkpoint, wait_until

from streams.connection import KafkaConnection
from streams.topics import Topics

EVENTS = 150


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "kafka_connection", ["embedded", pytest.param("apache", marks=pytest.mark.kafka)], indirect=True
)
@pytest.mark.parametrize(
    "torn", [["{checkpoint}/model.safetensors"], ["join.sqlite"], ["join.sqlite", "{checkpoint}/state.json"]]
)
def test_a_torn_newest_copy_costs_a_step_back_and_no_bit(
    kafka_connection: KafkaConnection, make_topics: Callable[..., Topics], tmp_path: Path, torn: list[str]
) -> None:
    shop = Shop(kafka_connection, make_topics(kafka_connection, partitions=2), tmp_path)
    replay = CrashReplay(shop, seed=7)
    for _ in range(2):
        replay.send(EVENTS)
        shop.send(*replay.traffic.later_items())
        replay.finish()
        replay.note_slices()
    newest = newest_checkpoint(tmp_path / "checkpoints" / "home")
    assert newest is not None
    for name in torn:
        cut(newest.parent / name.format(checkpoint=newest.name))
    with replay.life():  # what it goes on from is in its log before the torn files are looked at again
        replay.send(EVENTS)
        wait_until(
            lambda: replay.log().exists() and "resumed" in replay.log().read_text(), what="a start from what is intact"
        )
    assert "kept_state_damaged" in replay.log().read_text()
    replay.check()

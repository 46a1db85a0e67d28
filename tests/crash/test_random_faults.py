"""Kills, torn files, full disks, changing topics and wrong clocks in a row: the accounts stay exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_run import FaultRun
from updater_shop import Shop

from streams.topics import Topics


@pytest.mark.kafka
@pytest.mark.timeout(3_600)
def test_the_account_is_exact_after_many_random_faults(
    apache_kafka: Any, make_topics: Callable[..., Topics], tmp_path: Path, faults: int
) -> None:
    shop = Shop(apache_kafka.connection, make_topics(apache_kafka.connection, partitions=2), tmp_path)
    run = FaultRun(shop, seed=15)
    with run.prepared():
        run.run(faults)

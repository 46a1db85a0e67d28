"""A scorer notices that its catalogue topic loses items, and that it has been set right."""

import threading
import time
from collections.abc import Callable

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from services.scorer import catalogue_check
from services.scorer.catalogue_check import CatalogueCheck
from streams.connection import KafkaConnection
from streams.topics import Topics


def set_policy(connection: KafkaConnection, topic: str, policy: str) -> None:
    with KafkaAdminClient(**connection.client_options()) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": policy})])


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def test_a_catalogue_topic_that_is_not_compacted_is_a_problem_until_it_is(
    kafka_connection: KafkaConnection, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_check, "CHECK_SECONDS", 0.2)
    set_policy(kafka_connection, topics.items, "delete")
    check = CatalogueCheck(kafka_connection, topics)
    thread = threading.Thread(target=check.run)
    thread.start()
    try:
        until(lambda: check.problem is not None)
        assert f"topic {topics.items!r} holds items, so its `cleanup.policy` must be compact" in str(check.problem)
        set_policy(kafka_connection, topics.items, "compact")
        until(lambda: check.problem is None)
    finally:
        check.stop()
        thread.join(30)


def test_without_kafka_nothing_is_known() -> None:
    check = CatalogueCheck(KafkaConnection(bootstrap_servers="127.0.0.1:1"), Topics())
    check.stop()
    check._check()
    assert check.problem is None

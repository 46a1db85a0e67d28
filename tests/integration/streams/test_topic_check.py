"""Problems of topics, on each broker and as the command line shows them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaAdminClient

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.errors import DeliveryError
from streams.producer import EventProducer
from streams.topic_check import catalogue_problems, check_topics
from streams.topic_creation import ensure_topics
from streams.topics import Dialect, Topics


def create(connection: KafkaConnection, name: str, **configs: str) -> None:
    settings = {key.replace("_", "."): value for key, value in configs.items()}
    with KafkaAdminClient(**connection.client_options()) as admin:
        admin.create_topics({name: {"num_partitions": 2, "replication_factor": 1, "configs": settings}})
        admin.wait_for_topics([name])


def run(*arguments: str, connection: KafkaConnection, topics: Topics) -> subprocess.CompletedProcess[str]:
    names = topics.model_dump(exclude={"dialects"})
    named = {f"HEADWATER_TOPICS__{key.upper()}": value for key, value in names.items()}
    named["HEADWATER_TOPICS__DIALECTS"] = json.dumps(topics.dialects)
    return subprocess.run(
        [sys.executable, "-m", "services.cli", "topics", *arguments],
        env=os.environ | named | {"HEADWATER_BOOTSTRAP_SERVERS": connection.bootstrap_servers},
        capture_output=True,
        text=True,
        timeout=60,
    )


class TestChecks:
    def test_created_topics_have_what_they_need(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        states = {state.name: state for state in check_topics(kafka_connection, topics)}
        assert set(states) == set(topics.names())
        assert all(state.problems == () for state in states.values())
        assert (states[topics.clicks].partitions, states[topics.clicks].replication_factor) == (4, 1)
        assert catalogue_problems(kafka_connection, topics) == []

    def test_a_missing_topic_is_named_with_the_command(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        missing = topics.model_copy(update={"control": f"{topics.control}.missing"})
        [state] = [state for state in check_topics(kafka_connection, missing) if state.problems]
        assert (state.name, state.partitions) == (missing.control, None)
        assert state.problems == ("does not exist; run `headwater topics create`",)

    @pytest.mark.parametrize(
        ("kind", "configs", "problem"),
        [
            ("items", {"cleanup_policy": "delete"}, "must be compact, got delete: items are deleted after 7 days"),
            ("items", {"cleanup_policy": "delete", "retention_ms": "3600000"}, "after 0.0416667 days"),
            ("items", {"cleanup_policy": "compact,delete"}, "must be compact, got compact,delete"),
            (
                "clicks",
                {"cleanup_policy": "compact"},
                "must be delete, got compact; run kafka-configs",
            ),
            ("adapters", {"cleanup_policy": "delete"}, "`cleanup.policy` must be compact, got delete"),
            ("dead_letters", {"cleanup_policy": "compact,delete"}, "`max.message.bytes` must be at least 2097152"),
            (
                "impressions",
                {"max_message_bytes": "500000"},
                "must be at least 1048588, got 500000",
            ),
        ],
    )
    def test_another_configuration_is_a_problem(
        self, kafka_connection: KafkaConnection, topics: Topics, kind: str, configs: dict[str, str], problem: str
    ) -> None:
        other = topics.model_copy(update={kind: f"{topics.of_kind('item')}.{kind}"})
        create(kafka_connection, getattr(other, kind), **configs)
        [state] = [state for state in check_topics(kafka_connection, other) if state.problems]
        assert state.name == getattr(other, kind)
        assert problem in state.problems[0]
        assert bool(catalogue_problems(kafka_connection, other)) == (kind == "items")

    def test_a_catalogue_in_another_dialect_must_keep_its_records(
        self, kafka_connection: KafkaConnection, topics: Topics
    ) -> None:
        kept, lost = f"{topics.items}.kept", f"{topics.items}.lost"
        create(kafka_connection, kept, retention_ms="-1", retention_bytes="-1")
        create(kafka_connection, lost)
        others = topics.model_copy(update={"dialects": {kept: "metarank", lost: "metarank"}})
        [problem] = catalogue_problems(kafka_connection, others)
        assert lost in problem
        assert "retention.ms=-1" in problem

    def test_a_clicks_topic_of_another_deployment_is_not_looked_at(
        self, kafka_connection: KafkaConnection, topics: Topics
    ) -> None:
        others = topics.model_copy(update={"dialects": {f"{topics.items}.ga4": "ga4"}})
        [state] = [state for state in check_topics(kafka_connection, others) if state.problems]
        assert state.problems == ("does not exist; its producer has to create it",)


@pytest.mark.kafka
def test_the_commands_create_and_check(apache_kafka: Any) -> None:
    connection, topics = apache_kafka.connection, Topics.under("commands")
    assert run("check", connection=connection, topics=topics).returncode == 1
    done = run("create", "--partitions", "3", connection=connection, topics=topics)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created\t") == len(topics.names())
    again = run("create", "--partitions", "5", connection=connection, topics=topics)
    assert again.stdout.count("exists\t") == len(topics.names())
    checked = run("check", "--json", connection=connection, topics=topics)
    assert checked.returncode == 0
    assert {state["topic"]: state["partitions"] for state in json.loads(checked.stdout)} == dict.fromkeys(
        topics.names(), 3
    )
    create(connection, "commands.other-items", cleanup_policy="delete")
    wrong = topics.model_copy(update={"items": "commands.other-items"})
    done = run("create", connection=connection, topics=wrong)
    assert done.returncode == 1
    assert "must be compact, got delete" in done.stdout


@pytest.mark.kafka
def test_a_refused_replication_factor_is_one_sentence(apache_kafka: Any) -> None:
    topics = Topics.under("refused")
    done = run("create", "--replication-factor", "3", connection=apache_kafka.connection, topics=topics)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("headwater: ")]
    assert "run `headwater topics create` as a user that may create topics" in line
    assert "Traceback" not in done.stderr


@pytest.mark.kafka
def test_new_topics_take_the_broker_s_replication_factor(apache_kafka_cluster: list[Any]) -> None:
    connection, topics = apache_kafka_cluster[0].connection, Topics.under("replicated")
    ensure_topics(connection, topics)
    deadline = time.monotonic() + 30  # until each broker has heard of them
    while {state.replication_factor for state in check_topics(connection, topics)} != {3}:
        assert time.monotonic() < deadline, check_topics(connection, topics)
        time.sleep(0.2)
    with EventProducer(connection, topics) as producer:
        producer.send_raw(topics.clicks, b"key", b"{}")


@pytest.mark.kafka
@pytest.mark.parametrize("dialect", ["segment", "ga4", "metarank"])
def test_a_topic_in_another_dialect_is_not_created_and_nobody_is_told_to_create_it_with_the_command(
    apache_kafka: Any, make_topics: Callable[..., Topics], dialect: Dialect
) -> None:
    ours = make_topics(apache_kafka.connection, partitions=1)
    theirs = f"{ours.clicks}.theirs"
    done = run(
        "create", connection=apache_kafka.connection, topics=ours.model_copy(update={"dialects": {theirs: dialect}})
    )
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if theirs in line]
    assert line == f"not created\t{theirs}\tmissing\tdoes not exist; its producer has to create it"
    with closing(PartitionConsumer(apache_kafka.connection, [theirs])) as consumer:
        problem = consumer.problems()[theirs]
    with (
        closing(EventProducer(apache_kafka.connection, metadata_timeout_seconds=0.5)) as producer,
        pytest.raises(DeliveryError) as refused,
    ):
        producer.send_raw(theirs, None, b"{}")
    for sentence in (problem, str(refused.value)):
        assert "if it is in another dialect, have its producer create it" in sentence

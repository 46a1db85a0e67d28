"""Read positions of partitions, by the metadata of their topics."""

from typing import Any

import pytest

from streams.log_positions import LogPositions
from streams.read_problems import ReadProblems
from streams.topic_metadata import TopicMetadata


def positions(start: Any = "earliest", **options: Any) -> LogPositions:
    given: dict[str, Any] = {"rank": 0, "world_size": 1, "topic_ids": {}, "problems": ReadProblems()} | options
    return LogPositions(["a"], start=start, **given)


def topic(*partitions: int, identity: str | None = "c/1", **options: Any) -> dict[str, TopicMetadata]:
    return {"a": TopicMetadata(identity, frozenset(partitions), **options)}


def read(one: LogPositions, metadata: dict[str, TopicMetadata], start: int = 3, end: int = 9) -> None:
    found = [at for at in one.readable(metadata) if at not in one.offsets]
    one.adopt_ids(metadata)
    one.add(dict.fromkeys(found, start), dict.fromkeys(found, end))


@pytest.mark.parametrize(("start", "offset"), [("earliest", 3), ("latest", 9), ({("a", 0): 5}, 5), ({("b", 0): 5}, 3)])
def test_where_a_partition_begins(start: Any, offset: int) -> None:
    one = positions(start)
    read(one, topic(0))
    assert one.offsets == {("a", 0): offset}
    assert one.gaps == []


@pytest.mark.parametrize("start", ["earliest", "latest", {("a", 0): 5}])
def test_an_added_partition_begins_at_its_first_record(start: Any) -> None:
    one = positions(start)
    read(one, topic(0))
    read(one, topic(0, 1), start=0)
    assert one.offsets["a", 1] == 0
    assert one.gaps == []


def test_records_of_an_added_partition_that_were_deleted_are_missed() -> None:
    one = positions({("a", 0): 5})
    read(one, topic(0, 1))
    assert one.offsets == {("a", 0): 5, ("a", 1): 3}
    assert [(gap.partition, gap.missed) for gap in one.gaps] == [(1, 3)]


def test_a_topic_that_is_missing_at_the_start_is_read_from_its_first_record() -> None:
    one = positions("latest")
    assert one.readable({"a": TopicMetadata(error="UnknownTopicOrPartitionError", exists=False)}) == []
    read(one, topic(0), start=0)
    assert one.offsets == {("a", 0): 0}


def test_a_topic_that_may_not_be_described_at_the_start_begins_where_the_start_says() -> None:
    one = positions("latest")
    assert one.readable({"a": TopicMetadata(error="TopicAuthorizationFailedError")}) == []
    read(one, topic(0))
    assert one.offsets == {("a", 0): 9}


def test_partitions_belong_to_ranks_by_rule() -> None:
    assert positions(rank=1, world_size=2).readable(topic(0, 1, 2, 3)) == [("a", 1), ("a", 3)]


def test_a_partition_without_a_leader_is_a_problem_until_it_has_one() -> None:
    problems = ReadProblems()
    one = positions(problems=problems)
    assert one.readable(topic(0, 1, leaderless=frozenset({1}))) == [("a", 0)]
    assert list(problems.sentences()) == ["a/1"]
    assert one.readable(topic(0, 1)) == [("a", 0), ("a", 1)]
    assert problems.sentences() == {}


@pytest.mark.parametrize(
    ("known", "found", "other"),
    [("c/1", "c/2", True), ("c/1", "d/1", True), ("c/1", "c/1", False), (None, "c/1", False), ("c/1", None, False)],
)
def test_another_log_is_told_by_its_identity_where_both_are_known(
    known: str | None, found: str | None, other: bool
) -> None:
    one = positions({("a", 0): 5}, topic_ids={"a": known} if known else {})
    assert one.recreated(topic(0, identity=found)) == ({"a"} if other else set())


def test_a_recreated_topic_is_read_from_its_start_in_all_its_partitions() -> None:
    one = positions({("a", 0): 5, ("a", 1): 7}, topic_ids={"a": "c/1"})
    one.forget("a", {("a", 0): 0}, {("a", 0): 4})
    assert one.offsets == {}
    read(one, topic(0, identity="c/2"), start=0, end=4)
    assert (one.offsets, one.ids) == ({("a", 0): 0}, {"a": "c/2"})
    assert [(gap.cause, gap.wanted) for gap in one.gaps] == [("recreated", 5), ("recreated", 7)]


def test_a_problem_that_only_an_attempt_can_end_holds_back_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("streams.read_problems.time.monotonic", lambda: now)
    problems = ReadProblems()
    one = positions(problems=problems)
    problems.note("a/0", "it fails", retry=True)
    assert one.readable(topic(0, 1)) == [("a", 1)]
    now += 11.0
    assert one.readable(topic(0, 1)) == [("a", 0), ("a", 1)]
    assert list(problems.sentences()) == ["a/0"]  # until it is known to be read
    now += 5.0
    problems.clear_tried()
    assert problems.sentences() == {}

import pytest
from pydantic import ValidationError

from streams.topics import Topics


def test_kind_and_topic_name_each_other() -> None:
    topics = Topics(clicks="shop.clicks")
    for kind in ("impression", "click", "purchase", "item"):
        assert topics.kind_of(topics.of_kind(kind)) == kind
    assert topics.of_kind("click") == "shop.clicks"
    assert topics.kind_of(topics.adapters) is topics.kind_of(topics.dead_letters) is topics.kind_of("x") is None


def test_topics_of_others_are_not_our_own() -> None:
    topics = Topics(dialects={"ga4.events": "ga4", "ranklens": "metarank"})
    assert topics.names() == Topics().names()
    assert topics.kind_of("ga4.events") is None
    assert topics.catalogues() == [topics.items, "ranklens"]


def test_a_topic_of_our_own_is_in_no_dialect() -> None:
    with pytest.raises(ValidationError, match=r"got 'headwater\.control', which is a topic of our own"):
        Topics(dialects={"headwater.control": "ga4"})


def test_a_prefix_names_all_of_our_own() -> None:
    assert Topics.under("headwater") == Topics()
    assert {name.split(".")[0] for name in Topics.under("shop").names()} == {"shop"}


def test_default_names() -> None:
    assert Topics().names() == [
        f"headwater.{name}"
        for name in ("impressions", "clicks", "purchases", "items", "adapters", "control", "dead-letters")
    ]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 250])
def test_a_name_that_kafka_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="clicks"):
        Topics(clicks=name)

"""The spam that the benchmark mixes in, and a replay of it on a tiny catalogue."""

import gzip
from pathlib import Path

import pytest

from benchmarks import click_spam
from benchmarks.__main__ import SCENARIOS
from benchmarks.click_spam import KINDS, with_spam
from streams.examples import Example

HONEST = [
    Example(
        event_id=f"e{number}",
        user_id=f"u{number % 9}",
        session_id=None,
        item_id=f"i{number % 20}",
        ts=number,
        kind="purchase",
        scenario="home",
        position=None,
        publish_ts_ms=number,
    )
    for number in range(400)
]


def test_its_name_is_permanent() -> None:
    assert SCENARIOS["click-spam"] is click_spam.run


@pytest.mark.parametrize(
    ("kind", "users", "before_fifth"), [("few", 3, True), ("many", 10, True), ("spread", 10, False)]
)
def test_spam_is_a_twentieth_of_the_second_half_and_leaves_the_rest_alone(
    kind: str, users: int, before_fifth: bool
) -> None:
    mixed = with_spam(HONEST, "i7", kind, seed=0)
    spam = [example for example in mixed if example.event_id.startswith("spam-")]
    assert [example for example in mixed if example not in spam] == HONEST
    assert len(spam) == 10
    assert {example.item_id for example in spam} == {"i7"}
    assert len({example.user_id for example in spam}) == users
    assert len({example.event_id for example in spam}) == 10
    assert min(example.ts for example in spam) >= 200
    assert (max(example.ts for example in spam) < 240) is before_fifth
    assert with_spam(HONEST, "i7", kind, seed=0) == mixed
    assert with_spam(HONEST, "i7", kind, seed=1) != mixed


def test_a_small_replay_gives_all_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the prefix cache goes there
    monkeypatch.setattr(click_spam, "SEEDS", 1)
    items = "".join(f"i{number},Item number {number}\n" for number in range(20))
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(("item_id,title\n" + items).encode()))
    rows = "".join(f"{e.ts},{e.user_id},purchase,{e.item_id}\n" for e in HONEST)
    (tmp_path / "events.csv.gz").write_bytes(gzip.compress(("seq,user_id,event_type,item_id\n" + rows).encode()))
    measured = click_spam.run(tmp_path)
    (figures,) = measured.rounds
    assert measured.value == min(figures[f"{kind}_kept_out"] for kind in KINDS)
    assert figures["hr20_unguarded"] == figures["hr20_guarded"] == 1.0, "of twenty items"
    assert all(1 <= figures[f"{kind}_rank_guarded"] <= 20 for kind in KINDS)

"""One run of a backtest: what is read, what is judged, and by what."""

import gzip
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import Bought, paired_stream, tiny_bert, titled

from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.data.files import InputError
from services.lab.backtest.policies import parse_policies
from services.lab.backtest.replay import Data
from services.lab.backtest.run import run_policy
from services.lab.offline.inputs import new_learner, read_catalogue, read_warm_up
from services.lab.offline.judging import Ranks
from services.lab.offline.stream import Shown, Stream
from streams.examples import Example, ShownList

ENCODER = EncoderSettings(model=str(tiny_bert()), lora_rank=4, cache_dir=None)
ITEMS = titled(40)


def examples(bought: Sequence[Bought]) -> list[Example]:
    return [
        Example(f"e-{index}", b.user_id, b.session_id, b.item_id, b.ts, "purchase", "home", None, 0)
        for index, b in enumerate(bought)
    ]


def run(
    policy: str,
    judged: Sequence[Example],
    *,
    lists: Sequence[Shown] = (),
    warm_up: Sequence[Example] = (),
    batch_events: int = 20,
    seed: int = 0,
    progress: list[int] | None = None,
) -> Ranks:
    (parsed,) = parse_policies([policy])
    outcome = run_policy(
        parsed,
        Data(ITEMS, warm_up, Stream(list(judged), list(lists)), batch_events),
        encoder=ENCODER,
        learner=LearnerSettings(seed=seed, negatives=20),  # fewer than there are items: a seed draws them
        progress=(progress if progress is not None else []).append,
    )
    return outcome.ranks


STREAM = examples(paired_stream(200, items=40, seed=1))


def test_every_event_is_judged_once_among_the_whole_catalogue() -> None:
    progress: list[int] = []
    ranks = run("live", STREAM[:110], progress=progress)
    assert len(ranks.rank) == len(ranks.auc) == len(ranks.first_of_item) == len(ranks.new_user) == 110
    assert ranks.candidates == 40
    assert min(ranks.rank) >= 1
    assert max(ranks.rank) <= 40
    assert progress == [20, 20, 20, 20, 20, 10]


def test_the_same_seed_gives_the_same_ranks_and_another_seed_others() -> None:
    first = run("live", STREAM)
    assert run("live", STREAM).rank == first.rank
    assert run("live", STREAM, seed=1).rank != first.rank


def test_an_event_is_judged_by_what_stood_after_the_batch_before() -> None:
    """The first batch is judged by a ranker that has counted nothing: to popularity, all items are alike."""
    ranks = run("popularity", STREAM, batch_events=50)
    assert list(ranks.rank[:50]) == [40] * 50
    assert min(ranks.rank[50:]) < 20


def test_what_comes_later_changes_no_rank() -> None:
    whole = run("live", STREAM)
    assert run("live", STREAM[:100]).rank == whole.rank[:100]


def test_warm_up_is_learnt_and_never_judged() -> None:
    warm_up = examples(paired_stream(200, items=40, seed=2))
    warmed = run("popularity", STREAM[:40], warm_up=warm_up)
    assert len(warmed.rank) == 40
    assert min(warmed.rank[:20]) < 20  # where without it all items are alike


def test_firsts_are_exact_to_the_event_and_know_the_warm_up() -> None:
    stream = examples(
        [
            Bought("ann", None, "item-1", 0),
            Bought("ann", None, "item-1", 1),
            Bought("bob", None, "item-2", 2),
            Bought("cat", None, "item-2", 3),
        ]
    )
    cold = run("popularity", stream)
    assert cold.first_of_item == [True, False, True, False]
    assert cold.new_user == [True, False, True, True]
    warmed = run("popularity", stream, warm_up=examples([Bought("cat", None, "item-1", -9)]))
    assert warmed.first_of_item == [False, False, True, False]
    assert warmed.new_user == [True, False, True, False]


def test_auc_is_among_items_sold_in_earlier_batches() -> None:
    ranks = run("live", STREAM, batch_events=100)
    assert all(np.isnan(ranks.auc[:100]))
    assert not any(np.isnan(ranks.auc[100:]))


def test_lora_starts_from_the_seed() -> None:
    """Runs with other seeds must be other runs, down to the adapter's random half."""
    learners = [
        new_learner(ENCODER.model_copy(update={"lora_seed": seed}), LearnerSettings(seed=seed)) for seed in (1, 2)
    ]
    first, second = (learner.encoder.lora_state() for learner in learners)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_frozen_activations_are_kept_where_the_settings_say(tmp_path: Path) -> None:
    settings = ENCODER.model_copy(update={"cache_dir": tmp_path / "cache"})
    new_learner(settings, LearnerSettings()).add_items(ITEMS)
    assert (tmp_path / "cache" / "prefix.sqlite").stat().st_size > 0


# ---- reading


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(text)
    else:
        path.write_text(text)
    return path


def test_catalogue_texts(tmp_path: Path) -> None:
    items = write(tmp_path / "items.csv", "item_id,title,brand\na,Mug,Acme\nb,Lamp,\n")
    assert read_catalogue(items) == [("a", "Mug. Acme"), ("b", "Lamp")]


EVENTS = """seq,user_id,event_type,item_id
3,ann,purchase,a
1,bob,click,b
2,bob,return,a
4,ann,purchase,b
"""


def test_a_list_is_judged_before_its_clicks_are_known() -> None:
    """Whatever is clicked, and whenever it is learnt: scores of a list follow from what was before it alone."""
    shown = [listed(f"u{index}", index, due=index) for index in range(30)]
    others = [listed(f"u{index}", index, due=index, clicked=(3,)) for index in range(30)]
    ranks, changed = (run("live-without-lora", STREAM[:1], lists=lists, batch_events=50) for lists in (shown, others))
    assert len(ranks.list_ndcg) == 30
    assert len(set(ranks.list_ndcg)) == 1  # all of one chunk: nothing is learnt between the first and the last
    assert set(changed.list_ndcg) != set(ranks.list_ndcg)  # other items were clicked, in the same order of scores
    learnt = run("live-without-lora", STREAM[:1], lists=shown, batch_events=1)
    assert learnt.list_ndcg[0] < learnt.list_ndcg[-1] == 1.0


def test_a_list_is_learnt_when_it_is_due_and_not_before() -> None:
    late = [listed(f"u{index}", index, due=10**9) for index in range(30)]
    never_learnt = run("live-without-lora", STREAM[:1], lists=late, batch_events=1)
    assert len(set(never_learnt.list_ndcg)) == 1


def test_lists_are_judged_by_what_is_published_too() -> None:
    """Each list is learnt in the next micro-batch at the latest; until a copy is published all are judged alike."""
    shown = [listed(f"u{index}", index, due=index) for index in range(30)]
    last = [replace(STREAM[0], ts=30)]
    live, seldom = (run(policy, last, lists=shown, batch_events=1).list_ndcg for policy in ("live", "live:10"))
    assert len(set(live[:5])) > 1
    for published in (0, 10, 20):
        assert set(seldom[published : published + 10]) == {live[published]}


def test_a_shopper_passed_over_what_was_shown_and_not_clicked(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[tuple[str, int, list[int]]] = []
    monkeypatch.setattr(
        "services.lab.backtest.replay.Shoppers.pass_over",
        lambda self, user, ts, items: passed.append((user, ts, items)),
    )
    unclicked = Shown(replace(listed("bob", 5, due=50).as_shown, clicked=(False,) * 10), ())
    lists = [listed("ann", 3, due=7), replace(unclicked, lessons=((8, unclicked.as_shown),)), listed("cat", 9, due=99)]
    run("river", [replace(STREAM[0], ts=2), replace(STREAM[1], ts=20)], lists=lists, batch_events=1)
    assert passed == [("ann", 3, [0, 1, 2, 3, 4, 5, 6, 8, 9])]


def listed(user: str, ts: int, *, due: int, clicked: tuple[int, ...] = (7,)) -> Shown:
    """Ten items without a context; what is clicked comes last in it."""
    places = tuple(range(10))
    was = tuple(place in clicked for place in places)
    shown = ShownList(user, None, ts, tuple(f"item-{place}" for place in places), places, was)
    return Shown(shown, ((due, shown),))


def test_warm_up_comes_before_the_data_and_in_no_session_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "history.csv.gz", "user_id,prior_items\nann,a b gone\nbob,b\n")
    earlier = read_warm_up(path, {"a", "b"}, before_ms=10**12)
    assert [(e.user_id, e.item_id) for e in earlier] == [("ann", "a"), ("ann", "b"), ("bob", "b")]
    times = [e.ts for e in earlier]
    assert times == sorted(times)
    assert times[-1] < 10**12 - 30 * 60 * 1000


@pytest.mark.parametrize("text", ["user,items\nann,a\n", ""])
def test_warm_up_without_its_columns_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"must have the columns user_id, prior_items|is empty"):
        read_warm_up(write(tmp_path / "history.csv", text), {"a"}, before_ms=0)


def test_warm_up_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_warm_up(tmp_path / "nowhere.csv", {"a"}, before_ms=0)
    (tmp_path / "broken.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot be read"):
        read_warm_up(tmp_path / "broken.csv.gz", {"a"}, before_ms=0)

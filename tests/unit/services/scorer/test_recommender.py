"""Answers: what is ranked, what never is, and in which order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from learnt_chain import Publications
from tiny_model import shown_stream, tiny_encoder, titled

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from services.scorer.live_items import LiveItems
from services.scorer.recommender import Recommender
from services.scorer.requests import RankRequest, RecommendRequest
from services.scorer.responses import ranking
from services.scorer.shopper_state import ShopperState
from streams.decode import ItemRemoved
from streams.events import Click, Item

ITEMS = titled(30)
IDS = [item_id for item_id, _ in ITEMS]
NOT_HERE_YET = "item-30"  # the updater has learnt of it


def item(item_id: str, title: str = "a vase", **fields: Any) -> Item:
    return Item(event_id=f"e-{item_id}", ts=1, item_id=item_id, kind="product", title=title, **fields)


class Shop:
    """A worker's parts without its threads."""

    def __init__(self, directory: Path, encoder: Encoder) -> None:
        publications = Publications(directory)
        publications.learner.add_items(titled(31))
        for _ in range(3):
            publications.learn(64)
        self.items = LiveItems()
        for item_id, text in reversed(ITEMS):
            self.items.take_in(item(item_id, text))
        self.shoppers = ShopperState(self.items.rows, max_shoppers=100, pseudonymise=str)
        self.recommender = Recommender(self.items, self.shoppers)
        self.encoder, self.catalogue = encoder, Catalogue(PrefixCache(encoder, None))
        self.catalogue.upsert(self.items.take_changes(1_000))
        bundle = publications.read(publications.full(1))
        self.model: ServedModel = build_model([bundle], previous=None, catalogue=self.catalogue, encoder=encoder)

    def ranked(self, candidates: list[str], **who: Any) -> list[str]:
        return self.recommender.order_candidates(RankRequest(candidates=tuple(candidates), **who), self.model).item_ids

    def recommended(self, **request: Any) -> list[str]:
        return self.recommender.best_items(RecommendRequest(**request), self.model).item_ids


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def shop(tmp_path: Path, encoder: Encoder) -> Shop:
    return Shop(tmp_path, encoder)


def test_rank_and_recommend_agree_and_put_the_best_first(shop: Shop) -> None:
    who: dict[str, Any] = {"session_items": ("item-3", "item-9")}
    everything = shop.recommender.best_items(RecommendRequest(k=30, **who), shop.model)
    assert sorted(everything.item_ids) == sorted(IDS)
    assert everything.scores == sorted(everything.scores, reverse=True)
    assert shop.recommended(k=7, **who) == everything.item_ids[:7]
    assert shop.ranked(IDS, **who) == everything.item_ids
    ranking = shop.recommender.order_candidates(RankRequest(candidates=tuple(IDS[::-1][:9]), **who), shop.model)
    expected = dict(zip(everything.item_ids, everything.scores, strict=True))
    assert ranking.scores == pytest.approx([expected[item] for item in ranking.item_ids], abs=1e-5)


def test_what_a_shopper_did_changes_the_answer_at_once(shop: Shop) -> None:
    before = shop.ranked(IDS, user_id="u", ts=10)
    shop.shoppers.take_in(Click(event_id="c", ts=9, user_id="u", item_id="item-4"), publish_ts_ms=0)
    after = shop.ranked(IDS, user_id="u", ts=10)
    assert after != before
    assert after == shop.ranked(IDS, session_items=("item-4",))
    assert shop.ranked(IDS, user_id="someone else", ts=10) == before


def test_unknown_session_items_are_passed_over(shop: Shop) -> None:
    assert shop.ranked(IDS, session_items=("no-such", "item-4")) == shop.ranked(IDS, session_items=("item-4",))


def test_candidates_that_cannot_be_ranked_are_told_apart_and_repeats_count_once(shop: Shop) -> None:
    asked = ("item-1", "no-such", "item-2", "item-1", NOT_HERE_YET, "no-such")
    answer = shop.recommender.order_candidates(RankRequest(candidates=asked), shop.model)
    assert sorted(answer.item_ids) == ["item-1", "item-2"]
    assert answer.unknown == ["no-such", NOT_HERE_YET]
    nothing = shop.recommender.order_candidates(RankRequest(candidates=("no-such",)), shop.model)
    assert (nothing.item_ids, nothing.scores, nothing.unknown) == ([], [], ["no-such"])


def blocked(shop: Shop, item_id: str) -> None:
    shop.items.take_in(item(item_id, status="blocked"))


def removed(shop: Shop, item_id: str) -> None:
    shop.items.take_in(ItemRemoved(item_id, 1))


@pytest.mark.parametrize("withdraw", [blocked, removed])
def test_a_withdrawn_item_is_gone_from_the_next_answer_of_the_model_that_knows_it(
    shop: Shop, withdraw: Callable[[Shop, str], None]
) -> None:
    best = shop.recommended(k=1)[0]
    withdraw(shop, best)
    assert best not in shop.recommended(k=200)
    answer = shop.recommender.order_candidates(RankRequest(candidates=tuple(IDS)), shop.model)
    assert answer.unknown == [best]
    assert len(answer.item_ids) == 29
    assert len(shop.ranked(IDS, session_items=(best,))) == 29  # it still says something of the shopper
    shop.items.take_in(item(best))
    assert best in shop.recommended(k=200)


def test_an_item_without_text_is_never_recommended(shop: Shop) -> None:
    assert NOT_HERE_YET in shop.model.rows
    assert NOT_HERE_YET not in shop.recommended(k=200)


def test_excluded_items_are_left_out_and_unknown_ones_do_no_harm(shop: Shop) -> None:
    best = shop.recommended(k=5)
    assert shop.recommended(k=2, exclude=(best[0], best[2], "no-such")) == [best[1], best[3]]
    assert shop.recommended(k=2, exclude=tuple(IDS)) == []


def test_a_worker_without_items_answers_with_nothing(tmp_path: Path, encoder: Encoder) -> None:
    publications = Publications(tmp_path)
    catalogue = Catalogue(PrefixCache(encoder, None))
    model = build_model([publications.read(publications.full(1))], previous=None, catalogue=catalogue, encoder=encoder)
    recommender = Recommender(LiveItems(), ShopperState({}, max_shoppers=1, pseudonymise=str))
    assert recommender.best_items(RecommendRequest(user_id="u"), model).item_ids == []
    assert recommender.order_candidates(RankRequest(candidates=("a",)), model).unknown == ["a"]
    recommender.warm(model)


class WarmedModel:
    """Notes what it is asked while it is warmed."""

    def __init__(self, model: ServedModel) -> None:
        self._model, self.asked = model, 0

    def __getattr__(self, name: str) -> Any:
        self.asked += name == "scorer"
        return getattr(self._model, name)

    def __len__(self) -> int:
        return len(self._model)


def test_a_model_is_warmed_with_the_latest_requests(shop: Shop) -> None:
    for number in range(20):
        shop.recommender.remember(RankRequest(candidates=("item-1",), user_id=f"u{number}"))
    warmed = WarmedModel(shop.model)
    shop.recommender.warm(warmed)  # type: ignore[arg-type]
    assert warmed.asked == 16


def test_what_is_ranked_comes_with_its_probabilities_where_lists_were_learnt(tmp_path: Path, encoder: Encoder) -> None:
    publications = Publications(tmp_path)
    publications.learner.add_items(ITEMS)
    for shown, _ in shown_stream(20, items=30, seed=1):
        publications.learner.learn_lists(publications.learner.observe_lists([shown]))
    shop = Shop(tmp_path / "without", encoder)
    bundle = publications.read(publications.full(1))
    model = build_model([bundle], previous=None, catalogue=shop.catalogue, encoder=encoder)
    request = RankRequest(candidates=("item-3", "item-1", "no-such", "item-9"))
    assert shop.recommender.order_candidates(request, shop.model).probabilities == {}
    answer = shop.recommender.order_candidates(request, model)
    click = model.ranker.score_with_probabilities(model.context([], []))[1]["click"].tolist()
    assert set(answer.probabilities) == {"click"}
    assert answer.probabilities["click"] == pytest.approx([click[model.rows[item]] for item in answer.item_ids])
    body = ranking(answer, "home")["items"]
    assert [entry["click_probability"] for entry in body] == answer.probabilities["click"]
    assert set(ranking(shop.recommender.order_candidates(request, shop.model), "home")["items"][0]) == {
        "item_id",
        "score",
    }

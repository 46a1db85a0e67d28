"""A scorer's application over a small shop: lists were learnt, no purchase in one was."""

from pathlib import Path
from typing import Any

import httpx
from learnt_chain import Publications, catalogue_of
from prometheus_client import CollectorRegistry
from standing_service import standing_service
from tiny_model import shown_stream, tiny_encoder, titled

from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from services.metrics.scorer import ScorerMetrics
from services.scorer.app import create_app
from services.scorer.live_items import LiveItems
from services.scorer.recommender import Recommender
from services.scorer.search import Search
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import ShopperState
from services.settings.scorer import ScorerSettings
from services.settings.search import SearchSettings
from streams.events import Item

ITEMS = titled(30)
IDS = [item_id for item_id, _ in ITEMS]
KINDS = ("product", "ad", "article")


def item(item_id: str, **fields: Any) -> Item:
    """Item number n is of kind n modulo 3, costs n, and is in stock unless n divides by 5."""
    number, titles = int(item_id.removeprefix("item-")), dict(ITEMS)
    made = {"kind": KINDS[number % 3], "price": number, "in_stock": number % 5 > 0, "category": f"c{number % 2}"}
    return Item.model_validate(
        {"event_id": item_id, "ts": 1, "item_id": item_id, "title": titles[item_id], **made, **fields}
    )


class Shop:
    """A worker without its threads, a learner of clicks in lists behind it, and a client."""

    def __init__(self, directory: Path) -> None:
        self.items = LiveItems()
        for item_id in IDS:
            self.items.take_in(item(item_id))
        self.shoppers = ShopperState(self.items.rows, max_shoppers=10, pseudonymise=str)
        encoder = tiny_encoder()
        queries = QueryEncoder(encoder)
        self.recommender = Recommender(self.items, self.shoppers, encode_query=queries)
        self.table = ServingTable("home")
        publications = Publications(directory)
        publications.learner.add_items(ITEMS)
        publications.learn(64)
        catalogue = catalogue_of(encoder, ITEMS)
        bundle = publications.read(publications.full(1))
        self.without_lists = build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder)
        for shown, clicks in shown_stream(20, items=30, seed=1):
            publications.learner.learn_lists(publications.learner.observe_lists([shown]))
            publications.learner.learn(publications.learner.observe(clicks))
        bundle = publications.read(publications.full(2))
        self.model: ServedModel = build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder)
        self.table.serve_model(self.model)
        series = CollectorRegistry()
        service = standing_service(
            self.table,
            self.recommender,
            self.shoppers,
            is_published=lambda name: name == "home",  # nothing else was published
        )
        settings = ScorerSettings(max_candidates=50, max_k=25, max_batch_requests=3)
        search = Search(queries, self.recommender, self.table, SearchSettings())
        search.lexicon.refresh()
        self.app = create_app(service, settings, ScorerMetrics(series), series, search=search)
        self.client = httpx.Client()

    def post(self, call: str, **request: Any) -> dict[str, Any]:
        answer = self.client.post(f"/v1/{call}", json=request)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def similar(self, item_id: str, **query: Any) -> list[str]:
        answer = self.client.get(f"/v1/items/{item_id}/similar", params=query)
        assert answer.status_code == 200, answer.text
        return [entry["item_id"] for entry in answer.json()["items"]]

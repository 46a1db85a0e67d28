"""The scorer's OpenAPI document: what it states binds, and requests made from it, right or wrong, meet what it says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from call_shop import Shop
from document_checks import check_document

from services.web.server import running


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(Shop(tmp_path_factory.mktemp("bundles")).app) as url, httpx.Client(base_url=url) as client:
        yield client


def test_limits_that_are_settings_are_stated(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for call in ("RankRequest", "RankCall"):
        assert schemas[call]["properties"]["candidates"]["maxItems"] == 50
        assert schemas[call]["properties"]["bids"]["anyOf"][0]["maxProperties"] == 50
    for call in ("RecommendRequest", "RecommendCall"):
        assert schemas[call]["properties"]["k"]["maximum"] == 25
    assert schemas["BatchRequest"]["properties"]["requests"]["maxItems"] == 3
    parameters = document["paths"]["/v1/items/{item_id}/similar"]["get"]["parameters"]
    assert next(one["schema"]["maximum"] for one in parameters if one["name"] == "k") == 25


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("rank", {"candidates": ["item-1"] * 51}),
        ("rank", {"candidates": ["item-1"], "bids": {str(number): 1 for number in range(51)}}),
        ("recommend", {"k": 26}),
        ("batch", {"requests": [{"call": "recommend"}] * 4}),
    ],
)
def test_and_bind(client: httpx.Client, call: str, body: dict[str, Any]) -> None:
    answer = client.post(f"/v1/{call}", json=body)
    assert answer.status_code == 422
    assert "ask in several requests" in answer.json()["detail"]
    assert client.get("/v1/items/item-1/similar?k=26").status_code == 422


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k", "5"),
        ("k", True),
        ("k", 5.5),
        ("diversity", "0.5"),
        ("exclude_bought", "yes"),
        ("exclude_bought", 1),
        ("ts", "2026-01-31 09:00:00Z"),
        ("ts", "20260131T090000Z"),
        ("ts", "1969-12-31T23:00:00Z"),
        ("filters", {"in_stock": "true"}),
        ("filters", {"min_price": "5"}),
    ],
)
def test_nothing_is_taken_for_what_it_is_not(client: httpx.Client, field: str, value: object) -> None:
    assert client.post("/v1/recommend", json={field: value}).status_code == 422


@pytest.mark.parametrize(
    ("field", "value"),
    [("k", 5.0), ("diversity", 1), ("ts", "2026-01-31T09:00:00.123456789+05:30"), ("filters", {"max_price": 0})],
)
def test_what_json_schema_calls_right_is_taken(client: httpx.Client, field: str, value: object) -> None:
    assert client.post("/v1/recommend", json={field: value}).status_code == 200


@pytest.mark.timeout(900)  # some hundred requests on a machine that may do much else
def test_of_requests_made_from_the_document_none_fails_a_check(client: httpx.Client, tmp_path: Path) -> None:
    check_document(f"{client.base_url}/openapi.json", tmp_path, operations=10)

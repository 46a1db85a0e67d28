"""The storefront's account of its requests, over real HTTP."""

import threading
import time
from typing import Any

from fastapi import FastAPI, Request, Response

from services.lab.demo.storefront import Storefront, browse
from services.web.server import running


def scorer(version: int, *, status: int = 200, body: bytes | None = None) -> tuple[FastAPI, list[dict[str, Any]]]:
    """Return a scorer that gives one answer, and the requests that it received."""
    app, asked = FastAPI(), []

    @app.post("/v1/{route}")
    async def answer(route: str, request: Request) -> Response:
        asked.append({"route": route, **(await request.json())})
        good = (
            b'{"adapter_version": %d, "items": [{"item_id": "a", "score": 1}, {"item_id": "b", "score": 0}]}' % version
        )
        return Response(body if body is not None else good, status_code=status, media_type="application/json")

    return app, asked


def test_scorers_are_asked_in_turn_and_each_answer_is_accounted_for() -> None:
    (one, asked_one), (two, asked_two) = scorer(3), scorer(5)
    seen: list[tuple[int, float]] = []
    with running(one) as first, running(two) as second:
        storefront = Storefront([first, second], answered=lambda version, at: seen.append((version, at)))
        for number in range(4):
            answer = storefront.recommend({"user_id": f"u{number}"}).result()
            assert answer is not None
            assert answer.items == ["a", "b"]
        storefront.rank({"user_id": "u"}, ["x", "y"]).result()
        storefront.close()
    traffic = storefront.traffic
    assert [scorer.answered for scorer in traffic.scorers] == [3, 2]
    assert [scorer.versions for scorer in traffic.scorers] == [{3}, {5}]
    assert (traffic.total, traffic.failed, len(traffic.rank_seconds)) == (5, 0, 1)
    assert sorted(version for version, _ in seen) == [3, 3, 3, 5, 5]
    assert all(abs(at - time.time()) < 60 for _, at in seen)
    assert asked_one[0] == {"route": "recommend", "user_id": "u0", "k": 20}
    assert asked_two[0] == {"route": "recommend", "user_id": "u1", "k": 20}
    assert asked_one[-1] == {"route": "rank", "user_id": "u", "candidates": ["x", "y"]}


def test_an_error_an_answer_that_is_none_and_a_closed_door_are_failures() -> None:
    (unwell, _), (senseless, _) = scorer(1, status=503), scorer(1, body=b'{"adapter_version": null, "items": []}')
    with running(unwell) as first, running(senseless) as second:
        storefront = Storefront([first, second, "http://127.0.0.1:9"], answered=lambda version, at: None)
        assert [storefront.recommend({}).result() for _ in range(3)] == [None] * 3
        storefront.close()
    assert (storefront.traffic.total, storefront.traffic.failed) == (3, 3)
    assert "503" in storefront.traffic.first_failure


def test_browsers_ask_for_the_order_of_items_that_exist_until_they_are_stopped() -> None:
    app, asked = scorer(1)
    items = [f"i{number}" for number in range(150)]
    with running(app) as url:
        storefront, stop = Storefront([url], answered=lambda version, at: None), threading.Event()
        shopping = {"users": ["u1", "u2"], "item_ids": items, "ts": lambda: 77, "stop": stop}
        browser = threading.Thread(target=browse, args=(storefront,), kwargs=shopping)
        browser.start()
        while len(asked) < 3:
            time.sleep(0.01)
        stop.set()
        browser.join(5)
        storefront.close()
        asked_at_stop = len(asked)
        time.sleep(0.5)
    assert len(asked) == asked_at_stop
    for question in asked:
        assert len(set(question["candidates"])) == 100
        assert set(question["candidates"]) <= set(items)
        assert question["user_id"] in ("u1", "u2")
        assert question["ts"] == 77

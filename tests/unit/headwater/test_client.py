"""The HTTP clients against real servers: retries, deadlines, refusals and typed answers."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from headwater import (
    AsyncHeadwaterClient,
    HeadwaterClient,
    Ranking,
    RequestRefusedError,
    ScorerUnavailableError,
    UnexpectedAnswerError,
)

RANKING = {"adapter_version": 3, "scenario": "home", "items": [{"item_id": "a", "score": 1.5, "new_field": 1}]}
PROBLEM = {"type": "about:blank", "title": "x", "status": 422, "detail": "1 field is wrong", "instance": "/v1/rank"}
Reply = tuple[int, dict[str, str], Any]


class FlakyScorer:
    """Answers each request with the next of its replies, the last one for ever."""

    def __init__(self, replies: list[Reply], *, pause_seconds: float = 0) -> None:
        self.replies, self.pause_seconds = replies, pause_seconds
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        scorer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                scorer.bodies.append(json.loads(body))
                scorer.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, headers, answer = scorer.replies[min(len(scorer.bodies), len(scorer.replies)) - 1]
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                time.sleep(scorer.pause_seconds)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def rank_in_thread(url: str, **options: Any) -> Ranking:
    with HeadwaterClient(url, **options) as client:
        return client.rank(["a"], session_items=["b"])


def rank_in_asyncio(url: str, **options: Any) -> Ranking:
    async def call() -> Ranking:
        async with AsyncHeadwaterClient(url, **options) as client:
            return await client.rank(["a"], session_items=["b"])

    return asyncio.run(call())


@pytest.fixture(params=[rank_in_thread, rank_in_asyncio], ids=["threads", "asyncio"])
def rank(request: pytest.FixtureRequest) -> Callable[..., Ranking]:
    call: Callable[..., Ranking] = request.param
    return call


def test_answers_are_typed_and_fields_of_newer_scorers_are_ignored(rank: Callable[..., Ranking]) -> None:
    scorer = FlakyScorer([(200, {}, RANKING)])
    with scorer.running() as url:
        ranking = rank(url + "/", api_key="secret", scenario="search")
    assert (ranking.adapter_version, ranking.item_ids, ranking.items[0].score) == (3, ["a"], 1.5)
    assert scorer.bodies == [{"scenario": "search", "candidates": ["a"], "session_items": ["b"]}]
    assert scorer.headers[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(rank: Callable[..., Ranking], status: int) -> None:
    scorer = FlakyScorer([(status, {}, b"busy"), (status, {}, b"busy"), (200, {}, RANKING)])
    with scorer.running() as url:
        assert rank(url, timeout_seconds=5).item_ids == ["a"]
    assert len(scorer.bodies) == 3


def test_retry_after_is_respected(rank: Callable[..., Ranking]) -> None:
    scorer = FlakyScorer([(503, {"retry-after": "1"}, PROBLEM), (200, {}, RANKING)])
    began = time.monotonic()
    with scorer.running() as url:
        rank(url, timeout_seconds=5)
    assert time.monotonic() - began >= 1


def test_a_pause_beyond_the_deadline_is_not_waited_for(rank: Callable[..., Ranking]) -> None:
    scorer = FlakyScorer([(503, {"retry-after": "30"}, {**PROBLEM, "detail": "no adapter is held yet"})])
    began = time.monotonic()
    with scorer.running() as url, pytest.raises(ScorerUnavailableError, match="no adapter is held yet") as failed:
        rank(url, timeout_seconds=2)
    assert failed.value.status == 503
    assert time.monotonic() - began < 2


def test_a_slow_scorer_is_given_up_at_the_deadline(rank: Callable[..., Ranking]) -> None:
    scorer = FlakyScorer([(200, {}, RANKING)], pause_seconds=3)
    began = time.monotonic()
    with scorer.running() as url:
        with pytest.raises(ScorerUnavailableError, match=r"within 0\.5 s"):
            rank(url, timeout_seconds=0.5)
        assert time.monotonic() - began < 2


def test_nobody_who_listens_is_named_with_a_remedy(rank: Callable[..., Ranking]) -> None:
    with FlakyScorer([(200, {}, RANKING)]).running() as url:
        pass
    with pytest.raises(ScorerUnavailableError, match=rf"no ranking from {url}/v1/rank within 0\.3 s.*readyz"):
        rank(url, timeout_seconds=0.3)


def test_a_refusal_names_the_fields_and_is_not_repeated(rank: Callable[..., Ranking]) -> None:
    errors = [{"pointer": "body/candidates/0", "detail": "must not be empty"}]
    scorer = FlakyScorer([(422, {}, {**PROBLEM, "errors": errors})])
    with scorer.running() as url, pytest.raises(RequestRefusedError, match="body/candidates/0: must not") as refused:
        rank(url)
    assert (refused.value.status, refused.value.errors) == (422, tuple(errors))
    assert len(scorer.bodies) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"items": 3}'])
def test_an_answer_of_another_service_is_told_apart(rank: Callable[..., Ranking], body: bytes) -> None:
    with FlakyScorer([(200, {}, body)]).running() as url, pytest.raises(UnexpectedAnswerError, match="check the URL"):
        rank(url)


@pytest.mark.parametrize("url", ["", "scorer:8080", "ftp://scorer"])
def test_a_base_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="`base_url` must be http"):
        HeadwaterClient(url)

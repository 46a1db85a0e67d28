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


def test_a_fault_that_the_detail_names_is_not_repeated(rank: Callable[..., Ranking]) -> None:
    errors = [{"pointer": "body/k", "detail": "must be at least 1"}]
    problem = {**PROBLEM, "detail": "body/k: must be at least 1", "errors": errors}
    with FlakyScorer([(422, {}, problem)]).running() as url, pytest.raises(RequestRefusedError) as refused:
        rank(url)
    assert str(refused.value).count("must be at least 1") == 1


UNUSABLE_URLS = [
    "",
    "scorer:8080",
    "ftp://scorer",
    "http://",
    "http://scorer:abc",
    "http://scorer:99999",
    "http://scorer/v1",
    "http://gateway/shop/v1/rank",
    "http://scorer?key=1",
]


@pytest.mark.parametrize("url", UNUSABLE_URLS)
def test_a_base_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="`base_url` must be http"):
        HeadwaterClient(url)


def test_a_base_url_may_have_the_path_of_a_gateway() -> None:
    scorer = FlakyScorer([(200, {}, RANKING)])
    with scorer.running() as url:
        assert rank_in_thread(f"{url}/shop/").item_ids == ["a"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_deadline_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="`timeout_seconds` must be above 0"):
        HeadwaterClient("http://scorer", timeout_seconds=seconds)


def test_a_deadline_in_words_is_refused() -> None:
    with pytest.raises(TypeError, match="`timeout_seconds` must be a number of seconds, got '2'; leave it out for 2"):
        HeadwaterClient("http://scorer", timeout_seconds="2")  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["secret\n", "sécret", "two words"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="`api_key` must be of printable ASCII") as refused:
        HeadwaterClient("http://scorer", api_key=key)
    assert key not in str(refused.value)


@pytest.mark.parametrize(
    ("candidates", "problem"),
    [
        ("22423", r"`candidates` must be a list of ids, got the string '22423'; write \['22423'\]"),
        ([22423], r"`candidates` must have strings as ids, got 22423; convert ids with str\(\)"),
        (22423, "`candidates` must be a list of ids, got int"),
    ],
)
def test_candidates_that_are_no_list_of_ids_are_refused(candidates: Any, problem: str) -> None:
    with HeadwaterClient("http://scorer") as client, pytest.raises(TypeError, match=problem):
        client.rank(candidates)


def test_candidates_may_come_from_a_generator() -> None:
    scorer = FlakyScorer([(200, {}, RANKING)])
    with scorer.running() as url, HeadwaterClient(url) as client:
        client.rank(item_id for item_id in "ab")  # type: ignore[arg-type]
    assert scorer.bodies[0]["candidates"] == ["a", "b"]


def test_an_option_that_json_cannot_express_is_named() -> None:
    with (
        HeadwaterClient("http://scorer") as client,
        pytest.raises(TypeError, match=r"`session_items` must be of strings, numbers, lists and dicts, got \{'b'\}"),
    ):
        client.rank(["a"], session_items={"b"})  # type: ignore[arg-type]


def test_an_explanation_has_the_shares_of_the_history() -> None:
    share = {"item_id": "b", "sessions_ago": 0, "contribution": 2.0, "kinds": {"text": 2.0}}
    sources = {"popularity": 1.0, "global_preference": 0.5, "query": 0.0, "history": [share], "more_history": 0.25}
    item = {"item_id": "a", "score": 3.75, "sentence": "Because.", "sources": sources, "kinds": {}, "features": {}}
    answer = {"adapter_version": 3, "scenario": "home", "items": [item]}
    with FlakyScorer([(200, {}, answer)]).running() as url, HeadwaterClient(url) as client:
        explained = client.explain(["a"], session_items=["b"], history=1).items[0]
    assert explained.sources is not None
    assert (explained.sources.history[0].item_id, explained.sources.more_history) == ("b", 0.25)

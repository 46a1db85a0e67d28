"""HTTP clients of the scorer: one for threads, one for asyncio, with the same methods, retries and typed answers.

Proxies of the environment are ignored, as by all calls between a shop's own processes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
from pydantic import BaseModel

from peft_adapters.registry.http_deadline import bounded_request
from peft_adapters.registry.internal_http import internal_async_client, internal_client
from services.client.answers import Explanation, Ranking, SearchResult
from services.client.arguments import checked_ids
from services.client.calls import Api, Attempts
from services.client.options import ExplainOptions, RankOptions, RecommendOptions

DEFAULT_TIMEOUT_SECONDS = 2.0
ANSWER_LIMIT_BYTES = 2**25

A = TypeVar("A", bound=BaseModel)


class HeadwaterClient:
    """Client of a scorer, safe to share between threads.

    Args:
        base_url: address of the scorer, such as `http://scorer:8080`.
        api_key: key with the scope `read`; None where the scorer asks for none.
        scenario: scenario of calls that name none; None is the scorer's own.
        timeout_seconds: deadline of a call, retries included.

    Raises:
        ValueError: an argument breaks its rule.

    >>> with HeadwaterClient("http://127.0.0.1:8080") as client:  # doctest: +SKIP
    ...     client.rank(["mug-1", "mug-2"], session_items=["cup-7"]).item_ids
    ['mug-2', 'mug-1']
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        scenario: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._api = Api(base_url, api_key=api_key, scenario=scenario, timeout_seconds=timeout_seconds)
        self._http = internal_client(headers=self._api.headers)

    def rank(self, candidates: Sequence[str], **options: Unpack[RankOptions]) -> Ranking:
        """Return the candidates in order, best first.

        Args:
            candidates: ids of the items to order.
            **options: optional fields of `/v1/rank`, such as `user_id`, `session_items`, `query` and `filters`.

        Raises:
            TypeError: an id is not a string, or an option cannot be written as JSON.
            RequestRefusedError: a field breaks a rule, or the key is not accepted.
            ScorerUnavailableError: there is no answer within `timeout_seconds`.
            UnexpectedAnswerError: the answer is not that of a scorer.
        """
        return self._post("/v1/rank", {"candidates": checked_ids("candidates", candidates), **options}, Ranking)

    def recommend(self, k: int = 20, **options: Unpack[RecommendOptions]) -> Ranking:
        """Return the `k` best items of the catalogue; arguments and errors as for `rank`.

        Args:
            k: number of items.
            **options: optional fields of `/v1/recommend`, such as `session_items` and `exclude`.
        """
        return self._post("/v1/recommend", {"k": k, **options}, Ranking)

    def search(self, query: str, k: int = 20, **options: Unpack[RecommendOptions]) -> SearchResult:
        """Return the `k` items that fit a query in words; arguments and errors as for `recommend`.

        Args:
            query: the words that the shopper typed.
            k: number of items.
            **options: optional fields of `/v1/search`, those of `/v1/recommend`.
        """
        return self._post("/v1/search", {"query": query, "k": k, **options}, SearchResult)

    def explain(self, candidates: Sequence[str], **options: Unpack[ExplainOptions]) -> Explanation:
        """Return each candidate's score, split into contributions that sum to it; arguments and errors as for `rank`.

        Args:
            candidates: ids of the items to explain.
            **options: optional fields of `/v1/explain`: those of `rank`, and `history`.
        """
        return self._post("/v1/explain", {"candidates": checked_ids("candidates", candidates), **options}, Explanation)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def _post(self, path: str, fields: Mapping[str, Any], model: type[A]) -> A:
        url, content = self._api.base_url + path, self._api.body(fields)
        attempts, attempt = Attempts.starting_now(url, self._api.timeout_seconds), 0
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = bounded_request(
                    self._http,
                    "POST",
                    url,
                    seconds=attempts.remaining_seconds(),
                    limit_bytes=ANSWER_LIMIT_BYTES,
                    content=content,
                )
            except httpx.TransportError as error:
                outcome = error
            pause = attempts.pause_seconds(attempt, outcome)
            if pause is None and isinstance(outcome, httpx.Response):
                return self._api.answer(outcome, model)
            time.sleep(pause or 0)
            attempt += 1


class AsyncHeadwaterClient:
    """The same client for asyncio: each method is a coroutine with the arguments and errors of `HeadwaterClient`.

    Args:
        base_url: address of the scorer, such as `http://scorer:8080`.
        api_key: key with the scope `read`; None where the scorer asks for none.
        scenario: scenario of calls that name none; None is the scorer's own.
        timeout_seconds: deadline of a call, retries included.

    Raises:
        ValueError: an argument breaks its rule.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        scenario: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._api = Api(base_url, api_key=api_key, scenario=scenario, timeout_seconds=timeout_seconds)
        self._http = internal_async_client(headers=self._api.headers)

    async def rank(self, candidates: Sequence[str], **options: Unpack[RankOptions]) -> Ranking:
        """Return the candidates in order, best first; see `HeadwaterClient.rank`."""
        return await self._post("/v1/rank", {"candidates": checked_ids("candidates", candidates), **options}, Ranking)

    async def recommend(self, k: int = 20, **options: Unpack[RecommendOptions]) -> Ranking:
        """Return the `k` best items of the catalogue; see `HeadwaterClient.recommend`."""
        return await self._post("/v1/recommend", {"k": k, **options}, Ranking)

    async def search(self, query: str, k: int = 20, **options: Unpack[RecommendOptions]) -> SearchResult:
        """Return the `k` items that fit a query in words; see `HeadwaterClient.search`."""
        return await self._post("/v1/search", {"query": query, "k": k, **options}, SearchResult)

    async def explain(self, candidates: Sequence[str], **options: Unpack[ExplainOptions]) -> Explanation:
        """Return each candidate's score, split into contributions; see `HeadwaterClient.explain`."""
        return await self._post(
            "/v1/explain", {"candidates": checked_ids("candidates", candidates), **options}, Explanation
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def _post(self, path: str, fields: Mapping[str, Any], model: type[A]) -> A:
        url, content = self._api.base_url + path, self._api.body(fields)
        attempts, attempt = Attempts.starting_now(url, self._api.timeout_seconds), 0
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                async with asyncio.timeout(attempts.remaining_seconds()):
                    outcome = await self._http.post(url, content=content, timeout=None)
            except httpx.TransportError as error:
                outcome = error
            except TimeoutError:
                outcome = httpx.ReadTimeout(f"no answer within {self._api.timeout_seconds:g} s")
            pause = attempts.pause_seconds(attempt, outcome)
            if pause is None and isinstance(outcome, httpx.Response):
                return self._api.answer(outcome, model)
            await asyncio.sleep(pause or 0)
            attempt += 1

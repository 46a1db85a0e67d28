"""HTTP clients of the scorer: one for threads, one for asyncio, with the same methods, retries and typed answers.

A call is tried again after a connection error, a timeout, and statuses 429, 502, 503 and 504, with exponential back-off
and full jitter (Brooker 2015, "Exponential Backoff and Jitter"), or after the time that `Retry-After` names. The first
attempt, all further ones and the pauses between them share one deadline: `timeout_seconds`. Proxies of the environment
are ignored, as by all calls between a shop's own processes.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from headwater.answers import Explanation, Ranking, SearchResult
from peft_adapters.registry.http_deadline import bounded_request
from peft_adapters.registry.internal_http import internal_client

DEFAULT_TIMEOUT_SECONDS = 2.0
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
SHOWN_CHARS = 500
ANSWER_LIMIT_BYTES = 2**25

A = TypeVar("A", bound=BaseModel)


class ShopperOptions(TypedDict, total=False):
    """Optional fields of every call: who the ranking is for, and which items may be in it."""

    scenario: str
    user_id: str
    session_id: str
    session_items: Sequence[str]
    earlier_sessions: Sequence[Sequence[str]]
    ts: str | int
    filters: Mapping[str, Any]
    exclude_bought: bool
    diversity: float


class RankOptions(ShopperOptions, total=False):
    """Optional fields of `/v1/rank`."""

    query: str
    bids: Mapping[str, float]
    pay_per: Literal["click", "purchase"]


class RecommendOptions(ShopperOptions, total=False):
    """Optional fields of `/v1/recommend` and `/v1/search`."""

    exclude: Sequence[str]


class ExplainOptions(RankOptions, total=False):
    """Optional fields of `/v1/explain`."""

    history: int


class HeadwaterClientError(Exception):
    """Base of every error that a client raises on purpose."""


class ScorerUnavailableError(HeadwaterClientError):
    """The scorer did not answer before the deadline, or answered that it cannot at present.

    Attributes:
        status: HTTP status of the last answer; None if there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RequestRefusedError(HeadwaterClientError):
    """The scorer refused the request; sending it again would not help.

    Attributes:
        status: HTTP status of the answer.
        errors: `pointer` and `detail` of each field that broke a rule; empty if the refusal is not about fields.
    """

    def __init__(self, message: str, *, status: int, errors: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(message)
        self.status, self.errors = status, tuple(errors)


class UnexpectedAnswerError(HeadwaterClientError):
    """The answer is not that of a scorer: another service listens at the URL, or the releases do not fit together."""


@dataclass(frozen=True, slots=True)
class _Attempts:
    """The retry policy of one call: decides after each attempt whether to return, raise or wait."""

    url: str
    deadline: float  # monotonic seconds
    timeout_seconds: float

    @classmethod
    def starting_now(cls, url: str, timeout_seconds: float) -> _Attempts:
        return cls(url, time.monotonic() + timeout_seconds, timeout_seconds)

    def remaining_seconds(self) -> float:
        return max(0.001, self.deadline - time.monotonic())

    def pause_seconds(self, attempt: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Return how long to wait before the next attempt; None if the answer is final.

        Raises:
            ScorerUnavailableError: the pause would outlast the deadline.
        """
        if isinstance(outcome, httpx.Response) and outcome.status_code not in RETRIED_STATUSES:
            return None
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
        pause = random.uniform(0, longest)  # noqa: S311 - jitter, not a secret
        if isinstance(outcome, httpx.Response):
            pause = max(pause, _retry_after_seconds(outcome))
        if time.monotonic() + pause >= self.deadline:
            raise self._unavailable(outcome, attempts=attempt + 1)
        return pause

    def _unavailable(self, outcome: httpx.Response | httpx.TransportError, *, attempts: int) -> ScorerUnavailableError:
        if isinstance(outcome, httpx.Response):
            reason, status = f"it answered {outcome.status_code}: {_problem(outcome)[0]}", outcome.status_code
        else:
            reason, status = f"{type(outcome).__name__}: {outcome}".rstrip(": "), None
        return ScorerUnavailableError(
            f"no ranking from {self.url} within {self.timeout_seconds:g} s ({attempts} attempts): {reason}; "
            "check that the scorer runs and is ready (`/readyz`), or raise `timeout_seconds`",
            status=status,
        )


class _Api:
    """What both clients share: addresses, headers, bodies, and the reading of answers."""

    def __init__(self, base_url: str, *, api_key: str | None, scenario: str | None, timeout_seconds: float) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"`base_url` must be http(s)://host[:port], got {base_url!r}; for example http://scorer:8080"
            )
        if timeout_seconds <= 0:
            raise ValueError(f"`timeout_seconds` must be above 0, got {timeout_seconds}; the default is 2")
        self.base_url = base_url.rstrip("/")
        self.scenario, self.timeout_seconds = scenario, timeout_seconds
        self.headers = {"content-type": "application/json", "accept": "application/json"}
        if api_key is not None:
            self.headers["authorization"] = f"Bearer {api_key}"

    def body(self, fields: Mapping[str, Any]) -> bytes:
        """Encode the fields that were given; an argument of None is left to the scorer's default."""
        named = {"scenario": self.scenario, **fields}
        return json.dumps({name: value for name, value in named.items() if value is not None}).encode()

    def answer(self, response: httpx.Response, model: type[A]) -> A:
        """Parse an answer.

        Raises:
            RequestRefusedError: the scorer refused the request.
            ScorerUnavailableError: the scorer failed.
            UnexpectedAnswerError: the answer is not that of a scorer.
        """
        if response.is_success:
            try:
                return model.model_validate_json(response.content)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise UnexpectedAnswerError(
                    f"{response.url} did not answer as a Headwater scorer does: {first['msg']} at "
                    f"{'.'.join(map(str, first['loc'])) or 'the top'}; check the URL and the scorer's release"
                ) from error
        detail, errors = _problem(response)
        message = f"{response.url} answered {response.status_code}: {detail}"
        if response.is_client_error:
            raise RequestRefusedError(message, status=response.status_code, errors=errors)
        if response.is_server_error:
            raise ScorerUnavailableError(message, status=response.status_code)
        raise UnexpectedAnswerError(f"{message}; check the URL")


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
        self._api = _Api(base_url, api_key=api_key, scenario=scenario, timeout_seconds=timeout_seconds)
        self._http = internal_client(headers=self._api.headers)

    def rank(self, candidates: Sequence[str], **options: Unpack[RankOptions]) -> Ranking:
        """Return the candidates in order, best first.

        Args:
            candidates: ids of the items to order.
            **options: optional fields of `/v1/rank`, such as `user_id`, `session_items`, `query` and `filters`.

        Raises:
            RequestRefusedError: a field breaks a rule, or the key is not accepted.
            ScorerUnavailableError: there is no answer within `timeout_seconds`.
            UnexpectedAnswerError: the answer is not that of a scorer.
        """
        return self._post("/v1/rank", {"candidates": list(candidates), **options}, Ranking)

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
        return self._post("/v1/explain", {"candidates": list(candidates), **options}, Explanation)

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
        attempts, attempt = _Attempts.starting_now(url, self._api.timeout_seconds), 0
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
        self._api = _Api(base_url, api_key=api_key, scenario=scenario, timeout_seconds=timeout_seconds)
        self._http = httpx.AsyncClient(headers=self._api.headers, trust_env=False)

    async def rank(self, candidates: Sequence[str], **options: Unpack[RankOptions]) -> Ranking:
        """Return the candidates in order, best first; see `HeadwaterClient.rank`."""
        return await self._post("/v1/rank", {"candidates": list(candidates), **options}, Ranking)

    async def recommend(self, k: int = 20, **options: Unpack[RecommendOptions]) -> Ranking:
        """Return the `k` best items of the catalogue; see `HeadwaterClient.recommend`."""
        return await self._post("/v1/recommend", {"k": k, **options}, Ranking)

    async def search(self, query: str, k: int = 20, **options: Unpack[RecommendOptions]) -> SearchResult:
        """Return the `k` items that fit a query in words; see `HeadwaterClient.search`."""
        return await self._post("/v1/search", {"query": query, "k": k, **options}, SearchResult)

    async def explain(self, candidates: Sequence[str], **options: Unpack[ExplainOptions]) -> Explanation:
        """Return each candidate's score, split into contributions; see `HeadwaterClient.explain`."""
        return await self._post("/v1/explain", {"candidates": list(candidates), **options}, Explanation)

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
        attempts, attempt = _Attempts.starting_now(url, self._api.timeout_seconds), 0
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


def _retry_after_seconds(response: httpx.Response) -> float:
    """Return the seconds that `Retry-After` names; 0 without it, or where it is a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _problem(response: httpx.Response) -> tuple[str, Sequence[Mapping[str, str]]]:
    """Return detail and field errors of a problem document (RFC 9457), or the start of another body."""
    try:
        problem = response.json()
        errors = problem.get("errors", ())
        return "; ".join([problem["detail"], *(f"{each['pointer']}: {each['detail']}" for each in errors)]), errors
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:SHOWN_CHARS] or response.reason_phrase, ()

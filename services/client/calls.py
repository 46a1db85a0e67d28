"""One call of the scorer: its request, the policy of further attempts, and the parsing of its answer.

A call is tried again after a connection error, a timeout, and statuses 429, 502, 503 and 504, with exponential back-off
and full jitter (Brooker 2015, "Exponential Backoff and Jitter"), or after the time that `Retry-After` names. The first
attempt, all further ones and the pauses between them share one deadline.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from services.client.arguments import require_seconds
from services.client.errors import RequestRefusedError, ScorerUnavailableError, UnexpectedAnswerError

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
SHOWN_CHARS = 500

A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Attempts:
    """The retry policy of one call: decides after each attempt whether to return, raise or wait.

    Attributes:
        url: address that the call is sent to.
        deadline: monotonic time at which the call is given up, in seconds.
        timeout_seconds: time from the first attempt to the deadline.
    """

    url: str
    deadline: float  # monotonic seconds
    timeout_seconds: float

    @classmethod
    def starting_now(cls, url: str, timeout_seconds: float) -> Attempts:
        """Return the attempts of a call that begins now."""
        return cls(url, time.monotonic() + timeout_seconds, timeout_seconds)

    def remaining_seconds(self) -> float:
        """Return the seconds until the deadline, at least a millisecond."""
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


class Api:
    """Parts that both clients share: the address, headers, request bodies and the parsing of answers."""

    def __init__(self, base_url: str, *, api_key: str | None, scenario: str | None, timeout_seconds: float) -> None:
        if not _is_base_url(base_url):
            raise ValueError(
                f"`base_url` must be http(s)://host[:port], without the path of a call, got {base_url!r}; "
                "for example http://scorer:8080"
            )
        require_seconds("timeout_seconds", timeout_seconds, remedy="leave it out for 2")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ValueError(
                "`api_key` must be of printable ASCII characters without blanks, got others (the key is not shown); "
                "check for a line end, and copy it as `headwater keys new` printed it"
            )
        self.base_url = base_url.rstrip("/")
        self.scenario, self.timeout_seconds = scenario, timeout_seconds
        self.headers = {"content-type": "application/json", "accept": "application/json"}
        if api_key is not None:
            self.headers["authorization"] = f"Bearer {api_key}"

    def body(self, fields: Mapping[str, Any]) -> bytes:
        """Encode the fields that were given; an argument of None is left to the scorer's default.

        Raises:
            TypeError: a field cannot be written as JSON.
        """
        named = {"scenario": self.scenario, **fields}
        return b"{" + b", ".join(_member(name, value) for name, value in named.items() if value is not None) + b"}"

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


def _is_base_url(url: object) -> bool:
    """Return whether the path of a call can be appended to a URL."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        return (
            parts is not None
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0  # a port that is not a number up to 65535 raises ValueError
            and not (parts.query or parts.fragment)
            and "/v1/" not in f"{parts.path}/"
        )
    except ValueError:
        return False


def _member(name: str, value: Any) -> bytes:
    try:
        return f"{json.dumps(name)}: {json.dumps(value)}".encode()
    except TypeError as error:
        raise TypeError(
            f"`{name}` must be of strings, numbers, lists and dicts, got {value!r:.100} ({error}); convert it"
        ) from None


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
        faults = [f"{each['pointer']}: {each['detail']}" for each in errors]
        detail = str(problem["detail"])
        return "; ".join([detail, *(fault for fault in faults if fault not in detail)]), errors
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:SHOWN_CHARS] or response.reason_phrase, ()

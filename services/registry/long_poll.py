"""Long polls for the next publication or rollout, with one reader of the store for all waiting requests."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool

POLL_SECONDS = 0.1

T = TypeVar("T")


@dataclass
class _CachedValue(Generic[T]):
    """The value of one scenario at the last read."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    read_at_seconds: float = float("-inf")
    value: T | None = None


class LongPoll(Generic[T]):
    """Long polls on a value that each scenario has one of.

    Args:
        read: returns the current value of a scenario; None while there is none.
        tag: returns a tag that differs between values.
        poll_seconds: the interval between reads of the store while a request waits.
    """

    def __init__(
        self, read: Callable[[str], T | None], tag: Callable[[T], str], *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._read, self._tag = read, tag
        self._poll_seconds = poll_seconds
        self._stopped = False
        # An entry lives while a request holds it, so that names that nobody waits for use no memory.
        self._cache: WeakValueDictionary[str, _CachedValue[T]] = WeakValueDictionary()

    def stop(self) -> None:
        """End all waits, present and future, before the process ends."""
        self._stopped = True

    async def newest(self, scenario: str, *, other_than: set[str], wait_seconds: float) -> T | None:
        """Return the value, at once if its tag is not in `other_than`, else when that changes or the time is up.

        Raises:
            RegistryError: the registry cannot be read, or the scenario's name is invalid.
            BundleError: the manifest is damaged.
        """
        deadline_seconds = time.monotonic() + wait_seconds
        cached = self._cache.setdefault(scenario, _CachedValue())
        value = await self._read_cached(cached, scenario, max_age_seconds=0)
        while self._is_unchanged(value, other_than) and not self._stopped and time.monotonic() < deadline_seconds:
            await asyncio.sleep(self._poll_seconds)
            # A shared read is good enough to find nothing new; an answer must be no older than its request.
            if not self._is_unchanged(
                await self._read_cached(cached, scenario, max_age_seconds=self._poll_seconds), other_than
            ):
                value = await self._read_cached(cached, scenario, max_age_seconds=0)
        return value

    async def _read_cached(self, cached: _CachedValue[T], scenario: str, *, max_age_seconds: float) -> T | None:
        oldest_seconds = time.monotonic() - max_age_seconds
        async with cached.lock:
            if cached.read_at_seconds < oldest_seconds:
                read_at_seconds = time.monotonic()
                cached.value = await run_in_threadpool(self._read, scenario)
                cached.read_at_seconds = read_at_seconds
            return cached.value

    def _is_unchanged(self, value: T | None, known: set[str]) -> bool:
        return value is None or self._tag(value) in known

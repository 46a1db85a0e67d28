"""Waiting for the next publication or rollout: however many wait, the store has one reader."""

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
class _Sight(Generic[T]):
    """What holds for one scenario, as it was when last looked at."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    looked_at_seconds: float = float("-inf")
    value: T | None = None


class LongPoll(Generic[T]):
    """Long polls on something that each scenario has one of.

    Args:
        read: Gives it as it is now; None while there is none.
        tag: Tells one from the next.
        poll_seconds: How often the store is asked while anyone waits.
    """

    def __init__(
        self, read: Callable[[str], T | None], tag: Callable[[T], str], *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._read, self._tag = read, tag
        self._poll_seconds = poll_seconds
        self._stopped = False
        # An entry lives while a request holds it, so that names nobody waits for take no room.
        self._sights: WeakValueDictionary[str, _Sight[T]] = WeakValueDictionary()

    def stop(self) -> None:
        """End all waits, now and from now on: the process is about to go."""
        self._stopped = True

    async def newest(self, scenario: str, *, other_than: set[str], wait_seconds: float) -> T | None:
        """Return what holds, at once if its tag is none of `other_than`, else when it is or time is up.

        Raises:
            RegistryError: The registry cannot be read, or the scenario's name is out of the question.
            BundleError: The manifest is damaged.
        """
        deadline_seconds = time.monotonic() + wait_seconds
        sight = self._sights.setdefault(scenario, _Sight())
        value = await self._look(sight, scenario, max_age_seconds=0)
        while self._is_old(value, other_than) and not self._stopped and time.monotonic() < deadline_seconds:
            await asyncio.sleep(self._poll_seconds)
            # A shared look is good enough to find nothing new; what is answered must be no older than the question.
            if not self._is_old(await self._look(sight, scenario, max_age_seconds=self._poll_seconds), other_than):
                value = await self._look(sight, scenario, max_age_seconds=0)
        return value

    async def _look(self, sight: _Sight[T], scenario: str, *, max_age_seconds: float) -> T | None:
        oldest_seconds = time.monotonic() - max_age_seconds
        async with sight.lock:
            if sight.looked_at_seconds < oldest_seconds:
                looked_at_seconds = time.monotonic()
                sight.value = await run_in_threadpool(self._read, scenario)
                sight.looked_at_seconds = looked_at_seconds
            return sight.value

    def _is_old(self, value: T | None, known: set[str]) -> bool:
        return value is None or self._tag(value) in known

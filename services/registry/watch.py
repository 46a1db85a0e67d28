"""Waiting for the next publication: however many wait, the store has one reader."""

import asyncio
import time
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool

from peft_adapters.manifest import Manifest
from peft_adapters.registry import AdapterRegistry

POLL_SECONDS = 0.1


@dataclass
class _Sight:
    """The latest version of one scenario, as it was when last looked at."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    looked_at_seconds: float = float("-inf")
    manifest: Manifest | None = None


class LatestWatcher:
    """Long polls on the latest versions.

    Args:
        registry: Where to look.
        poll_seconds: How often the store is asked while anyone waits.
    """

    def __init__(self, registry: AdapterRegistry, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._registry = registry
        self._poll_seconds = poll_seconds
        self._stopped = False
        # An entry lives while a request holds it, so that names nobody waits for take no room.
        self._sights: WeakValueDictionary[str, _Sight] = WeakValueDictionary()

    def stop(self) -> None:
        """End all waits, now and from now on: the process is about to go."""
        self._stopped = True

    async def latest(self, scenario: str, *, other_than: set[str], wait_seconds: float) -> Manifest | None:
        """Return the latest manifest, at once if its digest is none of `other_than`, else when it is or time is up.

        Raises:
            RegistryError: The registry cannot be read, or the scenario's name is out of the question.
            BundleError: The manifest is damaged.
        """
        deadline_seconds = time.monotonic() + wait_seconds
        sight = self._sights.setdefault(scenario, _Sight())
        manifest = await self._look(sight, scenario, max_age_seconds=0)
        while _is_old(manifest, other_than) and not self._stopped and time.monotonic() < deadline_seconds:
            await asyncio.sleep(self._poll_seconds)
            # A shared look is good enough to find nothing new; what is answered must be no older than the question.
            if not _is_old(await self._look(sight, scenario, max_age_seconds=self._poll_seconds), other_than):
                manifest = await self._look(sight, scenario, max_age_seconds=0)
        return manifest

    async def _look(self, sight: _Sight, scenario: str, *, max_age_seconds: float) -> Manifest | None:
        oldest_seconds = time.monotonic() - max_age_seconds
        async with sight.lock:
            if sight.looked_at_seconds < oldest_seconds:
                looked_at_seconds = time.monotonic()
                sight.manifest = await run_in_threadpool(self._registry.latest, scenario)
                sight.looked_at_seconds = looked_at_seconds
            return sight.manifest


def _is_old(manifest: Manifest | None, known_digests: set[str]) -> bool:
    return manifest is None or manifest.digest in known_digests

"""The end of a worse canary: at once in this worker, then in the registry for all workers."""

from collections.abc import Callable

import structlog

from peft_adapters.errors import RegistryError
from peft_adapters.registry.rollout import TEXT_LIMIT, Rollout
from services.registry.changes import EndCanary
from services.registry.client import DirectClient, HttpClient, RegistryClient
from services.scorer.announcements import Announcements
from services.settings import Settings

BY = "headwater scorer"

log = structlog.get_logger(__name__)


def canary_ender(settings: Settings, announcements: Announcements) -> Callable[[Rollout, str], None]:
    """Return a function that ends a canary, given its rollout and the reason.

    Args:
        settings: all settings; a registry process requires a key of the scope `admin`.
        announcements: the announcements of this worker.
    """
    url, key = settings.scorer.registry_url, settings.registry.plain_key()
    over_http = url.startswith(("http://", "https://"))
    client: RegistryClient = HttpClient(url, key) if over_http else DirectClient(settings, url)

    def end(rollout: Rollout, why: str) -> None:
        why = why[:TEXT_LIMIT]
        announcements.update_rollout(rollout.with_canary(None, latest=0, changed_by=BY, reason=why))
        try:
            client.change(rollout.scenario, EndCanary(if_revision=rollout.revision, reason=why))
        except RegistryError as error:  # another worker was faster, or this one may not write
            log.warning(
                "canary_not_ended_in_registry",
                scenario=rollout.scenario,
                problem=str(error),
                remedy="this worker serves the stable version alone; if the canary still stands, end it by command",
            )
            return
        log.warning("canary_ended", scenario=rollout.scenario, why=why)

    return end

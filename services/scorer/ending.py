"""Ends a canary that is worse: at once in this worker, then in the registry for all."""

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


def ends_canaries(settings: Settings, announcements: Announcements) -> Callable[[Rollout, str], None]:
    """What is to be called with the rollout of a canary that is worse, and why.

    Args:
        settings: Which registry; a registry process asks for a key of the scope `admin`.
        announcements: Of this worker.
    """
    url, key = settings.scorer.registry_url, settings.registry.plain_key()
    over_http = url.startswith(("http://", "https://"))
    access: RegistryClient = HttpClient(url, key) if over_http else DirectClient(settings, url)

    def end(rollout: Rollout, why: str) -> None:
        why = why[:TEXT_LIMIT]
        announcements.offer_rollout(rollout.with_canary(None, latest=0, changed_by=BY, reason=why))
        try:
            access.change(rollout.scenario, EndCanary(if_revision=rollout.revision, reason=why))
        except RegistryError as error:  # another worker was quicker, or this one may not write
            log.warning(
                "canary_not_ended_in_registry",
                scenario=rollout.scenario,
                problem=str(error),
                remedy="this worker serves the stable version alone; if the canary still stands, end it by command",
            )
            return
        log.warning("canary_ended", scenario=rollout.scenario, why=why)

    return end

"""The collector process, from settings to serving."""

from contextlib import closing

import structlog

from services.collector.app import create_app
from services.collector.forwarder import Forwarder
from services.collector.spool import Spool
from services.metrics.collector import CollectorMetrics
from services.metrics.series import new_registry
from services.settings import Settings
from services.web.access.install import AccessRules
from services.web.server import serve

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Collect events until SIGTERM or SIGINT. Events that Kafka does not have by then wait for the next start.

    Args:
        settings: the settings of the process.

    Raises:
        KeysError: the keys file cannot be used.
        SpoolError: the spool cannot be opened, or another collector uses it.
        ServeError: the address cannot be listened on.
    """
    section = settings.collector
    series = new_registry()
    metrics = CollectorMetrics(series)
    spool = Spool(section.spool_path, max_events=section.spool_max_events, max_bytes=section.spool_max_bytes)
    with closing(spool):
        log.info("collector_starting", spool_path=str(section.spool_path), waiting_events=len(spool))
        forwarder = Forwarder(spool, settings.kafka, settings.topics, metrics)
        with forwarder.running(grace_seconds=section.flush_grace_seconds):
            access = AccessRules.from_settings(settings.limits, settings.security)
            serve(create_app(spool, forwarder, section, metrics, series, access=access), section.host, section.port)

"""The command `headwater collector`."""

from contextlib import closing

import structlog

from services.collector.app import create_app
from services.collector.forwarder import Forwarder
from services.collector.spool import Spool
from services.metrics.collector import CollectorMetrics
from services.metrics.series import new_registry
from services.settings import Settings
from services.web.access.wiring import Access
from services.web.server import serve

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Collects events until SIGTERM or SIGINT; what Kafka has not taken by then waits for the next start.

    Args:
        settings: All of them.

    Raises:
        KeysError: The keys file cannot be used.
        SpoolError: The spool cannot be opened, or another collector has it.
        ServeError: The address cannot be listened on.
    """
    ours = settings.collector
    series = new_registry()
    metrics = CollectorMetrics(series)
    spool = Spool(ours.spool_path, max_events=ours.spool_max_events, max_bytes=ours.spool_max_bytes)
    with closing(spool):
        log.info("collector_starting", spool_path=str(ours.spool_path), waiting_events=len(spool))
        forwarder = Forwarder(spool, settings.kafka, settings.topics, metrics)
        with forwarder.running(grace_seconds=ours.flush_grace_seconds):
            access = Access.of(settings.limits, settings.security)
            serve(create_app(spool, forwarder, ours, metrics, series, access=access), ours.host, ours.port)

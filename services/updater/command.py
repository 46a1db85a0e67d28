"""`headwater updater`."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import structlog
import torch

from services.metrics.series import new_registry
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings
from services.updater.loop import Updater
from services.web.access.install import AccessRules
from services.web.metrics_server import start_metrics_server
from streams.connection import wait_for_broker

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Learn until SIGTERM or SIGINT, or until `updater.max_events` are learnt."""
    stop = threading.Event()

    def ask_to_stop(number: int, _frame: FrameType | None) -> None:
        log.info("signal_received", signal=signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    torch.set_num_threads(settings.updater.torch_threads)
    registry = new_registry()
    metrics = UpdaterMetrics(registry, topics=settings.topics)
    ours, access = settings.updater, AccessRules.from_settings(settings.limits, settings.security)
    server = start_metrics_server(registry, ours.metrics_host, ours.metrics_port, access=access)
    try:
        wait_for_broker(settings.kafka, stop=stop)
        if not stop.is_set():
            Updater(settings, metrics, stop).run()
    finally:
        server.close()

"""The process `headwater state-writer`."""

from __future__ import annotations

import signal
from contextlib import closing
from types import FrameType

import structlog

from services.metrics.series import new_registry
from services.metrics.state_writer import StateWriterMetrics
from services.settings import Settings
from services.state.client import display_url
from services.state.store import StateStore
from services.state.writer import StateWriter
from services.web.access.install import AccessRules
from services.web.metrics_server import start_metrics_server
from streams.privacy import pseudonymiser

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Write shoppers' states until SIGTERM or SIGINT.

    Raises:
        SecretError: the secret for pseudonyms is missing, or is not the deployment's.
        ServeError: the address of the metrics page cannot be bound.
        StateError: the client library is not installed, or the address of Redis is invalid.
    """
    registry = new_registry()
    pseudonymise = pseudonymiser(settings.privacy)
    state = settings.state
    with closing(
        StateStore(state, fingerprint=pseudonymise.fingerprint(), timeout_seconds=state.write_timeout_seconds)
    ) as store:
        writer = StateWriter(
            settings.kafka,
            settings.topics,
            store,
            look_back_events=state.look_back_events,
            pseudonymise=pseudonymise,
            metrics=StateWriterMetrics(registry),
            clock=settings.clock,
        )

        def request_stop(number: int, _frame: FrameType | None) -> None:
            log.info("signal_received", signal=signal.Signals(number).name)
            writer.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, request_stop)
        access = AccessRules.from_settings(settings.limits, settings.security)
        log.info("state_writer_starting", redis=display_url(state))
        with closing(start_metrics_server(registry, state.metrics_host, state.metrics_port, access=access)):
            writer.run()

"""Metrics of the updater."""

from prometheus_client import CollectorRegistry

from services.metrics.adapter import AdapterMetrics
from services.metrics.drift import DriftMetrics
from services.metrics.gate import GateMetrics
from services.metrics.intake import IntakeMetrics
from services.metrics.learning import LearningMetrics
from services.metrics.log import ConsumedLogMetrics
from streams.topics import Topics


class UpdaterMetrics:
    """Events consumed, micro-batches learnt and adapters published by the updater.

    Args:
        registry: the registry where the series are declared.
        topics: the topics to export at 0 from the start; None takes the default names.

    Attributes:
        intake: events, dead letters, watermarks and the guard against abuse.
        log: lag and readability of the consumed topics.
        learning: micro-batches, step times and quality.
        gate: decisions on candidate adapters.
        drift: drift alarms and the response to them.
        adapter: version and freshness of the adapter published last.
    """

    def __init__(self, registry: CollectorRegistry, *, topics: Topics | None = None) -> None:
        names = topics or Topics()
        consumed = (names.impressions, names.clicks, names.purchases, names.items, names.control, *names.dialects)
        self.intake = IntakeMetrics(registry, consumed)
        self.log = ConsumedLogMetrics(registry, consumed)
        self.learning = LearningMetrics(registry)
        self.gate = GateMetrics(registry)
        self.drift = DriftMetrics(registry)
        self.adapter = AdapterMetrics(registry)

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
        # Aliases until all call sites use the verbs of the parts.
        self.events, self.events_pending = self.intake._events, self.intake._events_pending
        self.dead_letters, self.late_events = self.intake._dead_letters, self.intake._late_events
        self.clamped_times = self.intake._clamped_times
        self.event_watermark_timestamp_seconds = self.intake._event_watermark_timestamp_seconds
        self.partition_watermark_timestamp_seconds = self.intake._partition_watermark_timestamp_seconds
        self.downweighted, self.quarantined = self.intake._downweighted, self.intake._quarantined
        self.in_quarantine = self.intake._in_quarantine
        self.topic_readable, self.log_changes = self.log._topics._readable, self.log._changes
        self.consumer_lag_records, self.records_waiting = self.log._lag_records, self.log._records_waiting
        self.late_slices, self.learn_seconds = self.learning._lagging_slices, self.learning._learn_seconds
        self.batches, self.batches_set_aside = self.learning._batches, self.learning._batches_set_aside
        self.publish_seconds = self.learning._publish_seconds
        self.checkpoint_seconds = self.learning._checkpoint_seconds
        self.prequential, self.calibration_error = self.learning._prequential, self.learning._calibration_error
        self.catalogue_items = self.learning._catalogue_items
        self.adapters, self.gate_refusals = self.gate._adapters, self.gate._refusals
        self.gate_figures = self.gate._figures
        self.rollbacks, self.gate_refusals_in_a_row = self.gate._rollbacks, self.gate._refusals_in_a_row
        self.drift_alarms, self.drift_ended = self.drift._alarms, self.drift._ended
        self.drift_recovery_events, self.drift_recovering = self.drift._recovery_events, self.drift._recovering
        self.drift_rate_factor = self.drift._rate_factor

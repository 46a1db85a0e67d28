"""Every metric of every process, in one place.

A process builds one registry with `new_registry`, one of the classes below over it, and counts on that object's
attributes. Units are base units, labels are bounded, points in time are exported as times (never as ages, which a
stopped process would freeze), and every series whose labels are known beforehand is there at 0 from the start.

A process that resumes from a checkpoint raises its counters to what the checkpoint counted, so that the identity
``in = the sum of all other outcomes + pending`` holds on each scrape, not only on a first run.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

from streams.events import MODELS
from streams.guard import KINDS, RULES
from streams.offsets import topic_of
from streams.topics import Topics

EVENT_OUTCOMES = (
    "in",
    "learnt",
    "dead_letter",
    "duplicate",
    "expired",
    "ignored",
    "forgotten",
    "quarantined",
    "capped",
    "missed",
)
LOG_CHANGES = ("recreated", "truncated")
LATENESS_SECONDS = (10, 60, 600, 3_600, 86_400)
QUALITY_METRICS = ("roc_auc", "log_loss", "ndcg10", "hr20", "normalised_entropy")
GATE_RULES = ("not_finite", "bound", "loss", "norm", "calibration")
DRIFT_DETECTORS = ("adwin", "page_hinkley")
DEAD_LETTER_REASONS = (
    "malformed_json",
    "invalid_schema",
    "unknown_version",
    "oversized",
    "wrong_key",
    "unknown_topic",
    "wrong_vector",
    "from_the_future",
)
ROLLOUT_ARMS = ("stable", "canary", "shadow")
SCORER_ROUTES = (
    *("/v1/rank", "/v1/recommend", "/v1/batch", "/v1/items/{item_id:path}/similar"),
    *("/v1/search", "/v1/answer"),
)
ROLLOUT_CHANGES = ("pin", "unpin", "rollback", "canary", "canary/end", "shadow", "shadow/end", "promote")
REGISTRY_ROUTES = (
    "/v1/adapters/{scenario}",
    "/v1/adapters/{scenario}/latest",
    "/v1/adapters/{scenario}/rollout",
    "/v1/adapters/{scenario}/diff",
    "/v1/adapters/{scenario}/{version:int}",
    *(f"/v1/adapters/{{scenario}}/{change}" for change in ROLLOUT_CHANGES),
    "/v1/files/{scenario}/LATEST",
    "/v1/files/{scenario}/ROLLOUT.json",
    "/v1/files/{scenario}/manifests.json",
    "/v1/files/{scenario}/{version}/{file}",
)
COLLECTOR_ROUTES = ("/v1/events",)
COLLECTOR_OUTCOMES = ("accepted", "rejected", "refused_full")
KEY_REASONS = ("missing", "unknown", "expired", "revoked", "scope")
SLOW_OVER = ("head", "body", "answer", "connections")
DEPENDENCIES = ("kafka", "registry", "adapter", "state", "catalogue")
UNKNOWN_KIND = "unknown"
OTHER_ROUTE = "other"

REQUEST_BUCKETS_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
WORK_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def new_registry() -> CollectorRegistry:
    """Makes the registry of one process, with its memory, CPU time, open files and Python version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class AdapterMetrics:
    """Which adapter a process stands at, and how fresh it is: the same three series in updater and scorer.

    Args:
        registry: Where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.version = Gauge(
            "headwater_adapter_version", "Version of the adapter published or served last.", registry=registry
        )
        self.published_timestamp_seconds = Gauge(
            "headwater_adapter_published_timestamp_seconds", "When that adapter was published.", registry=registry
        )
        self.watermark_timestamp_seconds = Gauge(
            "headwater_adapter_watermark_timestamp_seconds",
            "Event time up to which that adapter has learnt.",
            registry=registry,
        )

    def stand_at(self, version: int, *, published_at_ms: int, watermark_ms: int) -> None:
        """Moves the three series to another adapter.

        Args:
            version: Its version.
            published_at_ms: When it was published, epoch milliseconds.
            watermark_ms: Event time up to which it has learnt, epoch milliseconds.
        """
        self.version.set(version)
        self.published_timestamp_seconds.set(published_at_ms / 1000)
        self.watermark_timestamp_seconds.set(watermark_ms / 1000)


class UpdaterMetrics:
    """What the updater took in, what became of it, what it published.

    Args:
        registry: Where the series are declared.
        topics: The topics whose series are there at 0 from the start.
    """

    def __init__(self, registry: CollectorRegistry, *, topics: Topics | None = None) -> None:
        names = topics or Topics()
        self.events = Counter(
            "headwater_events_total",
            "Events by topic and what became of them: in = the sum of all other outcomes + pending.",
            ["topic", "outcome"],
            registry=registry,
        )
        self.events_pending = Gauge(
            "headwater_events_pending", "Events taken in and not yet settled.", ["topic"], registry=registry
        )
        read = (names.impressions, names.clicks, names.purchases, names.items, names.control, *names.dialects)
        for topic in read:
            self.events_pending.labels(topic)
            for outcome in EVENT_OUTCOMES:
                self.events.labels(topic, outcome)
        self.dead_letters = Counter(
            "headwater_dead_letters_total", "Events refused, by reason.", ["reason"], registry=registry
        )
        for reason in DEAD_LETTER_REASONS:
            self.dead_letters.labels(reason)
        self.event_watermark_timestamp_seconds = Gauge(
            "headwater_event_watermark_timestamp_seconds", "Latest event time taken in.", registry=registry
        )
        self.partition_watermark_timestamp_seconds = Gauge(
            "headwater_partition_watermark_timestamp_seconds",
            "Latest event time taken in, by partition; the earliest of those not idle closes windows.",
            ["topic", "partition"],
            registry=registry,
        )
        self.late_events = Counter(
            "headwater_late_events_total",
            "Events behind the watermark, by how much at most.",
            ["topic", "late_by"],
            registry=registry,
        )
        self.clamped_times = Counter(
            "headwater_clamped_times_total",
            "Records whose event or record time lay ahead of the reader's clock and was replaced by it.",
            ["topic"],
            registry=registry,
        )
        for topic in read:
            self.clamped_times.labels(topic)
        self.consumer_lag_records = Gauge(
            "headwater_consumer_lag_records",
            "Records in the log and not yet learnt, those behind an open transaction included.",
            ["topic", "partition"],
            registry=registry,
        )
        self._declare_log(registry, names)
        self._declare_guard(registry)
        self.records_waiting = Gauge(
            "headwater_records_waiting", "Records read and waiting for their micro-batch to close.", registry=registry
        )
        self.catalogue_items = _catalogue_items(registry)
        self._declare_learning(registry)
        self.adapter = AdapterMetrics(registry)

    def _declare_log(self, registry: CollectorRegistry, names: Topics) -> None:
        """Declare what shows the state of the topics that are read."""
        self.topic_readable = _topic_readable(registry)
        for topic in (names.impressions, names.clicks, names.purchases, names.items, names.control, *names.dialects):
            self.topic_readable.labels(topic).set(1)
        self.log_changes = Counter(
            "headwater_log_changes_total",
            "Topics found recreated, and partitions found shorter than what had been read of them.",
            ["change"],
            registry=registry,
        )
        for change in LOG_CHANGES:
            self.log_changes.labels(change)

    def _declare_guard(self, registry: CollectorRegistry) -> None:
        """Declares what counts abuse, and what was done about it."""
        self.downweighted = Counter(
            "headwater_guard_downweighted_total",
            "Events and lists that count less or not at all, by the guard's rule.",
            ["rule"],
            registry=registry,
        )
        for rule in RULES:
            self.downweighted.labels(rule)
        self.quarantined = Counter(
            "headwater_quarantined_total", "Users and items that went into quarantine.", ["kind"], registry=registry
        )
        self.in_quarantine = Gauge(
            "headwater_quarantine_keys", "Users and items in quarantine.", ["kind"], registry=registry
        )
        for kind in KINDS:
            self.quarantined.labels(kind)
            self.in_quarantine.labels(kind)

    def _declare_learning(self, registry: CollectorRegistry) -> None:
        """Declares what counts and times the steps after the intake."""
        self.batches = Counter("headwater_batches_total", "Micro-batches learnt.", registry=registry)
        self.batches_set_aside = Counter(
            "headwater_batches_set_aside_total",
            "Micro-batches whose loss was not finite: counted, not learnt.",
            registry=registry,
        )
        self.late_slices = Counter(
            "headwater_late_slices_total",
            "Slices of the log learnt without LoRA, and little judged, because learning is late.",
            registry=registry,
        )
        self.learn_seconds = _timed("headwater_learn_seconds", "Time to learn from one micro-batch.", registry)
        self.checkpoint_seconds = _timed("headwater_checkpoint_seconds", "Time to write one checkpoint.", registry)
        self.publish_seconds = _timed("headwater_publish_seconds", "Time to publish one adapter.", registry)
        self.adapters = Counter(
            "headwater_adapters_total", "Candidate adapters by the gate's decision.", ["outcome"], registry=registry
        )
        for outcome in ("published", "refused"):
            self.adapters.labels(outcome)
        self._declare_gate(registry)
        self._declare_drift(registry)
        self.prequential = Gauge(
            "headwater_prequential",
            "Quality of the model on events it had not yet learnt from.",
            ["metric"],
            registry=registry,
        )
        for metric in QUALITY_METRICS:
            self.prequential.labels(metric)
        self.calibration_error = Gauge(
            "headwater_calibration_error",
            "Mean distance of predicted from observed probability in lists not yet learnt from, 15 bins; a head that "
            "has learnt nothing has none.",
            ["scenario", "head"],
            registry=registry,
        )

    def _declare_gate(self, registry: CollectorRegistry) -> None:
        """Declares what says why candidates were refused, and what followed."""
        self.gate_refusals = Counter(
            "headwater_gate_refusals_total", "Rules that refused candidates broke.", ["rule"], registry=registry
        )
        for rule in GATE_RULES:
            self.gate_refusals.labels(rule)
        self.gate_figures = Gauge(
            "headwater_gate",
            "Figures of the newest candidate: nats of loss above the live adapter's, predicted over observed.",
            ["figure"],
            registry=registry,
        )
        self.gate_refusals_in_a_row = Gauge(
            "headwater_gate_refusals_in_a_row", "Candidates refused since one passed.", registry=registry
        )
        self.rollbacks = Counter(
            "headwater_rollbacks_total", "Times that the learner went back to a published state.", registry=registry
        )

    def _declare_drift(self, registry: CollectorRegistry) -> None:
        """Declares what counts drift, what was done about it, and how it ended."""
        self.drift_alarms = Counter(
            "headwater_drift_alarms_total", "Alarms that losses rose.", ["detector"], registry=registry
        )
        for detector in DRIFT_DETECTORS:
            self.drift_alarms.labels(detector)
        self.drift_rate_factor = Gauge(
            "headwater_drift_rate_factor", "Learning rates over what they are without an alarm.", registry=registry
        )
        self.drift_rate_factor.set(1)
        self.drift_recovering = Gauge(
            "headwater_drift_recovering", "1 from an alarm until losses are back, else 0.", registry=registry
        )
        self.drift_recovery_events = Gauge(
            "headwater_drift_recovery_events",
            "Events from the newest alarm that is over to its end.",
            registry=registry,
        )
        self.drift_ended = Counter(
            "headwater_drift_ended_total",
            "Alarms that are over: losses are back where they were, or have settled higher.",
            ["how"],
            registry=registry,
        )
        for how in ("recovered", "settled"):
            self.drift_ended.labels(how)


class RequestMetrics:
    """HTTP requests by route template and status; whatever has no known route counts as `other`.

    Args:
        registry: Where the series are declared.
        routes: The route templates of the process.
        statuses: The statuses whose series are there at 0 from the start.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        routes: Sequence[str],
        statuses: Sequence[str] = ("200", "422", "500", "503"),
    ) -> None:
        self.requests = Counter(
            "headwater_requests_total", "HTTP requests answered.", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "headwater_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ["route"],
            buckets=REQUEST_BUCKETS_SECONDS,
            registry=registry,
        )
        self._routes = frozenset(routes)
        for route, status in product(routes, statuses):
            self.requests.labels(route, status)
            self.request_seconds.labels(route)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Counts one answered request.

        Args:
            route: Its route template, such as `/v1/rank`.
            status: The HTTP status of the answer.
            seconds: How long it took.
        """
        label = route if route in self._routes else OTHER_ROUTE
        self.requests.labels(label, str(status)).inc()
        self.request_seconds.labels(label).observe(seconds)


class AccessMetrics:
    """Whom a process that answers HTTP turned away, and how full it is.

    Args:
        registry: Where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.turned_away = Counter(
            "headwater_turned_away_total", "Requests turned away for want of a good key.", ["reason"], registry=registry
        )
        for reason in KEY_REASONS:
            self.turned_away.labels(reason)
        self.keys_file_problem = Gauge(
            "headwater_keys_file_problem",
            "1 while the keys file cannot be used and those read before it count, else 0.",
            registry=registry,
        )
        self.in_flight = Gauge("headwater_requests_in_flight", "Requests that are being answered.", registry=registry)
        self.shed = Counter(
            "headwater_requests_shed_total", "Requests answered 503 because too many were in flight.", registry=registry
        )
        self.late = Counter(
            "headwater_requests_late_total", "Requests answered 503 because their time was up.", registry=registry
        )
        self.slow_clients = Counter(
            "headwater_slow_clients_total",
            "Clients given up: too long over the head or the body of a request, or over reading an answer; or one "
            "connection too many.",
            ["over"],
            registry=registry,
        )
        for over in SLOW_OVER:
            self.slow_clients.labels(over)


class ScorerMetrics:
    """What a scorer answered, from which adapter, and how its swaps went.

    Args:
        registry: Where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http = RequestMetrics(registry, routes=SCORER_ROUTES)
        self.access = AccessMetrics(registry)
        self.adapter = AdapterMetrics(registry)
        self.swaps = Counter(
            "headwater_swaps_total", "Announced adapters, by what became of them.", ["outcome"], registry=registry
        )
        for outcome in ("swapped", "refused"):
            self.swaps.labels(outcome)
        self.swap_seconds = _timed("headwater_swap_seconds", "Time from an announcement to the flip.", registry)
        self.items = Gauge("headwater_items", "Items that can be ranked.", registry=registry)
        self.catalogue_items = _catalogue_items(registry)
        self.unused_vectors = Gauge(
            "headwater_unused_vectors",
            "Vectors of items that have another length than the adapter takes; the items are served by their texts.",
            registry=registry,
        )
        self.dependencies = Gauge(
            "headwater_dependency_available",
            "1 while what a scorer depends on answers, 0 while it goes on without it.",
            ["dependency"],
            registry=registry,
        )
        self.topic_readable = _topic_readable(registry)
        self._topics: set[str] = set()
        self.stand_with({})
        self.state_users = Gauge("headwater_state_users", "Users whose state is held.", registry=registry)
        self.state = StateMetrics(registry)
        self.rollouts = RolloutMetrics(registry)

    def stand_with(self, problems: Mapping[str, str]) -> None:
        """Sets what answers and what does not.

        Args:
            problems: Of each dependency that has one.
        """
        for name in DEPENDENCIES:
            self.dependencies.labels(name).set(name not in problems)
        unreadable = {name.split("/")[1] for name in problems if name.startswith("kafka/")}
        self._topics |= unreadable
        for topic in self._topics:
            self.topic_readable.labels(topic).set(topic not in unreadable)

    def declare_topics(self, topics: Iterable[str]) -> None:
        """Show topics that are read as readable, until a problem says otherwise."""
        self._topics |= set(topics)
        self.stand_with({})


class StateMetrics:
    """How a scorer fares with shoppers' states that are kept elsewhere.

    Args:
        registry: Where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reads = Counter(
            "headwater_state_reads_total",
            "Shoppers' states asked for, by where they came from: the store, what is held of it, or nowhere.",
            ["source"],
            registry=registry,
        )
        for source in ("store", "held", "none"):
            self.reads.labels(source)
        self.read_seconds = Histogram(
            "headwater_state_read_seconds",
            "Time that the store took for one state.",
            buckets=REQUEST_BUCKETS_SECONDS,
            registry=registry,
        )
        self.available = Gauge(
            "headwater_state_available",
            "1 while the store of shoppers' states answers and is kept up to date, else 0.",
            registry=registry,
        )
        self.refused = Counter(
            "headwater_state_refused_total", "Entries of the store that are none, and were left out.", registry=registry
        )


def _topic_readable(registry: CollectorRegistry) -> Gauge:
    return Gauge(
        "headwater_topic_readable",
        "1 if a topic can be read; 0 if it is missing, or a part of it cannot be read.",
        ["topic"],
        registry=registry,
    )


class StateWriterMetrics:
    """What the writer of shoppers' states wrote.

    Args:
        registry: Where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.events = Counter(
            "headwater_state_events_total",
            "Events by what became of them: written by kind, or left out because their shopper is to be forgotten.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("click", "purchase", "forgotten"):
            self.events.labels(outcome)
        self.failures = Counter(
            "headwater_state_write_failures_total",
            "Times that writing ended because something failed.",
            registry=registry,
        )
        self.writing = Gauge(
            "headwater_state_writing", "1 while this writer writes, 0 while it stands by.", registry=registry
        )
        self.write_seconds = _timed("headwater_state_write_seconds", "Time of one transaction.", registry)
        self.watermark_timestamp_seconds = Gauge(
            "headwater_state_watermark_timestamp_seconds", "Event time of the newest event written.", registry=registry
        )
        self.topic_readable = _topic_readable(registry)

    def show_topics(self, topics: Iterable[str], problems: Iterable[str]) -> None:
        """Show which topics can be read.

        Args:
            topics: All that are read.
            problems: Those that cannot be read, as a topic or as `topic/partition`.
        """
        unreadable = {topic_of(name) for name in problems}
        for topic in topics:
            self.topic_readable.labels(topic).set(topic not in unreadable)


class RolloutMetrics:
    """What each arm of a scenario serves: the stable version, a canary, a shadow.

    Args:
        registry: Where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.arm_version = Gauge(
            "headwater_arm_version", "Version that an arm holds.", ["scenario", "arm"], registry=registry
        )
        self.canary_share = Gauge(
            "headwater_canary_share_ratio",
            "Share of shoppers that the canary answers.",
            ["scenario"],
            registry=registry,
        )
        self.revision = Gauge(
            "headwater_rollout_revision", "Revision of the rollout that is obeyed.", ["scenario"], registry=registry
        )
        self.answer_seconds = Histogram(
            "headwater_arm_answer_seconds",
            "Time to make an answer, without HTTP.",
            ["scenario", "arm"],
            buckets=REQUEST_BUCKETS_SECONDS,
            registry=registry,
        )
        self.shadow_answers = Counter(
            "headwater_shadow_answers_total",
            "Answers that a shadow was to make, too, by what became of that.",
            ["scenario", "outcome"],
            registry=registry,
        )
        self.shadow_overlap = Gauge(
            "headwater_shadow_overlap_ratio",
            "Share of the best ten that a shadow has, too; running mean of about 50 answers.",
            ["scenario"],
            registry=registry,
        )
        self.shadow_difference = Gauge(
            "headwater_shadow_score_difference",
            "Mean distance of a shadow's scores from those answered, constant aside; running mean of about 50 answers.",
            ["scenario"],
            registry=registry,
        )

        self.canary_lists = Gauge(
            "headwater_canary_lists",
            "Lists counted since this worker watches the canary.",
            ["scenario", "arm"],
            registry=registry,
        )
        self.canary_click_through = Gauge(
            "headwater_canary_click_through_ratio", "Share of them clicked.", ["scenario", "arm"], registry=registry
        )
        self.canary_p_value = Gauge(
            "headwater_canary_p_value",
            "Always-valid p of the canary's lower click-through; 1 until there are enough shoppers.",
            ["scenario"],
            registry=registry,
        )
        self.canary_rollbacks = Counter(
            "headwater_canary_rollbacks_total",
            "Canaries that were ended for being worse.",
            ["scenario"],
            registry=registry,
        )

    def show_arm(self, scenario: str, arm: str, *, lists: int, click_through: float) -> None:
        """Says how an arm of a canary's trial stands.

        Args:
            scenario: Which ranking.
            arm: `stable` or `canary`.
            lists: How many were counted.
            click_through: Share of them clicked.
        """
        self.canary_lists.labels(scenario, arm).set(lists)
        self.canary_click_through.labels(scenario, arm).set(click_through)

    def end_trial(self, scenario: str) -> None:
        """Shows a canary's trial no more.

        Args:
            scenario: Whose canary has ended.
        """
        self.canary_p_value.remove(scenario)
        for arm in ROLLOUT_ARMS:
            self.canary_lists.remove(scenario, arm)
            self.canary_click_through.remove(scenario, arm)

    def show(self, scenario: str, revision: int, share: float, versions: Mapping[str, int]) -> None:
        """Says what a scenario serves now.

        Args:
            scenario: Which ranking.
            revision: Of the rollout that is obeyed.
            share: Of shoppers whom the canary answers, 0 to 1.
            versions: The version of each arm that has one.
        """
        self.revision.labels(scenario).set(revision)
        self.canary_share.labels(scenario).set(share if "canary" in versions else 0.0)
        for arm in ROLLOUT_ARMS:
            if arm in versions:
                self.arm_version.labels(scenario, arm).set(versions[arm])
            else:
                self.arm_version.remove(scenario, arm)

    def let_go(self, scenario: str) -> None:
        """Shows a scenario no more.

        Args:
            scenario: One that is not held any longer.
        """
        for gauge in (self.revision, self.canary_share, self.shadow_overlap, self.shadow_difference):
            gauge.remove(scenario)
        for arm in ROLLOUT_ARMS:
            self.arm_version.remove(scenario, arm)
            self.answer_seconds.remove(scenario, arm)


class RegistryMetrics:
    """What the registry process answered.

    Args:
        registry: Where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http = RequestMetrics(registry, routes=REGISTRY_ROUTES)
        self.access = AccessMetrics(registry)


class CollectorMetrics:
    """What came over HTTP, what waits on disk, what went to Kafka.

    From one start to the next: waiting at the start + accepted = forwarded + waiting now.

    Args:
        registry: Where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        statuses = ("202", "400", "413", "415", "422", "429", "500", "503")
        self.http = RequestMetrics(registry, routes=COLLECTOR_ROUTES, statuses=statuses)
        self.access = AccessMetrics(registry)
        self.events = Counter(
            "headwater_collector_events_total",
            "Events received by kind and outcome; refused_full: turned away with 429 for want of room.",
            ["kind", "outcome"],
            registry=registry,
        )
        self.forwarded = Counter(
            "headwater_collector_forwarded_total",
            "Events that Kafka has confirmed, by kind; those sent once more after a crash count once more.",
            ["kind"],
            registry=registry,
        )
        for kind in MODELS:
            self.forwarded.labels(kind)
        for kind, outcome in product((*MODELS, UNKNOWN_KIND), COLLECTOR_OUTCOMES):
            self.events.labels(kind, outcome)
        self.spool_events = Gauge("headwater_collector_spool_events", "Events that wait for Kafka.", registry=registry)
        self.spool_bytes = Gauge("headwater_collector_spool_bytes", "Their keys and values.", registry=registry)
        self.oldest_timestamp_seconds = Gauge(
            "headwater_collector_spool_oldest_timestamp_seconds",
            "When the event that waits longest was accepted; the time of the scrape when none waits.",
            registry=registry,
        )


def _catalogue_items(registry: CollectorRegistry) -> Gauge:
    return Gauge(
        "headwater_catalogue_items", "Items that the catalogue topics hold, as far as read.", registry=registry
    )


def _timed(name: str, documentation: str, registry: CollectorRegistry) -> Histogram:
    """Declares a histogram of a step of work, 5 ms to 30 s."""
    return Histogram(name, documentation, buckets=WORK_BUCKETS_SECONDS, registry=registry)

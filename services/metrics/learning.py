"""Metrics of the updater's learner: micro-batches, step times and prequential quality."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge

from peft_adapters.learning.evaluation import FIGURES
from services.metrics.series import catalogue_items, work_seconds


class LearningMetrics:
    """Micro-batches learnt, the time of each step, and the quality of the model before it learns.

    Args:
        registry: the registry where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._catalogue_items = catalogue_items(registry)
        self._batches = Counter("headwater_batches_total", "Micro-batches learnt.", registry=registry)
        self._batches_set_aside = Counter(
            "headwater_batches_set_aside_total",
            "Micro-batches whose loss was not finite: counted, not learnt.",
            registry=registry,
        )
        self._lagging_slices = Counter(
            "headwater_late_slices_total",
            "Slices of the log learnt without LoRA steps, and with reduced evaluation, because learning lags.",
            registry=registry,
        )
        self._learn_seconds = work_seconds("headwater_learn_seconds", "Time to learn one micro-batch.", registry)
        self._checkpoint_seconds = work_seconds(
            "headwater_checkpoint_seconds", "Time to write one checkpoint.", registry
        )
        self._publish_seconds = work_seconds("headwater_publish_seconds", "Time to publish one adapter.", registry)
        self._prequential = Gauge(
            "headwater_prequential",
            "Quality of the model on events that it had not learnt from.",
            ["metric"],
            registry=registry,
        )
        for figure in FIGURES:
            self._prequential.labels(figure)
        self._calibration_error = Gauge(
            "headwater_calibration_error",
            "Mean distance of predicted from observed probability in lists not yet learnt from, 15 bins; absent for a "
            "head that has learnt nothing.",
            ["scenario", "head"],
            registry=registry,
        )

        self._lora_scale = Gauge(
            "headwater_lora_scale", "Factor on the adapter in scores: 1 while it pays, else 0.", registry=registry
        )
        self._lora_frequency = Gauge(
            "headwater_lora_frequency", "Share of the scheduled LoRA steps that are taken.", registry=registry
        )

    def learning(self) -> AbstractContextManager[object]:
        """Return a context manager that times one micro-batch."""
        return self._learn_seconds.time()

    def checkpointing(self) -> AbstractContextManager[object]:
        """Return a context manager that times one checkpoint."""
        return self._checkpoint_seconds.time()

    def publishing(self) -> AbstractContextManager[object]:
        """Return a context manager that times one publication."""
        return self._publish_seconds.time()

    def slice_learnt(self, *, lagging: bool) -> None:
        """Count a slice that was learnt without LoRA steps because learning lags."""
        self._lagging_slices.inc(lagging)

    def micro_batch_learnt(self, loss: float) -> None:
        """Count a micro-batch: as learnt if its loss is finite, as set aside if it is not."""
        (self._batches if math.isfinite(loss) else self._batches_set_aside).inc()

    def show_quality(self, figures: Mapping[str, float]) -> None:
        """Set the prequential figures."""
        for figure, value in figures.items():
            self._prequential.labels(figure).set(value)

    def show_calibration_error(self, scenario: str, head: str, error: float) -> None:
        """Set the calibration error of one outcome head.

        Args:
            scenario: the scenario that is learnt.
            head: the outcome that the head predicts.
            error: the expected calibration error, 0 to 1.
        """
        self._calibration_error.labels(scenario, head).set(error)

    def show_lora(self, *, scale: float, frequency: float) -> None:
        """Set how LoRA is used.

        Args:
            scale: factor on the adapter where it is served, 0 to 1.
            frequency: share of the scheduled steps that are taken, 0 to 1.
        """
        self._lora_scale.set(scale)
        self._lora_frequency.set(frequency)

    def show_catalogue(self, items: int) -> None:
        """Set the number of items in the catalogue topics."""
        self._catalogue_items.set(items)

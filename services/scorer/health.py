"""Readiness of a worker, and the problems it works around."""

import threading

from services.scorer.bundles import BundleSource
from services.scorer.catalogue_check import CatalogueCheck, far_smaller
from services.scorer.log_reader import LogReader
from services.scorer.refusals import Refusals
from services.scorer.registry_status import ADAPTER, REGISTRY, RegistryStatus
from services.scorer.scenarios import Scenarios
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import StateSource
from services.secrets import describe_mismatch


class Health:
    """Explains why a worker is not ready, and which dependencies have problems. Safe to call from any thread.

    Args:
        table: the models that are served.
        scenarios: the scenarios that are held.
        reader: reads the log.
        shoppers: the states of shoppers.
        bundles: reads the registry.
        status: the causes for which the registry cannot be read.
        refusals: the versions that could not be loaded.
        secret_fingerprint: the fingerprint of this process's secret; None skips the comparison.
        catalogue_check: checks the configuration of the catalogue topics; None skips the check.
    """

    def __init__(
        self,
        *,
        table: ServingTable,
        scenarios: Scenarios,
        reader: LogReader,
        shoppers: StateSource,
        bundles: BundleSource,
        status: RegistryStatus,
        refusals: Refusals,
        secret_fingerprint: str | None = None,
        catalogue_check: CatalogueCheck | None = None,
    ) -> None:
        self._table, self._scenarios, self._reader, self._shoppers = table, scenarios, reader, shoppers
        self._bundles, self._status, self._refusals = bundles, status, refusals
        self._secret_fingerprint, self._catalogue_check = secret_fingerprint, catalogue_check
        self._started = threading.Event()

    @property
    def is_complete(self) -> bool:
        """True once there is a model to serve and shoppers' events have been read."""
        return self._table.model is not None and self._reader.caught_up.is_set()

    @property
    def is_started(self) -> bool:
        """True once `confirm_started` was called."""
        return self._started.is_set()

    def confirm_started(self) -> None:
        """Record that the last preparations before the first request are done."""
        self._started.set()

    def missing(self) -> str | None:
        """Return the reason why the worker is not ready; None once it is."""
        if not self._reader.catalogue_read.is_set():
            return f"the catalogue has not been read yet; {self._why_no_catalogue()}"
        other_secret = self._other_secret()
        if other_secret is not None:
            return other_secret
        if self._table.model is None:
            problems = self.problems()
            why = problems.get(ADAPTER) or problems.get(REGISTRY) or "has an updater published one?"
            return f"no adapter of scenario {self._table.scenario!r} is held yet; {why}"
        if not self._reader.caught_up.is_set():
            return "shoppers' latest events are still being read"
        return None if self.is_started else "everything is loaded; the worker is finishing its start"

    def _why_no_catalogue(self) -> str:
        problem = self._reader.catalogue_problem()
        if problem is not None:
            return problem
        return "it is being read" if self._reader.is_reading else "is Kafka reachable, and do its topics exist?"

    def problems(self) -> dict[str, str]:
        """Return the problem of each dependency that has one, with its cause and what is served meanwhile."""
        problems = {"kafka": self._reader.problem(), "state": self._shoppers.problem()}
        problems |= {name: self._registry_problem(name) for name in (REGISTRY, ADAPTER)}
        problems |= {"catalogue": self._catalogue_problem(), "privacy": self._other_secret()}
        topics = {f"kafka/{name}": problem for name, problem in self._reader.topic_problems().items()}
        return {name: problem for name, problem in problems.items() if problem is not None} | topics

    def _catalogue_problem(self) -> str | None:
        problem = None if self._catalogue_check is None else self._catalogue_check.problem
        if problem is None and self._reader.catalogue_read.is_set() and self._table.model is not None:
            problem = far_smaller(self._table.model)
        return problem

    def _registry_problem(self, name: str) -> str | None:
        """Return sentences about the registry, or about versions that cannot be loaded, for all scenarios."""
        sentences = []
        held = (slot.scenario for slot in self._table.slots())
        for scenario in dict.fromkeys((*self._scenarios.pinned, *held)):
            slot = self._table.slot(scenario)
            stable = None if slot is None else slot.deployment.stable
            causes = self._status.causes(scenario, name)
            if name == ADAPTER and slot is not None:
                served = None if stable is None else stable.version
                causes += self._refusals.problems(scenario, slot.unmet_targets(), served)
            if causes:
                meanwhile = "nothing is served yet" if stable is None else f"version {stable.version} is served"
                sentences.append(f"{'; '.join(causes)}; {meanwhile}")
        return self._bundles.without_addresses("; ".join(sentences)) or None

    def _other_secret(self) -> str | None:
        """Return a sentence if the deployment uses another secret: this process would not recognise its shoppers."""
        if self._secret_fingerprint is None:
            return None
        model = self._table.model
        made_with = None if model is None else model.manifest.secret_fingerprint
        agreed = self._reader.secret_fingerprint
        return describe_mismatch(self._secret_fingerprint, agreed, source="the control topic") or describe_mismatch(
            self._secret_fingerprint, None if agreed else made_with, source="the adapter that is held"
        )

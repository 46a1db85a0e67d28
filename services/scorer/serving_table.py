"""The table of what is served: one slot of models for each scenario that the worker holds."""

from collections.abc import Callable

from peft_adapters.registry.rollout import Rollout
from peft_adapters.serving.served_model import ServedModel
from services.scorer.deployment import Deployment
from services.scorer.model_slot import ModelSlot

KEPT_ROWS = 20_000


def _ignore(before: Deployment, deployment: Deployment) -> None:
    """Report nothing."""


class ServingTable:
    """Maps each scenario to its models. The worker's thread opens and closes slots; any thread reads.

    A deployment is replaced as a whole, by one reference, so that a request keeps the models that it began with.

    Args:
        scenario: the scenario of requests that name none.
        kept_rows: the rows of all models that a slot keeps beside those it serves.
        on_swap: called with the old and the new deployment at each swap, in the order of swaps.
    """

    def __init__(
        self,
        scenario: str = "home",
        *,
        kept_rows: int = KEPT_ROWS,
        on_swap: Callable[[Deployment, Deployment], None] = _ignore,
    ) -> None:
        self.scenario = scenario
        self._kept_rows, self._on_swap = kept_rows, on_swap
        self._slots: dict[str, ModelSlot] = {}

    @property
    def model(self) -> ServedModel | None:
        """The stable model of the default scenario; None before the first version."""
        deployment = self.deployment(self.scenario)
        return None if deployment is None else deployment.stable

    def deployment(self, scenario: str) -> Deployment | None:
        """Return the deployment of a scenario; None if the scenario has no slot."""
        slot = self._slots.get(scenario)
        return None if slot is None else slot.deployment

    def deployments(self) -> dict[str, Deployment]:
        """Return the present deployments, by scenario."""
        return {slot.scenario: slot.deployment for slot in self.slots()}

    def slot(self, scenario: str) -> ModelSlot | None:
        """Return the slot of a scenario, if it has one."""
        return self._slots.get(scenario)

    def slots(self) -> list[ModelSlot]:
        """Return all slots."""
        return list(self._slots.values())

    def open(self, scenario: str) -> ModelSlot:
        """Return the slot of a scenario, a new one if it has none."""
        slot = self._slots.get(scenario)
        if slot is None:
            slot = self._slots[scenario] = ModelSlot(scenario, kept_rows=self._kept_rows, on_swap=self._on_swap)
        return slot

    def close(self, scenario: str) -> None:
        """Drop a scenario and its models; requests in flight finish on them."""
        self._slots.pop(scenario, None)

    def serve(self, deployment: Deployment) -> None:
        """Serve a deployment as it is, whatever was announced."""
        self.open(deployment.scenario).serve(deployment)

    def serve_model(self, model: ServedModel) -> None:
        """Serve a model as the stable version of the default scenario."""
        self.serve(Deployment(Rollout(scenario=self.scenario), stable=model))

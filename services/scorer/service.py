"""The parts of a scorer that requests need."""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from peft_adapters.serving.served_model import ServedModel
from services.scorer.deployment import Deployment
from services.scorer.health import Health
from services.scorer.recommender import Recommender
from services.scorer.requests import ShopperRequest
from services.scorer.scenarios import Scenarios
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import StateSource
from services.web.http import ProblemError


@dataclass(frozen=True, kw_only=True)
class ScoringService:
    """The models that are served, and what requests need besides.

    Attributes:
        table: the models that are served.
        scenarios: loads scenarios on request.
        recommender: makes the answers.
        shoppers: the states of shoppers.
        health: readiness and problems.
        pseudonymise: replaces the ids of users and sessions in requests.
    """

    table: ServingTable
    scenarios: Scenarios
    recommender: Recommender
    shoppers: StateSource
    health: Health
    pseudonymise: Callable[[str], str]

    def deployment(self, scenario: str | None) -> Deployment:
        """Return the deployment of a scenario, which has a stable model.

        Args:
            scenario: the scenario of the request; None takes the default one.

        Raises:
            ProblemError: the scenario is not loaded yet, or nothing is published for it.
        """
        name = scenario or self.table.scenario
        is_published = self.scenarios.request(name)
        deployment = self.table.deployment(name)
        if deployment is not None and deployment.stable is not None:
            return deployment
        if name == self.table.scenario:
            detail = self.health.missing() or "no adapter is held yet"
        elif is_published:
            detail = f"scenario {name!r} is being loaded; ask again"
        else:
            raise ProblemError(HTTPStatus.NOT_FOUND, f"no adapter of scenario {name!r} has been published")
        raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1"})

    def model_for(self, request: ShopperRequest) -> ServedModel:
        """Return the model that answers a request.

        Args:
            request: the request, under pseudonyms.

        Raises:
            ProblemError: there is no model yet.
        """
        deployment = self.deployment(request.scenario)
        return deployment.models[deployment.arm_of(request.user_id or request.session_id)]

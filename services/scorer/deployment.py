"""The models of one scenario, and the choice of the arm that answers a shopper."""

import hashlib
from dataclasses import dataclass

from peft_adapters.registry.rollout import CANARY, SHADOW, STABLE, Rollout
from peft_adapters.serving.served_model import ServedModel

_HASHES = 2**64


@dataclass(frozen=True, slots=True)
class Deployment:
    """The models of one scenario at one moment. A swap replaces it as a whole.

    Attributes:
        rollout: the rollout in force.
        stable: the model that answers shoppers outside the canary; None until there is one.
        canary: the model that answers the canary's share of shoppers; None without a canary or until it is built.
        shadow: the model whose answers are only compared.
    """

    rollout: Rollout
    stable: ServedModel | None = None
    canary: ServedModel | None = None
    shadow: ServedModel | None = None

    @property
    def scenario(self) -> str:
        """The scenario that the models rank for."""
        return self.rollout.scenario

    @property
    def models(self) -> dict[str, ServedModel]:
        """The model of each arm that has one."""
        arms = {STABLE: self.stable, CANARY: self.canary, SHADOW: self.shadow}
        return {arm: model for arm, model in arms.items() if model is not None}

    def arm_of(self, shopper: str | None) -> str:
        """Return the arm that answers a shopper: the same one as long as the canary's version stays.

        Args:
            shopper: the pseudonym of the shopper, or else of the session; None takes the stable arm.
        """
        if self.canary is None or shopper is None or not in_canary(shopper, self.rollout):
            return STABLE
        return CANARY

    def model_of(self, arm: str) -> ServedModel | None:
        """Return the model of an arm, if it has one."""
        return self.models.get(arm)


def in_canary(shopper: str, rollout: Rollout) -> bool:
    """Return whether a shopper is in a canary's share.

    A larger share contains the smaller one. Another version draws other shoppers, so that nobody is the first to try
    every version.

    Args:
        shopper: the shopper's pseudonym.
        rollout: the rollout with the canary.

    >>> from peft_adapters.registry.rollout import Canary
    >>> whole = Rollout(scenario="home", stable_version=1, canary=Canary(version=2, percent=100))
    >>> in_canary("ann", whole)
    True
    """
    if rollout.canary is None:
        return False
    salt = hashlib.blake2b(f"{rollout.scenario}/{rollout.canary.version}".encode(), digest_size=16).digest()
    digest = hashlib.blake2b(shopper.encode(), digest_size=8, salt=salt).digest()
    return int.from_bytes(digest) < rollout.canary.percent / 100 * _HASHES

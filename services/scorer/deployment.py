"""Who is answered from which version: all from the stable one, but for a canary's share of shoppers."""

import hashlib
from dataclasses import dataclass

from peft_adapters.registry.rollout import CANARY, SHADOW, STABLE, Rollout
from peft_adapters.serving.served_model import ServedModel

_HASHES = 2**64


@dataclass(frozen=True, slots=True)
class Deployment:
    """The models of one scenario at one moment. It is replaced whole: one reference.

    Attributes:
        rollout: what it obeys.
        stable: answers all whom no canary does; None until there is one.
        canary: answers its share of shoppers; None where there is none, or it is still being built.
        shadow: scores too, and never answers.
    """

    rollout: Rollout
    stable: ServedModel | None = None
    canary: ServedModel | None = None
    shadow: ServedModel | None = None

    @property
    def scenario(self) -> str:
        """Which ranking."""
        return self.rollout.scenario

    @property
    def models(self) -> dict[str, ServedModel]:
        """The model of each arm that has one."""
        arms = {STABLE: self.stable, CANARY: self.canary, SHADOW: self.shadow}
        return {arm: model for arm, model in arms.items() if model is not None}

    def arm_of(self, shopper: str | None) -> str:
        """Which arm answers a shopper: the same one for as long as the canary's version stands.

        Args:
            shopper: their pseudonym, or else that of the session; None is always answered by the stable arm.
        """
        if self.canary is None or shopper is None or not in_canary(shopper, self.rollout):
            return STABLE
        return CANARY

    def model_of(self, arm: str) -> ServedModel | None:
        """The model of an arm."""
        return self.models.get(arm)


def in_canary(shopper: str, rollout: Rollout) -> bool:
    """Whether a shopper is among a canary's share.

    A larger share keeps those of the smaller one; another version draws others, so that no shopper is the first to try
    everything.

    Args:
        shopper: their pseudonym.
        rollout: names the canary.

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

"""Whether a canary's lists are clicked less: a sequential test that may be looked at after every event.

The mixture sequential probability ratio test of Robbins (1970), as Johari, Koomen, Pekelis and Walsh ("Peeking at A/B
tests", KDD 2017) use it for differences of means: with a normal prior of variance `tau ** 2` over the difference `d`,
estimated with variance `v`,

    ratio = sqrt(v / (v + tau ** 2)) * exp(tau ** 2 * d ** 2 / (2 * v * (v + tau ** 2)))

exceeds 1 / significance with probability `significance` at most, ever, if there is no difference. What is drawn into an
arm are shoppers, not lists: `v` is that of a ratio of sums over shoppers, by the delta method (Deng, Knoblich and Lu,
KDD 2018).
"""

import math
from dataclasses import dataclass

from services.settings.scorer import CanarySettings


@dataclass(slots=True)
class Tally:
    """Lists and clicked lists of one arm, by shopper, and the sums that a variance needs."""

    max_shoppers: int
    shown: int = 0
    clicked: int = 0
    _shown_squared: int = 0
    _clicked_squared: int = 0
    _product: int = 0
    _shoppers: dict[str, tuple[int, int]] | None = None

    @property
    def shoppers(self) -> int:
        """How many there are."""
        return len(self._shoppers or ())

    @property
    def click_through(self) -> float:
        """Clicked lists over lists; 0 without lists."""
        return self.clicked / self.shown if self.shown else 0.0

    @property
    def variance(self) -> float:
        """Of the click-through, as that of a ratio of means over shoppers."""
        n, rate = self.shoppers, self.click_through
        if n < 2 or not self.shown:
            return math.inf
        spread = self._clicked_squared - 2 * rate * self._product + rate * rate * self._shown_squared
        return spread / (n - 1) * n / self.shown**2

    def add(self, shopper: str, *, shown: int = 0, clicked: int = 0) -> bool:
        """Count for a shopper; False when no more shoppers can be told apart, and this one is new."""
        self._shoppers = {} if self._shoppers is None else self._shoppers
        before = self._shoppers.get(shopper)
        if before is None and len(self._shoppers) >= self.max_shoppers:
            return False
        lists, clicks = before or (0, 0)
        now = (lists + shown, clicks + clicked)
        self._shoppers[shopper] = now
        self.shown += shown
        self.clicked += clicked
        self._shown_squared += now[0] ** 2 - lists**2
        self._clicked_squared += now[1] ** 2 - clicks**2
        self._product += now[0] * now[1] - lists * clicks
        return True


class CanaryTest:
    """Takes in lists and clicks of two arms and knows, at any moment, whether the canary is worse.

    Args:
        settings: When it is.

    Attributes:
        p_value: Always valid: the smallest so far. 1 until there are enough shoppers.
    """

    def __init__(self, settings: CanarySettings) -> None:
        self.stable, self.canary = (Tally(settings.max_shoppers) for _ in range(2))
        self.p_value = 1.0
        self._settings = settings
        self._tau = 0.0  # of click-through; fixed at the first look

    @property
    def is_worse(self) -> bool:
        """Whether the canary is known to be clicked less."""
        return self.p_value <= self._settings.significance

    def look(self) -> None:
        """Judge what was counted so far."""
        if min(self.stable.shoppers, self.canary.shoppers) < self._settings.min_shoppers or not self.stable.clicked:
            return
        self._tau = self._tau or self._settings.effect * self.stable.click_through
        difference = self.canary.click_through - self.stable.click_through
        variance = self.stable.variance + self.canary.variance
        if difference < 0 and variance > 0:
            self.p_value = min(self.p_value, 1 / ratio(difference, variance, self._tau))


def ratio(difference: float, variance: float, tau: float) -> float:
    """How much likelier a difference is under the mixture than under none.

    >>> ratio(0.0, 1.0, 1.0) < 1 < ratio(5.0, 1.0, 1.0)
    True
    """
    both = variance + tau**2
    exponent = tau**2 * difference**2 / (2 * variance * both)
    return math.sqrt(variance / both) * math.exp(min(exponent, 700.0))

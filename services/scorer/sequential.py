"""Sequential test of a canary's click-through, valid at any time and after every event.

The mixture sequential probability ratio test of Robbins (1970), as Johari, Koomen, Pekelis and Walsh ("Peeking at A/B
tests", KDD 2017) use it for differences of means: with a normal prior of variance `tau ** 2` over the difference `d`,
estimated with variance `v`,

    ratio = sqrt(v / (v + tau ** 2)) * exp(tau ** 2 * d ** 2 / (2 * v * (v + tau ** 2)))

exceeds 1 / significance at any time with probability `significance` at most, if there is no difference. Shoppers, not
lists, are drawn into an arm: `v` is the variance of a ratio of sums over shoppers, by the delta method (Deng, Knoblich
and Lu, KDD 2018).
"""

import math
from dataclasses import dataclass

from services.settings.scorer import CanarySettings


@dataclass(slots=True)
class Tally:
    """Lists and clicked lists of one arm by shopper, and the sums for the variance."""

    max_shoppers: int
    shown: int = 0
    clicked: int = 0
    _shown_squared: int = 0
    _clicked_squared: int = 0
    _product: int = 0
    _shoppers: dict[str, tuple[int, int]] | None = None

    @property
    def shoppers(self) -> int:
        """The number of shoppers."""
        return len(self._shoppers or ())

    @property
    def click_through(self) -> float:
        """Clicked lists divided by lists; 0 without lists."""
        return self.clicked / self.shown if self.shown else 0.0

    @property
    def variance(self) -> float:
        """The variance of the click-through, as a ratio of means over shoppers."""
        n, rate = self.shoppers, self.click_through
        if n < 2 or not self.shown:
            return math.inf
        spread = self._clicked_squared - 2 * rate * self._product + rate * rate * self._shown_squared
        return spread / (n - 1) * n / self.shown**2

    def add(self, shopper: str, *, shown: int = 0, clicked: int = 0) -> bool:
        """Count lists and clicked lists of a shopper. Returns False for a new shopper beyond `max_shoppers`."""
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
    """Compares the lists and clicks of two arms.

    Args:
        settings: the criteria for a worse canary.

    Attributes:
        p_value: the smallest always-valid p-value so far; 1 until there are enough shoppers.
    """

    def __init__(self, settings: CanarySettings) -> None:
        self.stable, self.canary = (Tally(settings.max_shoppers) for _ in range(2))
        self.p_value = 1.0
        self._settings = settings
        self._tau = 0.0  # of click-through; fixed at the first update

    @property
    def is_worse(self) -> bool:
        """True if the canary's click-through is significantly lower."""
        return self.p_value <= self._settings.significance

    def update(self) -> None:
        """Update the p-value from the counts so far."""
        if min(self.stable.shoppers, self.canary.shoppers) < self._settings.min_shoppers or not self.stable.clicked:
            return
        self._tau = self._tau or self._settings.effect * self.stable.click_through
        difference = self.canary.click_through - self.stable.click_through
        variance = self.stable.variance + self.canary.variance
        if difference < 0 and variance > 0:
            self.p_value = min(self.p_value, 1 / ratio(difference, variance, self._tau))


def ratio(difference: float, variance: float, tau: float) -> float:
    """Return the likelihood ratio of a difference under the mixture and under no difference.

    >>> ratio(0.0, 1.0, 1.0) < 1 < ratio(5.0, 1.0, 1.0)
    True
    """
    both = variance + tau**2
    exponent = tau**2 * difference**2 / (2 * variance * both)
    return math.sqrt(variance / both) * math.exp(min(exponent, 700.0))

"""Learning of networks of the second stage on the same candidates: weights, optimiser and standardisation of inputs.

The gradient is written out: with a few thousand weights, automatic differentiation costs more than the products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from peft_adapters.learning.state_dicts import StateDict
from peft_adapters.ranking.second_stage import INPUT_NAMES, LIMIT, shapes, standardised

_LEARNING_RATE = 0.003
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_SMALLEST_VARIANCE = 1e-6  # inputs below it are constant, and not used
_LONGEST_MEMORY = 50_000_000.0  # candidates over which means and deviations are taken
_SETTLED = 1_000_000.0  # candidates that the standardisation of a bundle counts for
_SHAPES = {name: shape for name, shape in shapes().items() if name in ("w1", "b1", "w2", "b2", "w3")}
_SIZE = sum(math.prod(shape) for shape in _SHAPES.values())


class NetworkLearner:
    """Networks that Adam moves (Kingma & Ba 2015), each by its own loss; they differ in their first weights.

    Args:
        mask: [inputs] 1 for the inputs that are used.
        networks: number of networks.
        seed: seed of the initial weights. The outputs' are zero, so no score changes before the first step.

    Attributes:
        weights: views of the weights by name, as in `SecondStage`.
    """

    def __init__(self, mask: Tensor, *, networks: int, seed: int) -> None:
        self._mask, self._seed = mask, seed
        self._flat = torch.zeros(networks * _SIZE)
        self.weights = _views(self._flat)
        self._reset()

    def _reset(self) -> None:
        """Start from nothing learnt."""
        generator = torch.Generator().manual_seed(self._seed)
        self._flat.zero_()
        for name in ("w1", "b1", "w2", "b2"):
            bound = _SHAPES["w" + name[1]][1] ** -0.5
            self.weights[name].uniform_(-bound, bound, generator=generator)
        self._moments = torch.zeros(2, len(self._flat))
        self._steps = 0
        self._count = 0.0  # candidates in mean and squares
        self._mean = torch.zeros(len(INPUT_NAMES), dtype=torch.float64)
        self._squares = torch.zeros(len(INPUT_NAMES), dtype=torch.float64)  # mean squared distance from the mean
        self._choose_inputs()

    def _choose_inputs(self) -> None:
        """Leave out inputs that are constant or not used: products with them take as long as with others."""
        self._used = torch.nonzero(self.scale)[:, 0]

    # ---- the network

    @property
    def mean(self) -> Tensor:
        """The mean [inputs] of each input."""
        return self._mean.float()

    @property
    def scale(self) -> Tensor:
        """One over the standard deviation [inputs] of each input; 0 for inputs that are constant or not used."""
        variance = self._squares
        used = (variance > _SMALLEST_VARIANCE) & (self._mask > 0)
        return torch.where(used, variance.clamp(min=_SMALLEST_VARIANCE).rsqrt(), 0.0).float()

    def standardised(self, inputs: Tensor) -> Tensor:
        """Return the used ones of inputs [inputs, ...] in standard deviations from their mean, clipped."""
        return standardised(inputs[self._used], self.mean[self._used], self.scale[self._used])

    def standardised_levels(self, levels: Tensor, low: Tensor, step: Tensor) -> Tensor:
        """Return what `standardised` gives for the inputs `low + step * levels`, in fewer passes.

        Args:
            levels: [groups, inputs, candidates] whole numbers of 8 bits.
            low: [groups, inputs, 1] value of level 0.
            step: [groups, inputs, 1] difference between levels.

        Returns:
            [used inputs, groups, candidates]
        """
        mean, scale = self.mean[self._used, None, None], self.scale[self._used, None, None]
        of_used = [value[:, self._used].transpose(0, 1).contiguous() for value in (levels, low, step)]
        return of_used[0].float().mul_(of_used[2] * scale).add_((of_used[1] - mean) * scale).clamp_(-LIMIT, LIMIT)

    def output(self, standard: Tensor) -> Tensor:
        """Return the networks' mean outputs [candidates] for standardised inputs [used inputs, candidates]."""
        firsts = self._first_layers(standard)
        outputs = [self._forward(first, number)[1] for number, first in enumerate(firsts)]
        return torch.stack(outputs).mean(dim=0)

    def observe(self, inputs: Tensor) -> None:
        """Update means and deviations (Welford 1962, in batches) by inputs [inputs, candidates]."""
        count = inputs.shape[1]
        if not count:
            return
        average = inputs.mean(dim=1)  # `torch.var_mean` takes three times as long
        squares = (inputs - average[:, None]).square_().mean(dim=1).double()
        mean = average.double()
        share = count / (self._count + count)
        difference = mean - self._mean
        self._mean = self._mean + share * difference
        self._squares = (1 - share) * self._squares + share * squares + share * (1 - share) * difference * difference
        self._count = min(self._count + count, _LONGEST_MEMORY)
        self._choose_inputs()

    def step(self, standard: Tensor, gradient_of: Callable[[Tensor], Tensor]) -> None:
        """Take one step of each network; nothing moves if a gradient is not finite.

        Args:
            standard: [used inputs, candidates] standardised inputs.
            gradient_of: function that returns the loss's gradient [candidates] in a network's outputs [candidates].
        """
        firsts = self._first_layers(standard)
        gradient, of_firsts = torch.empty_like(self._flat), torch.empty_like(firsts)
        to = _views(gradient)
        for number, first in enumerate(firsts):
            second, output = self._forward(first, number)
            of_output = gradient_of(output)
            torch.mv(second, of_output, out=to["w3"][number])
            of_second = _where_positive(torch.outer(self.weights["w3"][number], of_output), second)
            torch.mm(of_second, first.T, out=to["w2"][number])
            torch.sum(of_second, dim=1, out=to["b2"][number])
            of_firsts[number] = _where_positive(self.weights["w2"][number].T @ of_second, first)
        to["w1"].zero_()
        to["w1"][..., self._used] = (of_firsts.flatten(0, 1) @ standard.T).view(*firsts.shape[:2], -1)
        torch.sum(of_firsts, dim=2, out=to["b1"])
        if bool(torch.isfinite(gradient).all()):
            self._move(gradient)

    def _first_layers(self, standard: Tensor) -> Tensor:
        """Return the first hidden layers [networks, 32, candidates]: one product for all networks."""
        bias, weights = self.weights["b1"], self.weights["w1"][..., self._used]
        first = torch.addmm(bias.view(-1, 1), weights.flatten(0, 1), standard).relu_()
        return first.view(*bias.shape, -1)

    def _forward(self, first: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return the second hidden layer [32, candidates] and the outputs [candidates] of a network."""
        weights = self.weights
        second = torch.addmm(weights["b2"][number][:, None], weights["w2"][number], first).relu_()
        return second, weights["w3"][number] @ second

    def _move(self, gradient: Tensor) -> None:
        self._steps += 1
        mean, squares = self._moments
        mean.lerp_(gradient, 1 - _BETAS[0])
        squares.lerp_(gradient * gradient, 1 - _BETAS[1])
        rate = _LEARNING_RATE / (1 - _BETAS[0] ** self._steps)
        self._flat -= rate * mean / ((squares / (1 - _BETAS[1] ** self._steps)).sqrt_() + _EPSILON)

    # ---- state

    def state_dict(self) -> StateDict:
        """Return weights, optimiser and standardisation as tensors."""
        return {
            "flat": self._flat.clone(),
            "moments": self._moments.clone(),
            "steps": torch.tensor(self._steps),
            "count": torch.tensor(self._count, dtype=torch.float64),
            "mean": self._mean.clone(),
            "squares": self._squares.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state; an empty one, or one of other inputs or networks than today's, is that of nothing learnt."""
        self._reset()
        if self.fits(state):
            self._flat.copy_(state["flat"])
            self._moments, self._steps = state["moments"].clone(), int(state["steps"])
            self._count = float(state["count"])
            self._mean, self._squares = state["mean"].clone(), state["squares"].clone()
            self._choose_inputs()

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether a state is one of as many networks with the same inputs."""
        return bool(state) and state["flat"].shape == self._flat.shape

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Start from published networks; the optimiser starts fresh.

        Args:
            weights: weights of the networks by name, as in `SecondStage`.
        """
        self._reset()
        for name, view in self.weights.items():
            view.copy_(weights[name])
        scale = weights["scale"][0].double()
        self._count, self._mean = _SETTLED, weights["mean"][0].double()
        self._squares = torch.where(scale > 0, scale.clamp(min=1e-6) ** -2, 0.0)
        self._choose_inputs()


def _where_positive(gradient: Tensor, activation: Tensor) -> Tensor:
    """Return the gradient behind rectified linear units; multiplication by a mask takes five times as long."""
    passed: Tensor = torch.ops.aten.threshold_backward(gradient, activation, 0)
    return passed


def _views(flat: Tensor) -> dict[str, Tensor]:
    """Return the weights [networks, ...] as views of one vector [weights]."""
    networks = len(flat) // _SIZE
    parts = torch.split(flat, [networks * math.prod(shape) for shape in _SHAPES.values()])
    return {name: part.view(networks, *shape) for (name, shape), part in zip(_SHAPES.items(), parts, strict=True)}

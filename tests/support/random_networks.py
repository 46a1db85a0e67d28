"""Networks of the second stage with random weights."""

import torch

from peft_adapters.ranking.second_stage import NETWORKS, SecondStage, shapes


def random_networks(seed: int, strengths: tuple[float, float]) -> SecondStage:
    """Networks whose strengths are those of clicks and of lists."""
    draw = torch.Generator().manual_seed(seed)
    weights = {
        name: 2 * torch.randn(len(NETWORKS), *shape, generator=draw) * max(shape) ** -0.5
        if shape
        else torch.ones(len(NETWORKS))
        for name, shape in shapes().items()
    }
    weights |= {
        "scale": weights["scale"].abs(),
        "strength": torch.tensor([strengths[name == "lists"] for name in NETWORKS]),
    }
    return SecondStage.from_tensors(weights)

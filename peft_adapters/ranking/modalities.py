"""Vectors of other modalities, made elsewhere: a small projection each adds them to the text vectors of items.

An item with the text vector `t` and vectors `v_m` has `normalize(t + sum_m P_m v_m)` in place of `t`. Projections begin
at zero, so that nothing changes before something is learnt, and items without such vectors are as they always were.

While it learns, a projection is a matrix times a gate between 0 and 1. The matrix can learn by heart what it has seen,
which is all that a vector without meaning leaves to learn; the gate is one number, moved by events that the matrix has
yet to see, and so closes as far as what was learnt does not help with them. What is published is their product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor, nn

from peft_adapters.optimisers import LoraOptimiser

log = structlog.get_logger(__name__)

MAX_MODALITIES = 8  # of a catalogue: each has a projection that is learnt, kept and published
_SHORT = 64  # vectors shorter than this are learnt from as slowly as ones of this length: else noise would cost
_FIRST_GATE, _GATE_RATE = 0.5, 0.05
_CHUNK = 1_024  # items projected at a time; bounds the memory that it takes

ItemVectors = Mapping[str, npt.NDArray[np.float16]]  # unit vectors by modality
CatalogueItem = tuple[str, str] | tuple[str, str, ItemVectors]  # id, text, and vectors where it has any


def item_vectors(vectors: Mapping[str, Sequence[float]]) -> ItemVectors:
    """Unit vectors in half precision; one of nothing but zeros stays that, and adds nothing.

    >>> item_vectors({"image": [3e300, 4e300]})
    {'image': array([0.6, 0.8], dtype=float16)}
    """
    return {name: _unit(np.asarray(values, dtype=np.float64)) for name, values in vectors.items()}


def _unit(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float16]:
    scaled = values / max(float(np.abs(values).max()), np.finfo(np.float64).tiny)  # the square of a number must be one
    return (scaled / max(float(np.linalg.norm(scaled)), 1.0)).astype(np.float16)  # the largest is 1, or all are 0


def add_modalities(
    text: Tensor, rows: Sequence[int], vectors: Mapping[int, ItemVectors], projections: Mapping[str, Tensor]
) -> Tensor:
    """Text vectors with what other modalities add, [rows, dim], unit length.

    Args:
        text: [rows, dim] unit text vectors; those of items without other vectors are given back as they are.
        rows: of the catalogue.
        vectors: by row of the catalogue; one of another length than its projection takes is left out.
        projections: [dim, length] by modality.
    """
    having = [place for place, row in enumerate(rows) if row in vectors] if projections else []
    parts = []
    for start in range(0, len(having), _CHUNK):
        places = having[start : start + _CHUNK]
        sums = text[places]
        for name in sorted(projections):  # in one order always: sums of floats depend on it
            sums = _plus(sums, [vectors[rows[place]].get(name) for place in places], projections[name])
        parts.append(nn.functional.normalize(sums, dim=1))
    return text.index_copy(0, torch.tensor(having), torch.cat(parts)) if parts else text


def _plus(sums: Tensor, found: Sequence[npt.NDArray[np.float16] | None], projection: Tensor) -> Tensor:
    fitting = [(place, one) for place, one in enumerate(found) if one is not None and len(one) == projection.shape[1]]
    if not fitting:
        return sums
    stacked = torch.from_numpy(np.stack([one for _, one in fitting])).float()  # [items, length]
    return sums.index_add(0, torch.tensor([place for place, _ in fitting]), stacked @ projection.T)


def count_mismatched(vectors: Iterable[ItemVectors], projections: Mapping[str, Tensor]) -> int:
    """How many vectors have another length than the projection of their modality takes."""
    return sum(
        len(one) != projections[name].shape[1] for each in vectors for name, one in each.items() if name in projections
    )


def contribution_norm(projection: Tensor) -> Tensor:
    """Norm of what a projection [dim, length] adds to a text: the root of its mean square over all unit vectors."""
    norm: Tensor = torch.linalg.vector_norm(projection) / projection.shape[1] ** 0.5
    return norm


class Projections:
    """The projections of a catalogue while they learn: those that are trained, and those that scores follow from.

    Args:
        dim: of text vectors.
        learning_rate: of AdamW, over the root of the length: a step moves what is added as far, whatever the length.
        weight_decay: of AdamW, over what the rate is: a step takes the same share off, whatever the length.

    Attributes:
        served: [dim, length] by modality; the trained ones as they were the last time that item vectors followed them.
    """

    def __init__(self, dim: int, *, learning_rate: float, weight_decay: float) -> None:
        self._dim, self._learning_rate, self._weight_decay = dim, learning_rate, weight_decay
        self.served: dict[str, Tensor] = {}
        self._trained: dict[str, nn.Parameter] = {}
        self._gates: dict[str, nn.Parameter] = {}
        self._optimisers: dict[str, LoraOptimiser] = {}
        self._gate_optimisers: dict[str, LoraOptimiser] = {}
        self._plain: dict[int, Tensor] = {}  # row -> [dim] text vector of an item that has other vectors too

    # ---- which modalities there are

    def register(self, lengths: Mapping[str, int]) -> str | None:
        """Make room for an item's modalities, the first one's length being that of all; the rule it breaks instead."""
        for name, length in lengths.items():
            if name in self._trained and length != (own := self._trained[name].shape[1]):
                return (
                    f"`vectors.{name}` must have {own} numbers, as the first one had, got {length}; keep to one length"
                )
        names = sorted(self._trained.keys() | lengths.keys())
        if len(names) > MAX_MODALITIES:
            return (
                f"a catalogue must have at most {MAX_MODALITIES} names in `vectors`, got {', '.join(names)}; use fewer"
            )
        for name in lengths.keys() - self._trained.keys():
            self._put(name, torch.zeros(self._dim, lengths[name]))
        return None

    def drop_invalid_vectors(self, item: CatalogueItem) -> CatalogueItem:
        """The item, without its vectors where they break a rule."""
        if len(item) == 2 or (problem := self.register({name: len(one) for name, one in item[2].items()})) is None:
            return item
        log.warning("vectors_not_used", item_id=item[0], problem=problem)
        return item[:2]

    def _put(self, name: str, weights: Tensor, *, gate: float = _FIRST_GATE) -> None:
        self.served[name], self._trained[name] = weights.clone(), nn.Parameter(weights.clone())
        self._gates[name] = nn.Parameter(torch.tensor(gate))
        root = max(weights.shape[1], _SHORT) ** 0.5
        self._optimisers[name] = LoraOptimiser(
            [self._trained[name]],
            learning_rate=self._learning_rate / root,
            weight_decay=self._weight_decay * root,
        )
        gate_rate = _GATE_RATE if self._learning_rate else 0.0
        self._gate_optimisers[name] = LoraOptimiser([self._gates[name]], learning_rate=gate_rate, weight_decay=0.0)

    # ---- item vectors

    def project(self, rows: Sequence[int], text: Tensor, vectors: Mapping[int, ItemVectors]) -> Tensor:
        """What items are scored by, [rows, dim], of new text vectors [rows, dim], which are remembered."""
        if not self._trained:
            return text
        for row, plain in zip(rows, text, strict=True):
            self._plain.pop(row, None)
            if row in vectors:
                self._plain[row] = plain.clone()
        return add_modalities(text, rows, vectors, self.served)

    def refresh_served(self, vectors: Mapping[int, ItemVectors]) -> tuple[list[int], Tensor]:
        """Make projections as they stand those that scores follow from: the rows and their vectors [rows, dim]."""
        self.served = {name: weights.detach() for name, weights in self._gated().items()}
        rows = sorted(self._plain)
        return rows, add_modalities(self._plain_of(rows), rows, vectors, self.served)

    def project_trained(
        self, rows: npt.NDArray[np.int64], vectors: Mapping[int, ItemVectors]
    ) -> tuple[npt.NDArray[np.int64], Tensor] | tuple[None, None]:
        """Those of some sorted rows that have vectors, and what they are by the trained projections, differentiable."""
        having = [row for row in rows.tolist() if row in self._plain]
        if not having:
            return None, None
        return np.array(having), add_modalities(self._plain_of(having), having, vectors, self._gated())

    def project_detached(self, text: Tensor, rows: Sequence[int], vectors: Mapping[int, ItemVectors]) -> Tensor:
        """Text vectors [rows, dim] with what the trained projections add, differentiable in the texts alone."""
        return add_modalities(text, rows, vectors, {name: weights.detach() for name, weights in self._gated().items()})

    def _gated(self) -> dict[str, Tensor]:
        return {name: self._gates[name] * weights for name, weights in self._trained.items()}

    def _plain_of(self, rows: Sequence[int]) -> Tensor:
        return torch.stack([self._plain[row] for row in rows]) if rows else torch.zeros(0, self._dim)

    # ---- learning

    def parameters(self) -> list[nn.Parameter]:
        """What a step moves."""
        return [own[name] for own in (self._trained, self._gates) for name in sorted(own)]

    def step(self, gradients: Sequence[Tensor | None], *, scale: float) -> None:
        """One step along gradients of `parameters()`; `scale` is of its length."""
        steps = [own[name] for own in (self._optimisers, self._gate_optimisers) for name in sorted(own)]
        for moved, gradient, optimiser in zip(self.parameters(), gradients, steps, strict=True):
            if gradient is not None:
                moved.grad = gradient
                optimiser.step(scale=scale)
        for gate in self._gates.values():
            gate.data.clamp_(0.0, 1.0)

    # ---- what is kept

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Begin from published projections, [dim, length] by modality; optimisers begin anew."""
        for name, one in weights.items():
            self._put(name, one.float(), gate=1.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that learning moves, as tensors."""
        tensors = {f"served/{name}": weights for name, weights in self.served.items()}
        tensors |= {f"trained/{name}": weights.detach() for name, weights in self._trained.items()}
        tensors |= {f"gate/{name}": gate.detach() for name, gate in self._gates.items()}
        return tensors | {
            f"{kind}/{name}/{key}": value
            for kind, optimisers in self._all_optimisers().items()
            for name, optimiser in optimisers.items()
            for key, value in optimiser.state_dict().items()
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave; what came since stays, and has learnt nothing."""
        served = {name.removeprefix("served/"): one for name, one in tensors.items() if name.startswith("served/")}
        for name, weights in ({name: torch.zeros_like(one) for name, one in self.served.items()} | served).items():
            self._put(name, weights)
        for name in served:
            self.served[name] = served[name].clone()
            self._trained[name].data.copy_(tensors[f"trained/{name}"])
            self._gates[name].data.copy_(tensors[f"gate/{name}"])
            for kind, optimisers in self._all_optimisers().items():
                prefix = f"{kind}/{name}/"
                own = {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}
                optimisers[name].load_state_dict(own)

    def _all_optimisers(self) -> dict[str, dict[str, LoraOptimiser]]:
        return {"optimiser": self._optimisers, "gate_optimiser": self._gate_optimisers}

    def plain(self) -> dict[str, Tensor]:
        """Text vectors of items that have others too, as tensors."""
        rows = sorted(self._plain)
        return {"rows": torch.tensor(rows, dtype=torch.int64), "text": self._plain_of(rows)} if rows else {}

    def restore_plain(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `plain` gave."""
        rows = tensors["rows"].tolist() if tensors else []
        self._plain = {row: tensors["text"][place].clone() for place, row in enumerate(rows)}


def pack_vectors(vectors: Mapping[int, ItemVectors]) -> dict[str, Tensor]:
    """Vectors by row as a few tensors; those of one modality have one length."""
    names = sorted({name for own in vectors.values() for name in own})
    tensors = {}
    for name in names:
        rows = sorted(row for row, own in vectors.items() if name in own)
        tensors[f"rows/{name}"] = torch.tensor(rows, dtype=torch.int64)
        tensors[f"vectors/{name}"] = torch.from_numpy(np.stack([vectors[row][name] for row in rows]))
    return tensors


def unpack_vectors(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, npt.NDArray[np.float16]]]:
    """What `pack_vectors` was given."""
    vectors: dict[int, dict[str, npt.NDArray[np.float16]]] = {}
    for key, table in tensors.items():
        kind, name = key.split("/", 1)
        if kind == "vectors":
            for row, one in zip(tensors[f"rows/{name}"].tolist(), table.numpy(), strict=True):
                vectors.setdefault(row, {})[name] = one.copy()
    return vectors

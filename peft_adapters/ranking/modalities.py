"""Projections that add vectors of other modalities, such as image embeddings, to items' text vectors.

An item with the text vector `t` and other vectors `v_m` gets `normalize(t + sum_m P_m v_m)` in place of `t`. All
projections start at zero, so nothing changes before training, and items without other vectors keep their text vectors.

While it is trained, a projection is a matrix times a gate between 0 and 1. A matrix can memorise the training events,
which is all there is to learn from uninformative vectors. The gate is one number, trained on events that the matrix has
not seen yet, so it closes as far as the matrix does not generalise. Their product is published.
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

MAX_MODALITIES = 8  # per catalogue: each has a projection that is trained, saved and published
_MIN_RATE_LENGTH = 64  # shorter vectors have the learning rate of this length: they would fit noise otherwise
_INITIAL_GATE, _GATE_RATE = 0.5, 0.05
_CHUNK = 1_024  # items projected at a time; bounds memory

ItemVectors = Mapping[str, npt.NDArray[np.float16]]  # unit vectors [length] by modality
# Id, text, and, if any, vectors of other modalities and a price.
CatalogueItem = tuple[str, str] | tuple[str, str, ItemVectors] | tuple[str, str, ItemVectors, float | None]


def item_vectors(vectors: Mapping[str, Sequence[float]]) -> ItemVectors:
    """Return unit vectors in half precision; a zero vector stays zero and has no effect.

    >>> item_vectors({"image": [3e300, 4e300]})
    {'image': array([0.6, 0.8], dtype=float16)}
    """
    return {name: _unit(np.asarray(values, dtype=np.float64)) for name, values in vectors.items()}


def price_of(item: CatalogueItem) -> float | None:
    """Return the price of an item; None if it is unknown."""
    return item[3] if len(item) == 4 else None


def _unit(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float16]:
    """Return a vector [length] over its norm."""
    scaled = values / max(float(np.abs(values).max()), np.finfo(np.float64).tiny)  # squares do not overflow
    return (scaled / max(float(np.linalg.norm(scaled)), 1.0)).astype(np.float16)  # the norm is 0 or at least 1


def add_modalities(
    text: Tensor, rows: Sequence[int], vectors: Mapping[int, ItemVectors], projections: Mapping[str, Tensor]
) -> Tensor:
    """Return unit vectors [rows, dim]: the text vectors plus the projected vectors of other modalities.

    Args:
        text: [rows, dim] unit text vectors; those of items without other vectors are returned unchanged.
        rows: catalogue rows of the items.
        vectors: vectors of other modalities by row; those that do not match their projection's length are ignored.
        projections: matrices [dim, length] by modality.
    """
    with_vectors = [position for position, row in enumerate(rows) if row in vectors] if projections else []
    parts = []
    for start in range(0, len(with_vectors), _CHUNK):
        positions = with_vectors[start : start + _CHUNK]
        sums = text[positions]
        for name in sorted(projections):  # in a fixed order, because sums of floats depend on it
            given = [vectors[rows[position]].get(name) for position in positions]
            sums = _add_projected(sums, given, projections[name])
        parts.append(nn.functional.normalize(sums, dim=1))
    return text.index_copy(0, torch.tensor(with_vectors), torch.cat(parts)) if parts else text


def _add_projected(sums: Tensor, vectors: Sequence[npt.NDArray[np.float16] | None], projection: Tensor) -> Tensor:
    """Return sums [items, dim] plus the projections of the vectors that match the projection's length."""
    length = projection.shape[1]
    matching = [index for index, vector in enumerate(vectors) if vector is not None and len(vector) == length]
    if not matching:
        return sums
    stacked = np.stack([vector for vector in vectors if vector is not None and len(vector) == length])
    return sums.index_add(0, torch.tensor(matching), torch.from_numpy(stacked).float() @ projection.T)


def count_mismatched(vectors: Iterable[ItemVectors], projections: Mapping[str, Tensor]) -> int:
    """Return the number of vectors whose length does not match the projection [dim, length] of their modality."""
    return sum(
        len(vector) != projections[name].shape[1]
        for by_modality in vectors
        for name, vector in by_modality.items()
        if name in projections
    )


def contribution_norm(projection: Tensor) -> Tensor:
    """Return the root mean square norm that a projection [dim, length] adds to a text, over all unit vectors."""
    norm: Tensor = torch.linalg.vector_norm(projection) / projection.shape[1] ** 0.5
    return norm


class Projections:
    """The projections of a catalogue during training: the trained weights, and the weights in use.

    Args:
        dim: width of a text vector.
        learning_rate: learning rate of AdamW; it is divided by the square root of the vectors' length, so that a step
            changes what is added equally for all lengths.
        weight_decay: weight decay of AdamW, relative to its learning rate; multiplied by the same root, so that a step
            decays the weights equally for all lengths.

    Attributes:
        served: matrices [dim, length] by modality in use, which are the trained ones of the last refresh.
    """

    def __init__(self, dim: int, *, learning_rate: float, weight_decay: float) -> None:
        self._dim, self._learning_rate, self._weight_decay = dim, learning_rate, weight_decay
        self.served: dict[str, Tensor] = {}
        self._trained: dict[str, nn.Parameter] = {}
        self._gates: dict[str, nn.Parameter] = {}
        self._optimisers: dict[str, LoraOptimiser] = {}
        self._gate_optimisers: dict[str, LoraOptimiser] = {}
        self._text: dict[int, Tensor] = {}  # text vector [dim] by row, of items with vectors of other modalities

    # ---- modalities

    def register(self, lengths: Mapping[str, int]) -> str | None:
        """Add the modalities of an item; the first vector of a modality fixes its length.

        Args:
            lengths: length of the item's vector by modality.

        Returns:
            A sentence about the violated rule, in which case nothing is added, or None.
        """
        for name, length in lengths.items():
            if name in self._trained and length != (expected := self._trained[name].shape[1]):
                return (
                    f"`vectors.{name}` must have {expected} numbers, as the first one had, got {length}; "
                    "keep to one length"
                )
        names = sorted(self._trained.keys() | lengths.keys())
        if len(names) > MAX_MODALITIES:
            return (
                f"a catalogue must have at most {MAX_MODALITIES} names in `vectors`, got {', '.join(names)}; use fewer"
            )
        for name in lengths.keys() - self._trained.keys():
            self._add(name, torch.zeros(self._dim, lengths[name]))
        return None

    def drop_invalid_vectors(self, item: CatalogueItem) -> CatalogueItem:
        """Return the item, without its vectors if they violate a rule, and register its modalities."""
        if len(item) == 2 or not item[2]:
            return item
        problem = self.register({name: len(vector) for name, vector in item[2].items()})
        if problem is None:
            return item
        log.warning("vectors_not_used", item_id=item[0], problem=problem)
        return item[0], item[1], {}, price_of(item)

    def _add(self, name: str, weights: Tensor, *, gate: float = _INITIAL_GATE) -> None:
        """Add or replace a projection with weights [dim, length] and new optimisers."""
        self.served[name], self._trained[name] = weights.clone(), nn.Parameter(weights.clone())
        self._gates[name] = nn.Parameter(torch.tensor(gate))
        root = max(weights.shape[1], _MIN_RATE_LENGTH) ** 0.5
        self._optimisers[name] = LoraOptimiser(
            [self._trained[name]],
            learning_rate=self._learning_rate / root,
            weight_decay=self._weight_decay * root,
        )
        gate_rate = _GATE_RATE if self._learning_rate else 0.0
        self._gate_optimisers[name] = LoraOptimiser([self._gates[name]], learning_rate=gate_rate, weight_decay=0.0)

    # ---- item vectors

    def project(self, rows: Sequence[int], text: Tensor, vectors: Mapping[int, ItemVectors]) -> Tensor:
        """Return the vectors [rows, dim] that items are scored by, and keep their text vectors.

        Args:
            rows: catalogue rows of the items.
            text: [rows, dim] new text vectors of the items.
            vectors: vectors of other modalities by catalogue row.
        """
        if not self._trained:
            return text
        for row, text_vector in zip(rows, text, strict=True):
            self._text.pop(row, None)
            if row in vectors:
                self._text[row] = text_vector.clone()
        return add_modalities(text, rows, vectors, self.served)

    def refresh_served(self, vectors: Mapping[int, ItemVectors]) -> tuple[list[int], Tensor]:
        """Put the trained projections in use, and return the affected rows with their new vectors [rows, dim]."""
        self.served = {name: weights.detach() for name, weights in self._gated().items()}
        rows = sorted(self._text)
        return rows, add_modalities(self._text_of(rows), rows, vectors, self.served)

    def project_trained(
        self, rows: npt.NDArray[np.int64], vectors: Mapping[int, ItemVectors]
    ) -> tuple[npt.NDArray[np.int64], Tensor] | tuple[None, None]:
        """Return those of sorted rows [rows] that have vectors, and their differentiable vectors [rows, dim].

        The vectors follow the trained projections. Without any such row, both results are None.
        """
        with_vectors = [row for row in rows.tolist() if row in self._text]
        if not with_vectors:
            return None, None
        projected = add_modalities(self._text_of(with_vectors), with_vectors, vectors, self._gated())
        return np.array(with_vectors), projected

    def project_detached(self, text: Tensor, rows: Sequence[int], vectors: Mapping[int, ItemVectors]) -> Tensor:
        """Return vectors [rows, dim] by the trained projections, differentiable only in `text`, [rows, dim]."""
        return add_modalities(text, rows, vectors, {name: weights.detach() for name, weights in self._gated().items()})

    def _gated(self) -> dict[str, Tensor]:
        return {name: self._gates[name] * weights for name, weights in self._trained.items()}

    def _text_of(self, rows: Sequence[int]) -> Tensor:
        return torch.stack([self._text[row] for row in rows]) if rows else torch.zeros(0, self._dim)

    # ---- training

    def parameters(self) -> list[nn.Parameter]:
        """Return the matrices, then the gates, each in order of their names."""
        return [by_name[name] for by_name in (self._trained, self._gates) for name in sorted(by_name)]

    def step(self, gradients: Sequence[Tensor | None], *, scale: float) -> None:
        """Take an optimiser step.

        Args:
            gradients: gradient of each of `parameters()`; None leaves its parameter unchanged.
            scale: factor of the learning rate.
        """
        optimisers = [
            by_name[name] for by_name in (self._optimisers, self._gate_optimisers) for name in sorted(by_name)
        ]
        for parameter, gradient, optimiser in zip(self.parameters(), gradients, optimisers, strict=True):
            if gradient is not None:
                parameter.grad = gradient
                optimiser.step(scale=scale)
        for gate in self._gates.values():
            gate.data.clamp_(0.0, 1.0)

    # ---- state of a checkpoint

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Start from published projections [dim, length] by modality, with new optimisers."""
        for name, projection in weights.items():
            self._add(name, projection.float(), gate=1.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights, gates and optimiser states."""
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
        """Load the result of `state_dict`; modalities that it lacks stay, untrained."""
        served = {
            name.removeprefix("served/"): weights for name, weights in tensors.items() if name.startswith("served/")
        }
        untrained = {name: torch.zeros_like(weights) for name, weights in self.served.items()}
        for name, weights in (untrained | served).items():
            self._add(name, weights)
        for name in served:
            self.served[name] = served[name].clone()
            self._trained[name].data.copy_(tensors[f"trained/{name}"])
            self._gates[name].data.copy_(tensors[f"gate/{name}"])
            for kind, optimisers in self._all_optimisers().items():
                prefix = f"{kind}/{name}/"
                state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                optimisers[name].load_state_dict(state)

    def _all_optimisers(self) -> dict[str, dict[str, LoraOptimiser]]:
        return {"optimiser": self._optimisers, "gate_optimiser": self._gate_optimisers}

    def text_state_dict(self) -> dict[str, Tensor]:
        """Return the rows [rows] and text vectors [rows, dim] of items with vectors of other modalities."""
        rows = sorted(self._text)
        return {"rows": torch.tensor(rows, dtype=torch.int64), "text": self._text_of(rows)} if rows else {}

    def load_text_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the result of `text_state_dict`."""
        rows = tensors["rows"].tolist() if tensors else []
        self._text = {row: tensors["text"][position].clone() for position, row in enumerate(rows)}


def pack_vectors(vectors: Mapping[int, ItemVectors]) -> dict[str, Tensor]:
    """Return vectors by row as tensors of rows [rows] and vectors [rows, length] per modality."""
    names = sorted({name for by_modality in vectors.values() for name in by_modality})
    tensors = {}
    for name in names:
        rows = sorted(row for row, by_modality in vectors.items() if name in by_modality)
        tensors[f"rows/{name}"] = torch.tensor(rows, dtype=torch.int64)
        tensors[f"vectors/{name}"] = torch.from_numpy(np.stack([vectors[row][name] for row in rows]))
    return tensors


def unpack_vectors(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, npt.NDArray[np.float16]]]:
    """Return the vectors by row that `pack_vectors` packed."""
    vectors: dict[int, dict[str, npt.NDArray[np.float16]]] = {}
    for key, table in tensors.items():
        kind, name = key.split("/", 1)
        if kind == "vectors":
            for row, vector in zip(tensors[f"rows/{name}"].tolist(), table.numpy(), strict=True):
                vectors.setdefault(row, {})[name] = vector.copy()
    return vectors


def pack_prices(prices: Mapping[int, float]) -> dict[str, Tensor]:
    """Return prices by row as tensors of rows [rows] and values [rows]."""
    rows = sorted(prices)
    values = torch.tensor([prices[row] for row in rows], dtype=torch.float64)
    return {"rows": torch.tensor(rows, dtype=torch.int64), "values": values}


def unpack_prices(tensors: Mapping[str, Tensor]) -> dict[int, float]:
    """Return the prices by row that `pack_prices` packed."""
    return dict(zip(tensors["rows"].tolist(), tensors["values"].tolist(), strict=True)) if tensors else {}

"""What an intervention does to the vector at a tap, as x -> A x + c, and the same written into a linear map before or behind it.

Behind the tap stands y = W x + b: there W becomes W A and b becomes b + W c. Before the tap stands x = W z + b: there W
becomes A W and b becomes A b + c. Every set, mean, scale, add and project is such a map; a shuffle, a mask and a scope are not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import ModelError
from patchclamp.intervene.changes import Item
from patchclamp.intervene.targets import Coordinates, Direction, coordinates
from patchclamp.models.hooks import Tap

Vector = NDArray[np.float64]


class Affine(ABC):
    """x -> A x + c for the vector of one tap. All arithmetic is done in the dtype of the weights given (float64 in edits)."""

    @property
    @abstractmethod
    def constant(self) -> bool:
        """Whether c is not 0, so that a bias is needed to hold it."""

    @property
    @abstractmethod
    def only_adds(self) -> bool:
        """Whether A is the identity."""

    @abstractmethod
    def behind(self, weight: Tensor, bias: Tensor | None) -> None:
        """Change y = weight x + bias, in place, to that of A x + c. weight: (outputs, width)."""

    @abstractmethod
    def before(self, weight: Tensor, bias: Tensor | None) -> None:
        """Change x = weight z + bias, in place, to A x + c. weight: (width, inputs)."""

    @abstractmethod
    def times(self, factor: float) -> Self:
        """The same with c multiplied."""


@dataclass(frozen=True, eq=False)
class OfUnits(Affine):
    """x_i -> factor_i * x_i + shift_i for the coordinates `index`; the others stay."""

    index: NDArray[np.int64]
    factor: Vector
    shift: Vector

    @property
    def constant(self) -> bool:
        return bool(self.shift.any())

    @property
    def only_adds(self) -> bool:
        return bool((self.factor == 1.0).all())

    def behind(self, weight: Tensor, bias: Tensor | None) -> None:
        index, factor, shift = self._on(weight)
        columns = weight[:, index]
        if bias is not None and self.constant:
            bias += columns @ shift
        weight[:, index] = torch.where(factor == 0, 0.0, columns * factor)  # 0 as such, not -0

    def before(self, weight: Tensor, bias: Tensor | None) -> None:
        index, factor, shift = self._on(weight)
        weight[index] = torch.where(factor[:, None] == 0, 0.0, weight[index] * factor[:, None])
        if bias is not None:
            bias[index] = bias[index] * factor + shift

    def times(self, factor: float) -> OfUnits:
        return replace(self, shift=self.shift * factor)

    def within(self, first: int, width: int) -> OfUnits | None:
        """The part that lies in coordinates first .. first + width - 1, counted from there; None if there is none."""
        here = (self.index >= first) & (self.index < first + width)
        return OfUnits(self.index[here] - first, self.factor[here], self.shift[here]) if here.any() else None

    def _on(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.from_numpy(self.index).to(weight.device)
        factor, shift = (torch.from_numpy(part).to(weight.device, weight.dtype) for part in (self.factor, self.shift))
        return index, factor, shift


@dataclass(frozen=True, eq=False)
class OfDirection(Affine):
    """x -> x + ((factor - 1) * d.x + shift) v with d = v / |v|^2: the coefficient of v becomes factor * old + shift."""

    vector: Vector
    factor: float
    shift: float

    @property
    def constant(self) -> bool:
        return self.shift != 0.0

    @property
    def only_adds(self) -> bool:
        return self.factor == 1.0

    def behind(self, weight: Tensor, bias: Tensor | None) -> None:
        vector, dual = self._on(weight)
        read = weight @ vector
        if bias is not None:
            bias += self.shift * read
        if self.factor != 1.0:
            weight += torch.outer((self.factor - 1) * read, dual)

    def before(self, weight: Tensor, bias: Tensor | None) -> None:
        vector, dual = self._on(weight)
        if self.factor != 1.0:
            weight += torch.outer((self.factor - 1) * vector, dual @ weight)
        if bias is not None:
            bias += ((self.factor - 1) * (dual @ bias) + self.shift) * vector

    def times(self, factor: float) -> OfDirection:
        return replace(self, shift=self.shift * factor)

    def _on(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        dual = self.vector / float(self.vector @ self.vector)
        vector, dual_ = (torch.from_numpy(part).to(weight.device, weight.dtype) for part in (self.vector, dual))
        return vector, dual_


def affine_maps(item: Item) -> list[tuple[Tap, Affine]]:
    """The map at every tap of an intervention, in order. ModelError for what is no such map, saying what to use instead."""
    problem = not_affine(item)
    if problem is not None:
        raise ModelError(problem)
    if isinstance(item.target, Direction):
        value = 0.0 if item.value is None else float(np.asarray(item.value).reshape(-1)[0])
        factor, shift = _factor_and_shift(item.operation, value)
        pairs = zip(item.target.layers, item.target.vectors, strict=True)
        return [((item.target.site, layer), OfDirection(vector, factor, shift)) for layer, vector in pairs]
    found: list[tuple[Tap, Affine]] = []
    for part in coordinates(item.target):
        value_ = _values(item, len(item.target), part)
        factors, shifts = _factor_and_shift(item.operation, value_)
        found.append(
            (part.tap, OfUnits(part.inner, np.broadcast_to(factors, value_.shape).copy(), shifts + 0.0 * value_))
        )
    return found


def not_affine(item: Item) -> str | None:
    """Why an intervention is not the same affine map at every position, and what to do instead; None if it is."""
    instead = "apply it while the model runs (clamp, steer, .applied), or save it as interventions"
    if item.mask is not None:
        return (
            f"weights act at every position, but this change has a mask of positions: {instead}, or leave the mask away"
        )
    if item.scope != "all":
        return (
            f"weights act at every position, but this change has the scope {item.scope!r}: {instead}, or make it with "
            "scope='all'"
        )
    if item.operation == "shuffle":
        return f"weights can't permute values over positions: {instead}; to='mean' is a milder ablation that can be written"
    return None


def _factor_and_shift(operation: str, value: Any) -> tuple[Any, Any]:
    """(factor, shift) of new = factor * old + shift."""
    if operation == "project":
        return 0.0, 0.0
    if operation in ("set", "mean"):
        return 0.0, value
    return (value, 0.0) if operation == "scale" else (1.0, value)


def _values(item: Item, n_units: int, part: Coordinates) -> Vector:
    """The intervention's value for every coordinate of one tap."""
    if not isinstance(item.value, np.ndarray):
        return np.full(len(part.inner), float(item.value or 0.0))
    if len(item.value) == n_units:
        return item.value[part.unit]
    return item.value[part.first : part.first + len(part.inner)]

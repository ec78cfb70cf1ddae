"""What an intervention acts on: directions in a site, and the coordinates (tap by tap) that a unit set stands for.

A head is a block of coordinates of the vector that enters the attention output projection: `head.9.6` of a model with
64-dimensional heads stands for attn.9.384 to attn.9.447.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.models.units import Layout, UnitSet, check_features, describe, layouts_of


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector in a site of some layers, with the coefficient c = x.v / |v|^2 as what is set, scaled, added or removed.

    Adding a adds a * v; setting to c makes the component along v exactly c * v; projecting out sets it to 0. So the
    length of v matters for add and set, and not for scale and project.
    vectors: (len(layers), width) float64, one vector per layer. model: identity of the model.
    """

    site: str
    layers: tuple[int, ...]
    vectors: NDArray[np.float64]
    model: Mapping[str, Any]

    @classmethod
    def of(cls, model: Any, site: str, layers: int | Iterable[int], vector: ArrayLike) -> Direction:
        """Build and check. vector: (width,) for all layers, or (len(layers), width). model: LanguageModel or identity."""
        identity = model if isinstance(model, Mapping) else model.identity
        layouts = layouts_of(identity)
        chosen = (layers,) if isinstance(layers, int) else tuple(layers)
        if site not in layouts or site == "head":
            raise InputError(
                f"no direction can lie in site {site!r}; choose from {', '.join(s for s in layouts if s != 'head')}"
            )
        plain = vector.detach().float().cpu() if hasattr(vector, "detach") else vector
        vectors = np.atleast_2d(np.asarray(plain, dtype=np.float64))
        if not chosen or len(vectors) not in (1, len(chosen)):
            raise InputError(f"{len(chosen)} layers but {len(vectors)} vectors; give one for all or one per layer")
        vectors = np.broadcast_to(vectors, (len(chosen), vectors.shape[1])).copy()
        for layer, row in zip(chosen, vectors, strict=True):
            _check_vector(layouts[site], layer, row)
        return cls(site, chosen, vectors, identity)

    def random(self, rng: np.random.Generator) -> Direction:
        """Directions drawn evenly from all, as long as these, one per layer; what is one vector for all layers stays one."""
        same = bool((self.vectors == self.vectors[0]).all())
        drawn = rng.standard_normal((1, self.vectors.shape[1]) if same else self.vectors.shape)
        drawn = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        vectors = drawn * np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return Direction(self.site, self.layers, vectors, self.model)

    def check_model(self, model: Any) -> None:
        """Raise MismatchError unless `model` (a LanguageModel or identity) is the model of this direction."""
        theirs = model if isinstance(model, Mapping) else model.identity
        if self.model.get("fingerprint") != theirs.get("fingerprint"):
            raise MismatchError(
                f"this direction belongs to model {describe(self.model)}, but {describe(theirs)} was given"
            )
        check_features("this direction's vectors", self.model, theirs, (self.site,))

    def to_dict(self) -> dict[str, Any]:
        return {"site": self.site, "layers": list(self.layers), "vectors": self.vectors.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> Direction:
        return cls.of(model, data["site"], data["layers"], data["vectors"])

    def __repr__(self) -> str:
        return f"Direction({self.site} of layers {list(self.layers)}, width {self.vectors.shape[1]}, {describe(self.model)})"


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of one tap that a unit set stands for.

    tap: (site, layer) as the hooks know it (heads appear as attn). inner: positions within the layer, int64 ascending.
    unit: for each coordinate the number of its unit in the set's canonical order. first: number of the first coordinate
    when all coordinates of the set are counted in canonical order.
    """

    tap: tuple[str, int]
    inner: NDArray[np.int64]
    unit: NDArray[np.int64]
    first: int


def coordinates(units: UnitSet) -> list[Coordinates]:
    """The coordinates of a set, one entry per site and layer, in canonical order."""
    found, n_units, n_done = [], 0, 0
    for site, where in units.positions.items():
        layout = units.layouts[site]
        for layer in range(layout.n_layers):
            span = layout.slice(layer)
            inner = where[(where >= span.start) & (where < span.stop)] - span.start
            if not len(inner):
                continue
            numbers = np.arange(n_units, n_units + len(inner))
            n_units += len(inner)
            if site == "head":
                size = head_size(units.layouts, layer)
                inner = (inner[:, None] * size + np.arange(size)).reshape(-1)
                numbers = np.repeat(numbers, size)
            tap = ("attn" if site == "head" else site, layer)
            found.append(Coordinates(tap, inner.astype(np.int64), numbers.astype(np.int64), n_done))
            n_done += len(inner)
    return found


def dealt_within_layers(units: UnitSet, rng: np.random.Generator) -> NDArray[np.int64]:
    """(len(units),) a random order of the set's units in which each keeps its site and layer."""
    order = np.arange(len(units), dtype=np.int64)
    first = 0
    for site, where in units.positions.items():
        layout = units.layouts[site]
        bounds = [np.searchsorted(where, layout.slice(layer).start) for layer in range(layout.n_layers)]
        for start, stop in zip(bounds, [*bounds[1:], len(where)], strict=True):
            order[first + start : first + stop] = first + start + rng.permutation(int(stop - start))
        first += len(where)
    return order


def head_size(layouts: Mapping[str, Layout], layer: int) -> int:
    """Coordinates of `attn` that one head of a layer holds."""
    return layouts["attn"].widths[layer] // layouts["head"].widths[layer]


def n_coordinates(target: UnitSet | Direction) -> int:
    """How many coordinates a set stands for (a head counts its whole block); 1 for a direction."""
    if isinstance(target, Direction):
        return 1
    return sum(len(part.inner) for part in coordinates(target))


def lowest_block(target: UnitSet | Direction) -> int | None:
    """First block whose computation the target can change; 0 where embeddings are touched, None for an empty set.

    Blocks below it, and the residual stream that enters it, are the same with and without the intervention.
    """
    taps = (
        [(target.site, layer) for layer in target.layers]
        if isinstance(target, Direction)
        else [part.tap for part in coordinates(target)]
    )
    return min((0 if site == "embed" else layer for site, layer in taps), default=None)


def _check_vector(layout: Layout, layer: int, vector: NDArray[np.float64]) -> None:
    width = layout.slice(layer).stop - layout.slice(layer).start
    if layout.experts[layer]:
        raise InputError(f"{layout.site} of layer {layer} is split over experts; a direction needs a dense layer")
    if len(vector) != width:
        raise InputError(f"a vector of {len(vector)} numbers given, but {layout.site} of layer {layer} has {width}")
    if not np.isfinite(vector).all() or not vector.any():
        raise InputError(
            f"the vector for layer {layer} is zero or not finite; a direction needs a finite non-zero vector"
        )

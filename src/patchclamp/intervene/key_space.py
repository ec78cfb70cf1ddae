"""A box in key space: per coordinate the mean of a skill's vectors plus or minus k standard deviations.

Li, Sun & Weng 2025 (arXiv 2503.21730), Key Space Detection: a vector that lies inside `alpha` times the box in every coordinate
is taken for one of the skill. k is the smallest number for which the box holds every vector it was fitted to; the paper's code
bisects for it, here it has a closed form.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.core.files import atomic_write
from patchclamp.models.units import check_features, describe

Floats = NDArray[np.float64]
FORMAT = "patchclamp.region/1"
FLOOR = 1e-6  # of the median standard deviation: a coordinate without spread would let nothing in but itself


@dataclass(frozen=True, eq=False)
class Region:
    """mean +- alpha * k * std, per coordinate, in one layer of one site.

    mean, std (divisor n - 1, floored): (width,) float64. k: smallest factor that holds all n fitted vectors at alpha = 1.
    floored: coordinates whose spread was raised to a millionth of the median one. model: identity of the model.
    """

    site: str
    layer: int
    mean: Floats
    std: Floats
    k: float
    n: int
    floored: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"a region of {self.site}, layer {self.layer}"
        if self.mean.shape != self.std.shape or self.mean.ndim != 1:
            raise DamagedError(f"{where}: mean {self.mean.shape} and std {self.std.shape} don't belong together")
        if not (np.isfinite(self.mean).all() and (self.std > 0).all() and np.isfinite(self.std).all()):
            raise DamagedError(f"{where} has a mean or a spread that is no usable number")
        if not 0 < self.k <= self.bound * (1 + 1e-9):
            raise DamagedError(
                f"{where} has k = {self.k:g}, but {self.n} vectors can't lie farther than {self.bound:g} standard deviations "
                "from their mean (Samuelson 1968): it was altered, or fitted to other vectors than it says"
            )

    @classmethod
    def of(cls, vectors: ArrayLike, *, site: str, layer: int, model: Mapping[str, Any] | None = None) -> Region:
        """Fit to vectors (n, width): k = max over vectors and coordinates of |v - mean| / std.

        InputError for fewer than two vectors, NaN or infinite ones, or vectors that are all the same.
        """
        values = np.asarray(vectors, dtype=np.float64)
        if values.ndim != 2 or len(values) < 2:
            raise InputError(f"vectors of shape {values.shape} given; a region needs at least two, as (n, width)")
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise InputError(
                f"vector {row} is {values[row, column]} in coordinate {column}; a region needs finite numbers"
            )
        mean = values.mean(0)
        return cls._fitted(mean, values.std(0, ddof=1), np.abs(values - mean).max(0), len(values), site, layer, model)

    @classmethod
    def of_moments(
        cls,
        n: int,
        mean: Floats,
        m2: Floats,
        low: Floats,
        high: Floats,
        *,
        site: str,
        layer: int,
        model: Mapping[str, Any],
    ) -> Region:
        """The same from count, mean, sum of squared deviations, minimum and maximum: exact, without holding the vectors."""
        if n < 2:
            raise InputError(f"{n} vectors given; a region needs at least two")
        return cls._fitted(mean, np.sqrt(m2 / (n - 1)), np.maximum(high - mean, mean - low), n, site, layer, model)

    @classmethod
    def _fitted(
        cls, mean: Floats, std: Floats, reach: Floats, n: int, site: str, layer: int, model: Mapping[str, Any] | None
    ) -> Region:
        flat = std <= 1e-9 * np.abs(mean)  # rounding, not spread
        if flat.all():
            raise InputError(f"the {n} vectors of {site}, layer {layer}, are all the same; no region can be fitted")
        floor = FLOOR * float(np.median(std[~flat]))
        raised = flat | (std < floor)
        std = np.where(raised, np.maximum(std, floor), std)
        k = float((reach[~flat] / std[~flat]).max())
        return cls(site, layer, mean, std, k, n, int(raised.sum()), dict(model or {}))

    @property
    def bound(self) -> float:
        """Samuelson's bound (n - 1) / sqrt(n): no vector lies farther from the mean of n, in standard deviations."""
        return (self.n - 1) / math.sqrt(self.n)

    def reach(self, vectors: ArrayLike) -> Floats:
        """The smallest alpha whose box holds each vector, (n,). vectors: (n, width)."""
        values = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
        if values.shape[1] != len(self.mean):
            raise InputError(f"vectors of width {values.shape[1]} given; the region has {len(self.mean)} coordinates")
        return np.asarray((np.abs(values - self.mean) / self.std).max(1) / self.k)

    def inside(self, vectors: ArrayLike, alpha: float = 1.0) -> NDArray[np.bool_]:
        """Which vectors lie inside alpha times the box in every coordinate, (n,). NaN lies outside."""
        return np.asarray(self.reach(vectors) <= alpha)

    def expected_coverage(self, alpha: float) -> float:
        """Share of fresh vectors inside if coordinates were independent and normal: (2 Phi(alpha k) - 1)^width.

        With many coordinates one of them almost surely lies far out: at 14,336 coordinates alpha * k must exceed about 4.5.
        """
        return float((1 - math.erfc(alpha * self.k / math.sqrt(2))) ** len(self.mean))

    def check_model(self, model: Any) -> None:
        """MismatchError unless the region was fitted on this model (a LanguageModel or an identity)."""
        identity = model if isinstance(model, Mapping) else model.identity
        if self.model.get("fingerprint") != identity.get("fingerprint"):
            raise MismatchError(f"the region belongs to {describe(self.model)}, not to {describe(identity)}")
        check_features("this region's coordinates", self.model, identity, (self.site,))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.region/1`: safetensors with mean and std, the rest as JSON in its header."""
        from safetensors.numpy import save_file

        kept = {
            "format": FORMAT, "site": self.site, "layer": self.layer, "k": self.k, "n": self.n, "floored": self.floored,
            "model": dict(self.model),
        }  # fmt: skip
        with atomic_write(Path(path)) as part:
            save_file({"mean": self.mean, "std": self.std}, part, metadata={"patchclamp": json.dumps(kept)})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Region:
        """Read what `save` wrote. InputError for another file, DamagedError for one that can't be true."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), framework="numpy") as opened:
                kept = json.loads((opened.metadata() or {}).get("patchclamp", "{}"))
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError as problem:
            raise InputError(f"no region at {path}: there is no such file") from problem
        except (SafetensorError, json.JSONDecodeError, OSError) as problem:
            raise DamagedError(f"{path} is no readable region: {problem}") from problem
        if kept.get("format") != FORMAT or set(arrays) != {"mean", "std"}:
            raise InputError(f"{path} holds no {FORMAT}; make one with skill_regions(...)")
        try:
            numbers = (float(kept["k"]), int(kept["n"]), int(kept["floored"]))
            return cls(str(kept["site"]), int(kept["layer"]), arrays["mean"], arrays["std"], *numbers, kept["model"])
        except (KeyError, TypeError, ValueError) as problem:
            raise DamagedError(f"{path} is not a complete region: {problem!r}") from problem

    def __repr__(self) -> str:
        return (
            f"Region({self.site}, layer {self.layer}: {len(self.mean)} coordinates, {self.n} vectors, k {self.k:.3f})"
        )

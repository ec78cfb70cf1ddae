"""Tuning curves of units over ordered stimuli, and whether they grow with the log, the power or the plain distance.

Logarithmic coding is claimed only where the log model beats the others (Akaike 1974). Source of the log fit: Li et al.
2025, arXiv 2507.15851; linear, power and flat rivals are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.distances import as_values

MODELS = ("flat", "linear", "log", "power")
PARAMETERS = {"flat": 2, "linear": 3, "log": 3, "power": 4}  # the error's variance counts as one
_EXPONENTS = np.arange(0.05, 3.001, 0.05)
FEWEST = 6


def log_coding(
    activation: ArrayLike, values: ArrayLike, reference: float, *, offset: float = 1.0
) -> dict[str, dict[str, Any] | None]:
    """How an activation grows with the distance from the reference, on each side: {"past": fit, "future": fit}.

    activation: (n,) mean activation at each stimulus. values: (n,). offset: of the log, ln(|x - R| + offset); 0 is the
    paper's form. The stimulus at the reference itself is left out. A fit holds n, slope, intercept and r2 of the log
    model, r2_linear, aic of each model (smaller is better) and `best`; a side with fewer than 6 stimuli has None.
    A constant activation has slope 0, r2 None and is best described as flat.
    """
    x, y = as_values(values), np.asarray(activation, dtype=np.float64)
    if y.shape != x.shape or not np.isfinite(y).all():
        raise InputError(f"activations of shape {y.shape} for {len(x)} values; one finite number per value is needed")
    if offset < 0:
        raise InputError(f"offset={offset:g} given; it is at least 0")
    sides = {"past": x < reference, "future": x > reference}
    return {
        side: _fit(np.abs(x[inside] - reference), y[inside], offset) if inside.sum() >= FEWEST else None
        for side, inside in sides.items()
    }


def _fit(away: NDArray[np.float64], y: NDArray[np.float64], offset: float) -> dict[str, Any]:
    whole = float(((y - y.mean()) ** 2).sum())
    floor = max(whole * 1e-15, np.finfo(np.float64).tiny)  # a perfect fit has a finite AIC
    if whole <= 1e-24 * max(float((y**2).sum()), np.finfo(np.float64).tiny):
        return {"n": len(y), "slope": 0.0, "intercept": float(y.mean()), "r2": None, "r2_linear": None} | {
            "aic": dict.fromkeys(MODELS), "exponent": None, "best": "flat"
        }  # fmt: skip
    logs = np.log(away + offset)
    slope, intercept, left = _line(logs, y)
    linear = _line(away, y)[2]
    powers = np.array([_line(away**exponent, y)[2] for exponent in _EXPONENTS])
    rest = {"flat": whole, "linear": linear, "log": left, "power": float(powers.min())}
    aic = {name: len(y) * math.log(max(rest[name], floor) / len(y)) + 2 * PARAMETERS[name] for name in MODELS}
    return {
        "n": len(y),
        "slope": slope,
        "intercept": intercept,
        "r2": 1 - left / whole,
        "r2_linear": 1 - linear / whole,
        "aic": aic,
        "exponent": float(_EXPONENTS[int(powers.argmin())]),
        "best": min(MODELS, key=lambda name: aic[name]),
    }


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Slope, intercept and squared error of the least-squares line; a constant x has slope 0."""
    gap = x - x.mean()
    square = float((gap**2).sum())
    slope = float((gap * (y - y.mean())).sum() / square) if square > 0 else 0.0
    intercept = float(y.mean() - slope * x.mean())
    return slope, intercept, float(((y - intercept - slope * x) ** 2).sum())


def trough(activation: ArrayLike, values: ArrayLike, *, smooth: int = 5) -> dict[str, Any]:
    """The stimulus of least activation: as it is, and of a running mean over `smooth` stimuli (odd).

    border: the smoothed minimum lies among the first or last `smooth` stimuli, where it is no trough.
    """
    if smooth < 1 or smooth % 2 == 0:
        raise InputError(f"smooth={smooth} given; a running mean takes an odd number of stimuli")
    x, y = as_values(values), np.asarray(activation, dtype=np.float64)
    order = np.argsort(x)
    kernel = np.ones(smooth)
    mean = np.convolve(y[order], kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")
    low = int(mean.argmin())
    return {
        "value": float(x[int(y.argmin())]),
        "smoothed": float(x[order][low]),
        "border": low < smooth or low >= len(x) - smooth,
    }


def layer_tuning(
    curves: Sequence[NDArray[np.float64] | None], values: ArrayLike, reference: float, *, offset: float = 1.0
) -> list[dict[str, Any]]:
    """One row per layer that has units and side that has stimuli: `log_coding` of the layer's mean curve."""
    rows = []
    for layer, curve in enumerate(curves):
        if curve is None:
            continue
        for side, fit in log_coding(curve, values, reference, offset=offset).items():
            if fit is not None:
                rows.append({"layer": layer, "side": side, **fit})
    return rows

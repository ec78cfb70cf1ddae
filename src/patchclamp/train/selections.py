"""The registry of ways to score a pool of samples for a target, and what such a way returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.registry import Registry


@dataclass(frozen=True, eq=False)
class Scores:
    """One score per pool sample, higher is closer to the target. details: plain data on how they came about.

    notes: sentences that a user should read.
    """

    values: NDArray[np.float64]
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


# Called as way(pool, target, ...) with two `Samples`, or way(pool, ...) if no target is needed; of the keywords model, seed
# and quiet a way gets those that it has.
selections: Registry[Callable[..., Scores]] = Registry("selection", room="patchclamp.train")

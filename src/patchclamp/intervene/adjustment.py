"""Moving values from one normal distribution to another where they look like the first: what Neuron Adjust does to a tap.

Li, Sun & Weng 2025 (arXiv 2503.21730), section on Neuron Adjust; `skills.py` has the intervention and its fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.intervene.noise import TokenNoise, unit_keys
from patchclamp.intervene.targets import Coordinates
from patchclamp.models.hooks import Seen

Floats = NDArray[np.float64]


def replacement(
    x: Tensor, forget_mean: Tensor, forget_std: Tensor, retain_mean: Tensor, retain_std: Tensor
) -> tuple[Tensor, Tensor]:
    """Probability that a value is replaced, and by what; all of one shape, or broadcast.

    log p_f - log p_r = -ln(sigma_f / sigma_r) - z_f^2 / 2 + z_r^2 / 2; its sigmoid where it is at least 0, else 0. The new value
    is mu_r - sigma_r z_f. A value for which both densities vanish is kept.
    """
    z = (x - forget_mean) / forget_std
    odds = (retain_std / forget_std).log() - z.square() / 2 + ((x - retain_mean) / retain_std).square() / 2
    return torch.where(odds >= 0, torch.sigmoid(odds), torch.zeros_like(odds)), retain_mean - retain_std * z


class Adjust:
    """New values of one tap: what the hooks run. Indices, numbers and keys are made ready once per slab and device."""

    def __init__(
        self,
        layer: int,
        parts: Sequence[tuple[Coordinates, Floats]],
        *,
        scope: str,
        seed: int,
        noise: TokenNoise | None,
    ) -> None:
        """parts: per skill its coordinates of the tap and (4, n) their numbers. noise: None replaces likely values always."""
        self.scope, self.noise = scope, noise
        self.inner = np.unique(np.concatenate([part.inner for part, _ in parts]))
        # NaN: a skill that doesn't have the unit
        self.numbers = np.full((4, len(parts), len(self.inner)), np.nan)
        for skill, (part, numbers) in enumerate(parts):
            self.numbers[:, skill, np.searchsorted(self.inner, part.inner)] = numbers
        self.keys = unit_keys(seed, layer, self.inner)
        self._ready: dict[Any, tuple[Tensor, Tensor, Tensor] | None] = {}

    def __call__(self, seen: Seen) -> Tensor:
        ready = self._slab(seen)
        if ready is None or not len(seen.values):
            return seen.values
        index, keys, numbers = ready
        old = seen.values.index_select(1, index)
        wide = old.to(numbers.dtype)
        chance, new = replacement(wide, *_nearest(wide, numbers))
        moved = chance >= 0.5 if self.noise is None else self.noise.uniform(seen, keys) < chance
        if self.scope != "all":
            rows = seen.step.scope(self.scope, old.device)
            moved &= (rows if seen.rows is None else rows[seen.rows])[:, None]
        return seen.values.index_copy(1, index, torch.where(moved, new.to(old.dtype), old))

    def _slab(self, seen: Seen) -> tuple[Tensor, Tensor, Tensor] | None:
        values = seen.values
        key = (seen.offset, values.shape[1], values.device, values.dtype)
        if key not in self._ready:
            first, last = np.searchsorted(self.inner, (seen.offset, seen.offset + values.shape[1]))
            if first == last:
                self._ready[key] = None
            else:
                dtype = torch.promote_types(values.dtype, torch.float32)
                with torch.inference_mode(False):  # kept for passes with gradients, too
                    self._ready[key] = (
                        torch.from_numpy(self.inner[first:last] - seen.offset).to(values.device),
                        torch.from_numpy(self.keys[first:last]).to(values.device),
                        torch.from_numpy(self.numbers[:, :, first:last]).to(values.device, dtype),
                    )
        return self._ready[key]


def _nearest(x: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
    """The four numbers of the skill under which each value is likeliest, (rows, units) or (units,).

    x: (rows, units). numbers: (4, skills, units), NaN where a skill doesn't have a unit.
    """
    if numbers.shape[1] == 1:
        return tuple(numbers[:, 0])
    mean, std = numbers[0], numbers[1]
    density = -std.log() - ((x[:, None, :] - mean) / std).square() / 2  # (rows, skills, units)
    best = density.nan_to_num(nan=-torch.inf).argmax(1, keepdim=True)
    rows = len(x)
    return tuple(each.expand(rows, -1, -1).gather(1, best).squeeze(1) for each in numbers)

"""Random numbers for interventions that depend on what is decided, not on how the model happens to be run.

A number is a function of (seed, layer, unit, position in the text, token there): no stream is drawn from. So a row gets the
same numbers alone or in a batch, padded on either side, with or without a KV cache, in beams and after a restart, and on any
device. Rows that hold the same token at the same position share their numbers there; all other draws are independent.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.models.hooks import Seen, Step, Tap

_READ = 64  # coordinates of an embedding that tell tokens apart
_BITS = 24  # of a uniform number: as many as float32 holds exactly
_SIZES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes -> integers of that size


class TextKeys:
    """A number for every position of a text, made from the token there and its place. `read` goes to the tap of the embedding.

    Places count from each row's first token, so padding doesn't matter, nor does a KV cache. A model that is given vectors in
    place of tokens, or whose embedding is nowhere to be seen, has numbers that depend on places only.
    """

    tap: Tap = ("embed", 0)

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 0x70617463])
        self._weights = torch.from_numpy(rng.integers(-(2**63), 2**63, _READ, dtype=np.int64) | 1)
        self._read: tuple[Step, Tensor] | None = None
        self._made: tuple[Step, Tensor] | None = None
        self._padding: Tensor | None = None

    def read(self, seen: Seen) -> Tensor:
        """Keep a number for each position's token; changes nothing."""
        values = seen.values.detach()[:, :_READ].contiguous()
        bits = values.view(_SIZES[values.element_size()]).long()
        self._read = (seen.step, (bits * self._weights[: bits.shape[1]].to(bits.device)).sum(1))
        return seen.values

    def knows(self, step: Step) -> bool:
        """Whether the tokens of a step were seen."""
        return self._read is not None and self._read[0] is step

    def of(self, step: Step) -> Tensor:
        """(batch * seq,) int64 keys of the positions of a step."""
        if self._made is None or self._made[0] is not step:
            columns = torch.arange(step.start, step.start + step.seq, device=step.device)
            keys = mixed((columns[None, :] - self._left(step)[:, None]).reshape(-1))
            if self._read is not None and self._read[0] is step:
                keys = mixed(keys + self._read[1].to(keys.device))
            self._made = (step, keys)
        return self._made[1]

    def _left(self, step: Step) -> Tensor:
        """(batch,) columns of padding before each row's first token; known from the step that began the text."""
        none = torch.zeros(step.batch, dtype=torch.int64, device=step.device)
        if step.start == 0:
            mask = step.attention_mask
            self._padding = none if mask is None else mask.long().argmax(dim=1).to(step.device)
        return none if self._padding is None or len(self._padding) != step.batch else self._padding


class TokenNoise:
    """Uniform numbers for units at positions. text: keys of the positions."""

    def __init__(self, text: TextKeys) -> None:
        self.text = text

    def uniform(self, seen: Seen, units: Tensor) -> Tensor:
        """(n_rows, n_units) float32 in [0, 1). units: (n_units,) int64 keys of `unit_keys`, on the values' device."""
        rows = self.text.of(seen.step).to(units.device)
        if seen.rows is not None:
            rows = rows[seen.rows]
        return _shifted(mixed(rows[:, None] + units), 64 - _BITS) * 2.0**-_BITS


def unit_keys(seed: int, layer: int, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n_units,) keys of the units of a layer; the same whatever other units are asked for."""
    base = np.random.default_rng([seed, layer]).integers(-(2**63), 2**63, dtype=np.int64)
    return mixed(torch.from_numpy(units.astype(np.int64)) + mixed(torch.tensor([base]))).numpy()


def mixed(keys: Tensor) -> Tensor:
    """A bijection of int64 that spreads every bit over all others (the finaliser of SplitMix64, Steele et al. 2014)."""
    keys = keys + _signed(0x9E3779B97F4A7C15)
    keys = (keys ^ _shifted(keys, 30)) * _signed(0xBF58476D1CE4E5B9)
    keys = (keys ^ _shifted(keys, 27)) * _signed(0x94D049BB133111EB)
    return keys ^ _shifted(keys, 31)


def _shifted(keys: Tensor, by: int) -> Tensor:
    """Bits moved right and filled with zeros: torch's own shift copies the sign."""
    return keys.bitwise_right_shift(by).bitwise_and(2 ** (64 - by) - 1)


def _signed(number: int) -> int:
    """The int64 with the bits of an unsigned number."""
    return number - 2**64 if number >= 2**63 else number

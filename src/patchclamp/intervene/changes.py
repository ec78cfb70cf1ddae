"""From interventions (data) to what the hooks run: one function per tap, index tensors made once, values cast once.

Everything here returns new tensors: the caller's activations may be in use elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.intervene.targets import Coordinates, Direction, coordinates
from patchclamp.models.hooks import Seen, Step, Tap
from patchclamp.models.units import UnitSet

Function = Callable[[Seen], Tensor]


@runtime_checkable
class Item(Protocol):
    """One change of units or a direction, as data: an `Intervention`."""

    @property
    def target(self) -> UnitSet | Direction: ...
    @property
    def operation(self) -> str: ...
    @property
    def value(self) -> float | NDArray[np.float64] | None: ...
    @property
    def scope(self) -> str: ...
    @property
    def mask(self) -> NDArray[np.bool_] | Callable[[Any], Any] | None: ...
    @property
    def seed(self) -> int | None: ...


def compiled(item: Item) -> list[tuple[Tap, Function]]:
    """The functions that carry out one intervention, tap by tap; they can be used for any number of forward passes."""
    where = _Where(item)
    if isinstance(item.target, Direction):
        pairs = zip(item.target.layers, item.target.vectors, strict=True)
        return [((item.target.site, layer), _DirectionChange(item, vector, where)) for layer, vector in pairs]
    return [(part.tap, _UnitChange(item, part, where)) for part in coordinates(item.target)]


class _Where:
    """Which rows of a forward step an intervention touches; worked out once per step, not once per layer."""

    def __init__(self, item: Item) -> None:
        self.scope, self.mask, self.shuffle = item.scope, item.mask, item.operation == "shuffle"
        self.seed = int(item.seed or 0)
        self._step: Step | None = None
        self._flat: Tensor | None = None

    def rows(self, seen: Seen) -> Tensor | None:
        """bool (n_rows,) for the rows of this slab, or None for all of them."""
        if seen.step is not self._step:
            self._flat, self._step = self._of(seen.step, seen.values.device), seen.step
        if self._flat is None or seen.rows is None:
            return self._flat
        return self._flat[seen.rows]

    def _of(self, step: Step, device: torch.device) -> Tensor | None:
        flat = None if self.scope == "all" else step.scope(self.scope).to(device)
        if self.mask is not None:
            chosen = self._masked(step).to(device).reshape(-1)
            flat = chosen if flat is None else flat & chosen
        if self.shuffle:
            self._check_shuffle(step, flat)
            if step.attention_mask is not None:
                real = step.attention_mask.to(device).bool().reshape(-1)
                flat = real if flat is None else flat & real
        return flat

    def _masked(self, step: Step) -> Tensor:
        """The mask's entries for the columns of this step, bool (batch, seq)."""
        if callable(self.mask):
            given = torch.as_tensor(self.mask(step)).bool()
            if given.numel() != step.batch * step.seq:
                raise InputError(
                    f"the mask function gave shape {tuple(given.shape)}; ({step.batch}, {step.seq}) is needed"
                )
            return given.reshape(step.batch, step.seq)
        table = torch.from_numpy(self.mask)
        if step.batch % len(table):
            raise InputError(f"the mask has {len(table)} rows, but the batch has {step.batch}")
        columns = table[:, step.start : step.start + step.seq]
        left = torch.zeros(len(table), step.seq - columns.shape[1], dtype=torch.bool)  # positions after the mask's end
        # Beam search repeats each prompt's row once per beam, next to each other.
        return torch.cat([columns, left], dim=1).repeat_interleave(step.batch // len(table), dim=0)

    def _check_shuffle(self, step: Step, flat: Tensor | None) -> None:
        """A permutation needs all its positions in one step, which generated tokens never are."""
        generating = step.start > 0 or step.prompt_length is not None
        late = step.start > 0 and (flat is None or bool(flat.any()))
        if late or (generating and self.scope != "prompt"):
            raise InputError(
                f"a shuffle with scope {self.scope!r} can't run while tokens are generated one by one; use scope='prompt'"
            )

    def permutation(self, n: int, device: torch.device) -> Tensor:
        """The seeded permutation of n kept positions, the same in every layer."""
        return torch.from_numpy(np.random.default_rng([self.seed, n]).permutation(n)).to(device)


class _UnitChange:
    """New values of some coordinates of one tap."""

    def __init__(self, item: Item, part: Coordinates, where: _Where) -> None:
        self.operation, self.where, self.inner = item.operation, where, part.inner
        self.value: float | NDArray[np.float64] | None
        if isinstance(item.value, np.ndarray):
            per_unit = len(item.value) == len(item.target)  # type: ignore[arg-type]
            here = part.unit if per_unit else np.arange(part.first, part.first + len(part.inner))
            self.value = item.value[here]
        else:
            self.value = item.value
        self._ready: dict[tuple[int, int, torch.device, torch.dtype], tuple[Tensor, Tensor | float | None] | None] = {}

    def __call__(self, seen: Seen) -> Tensor:
        ready = self._slab(seen)
        if ready is None:
            return seen.values
        index, value = ready
        rows = self.where.rows(seen)
        if rows is None and isinstance(value, float) and self.operation == "set":
            return seen.values.index_fill(1, index, value)
        old = seen.values.index_select(1, index)
        new = self._shuffled(old, rows) if self.operation == "shuffle" else _operated(self.operation, old, value)
        if rows is not None:
            new = torch.where(rows[:, None], new, old)
        return seen.values.index_copy(1, index, new)

    def _slab(self, seen: Seen) -> tuple[Tensor, Tensor | float | None] | None:
        """Indices and values for this slab (one expert, or the whole layer) on its device; None if it has none of ours."""
        values = seen.values
        key = (seen.offset, values.shape[1], values.device, values.dtype)
        if key not in self._ready:
            first, last = np.searchsorted(self.inner, (seen.offset, seen.offset + values.shape[1]))
            if first == last:
                self._ready[key] = None
            else:
                index = torch.from_numpy(self.inner[first:last] - seen.offset).to(values.device)
                value: Tensor | float | None = None
                if isinstance(self.value, np.ndarray):
                    value = torch.from_numpy(self.value[first:last]).to(values.device, values.dtype)
                elif self.value is not None:
                    value = float(self.value)
                self._ready[key] = (index, value)
        return self._ready[key]

    def _shuffled(self, old: Tensor, rows: Tensor | None) -> Tensor:
        kept = torch.arange(len(old), device=old.device) if rows is None else rows.nonzero()[:, 0]
        new = old.clone()
        new[kept] = old[kept[self.where.permutation(len(kept), old.device)]]
        return new


class _DirectionChange:
    """New values of a whole tap: the component along a vector replaced. Worked out in float32 at least."""

    def __init__(self, item: Item, vector: NDArray[np.float64], where: _Where) -> None:
        self.operation, self.where, self.vector = item.operation, where, vector
        self.value = 0.0 if item.value is None else float(np.asarray(item.value).reshape(-1)[0])
        self._ready: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, seen: Seen) -> Tensor:
        values = seen.values
        vector, dual = self._vectors(values)
        rows = self.where.rows(seen)
        wide = values.to(vector.dtype)
        if self.operation == "add":
            new = wide + self.value * vector
        else:
            old = (wide @ dual)[:, None]  # (n_rows, 1): coefficient along the vector
            if self.operation == "shuffle":
                kept = torch.arange(len(old), device=old.device) if rows is None else rows.nonzero()[:, 0]
                wanted = old.clone()
                wanted[kept] = old[kept[self.where.permutation(len(kept), old.device)]]
            else:
                wanted = old * self.value if self.operation == "scale" else torch.full_like(old, self.value)
            new = wide + (wanted - old) * vector
        new = new.to(values.dtype)
        return new if rows is None else torch.where(rows[:, None], new, values)

    def _vectors(self, values: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(values.dtype, torch.float32)
        key = (values.device, dtype)
        if key not in self._ready:
            dual = self.vector / float(self.vector @ self.vector)
            pair = [torch.from_numpy(array).to(values.device, dtype) for array in (self.vector, dual)]
            self._ready[key] = (pair[0], pair[1])
        return self._ready[key]


def _operated(operation: str, old: Tensor, value: Tensor | float | None) -> Tensor:
    if operation in ("set", "mean"):
        return torch.full_like(old, value) if isinstance(value, float) else value.expand_as(old)  # type: ignore[union-attr]
    if operation == "scale":
        return old * value  # type: ignore[operator]
    return old + value  # type: ignore[operator]

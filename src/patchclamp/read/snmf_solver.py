"""Semi-nonnegative matrix factorisation, the arithmetic: rows of activations as strengths (>= 0) times sparse features.

    minimise |X - G F|^2   over G (rows, k) >= 0 and F (k, width) with at most `keep` non-zeros in each row

Every step is an exact minimisation over one column of G or one row of F while the rest is fixed: for a column of G the
clamped least-squares solution, for a row of F the `keep` largest entries of its least-squares solution (winner takes
all; the entries of one row don't interact, so no other choice of support does better). So the objective never rises.
The data pass by in blocks; what a step needs from them is summed (G^T X, G^T G), so they never have to fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.record.activations import Activations

CACHE = 2**30  # bytes of data kept on the device between passes; more is read again in every pass


@dataclass(eq=False)
class Data:
    """Rows in blocks on the device of the computation, kept there if they fit into `cache` bytes.

    n: rows. total: sum of squares of all entries, float64. Raises InputError for no rows, and for NaN or infinity.
    """

    source: Activations
    rows: int
    device: torch.device
    dtype: torch.dtype
    unit_rows: bool = False
    cache: int = CACHE
    n: int = 0
    total: float = 0.0
    _kept: list[Tensor] | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"rows={self.rows} given; a block has at least 1 row")
        kept: list[Tensor] | None = []
        for block in self._read():
            if not bool(torch.isfinite(block).all()):
                raise InputError(
                    f"the activations hold NaN or infinity (rows {self.n} to {self.n + len(block) - 1}); "
                    "record them in float32, or leave these texts out"
                )
            self.n += len(block)
            self.total += float(block.double().square().sum())
            if kept is not None:
                kept.append(block)
                if self.n * self.source.width * block.element_size() > self.cache:
                    kept = None
        if not self.n:
            raise InputError("there are no activations to factorise: no token counts in this text")
        self._kept = kept

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks (<= rows, width) with the rows they are, in order."""
        start = 0
        for block in self._read() if self._kept is None else self._kept:
            yield slice(start, start + len(block)), block
            start += len(block)
        if start != self.n:
            raise InputError(f"the activations had {self.n} rows and now have {start}; they must not change meanwhile")

    def _read(self) -> Iterator[Tensor]:
        for block in self.source.blocks(self.rows):
            x = block.to(self.device, self.dtype)
            yield torch.nn.functional.normalize(x, dim=1) if self.unit_rows else x


@dataclass(eq=False)
class State:
    """Where a factorisation stands.

    features: (k, width), at most `keep` non-zeros per row. strengths: (n, k) >= 0. losses: objective after every
    iteration, float64; reseeded: how often a dead feature was begun anew.
    """

    features: Tensor
    strengths: Tensor
    keep: int
    losses: list[float] = field(default_factory=list)
    reseeded: int = 0
    converged: bool = False


def solve(
    data: Data, strengths: Tensor, *, keep: int, iterations: int, tolerance: float, patience: int, sweeps: int = 2
) -> State:
    """Factorise from the strengths given, (n, k) >= 0; they are changed in place.

    Ends after `iterations`, or when the objective has fallen by less than tolerance * (sum of squares of the data) in
    each of `patience` iterations. sweeps: over the columns of G and the rows of F in every iteration.
    """
    sums = Sums.of(data, strengths)
    features = best_features(torch.zeros_like(sums.cross), sums, keep, sweeps)
    state = State(features, strengths, keep, [sums.loss(features)])
    still = 0
    for _ in range(iterations):
        sums, worst = update_strengths(data, state, sweeps)
        state.reseeded += reseed(state, sums, worst)
        state.features = best_features(state.features, sums, keep, sweeps)
        state.losses.append(sums.loss(state.features))
        still = still + 1 if state.losses[-2] - state.losses[-1] <= tolerance * data.total else 0
        if still >= patience or data.total == 0:
            state.converged = True
            break
    return state


@dataclass(eq=False)
class Sums:
    """What the features' step needs from the data: cross = G^T X (k, width), gram = G^T G (k, k), total = |X|^2."""

    cross: Tensor
    gram: Tensor
    total: float

    @classmethod
    def of(cls, data: Data, strengths: Tensor) -> Sums:
        sums = cls.empty(data, strengths.shape[1])
        for where, x in data:
            sums.add(strengths[where], x)
        return sums

    @classmethod
    def empty(cls, data: Data, k: int) -> Sums:
        how: dict[str, Any] = {"dtype": torch.float64, "device": data.device}
        return cls(torch.zeros(k, data.source.width, **how), torch.zeros(k, k, **how), data.total)

    def add(self, g: Tensor, x: Tensor) -> None:
        """Add a block: products in the dtype of the data, sums over blocks in float64."""
        self.cross += g.T @ x
        self.gram += g.T @ g

    def loss(self, features: Tensor) -> float:
        """|X - G F|^2 in float64 without forming G F: |X|^2 - 2 tr(F^T G^T X) + tr(F F^T G^T G)."""
        f = features.double()
        return float(self.total - 2 * (self.cross * f).sum() + ((f @ f.T) * self.gram).sum())


@dataclass(frozen=True, eq=False)
class Worst:
    """A row that is reproduced badly: square of its error, its number, what it is, and the error (width,)."""

    size: float
    row: int
    x: Tensor
    error: Tensor


def update_strengths(data: Data, state: State, sweeps: int) -> tuple[Sums, list[Worst]]:
    """One pass: every row's strengths against fixed features. Rows don't interact, so blocks don't matter.

    Returns the sums, and for every dead feature one of the rows that are reproduced worst.
    """
    k = len(state.features)
    features = state.features.to(data.dtype)
    gram = (state.features @ state.features.T).to(data.dtype)
    dead = int((gram.diagonal() == 0).sum())
    sums = Sums.empty(data, k)
    worst: list[Worst] = []
    for where, x in data:
        g = nonnegative(x @ features.T, gram, state.strengths[where], sweeps)
        state.strengths[where] = g
        sums.add(g, x)
        if dead:
            error = x - g @ features
            size = error.double().square().sum(1)
            for row in size.topk(min(dead, len(size))).indices.tolist():
                worst.append(Worst(float(size[row]), where.start + row, x[row], error[row]))
            worst = sorted(worst, key=lambda one: (-one.size, one.row))[:dead]
    return sums, worst


def nonnegative(target: Tensor, gram: Tensor, start: Tensor, sweeps: int, *, tolerance: float = 0.0) -> Tensor:
    """Coordinate descent on |x - g F|^2 over g >= 0, all rows at once; (rows, k).

    target: X F^T (rows, k). gram: F F^T (k, k). start: where to begin, (rows, k). Ends early when no strength moves by
    more than tolerance * the largest. A feature of length 0 gets strength 0.
    """
    g, wanted = start.T.contiguous(), target.T.contiguous()  # (k, rows): a feature's strengths lie side by side
    sizes = gram.diagonal().tolist()
    for _ in range(sweeps):
        moved = torch.zeros((), dtype=g.dtype, device=g.device)
        for j, size in enumerate(sizes):
            if size <= 0:
                g[j] = 0
                continue
            new = (g[j] + (wanted[j] - gram[j] @ g) / size).clamp_min_(0)
            if tolerance:
                moved = torch.maximum(moved, (new - g[j]).abs().max())
            g[j] = new
        if tolerance and float(moved) <= tolerance * float(g.max()):
            break
    return g.T.contiguous()


def best_features(features: Tensor, sums: Sums, keep: int, sweeps: int) -> Tensor:
    """The features' step: the better of descending from the present ones and of a jump, so never worse than the present.

    The jump is the published step (all features by least squares, the winners of each kept), followed by a refit of the
    winners; it leaves local minima that descent alone stays in.
    """
    near = descend(features, sums, keep, sweeps)
    far = winners(jump(sums), keep)
    far = descend(refit(far, sums), sums, keep, sweeps)
    return far if sums.loss(far) < sums.loss(near) else near


def descend(features: Tensor, sums: Sums, keep: int, sweeps: int) -> Tensor:
    """Exact minimisation over one feature after the other, (k, width); a feature that nothing uses becomes 0."""
    found = features.double().clone()
    sizes = sums.gram.diagonal().tolist()
    for _ in range(sweeps):
        for j, size in enumerate(sizes):
            if size <= 0:
                found[j] = 0
                continue
            found[j] = winners((found[j] + (sums.cross[j] - sums.gram[j] @ found) / size)[None], keep)[0]
    return found


def jump(sums: Sums, ridge: float = 1e-6) -> Tensor:
    """All features by least squares: (G^T G + lambda)^-1 G^T X, lambda relative to the mean of the diagonal."""
    size = float(sums.gram.diagonal().mean())
    if size <= 0:
        return torch.zeros_like(sums.cross)
    eye = torch.eye(len(sums.gram), dtype=sums.gram.dtype, device=sums.gram.device)
    solved: Tensor = torch.linalg.solve(sums.gram + ridge * size * eye, sums.cross)
    return solved


def refit(features: Tensor, sums: Sums, sweeps: int = 3) -> Tensor:
    """Descent over the non-zeros that features have, their places fixed."""
    where, found = features != 0, features.clone()
    for _ in range(sweeps):
        for j, size in enumerate(sums.gram.diagonal().tolist()):
            if size > 0:
                found[j] += where[j] * (sums.cross[j] - sums.gram[j] @ found) / size
    return found


def winners(features: Tensor, keep: int) -> Tensor:
    """The `keep` entries of each row with the largest magnitude, the rest 0; of equal ones the first are kept."""
    if keep >= features.shape[1]:
        return features
    order = features.abs().argsort(dim=1, descending=True, stable=True)[:, :keep]
    return torch.zeros_like(features).scatter_(1, order, features.gather(1, order))


def reseed(state: State, sums: Sums, worst: list[Worst]) -> int:
    """Begin dead features anew from the rows reproduced worst; each takes away from the objective, none adds to it.

    state and sums are changed in place. Returns how many were begun anew.
    """
    dead = (state.features.double().square().sum(1) == 0).nonzero().flatten().tolist()
    made = 0
    for j, bad in zip(dead, worst, strict=False):
        if bad.size <= 1e-12 * sums.total:
            break
        state.strengths[bad.row, j] = 1  # its strengths were all 0: a feature of length 0 has none
        state.features[j] = winners(bad.error.double()[None], state.keep)[0]
        sums.cross[j] = bad.x
        sums.gram[j] = sums.gram[:, j] = state.strengths[bad.row].double()
        made += 1
    return made

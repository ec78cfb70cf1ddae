"""Where a factorisation begins: first strengths, and the published alternation as a search for a good basin.

Shafran, Geiger, Geva 2025 (arXiv 2506.10920), after Ding, Li, Jordan 2010. Their alternation updates all features by least
squares and then keeps the winners of each; the second half may raise the objective, so the best state met is kept. It
finds better basins than exact descent from the start does, because its multiplicative updates move slowly; descent
(`snmf_solver.solve`) then goes on from the best state without ever rising.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.read.snmf_solver import Data, Sums, jump, winners

FLOOR = 1e-6  # multiplicative updates can't leave 0
STARTS = ("random", "kmeans", "svd")
LLOYD = 15  # iterations of k-means
POWER = 6  # passes of the subspace iteration behind the start from an SVD


def start(data: Data, k: int, how: str, seed: int) -> Tensor:
    """First strengths, (n, k) >= 1e-6, in the dtype of the data. how: random, kmeans or svd."""
    if how not in STARTS:
        raise InputError(f"init={how!r}; choose best, {', '.join(STARTS)}")
    return {"random": _random, "kmeans": _kmeans, "svd": _svd}[how](data, k, seed)


def search(
    data: Data, strengths: Tensor, *, keep: int, iterations: int, tolerance: float, patience: int
) -> tuple[Tensor, list[float], int]:
    """The published alternation from the strengths given; (best strengths, objective of every iteration, best one).

    tolerance: of the sum of squares of the data, by which the objective must fall to count as better. Ends after
    `patience` iterations without that. The published ridge lambda and the 1e-6 of the denominator are relative to the
    scale of the data here, so that scaling the data scales the features and nothing else.
    """
    g = strengths.clone()
    best, found, losses = g.clone(), 0, list[float]()
    lowest, scale = float("inf"), data.total / max(1, data.n * data.source.width)
    sums = Sums.of(data, g)
    for iteration in range(iterations):
        lengths = sums.gram.diagonal().sqrt().clamp_min(1e-300)
        features = winners(jump(sums), keep) * lengths[:, None]
        sums = _multiply(data, g, lengths, features, FLOOR * scale)
        losses.append(sums.loss(features))
        if losses[-1] < lowest - tolerance * data.total:
            lowest, found = losses[-1], iteration
            best.copy_(g)
        elif iteration - found >= patience:
            break
    return best, losses, found


def _multiply(data: Data, g: Tensor, lengths: Tensor, features: Tensor, floor: float) -> Sums:
    """One pass of the multiplicative update of g, in place (Ding et al. 2010, eq. 11), columns first brought to length 1."""
    f, lengths = features.to(data.dtype), lengths.to(data.dtype)
    gram = f @ f.T
    up, down = (-gram).clamp_min(0), gram.clamp_min(0)
    sums = Sums.empty(data, len(f))
    for where, x in data:
        here, target = g[where] / lengths, x @ f.T
        grow = target.clamp_min(0) + here @ up
        shrink = (-target).clamp_min(0) + here @ down
        here = here * (grow / (shrink + floor)).sqrt() if floor > 0 else here
        g[where] = here
        sums.add(here, x)
    return sums


def _random(data: Data, k: int, seed: int) -> Tensor:
    drawn = np.random.default_rng(seed).random((data.n, k))
    return torch.from_numpy(drawn).to(data.device, data.dtype).clamp_min_(FLOOR)


def _kmeans(data: Data, k: int, seed: int) -> Tensor:
    """One-hot membership after 15 Lloyd iterations from k distinct rows; an empty cluster is drawn from the rows anew."""
    generator = np.random.default_rng(seed)
    if k > data.n:
        raise InputError(f"k={k} clusters asked for, but there are {data.n} tokens; give more text or a smaller k")
    centres = _rows(data, generator.choice(data.n, k, replace=False))
    member = torch.zeros(data.n, dtype=torch.int64, device=data.device)
    for _ in range(LLOYD):
        sums = torch.zeros(k, data.source.width, dtype=torch.float64, device=data.device)
        counts = torch.zeros(k, dtype=torch.float64, device=data.device)
        offset = centres.square().sum(1) / 2
        for where, x in data:
            near = (x @ centres.T - offset).argmax(1)
            member[where] = near
            sums.index_add_(0, near, x.double())
            counts += torch.bincount(near, minlength=k)
        centres = (sums / counts.clamp_min(1)[:, None]).to(data.dtype)
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            centres[empty] = _rows(data, generator.choice(data.n, len(empty), replace=False))
    found = torch.full((data.n, k), FLOOR, dtype=data.dtype, device=data.device)
    found[torch.arange(data.n, device=data.device), member] = 1
    return found


def _svd(data: Data, k: int, seed: int) -> Tensor:
    """Strengths along the first k singular directions, each with the sign that leaves more of it positive.

    The reference takes whatever sign the SVD returns. Subspace iteration over passes of the data (Halko et al. 2011).
    """
    width = data.source.width
    wide = min(width, k + 10)
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((width, wide)))
    basis = torch.linalg.qr(drawn.to(data.device)).Q
    for _ in range(POWER):
        image = torch.zeros(width, wide, dtype=torch.float64, device=data.device)
        for _, x in data:
            image += x.T @ (x @ basis.to(data.dtype))
        basis = torch.linalg.qr(image).Q
    inner = torch.zeros(wide, wide, dtype=torch.float64, device=data.device)
    for _, x in data:
        seen = x @ basis.to(data.dtype)
        inner += seen.T @ seen
    values, vectors = torch.linalg.eigh(inner)
    order = values.argsort(descending=True)[:k]
    axes = (basis @ vectors[:, order]).to(data.dtype)
    found = torch.cat([x @ axes for _, x in data])
    positive = found.clamp_min(0).double().square().sum(0) >= (-found).clamp_min(0).double().square().sum(0)
    found = torch.where(positive, found, -found)
    lengths = values[order].clamp_min(0).pow(0.25).to(data.dtype).clamp_min(FLOOR)  # U S -> U sqrt(S), as published
    return (found / lengths).clamp_min_(FLOOR)


def _rows(data: Data, numbers: np.ndarray) -> Tensor:
    """Rows of the data by number, (len(numbers), width), in the order of the numbers."""
    wanted = torch.from_numpy(np.asarray(numbers)).to(data.device)
    found = torch.empty(len(wanted), data.source.width, dtype=data.dtype, device=data.device)
    for where, x in data:
        here = (wanted >= where.start) & (wanted < where.stop)
        found[here] = x[wanted[here] - where.start]
    return found

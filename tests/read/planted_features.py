"""Rows made of known directions: what an autoencoder has to find."""

from __future__ import annotations

import torch
from torch import Tensor

from patchclamp.record.activations import Activations


def planted(
    n: int = 20_000, width: int = 32, count: int = 64, active: float = 3.0, size: float = 5.0, draw: int = 0
) -> tuple[Tensor, Tensor]:
    """(n, width) rows and (count, width) unit directions: each row sums about `active` of them, each 0.5 to 1.5 times `size`,
    and a constant offset. Another draw gives other rows of the same directions."""
    g = torch.Generator().manual_seed(1)
    directions = torch.randn(count, width, generator=g)
    directions /= directions.norm(dim=1, keepdim=True)
    offset = torch.randn(width, generator=g)
    g = torch.Generator().manual_seed(100 + draw)
    strength = (torch.rand(n, count, generator=g) < active / count) * (0.5 + torch.rand(n, count, generator=g))
    return size * strength @ directions + offset, directions


def source(rows: Tensor) -> Activations:
    return Activations.of_tensor(rows, site="resid", layer=1)


def recovery(found: Tensor, planted_directions: Tensor) -> float:
    """Mean over planted directions of the largest cosine with a found one."""
    unit = found / found.norm(dim=1, keepdim=True)
    return float((planted_directions @ unit.T).max(1).values.mean())

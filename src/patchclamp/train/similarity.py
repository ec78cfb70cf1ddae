"""How much the profile of a sample overlaps with that of a target: generalised Jaccard similarity, cosine, distance.

Ma, Shang, Chen et al. 2025 (arXiv 2503.15573): J(z, z*) = sum_k min(z_k, z*_k) / sum_k max(z_k, z*_k).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from patchclamp.core.errors import InputError


def jaccard(z: Tensor, target: Tensor) -> Tensor:
    """(n,) float64 in [0, 1] of rows z (n, k) with target (k,), all at least 0; 0 where both are zero.

    The sum of maxima is sum z + sum z* - sum of minima, so only features that the target has are compared.
    """
    _check_signs(z, target)
    shared = target > 0
    minima = torch.minimum(z[:, shared], target[shared]).sum(1, dtype=torch.float64)
    maxima = z.sum(1, dtype=torch.float64) + target.sum(dtype=torch.float64) - minima
    return torch.where(maxima > 0, minima / maxima.clamp(min=1e-300), 0.0).clamp(0, 1)


def jaccard_shares(z: Tensor, target: Tensor) -> Tensor:
    """(n, k) float64: what each feature adds to `jaccard`; a row's sum is its similarity."""
    _check_signs(z, target)
    minima = torch.minimum(z, target[None]).double()
    maxima = torch.maximum(z, target[None]).sum(1, keepdim=True, dtype=torch.float64)
    return torch.where(maxima > 0, minima / maxima.clamp(min=1e-300), 0.0)


def cosine(z: Tensor, target: Tensor) -> Tensor:
    """(n,) float64 in [-1, 1]; 0 where a vector is zero."""
    lengths = torch.linalg.vector_norm(z.double(), dim=1) * torch.linalg.vector_norm(target.double())
    return torch.where(lengths > 0, (z.double() @ target.double()) / lengths.clamp(min=1e-300), 0.0)


def euclidean(z: Tensor, target: Tensor) -> Tensor:
    """(n,) float64, minus the Euclidean distance, so that higher is closer."""
    return -torch.linalg.vector_norm(z.double() - target.double(), dim=1)


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "jaccard": jaccard,
    "cosine": cosine,
    "euclidean": euclidean,
}


def _check_signs(z: Tensor, target: Tensor) -> None:
    if bool((z < 0).any()) or bool((target < 0).any()):
        raise InputError(
            "a feature is below 0, where the Jaccard similarity means nothing; give clip=True or metric='cosine'"
        )

"""What autoencoders are trained on: reconstruction with few active features, straight-through thresholds, dead features.

All losses are means over the rows of a batch of sums over the width; gradients are exact but for JumpReLU's thresholds,
whose true gradient is zero almost everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Active:
    """Which features are active where: entry i belongs to row rows[i] and feature features[i]; ordered by row.

    offsets: (n,), the first entry of each row. rows, features: (entries,) int64.
    """

    rows: Tensor
    features: Tensor
    offsets: Tensor

    @classmethod
    def of_rows(cls, indices: Tensor) -> Active:
        """Entries of (n, k) columns, k for each row."""
        n, k = indices.shape
        rows = torch.arange(n, device=indices.device)
        return cls(rows.repeat_interleave(k), indices.reshape(-1), rows * k)

    @classmethod
    def of_flat(cls, flat: Tensor, n: int, width: int) -> Active:
        """Entries of ascending positions row * width + feature."""
        rows = flat // width
        counts = torch.bincount(rows, minlength=n)
        return cls(rows, flat - rows * width, counts.cumsum(0) - counts)


class _SparseReconstruction(torch.autograd.Function):
    """Decode and encode only what is active.

    Given the pre-activations' positive values v at `active` (computed without a graph), the reconstruction is
    sum_j v_ij W_dec[j] + b_dec. Backwards, with g its gradient:
        W_dec[j] += v_ij g_i        b_dec += g_i        dv_ij = g_i . W_dec[j]
        W_enc[j] += dv_ij (z_i - b_dec)    b_enc[j] += dv_ij    b_dec -= (sum dv of j) W_enc[j]
    Products over all features are never made: on a CPU a step costs little more than the encoder's matrix product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        encoder: Tensor,
        encoder_bias: Tensor,
        directions: Tensor,
        bias: Tensor,
        v: Tensor,
        at: Active,
    ) -> Tensor:
        ctx.save_for_backward(z, encoder, directions, bias, v)
        ctx.at = at
        return F.embedding_bag(at.features, directions, at.offsets, per_sample_weights=v, mode="sum") + bias

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        z, encoder, directions, bias, v = ctx.saved_tensors
        at: Active = ctx.at
        dv = torch.where(v > 0, products(at, g, directions), 0)
        order, by_feature = by_columns(at, len(directions))
        rows = at.rows[order]
        to_directions = F.embedding_bag(rows, g, by_feature, per_sample_weights=v[order], mode="sum")
        to_encoder = F.embedding_bag(rows, z - bias, by_feature, per_sample_weights=dv[order], mode="sum")
        to_encoder_bias = torch.zeros_like(directions[:, 0]).index_add_(0, at.features, dv)
        to_bias = g.sum(0) - to_encoder_bias @ encoder
        return None, to_encoder, to_encoder_bias, to_directions, to_bias, None, None


def sparse_reconstruction(
    z: Tensor, encoder: Tensor, encoder_bias: Tensor, directions: Tensor, bias: Tensor, values: Tensor, active: Active
) -> Tensor:
    """(n, d_in): what the active features of z make of it, with gradients for the four parameters.

    encoder, directions: (n_features, d_in). values: (entries,) the active features, at least 0; those at 0 pass no
    gradient to the encoder.
    """
    found: Tensor = _SparseReconstruction.apply(z, encoder, encoder_bias, directions, bias, values, active)
    return found


def products(at: Active, left: Tensor, right: Tensor) -> Tensor:
    """(entries,): left[row] . right[feature] of every entry; no copies of rows are made.

    It is how the sums left[row] . (sum over its entries of weight * right[feature]) depend on the weights.
    """
    with torch.enable_grad():
        weights = torch.ones_like(at.features, dtype=right.dtype).requires_grad_()
        sums = F.embedding_bag(at.features, right.detach(), at.offsets, per_sample_weights=weights, mode="sum")
        (found,) = torch.autograd.grad(sums, weights, left.detach())
    return found


def by_columns(at: Active, n_features: int) -> tuple[Tensor, Tensor]:
    """An order of the entries by feature, (entries,), and where each feature begins in it, (n_features,)."""
    order = at.features.sort(stable=True).indices
    counts = torch.bincount(at.features, minlength=n_features)
    return order, counts.cumsum(0) - counts


class _JumpReLU(torch.autograd.Function):
    """pre where pre > threshold; backwards d/d threshold = -(threshold / width) K((pre - threshold) / width)
    (Rajamanoharan et al. 2024, eq. 11)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        return torch.where(pre > threshold, pre, 0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.width / 2
        return torch.where(pre > threshold, g, 0), -(threshold / ctx.width) * torch.where(near, g, 0).sum(0), None


class _Step(torch.autograd.Function):
    """1 where pre > threshold; backwards d/d threshold = -(1 / width) K((pre - threshold) / width), nothing for pre (eq. 12)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.width / 2
        return None, -torch.where(near, g, 0).sum(0) / ctx.width, None


def jumprelu(pre: Tensor, threshold: Tensor, width: float) -> Tensor:
    """(n, n_features) features with straight-through gradients for threshold, (n_features,); K is the rectangle of `width`."""
    found: Tensor = _JumpReLU.apply(pre, threshold, width)
    return found


def active_count(pre: Tensor, threshold: Tensor, width: float) -> Tensor:
    """(n,) number of active features per row (L0), with straight-through gradients for the thresholds."""
    found: Tensor = _Step.apply(pre, threshold, width)
    return found.sum(1)


def revival(
    z: Tensor, residual: Tensor, encoder: Tensor, bias: Tensor, directions: Tensor, input_bias: Tensor
) -> Tensor:
    """AuxK of Gao et al. 2024 (appendix A.2): how badly dead features alone explain what the living ones leave over.

    z, residual: (n, d_in), no gradient passes to either. encoder, directions: (n_dead, d_in) rows of the dead features, bias:
    (n_dead,). The d_in / 2 largest of each row are used. Squared error divided by that of the residual; less if there
    are fewer dead features than would be used.
    """
    k = max(1, z.shape[1] // 2)
    pre = torch.addmm(bias, z - input_bias.detach(), encoder.T)
    if len(encoder) > k:
        values, indices = pre.topk(k, dim=1, sorted=False)
        pre = torch.zeros_like(pre).scatter(1, indices, values)
    explained = pre @ directions  # negative ones too: a feature must be able to learn its way back
    share = min(1.0, len(encoder) / k)
    wrong = (explained - residual).square().sum() / residual.square().sum().clamp_min(1e-20)
    return share * wrong


def batch_largest(pre: Tensor, k: int, guess: float) -> Tensor:
    """Flat positions, ascending, of the k largest of all of `pre`; of equal values at the bar those that come first.

    guess: about the k-th largest value. Only what lies above four fifths of it is sorted, where that is enough.
    """
    flat = pre.reshape(-1)
    k = min(k, len(flat))
    places = (flat > 0.8 * guess).nonzero()[:, 0] if guess > 0 else None
    if places is None or len(places) < k:
        places = torch.arange(len(flat), device=flat.device)
    values = flat[places]
    bar = values.topk(k).values.min()
    above, level = values > bar, values == bar
    level &= level.cumsum(0) <= k - above.sum()
    return places[above | level]

"""Gradients against dense autograd, finite differences and closed forms; the largest of a batch against a sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchclamp.read import sae_losses as losses

N, D_IN, COUNT, K = 12, 5, 17, 4


def parameters(seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((COUNT, D_IN), (COUNT,), (COUNT, D_IN), (D_IN,))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]


def rows(seed: int = 9) -> Tensor:
    return torch.randn(N, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_sparse_reconstruction_has_the_values_and_gradients_of_dense_products(kind: str) -> None:
    z, sparse, dense = rows(), parameters(), parameters()
    target = rows(4)

    encoder, bias, directions, below = dense
    pre = (z - below) @ encoder.T + bias
    flat = pre.detach().reshape(-1)
    if kind == "topk":
        indices = pre.topk(K, dim=1).indices
        mask = torch.zeros_like(pre).scatter(1, indices, 1.0)
        at, values = losses.Active.of_rows(indices), pre.detach().gather(1, indices).reshape(-1).relu()
    else:
        kept = flat.topk(K * N).indices.sort().values
        mask = torch.zeros_like(flat).scatter(0, kept, 1.0).reshape(pre.shape)
        at, values = losses.Active.of_flat(kept, N, COUNT), flat[kept].relu()
    expected = (pre * mask).relu() @ directions + below
    (expected - target).square().sum().backward()

    found = losses.sparse_reconstruction(z, *sparse, values, at)
    torch.testing.assert_close(found, expected)
    (found - target).square().sum().backward()
    for name, mine, theirs in zip(("encoder", "bias", "directions", "below"), sparse, dense, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_features_that_are_off_pass_no_gradient_to_the_encoder() -> None:
    z, (encoder, bias, directions, below) = rows(), parameters()
    at = losses.Active.of_rows(torch.zeros(N, 1, dtype=torch.long))
    losses.sparse_reconstruction(
        z, encoder, bias, directions, below, torch.zeros(N, dtype=torch.float64), at
    ).sum().backward()
    assert encoder.grad is not None
    assert not encoder.grad.any()
    assert below.grad is not None
    torch.testing.assert_close(below.grad, torch.full((D_IN,), float(N), dtype=torch.float64))


def test_rows_without_an_active_feature_are_the_bias() -> None:
    z, (encoder, bias, directions, below) = rows(), parameters()
    at = losses.Active.of_flat(torch.tensor([2 * COUNT + 3]), N, COUNT)
    found = losses.sparse_reconstruction(z, encoder, bias, directions, below, torch.ones(1, dtype=torch.float64), at)
    torch.testing.assert_close(found[0], below)
    torch.testing.assert_close(found[2], below + directions[3])


def uniform(n: int = 200_001, high: float = 2.0) -> Tensor:
    """Pre-activations that are spread evenly over (0, high): density 1 / high."""
    return (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) * high / n


@pytest.mark.parametrize("width", [0.05, 0.2])
@pytest.mark.parametrize("theta", [0.4, 1.1])
def test_the_straight_through_gradient_of_l0_is_the_derivative_of_its_expectation(width: float, theta: float) -> None:
    threshold = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    losses.active_count(uniform(), threshold, width).mean().backward()
    step = 1e-3
    above, below = (float((uniform() > theta + s).double().mean()) for s in (step, -step))
    assert threshold.grad is not None
    assert float(threshold.grad) == pytest.approx((above - below) / (2 * step), rel=1e-2)
    assert float(threshold.grad) == pytest.approx(-0.5, rel=1e-3)  # minus the density at the threshold


def test_the_straight_through_gradient_of_jumprelu_is_the_derivative_of_its_expectation() -> None:
    theta, width, step = 0.7, 0.05, 1e-3
    threshold = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    losses.jumprelu(uniform(), threshold, width).mean().backward()
    above, below = (float(torch.where(uniform() > theta + s, uniform(), 0.0).mean()) for s in (step, -step))
    assert threshold.grad is not None
    assert float(threshold.grad) == pytest.approx((above - below) / (2 * step), rel=1e-2)
    assert float(threshold.grad) == pytest.approx(-theta * 0.5, rel=1e-3)


def test_jumprelu_gradients_by_closed_form() -> None:
    pre = torch.tensor([[0.9, 0.52, 0.48, 0.1]], requires_grad=True)
    threshold = torch.full((4,), 0.5, requires_grad=True)
    g = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    (losses.jumprelu(pre, threshold, 0.1) * g).sum().backward()
    assert pre.grad is not None
    assert threshold.grad is not None
    assert pre.grad.tolist() == [[1.0, 2.0, 0.0, 0.0]]  # open gates only
    torch.testing.assert_close(
        threshold.grad, torch.tensor([0.0, -10.0, -15.0, 0.0])
    )  # -(0.5 / 0.1) g near the threshold


def test_l0_passes_nothing_to_the_pre_activations() -> None:
    pre = torch.tensor([[0.52]], requires_grad=True)
    threshold = torch.tensor([0.5], requires_grad=True)
    losses.active_count(pre, threshold, 0.1).sum().backward()
    assert pre.grad is None
    torch.testing.assert_close(threshold.grad, torch.tensor([-10.0]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-4, 6), min_size=6, max_size=30), st.integers(1, 12), st.floats(0, 8))
def test_the_largest_of_a_batch_are_those_of_a_stable_sort_whatever_the_guess(
    values: list[int], k: int, guess: float
) -> None:
    width = len(values) // 3
    pre = torch.tensor(values[: 3 * width], dtype=torch.float32).reshape(3, width)
    flat = pre.reshape(-1).tolist()
    k = min(k, len(flat))
    expected = sorted(sorted(range(len(flat)), key=lambda at: (-flat[at], at))[:k])
    assert losses.batch_largest(pre, k, guess).tolist() == expected


def test_revival_is_the_share_of_the_residual_that_dead_features_leave() -> None:
    z, residual = rows(), rows(5)
    encoder, bias, directions, below = (values.detach() for values in parameters(2))
    few = slice(0, 2)
    pre = (z - below) @ encoder[few].T + bias[few]
    error = (pre @ directions[few] - residual).square().sum() / residual.square().sum()
    found = losses.revival(z, residual, encoder[few], bias[few], directions[few], below)
    torch.testing.assert_close(found, error)
    many = losses.revival(z, residual, encoder, bias, directions, below)
    top = torch.zeros(N, COUNT, dtype=torch.float64)
    pre = (z - below) @ encoder.T + bias
    at = pre.topk(D_IN // 2, dim=1).indices
    top.scatter_(1, at, pre.gather(1, at))
    torch.testing.assert_close(many, (top @ directions - residual).square().sum() / residual.square().sum())

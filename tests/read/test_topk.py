"""Exact selection at both ends of a product: equal to sorting, with ties to the lowest column, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.read import topk


def sorted_by_hand(values: torch.Tensor, k: int, largest: bool) -> tuple[np.ndarray, np.ndarray]:
    """Stable sorting of every row in numpy, the other route."""
    given = values.double().numpy()
    order = np.argsort(-given if largest else given, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(given, order, 1), order


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 5),
    columns=st.integers(1, 1100),
    k=st.integers(1, 6),
    levels=st.sampled_from([None, 1, 2, 40]),
    seed=st.integers(0, 99),
)
def test_the_strongest_are_those_of_a_stable_sort(n: int, columns: int, k: int, levels: int | None, seed: int) -> None:
    torch.manual_seed(seed)
    values = torch.randn(n, columns) if levels is None else torch.randint(-levels, levels, (n, columns)).float()
    k = min(k, columns)
    for largest in (True, False):
        found, ids = topk.strongest(values, k, largest=largest)
        expected, order = sorted_by_hand(values, k, largest)
        assert np.array_equal(ids.numpy(), order)
        assert np.array_equal(found.double().numpy(), expected)


def test_zero_and_minus_zero_are_equal() -> None:
    values = torch.tensor([[-0.0, 0.0, -1.0, 0.0, -0.0]]).repeat(1, 200)
    assert topk.strongest(values, 4)[1].tolist() == [[0, 1, 3, 4]]


def test_the_two_levels_find_what_is_crowded_into_one_block_or_into_the_rest() -> None:
    values = torch.randn(3, 64 * 200 + 37, generator=torch.Generator().manual_seed(0))
    values[0, 640:670] = torch.arange(30) + 100.0  # one block holds all of the largest
    values[1, -5:] = -50.0  # columns beyond the last whole block
    for largest in (True, False):
        _, ids = topk.strongest(values, 20, largest=largest)
        assert np.array_equal(ids.numpy(), sorted_by_hand(values, 20, largest)[1])
    assert topk.strongest(values, 20)[1][0].tolist() == list(range(669, 649, -1))
    assert topk.strongest(values, 5, largest=False)[1][1].tolist() == list(range(64 * 200 + 32, 64 * 200 + 37))


@pytest.mark.parametrize("rows", [1, 7, 513])
def test_a_blocked_product_has_the_ends_of_the_whole_one(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(topk.ROWS, "cpu", (100, 1 << 30))
    generator = torch.Generator().manual_seed(rows)
    left, right = torch.randn(rows, 12, generator=generator), torch.randn(3001, 12, generator=generator)
    found = topk.extremes(left, right, 5)
    whole = left @ right.T
    for values, ids, largest in (
        (found.top_values, found.top_ids, True),
        (found.bottom_values, found.bottom_ids, False),
    ):
        expected, order = sorted_by_hand(whole, 5, largest)
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-4, atol=1e-5)
        assert (ids.numpy() == order).mean() > 0.99  # rounding of the product may swap neighbours


def test_only_a_block_of_the_product_is_ever_held() -> None:
    scan = topk.Scan(torch.randn(50_257, 4))
    for _, block in scan.blocks(torch.randn(2000, 4)):
        assert block.shape[0] <= 512
    assert scan.buffer.numel() * 4 <= 112 << 20
    assert scan.buffer.stride() == (1,)
    assert scan.product(torch.randn(3, 4)).stride(0) % 128 == 0


def test_half_precision_is_multiplied_in_float32_on_a_cpu() -> None:
    left, right = torch.randn(5, 8).bfloat16(), torch.randn(900, 8).bfloat16()
    found = topk.extremes(left, right, 3)
    assert found.top_values.dtype == torch.float32
    torch.testing.assert_close(found.top_values, (left.float() @ right.float().T).topk(3).values)


def test_one_end_only_leaves_the_other_empty() -> None:
    found = topk.extremes(torch.randn(4, 3), torch.randn(50, 3), 2, both=False)
    assert found.top_ids.shape == (4, 2)
    assert found.bottom_ids.shape == (4, 0)


@pytest.mark.parametrize("k", [0, -1, 51])
def test_a_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(InputError, match="tokens asked for"):
        topk.strongest(torch.randn(2, 50), k)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_finds_what_the_cpu_finds(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = (
        torch.randn(300, 64, generator=generator).to(dtype),
        torch.randn(20_011, 64, generator=generator).to(dtype),
    )
    here, there = topk.extremes(left, right, 20), topk.extremes(left.cuda(), right.cuda(), 20)
    torch.testing.assert_close(here.top_values, there.top_values.cpu(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(here.bottom_values, there.bottom_values.cpu(), rtol=1e-3, atol=1e-3)

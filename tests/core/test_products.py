"""Matrix products by oneDNN: the same numbers as torch's own to rounding, for every layout, and only where they may be used."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core import products
from patchclamp.core.errors import InputError
from patchclamp.core.provenance import versions

needs_onednn = pytest.mark.skipif(not products.has_onednn(), reason="this build of torch has no oneDNN")


@needs_onednn
@settings(deadline=None, max_examples=60)
@given(
    lead=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    n_in=st.integers(1, 70),
    n_out=st.integers(1, 70),
    turned=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_products_are_those_of_float64_to_rounding(
    lead: list[int], n_in: int, n_out: int, turned: bool, biased: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*lead, n_in, generator=generator)
    weight = (
        torch.randn(n_in, n_out, generator=generator).T if turned else torch.randn(n_out, n_in, generator=generator)
    )
    bias = torch.randn(n_out, generator=generator) if biased else None
    exact = values.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    found = products.product(values, weight, bias)
    assert found.shape == exact.shape
    # a sum of n terms is off by at most n roundings of the sum of their sizes
    size = values.abs().double() @ weight.abs().double().T + (0.0 if bias is None else bias.abs().double())
    assert bool(((found - exact).abs() <= (n_in + 2) * 2.0**-24 * size + 1e-30).all())


@needs_onednn
def test_a_part_of_the_rows_gives_the_same_bits() -> None:
    values, weight = torch.randn(96, 64), torch.randn(128, 64)
    assert torch.equal(products.product(values, weight)[32:], products.product(values[32:], weight))


@needs_onednn
def test_nan_and_infinity_come_through() -> None:
    values = torch.ones(3, 4)
    values[0, 1], values[1, 2] = torch.nan, torch.inf
    found = products.product(values, torch.ones(2, 4))
    assert found[0].isnan().tolist() == [True, True]
    assert found[1:].tolist() == [[torch.inf, torch.inf], [4.0, 4.0]]


def test_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST", 4 * 8 * 16)
    values, weight = torch.ones(4, 16), torch.ones(8, 16)
    assert products.takes(values, weight)
    assert not products.takes(values[:3], weight)
    assert not products.takes(values.bfloat16(), weight.bfloat16())
    assert not products.takes(values.double(), weight.double())
    assert not products.takes(values.to("meta"), weight.to("meta"))
    learned = weight.clone().requires_grad_()
    assert not products.takes(values, learned)
    assert not products.takes(values, weight, torch.zeros(8, requires_grad=True))
    with torch.no_grad():
        assert products.takes(values, learned)


@needs_onednn
def test_kernels_are_chosen_by_the_processor_and_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(products.VARIABLE, raising=False)
    for slow, expected in ((True, "fused+onednn"), (False, "fused")):
        monkeypatch.setattr(products, "_mkl_is_slow", lambda slow=slow: slow)
        assert products.kernels() == expected
        assert versions()["kernels"] == expected
    monkeypatch.setenv(products.VARIABLE, "fast")
    assert products.kernels() == "fused+onednn"
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    for asked in ("plain", "fused"):
        monkeypatch.setenv(products.VARIABLE, asked)
        assert products.kernels() == asked
        assert not products.faster(torch.ones(8192, 64), torch.ones(64, 64))


@pytest.mark.parametrize(
    ("maker", "capability", "slow"),
    [
        ("vendor_id\t: AuthenticAMD", "AVX512", True),
        ("vendor_id\t: GenuineIntel", "AVX512", False),
        ("", "AVX2", False),
    ],
)
def test_mkl_is_slow_on_wide_processors_of_other_makers(
    monkeypatch: pytest.MonkeyPatch, maker: str, capability: str, slow: bool
) -> None:
    monkeypatch.setattr(products, "_maker", lambda: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products._mkl_is_slow.__wrapped__() is slow


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.VARIABLE, "mkl")
    with pytest.raises(InputError, match="PATCHCLAMP_KERNELS is 'mkl'; it can be auto, plain, fused, fast"):
        products.kernels()
    monkeypatch.setenv(products.VARIABLE, "fast")
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    with pytest.raises(InputError, match="lacks oneDNN"):
        products.kernels()

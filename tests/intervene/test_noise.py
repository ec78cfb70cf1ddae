"""Numbers that depend on seed, layer, unit, position and token, and on nothing else: uniform, independent, batch or no batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from patchclamp.intervene.noise import TextKeys, TokenNoise, mixed, unit_keys
from patchclamp.models.hooks import Seen, Step

CPU = torch.device("cpu")
ONES = [1, 1, 1, 1]


def step(batch: int, seq: int, start: int = 0, mask: Any = None) -> Step:
    return Step(batch, seq, start, None if mask is None else torch.tensor(mask).bool(), None, CPU)


def embedded(text: TextKeys, tokens: list[list[int]], where: Step) -> None:
    """Let the keys read an embedding of these tokens."""
    table = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    text.read(Seen("embed", 0, table[torch.tensor(tokens).reshape(-1)], None, 0, where))


def drawn(text: TextKeys, where: Step, units: np.ndarray) -> torch.Tensor:
    """(batch, seq, units) numbers."""
    values = torch.zeros(where.batch * where.seq, 1)
    found = TokenNoise(text).uniform(Seen("pre", 0, values, None, 0, where), torch.from_numpy(units))
    return found.view(where.batch, where.seq, -1)


def test_numbers_are_uniform_and_independent() -> None:
    found = drawn(TextKeys(), step(1, 400), unit_keys(0, 3, np.arange(300))).numpy()[0]
    assert 0 <= found.min() < found.max() < 1
    assert kstest(found.ravel(), "uniform").pvalue > 1e-3
    for one in (found[:60], found[:, :60].T):
        assert np.abs(np.corrcoef(one)[np.triu_indices(60, 1)]).max() < 0.3


def test_seeds_layers_and_units_have_numbers_of_their_own() -> None:
    units = np.arange(500)
    first = drawn(TextKeys(), step(1, 1), unit_keys(0, 0, units))
    for other in (unit_keys(1, 0, units), unit_keys(0, 1, units), unit_keys(0, 0, units + 500)):
        found = drawn(TextKeys(), step(1, 1), other)
        assert abs(np.corrcoef(first.ravel(), found.ravel())[0, 1]) < 0.15
        assert not torch.equal(first, found)


def test_a_unit_s_numbers_do_not_depend_on_the_other_units() -> None:
    every, some = unit_keys(5, 2, np.arange(100)), np.array([3, 50, 99])
    np.testing.assert_array_equal(unit_keys(5, 2, some), every[some])


def test_positions_count_from_the_first_token_and_a_cache_goes_on_counting() -> None:
    units = unit_keys(0, 0, np.arange(20))
    whole = step(1, 4)
    text = TextKeys()
    embedded(text, [[7, 8, 9, 10]], whole)
    wanted = drawn(text, whole, units)[0]
    padded = step(2, 6, mask=[[0, 0, *ONES], [1, 1, *ONES]])
    embedded(text, [[0, 0, 7, 8, 9, 10], [1, 2, 3, 4, 5, 6]], padded)
    assert torch.equal(drawn(text, padded, units)[0, 2:], wanted)
    first = step(2, 3, mask=[[0, 1, 1], [1, 1, 1]])
    embedded(text, [[0, 7, 8], [1, 2, 3]], first)
    begun = drawn(text, first, units)[0, 1:]
    later = step(2, 1, start=3)
    embedded(text, [[9], [4]], later)
    assert torch.equal(torch.cat([begun, drawn(text, later, units)[0]]), wanted[:3])


def test_tokens_have_numbers_of_their_own_and_vectors_have_those_of_their_places() -> None:
    units = unit_keys(0, 0, np.arange(50))
    text, where = TextKeys(), step(3, 2)
    embedded(text, [[7, 8], [9, 8], [7, 8]], where)
    assert text.knows(where)
    found = drawn(text, where, units)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0, 1], found[1, 1])
    assert not torch.equal(found[0, 0], found[1, 0])
    unread = step(2, 2)
    assert not text.knows(unread)
    found = drawn(text, unread, units)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0, 0], found[0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_embeddings_of_any_dtype_are_read(dtype: torch.dtype) -> None:
    text, where = TextKeys(), step(1, 3)
    values = torch.randn(3, 200, dtype=torch.float64).to(dtype)
    assert text.read(Seen("embed", 0, values, None, 0, where)) is values
    assert len(set(text.of(where).tolist())) == 3


@given(keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=20, unique=True))
@settings(max_examples=25, deadline=None)
def test_mixing_is_a_bijection(keys: list[int]) -> None:
    """The finaliser of SplitMix64 in Python's own integers."""

    def by_hand(key: int) -> int:
        z = (key + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        z ^= z >> 31
        return z - 2**64 if z >= 2**63 else z

    found = mixed(torch.tensor(keys)).tolist()
    assert found == [by_hand(key) for key in keys]
    assert len(set(found)) == len(keys)

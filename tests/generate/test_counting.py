"""Counting cores of a prompt: the worked example, ties, additivity, scaling, signs, the law of stability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.generate.counting import Counts, most_frequent
from patchclamp.record.statistics.core import core_size, sentence_core

EXAMPLE = torch.tensor(
    [[5, 4, 3, 2, 1, 0, 0, -1], [0, 5, 4, 3, 0, 2, 0, 1], [1, 0, 6, 5, 0, 0, 4, 0]], dtype=torch.float32
)
CPU = torch.device("cpu")


def counted(values: torch.Tensor, token_share: float = 0.4, by: str = "positive", shared_k: bool = False) -> Counts:
    counts = Counts(1, values.shape[1], CPU)
    counts.add(0, values, token_share=token_share, by=by, shared_k=shared_k)
    return counts


@pytest.mark.parametrize(
    ("token_share", "shared_k", "frequencies"),
    [
        (0.6, False, [1, 2, 3, 2, 0, 0, 0, 0]),
        (0.6, True, [1, 2, 2, 1, 0, 0, 0, 0]),
        (0.4, False, [1, 2, 2, 1, 0, 0, 0, 0]),
        (0.4, True, [1, 1, 1, 0, 0, 0, 0, 0]),
    ],
)
def test_the_worked_example(token_share: float, shared_k: bool, frequencies: list[int]) -> None:
    counts = counted(EXAMPLE, token_share, shared_k=shared_k)
    assert counts.counts[0].tolist() == frequencies
    size = core_size(0.375, 8)
    by_position = most_frequent(counts.counts[0], torch.zeros(8), size)
    expected = sorted(range(8), key=lambda at: (-frequencies[at], at))[:size]
    assert by_position.tolist() == sorted(expected)


def test_equal_counts_go_to_the_larger_sum_of_activation_in_the_worked_example() -> None:
    counts = counted(
        EXAMPLE, 0.4
    )  # neurons 1 and 2 in two cores, 0 (mass 5) and 3 (mass 5) in one: the smaller position
    assert counts.mass[0].tolist() == [5, 9, 10, 5, 0, 0, 0, 0]
    assert counts.cores(3)[0].tolist() == [0, 1, 2]


@given(seed=st.integers(0, 10**6), size=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_the_core_is_that_of_the_statistic(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    counts, mass = rng.integers(0, 4, 12).astype(np.float64), np.round(rng.random(12), 1)
    expected = np.flatnonzero(sentence_core(counts, mass, size))
    assert most_frequent(torch.from_numpy(counts), torch.from_numpy(mass), size).tolist() == expected.tolist()


@given(seed=st.integers(0, 10**6), cut=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_counts_are_additive_over_parts_of_a_text(seed: int, cut: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=(9, 14)).astype(np.float32))
    whole, parts = counted(values), Counts(1, 14, CPU)
    for part in (values[:cut], values[cut:]):
        parts.add(0, part, token_share=0.4, by="positive", shared_k=False)
    assert torch.equal(whole.counts, parts.counts)
    torch.testing.assert_close(whole.mass, parts.mass)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.5, 4.0, 256.0]))
@settings(max_examples=15, deadline=None)
def test_scaling_a_token_and_permuting_neurons_change_nothing_else(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(size=(7, 16)).astype(np.float32))
    louder = values * torch.from_numpy(np.where(rng.random(7) < 0.5, scale, 1.0).astype(np.float32))[:, None]
    assert torch.equal(counted(values).counts, counted(louder).counts)
    order = torch.from_numpy(rng.permutation(16))
    moved = counted(values[:, order])
    assert torch.equal(moved.counts[0], counted(values).counts[0][order])
    kept = counted(values).cores(5)[0].tolist()
    assert sorted(order[moved.cores(5)[0]].tolist()) == kept


def test_negative_products_are_excluded_unless_ranked_by_size() -> None:
    values = torch.tensor([[-9.0, 1.0, 0.0, 2.0]])
    assert counted(values, 1.0).cores(4)[0].tolist() == [1, 3]
    assert counted(values, 1.0, by="abs").cores(1)[0].tolist() == [0]
    assert counted(values, 1.0, by="abs").cores(4)[0].tolist() == [0, 1, 3]


def test_no_tokens_and_no_active_neuron_give_an_empty_core() -> None:
    assert counted(torch.zeros(0, 5)).cores(3)[0].tolist() == []
    assert counted(torch.zeros(3, 5)).cores(3)[0].tolist() == []
    assert counted(-torch.ones(3, 5)).cores(3)[0].tolist() == []


def test_beginnings_come_closer_to_the_whole_text_and_a_change_of_topic_moves_the_core_away() -> None:
    rng = np.random.default_rng(0)

    def tokens(topic: int, n: int) -> torch.Tensor:
        means = np.random.default_rng(topic).normal(size=60)
        return torch.from_numpy(rng.normal(means, 1.5, size=(n, 60)).astype(np.float32))

    def core(values: torch.Tensor) -> set[int]:
        return set(counted(values).cores(12)[0].tolist())

    def alike(first: set[int], second: set[int]) -> float:
        return len(first & second) / len(first | second)

    texts = [tokens(1, 200) for _ in range(12)]
    grown = [np.mean([alike(core(text[:n]), core(text)) for text in texts]) for n in (3, 12, 50, 150)]
    assert grown == sorted(grown)
    assert grown[-1] > 0.8
    switched = [torch.cat([text[:100], tokens(2, 100)]) for text in texts]
    moved = np.mean([alike(core(text[:100]), core(text)) for text in switched])
    stayed = np.mean([alike(core(text[:100]), core(text)) for text in texts])
    assert moved < stayed - 0.2

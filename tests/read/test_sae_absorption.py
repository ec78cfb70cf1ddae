"""Absorption is found where it was planted, at the planted rate, and not where it wasn't."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import corpus
from patchclamp.data.documents import Document
from patchclamp.read.sae_absorption import absorption, absorption_of
from patchclamp.read.sae_kinds import ReLUSAE

WIDTH, N = 12, 4000


def planted(absorbed: float, *, stands_in: bool = True) -> tuple[ReLUSAE, Tensor, Tensor]:
    """Half of the rows have the concept (direction 0). In a share of them a word (direction 1) is present too; at these
    the concept's feature 0 is silent, and feature 1, whose direction holds concept and word, fires instead."""
    g = torch.Generator().manual_seed(0)
    concept, word = torch.rand(N, generator=g) < 0.5, torch.rand(N, generator=g) < absorbed
    word &= concept | (not stands_in)  # a word that is as frequent without the concept says nothing about it
    x = 0.05 * torch.randn(N, WIDTH, generator=g)
    x[:, 0] += 2.0 * concept
    x[:, 1] += 3.0 * word
    x[:, 2] += 2.0 * (torch.rand(N, generator=g) < 0.5)
    encoder, rows, bias = torch.zeros(WIDTH, 4), torch.zeros(4, WIDTH), torch.full((4,), -1.0)
    encoder[0, 0], encoder[1, 0], rows[0, 0] = 1, -5, 1  # concept and not the word
    encoder[1, 1] = 1
    rows[1, 0] = 0.6 if stands_in else 0.0
    rows[1, 1] = 0.8
    encoder[2, 2] = rows[2, 2] = 1
    bias[3] = -100
    return (
        ReLUSAE(
            "sae", "resid", 0, encoder=encoder, encoder_bias=bias, directions=rows, decoder_bias=torch.zeros(WIDTH)
        ),
        x,
        concept,
    )


def test_the_planted_rate_is_found_and_the_feature_that_stands_in_is_named() -> None:
    found = absorption(*planted(0.02))
    assert found.main == (0,)
    assert found.rate == pytest.approx(0.02, abs=0.012)
    assert found.missed == pytest.approx(found.rate)
    assert list(found.absorbing) == [1]
    assert found.absorbing[1] == round(found.rate * found.n)
    assert found.probe_f1 > 0.99


def test_a_feature_that_is_silent_without_a_stand_in_is_missed_not_absorbed() -> None:
    found = absorption(*planted(0.02, stands_in=False))
    assert found.missed > 0
    assert found.rate == 0


def test_splitting_is_not_absorption() -> None:
    found = absorption(*planted(0.4))  # the second feature explains so much that it is one of the main ones
    assert set(found.main) == {0, 1}
    assert found.rate == 0
    assert found.f1 > 0.95


def test_nothing_is_absorbed_where_nothing_was_planted() -> None:
    found = absorption(*planted(0.0))
    assert (found.rate, found.missed, found.main) == (0, 0, (0,))


def test_seeds_decide_the_halves() -> None:
    assert absorption(*planted(0.02)) == absorption(*planted(0.02))


def test_too_few_rows_and_wrong_shapes_are_refused() -> None:
    sae, x, concept = planted(0.02)
    with pytest.raises(InputError, match="at least 20 of each"):
        absorption(sae, x, torch.zeros(N, dtype=torch.bool))
    with pytest.raises(InputError, match="one truth value for each"):
        absorption(sae, x, concept[:5])


def test_concepts_of_tokens_and_spans_are_read_from_text(tiny_gpt2: Any) -> None:
    text = ["The cat sat on the mat and the cat sat.", "Two and two make four, three and three make six."] * 20
    spans = {"word": tuple((at, at + 3) for at in range(len(text[0])) if text[0][at : at + 3] == "cat")}
    documents = [Document(one, spans if "cat" in one else {}, None) for one in text]
    eye = torch.eye(32)
    sae = ReLUSAE(
        "sae", "resid", 0, encoder=eye, encoder_bias=torch.zeros(32), directions=eye, decoder_bias=torch.zeros(32)
    )
    by_letter = absorption_of(sae, tiny_gpt2, corpus(en=documents), "starts=t")
    by_function = absorption_of(sae, tiny_gpt2, corpus(en=documents), lambda token: token[:1].lower() == "t")
    assert by_letter == by_function
    assert by_letter.probe_f1 > 0.9
    by_span = absorption_of(sae, tiny_gpt2, corpus(en=documents), "word")
    assert by_span.n > 0
    with pytest.raises(InputError, match="needs letters"):
        absorption_of(sae, tiny_gpt2, corpus(en=documents), "starts=")

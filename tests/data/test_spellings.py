"""Spellings change tokens and nothing else."""

from __future__ import annotations

import pytest

from patchclamp.core.errors import InputError
from patchclamp.data.generate.spellings import SPELLINGS, respelled

TEXT = "Two cats sat. Über dem Öl; élève été!"


def test_each_spelling_is_what_it_says() -> None:
    assert respelled(TEXT, "plain") == TEXT
    assert respelled(TEXT, "upper") == "TWO CATS SAT. ÜBER DEM ÖL; ÉLÈVE ÉTÉ!"
    assert respelled(TEXT, "backwards") == "sat. cats Two été! élève Öl; dem Über"
    assert respelled(TEXT, "vowelless") == "Tw cts st. Übr dm Öl; élv ét!"
    assert respelled("«они шли»", "vowelless") == "«он шл»"


def test_an_unknown_spelling_is_refused() -> None:
    with pytest.raises(InputError, match="no spelling is called 'lower'; there are plain"):
        respelled(TEXT, "lower")
    assert all(respelled("", spelling) == "" for spelling in SPELLINGS)

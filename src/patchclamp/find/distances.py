"""Three laws of subjective distance between ordered stimuli: logarithmic, Levenshtein, logarithmic around a reference.

All give (n, n) float64 matrices, symmetric, 0 on the diagonal. Source: Li et al. 2025, arXiv 2507.15851.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError

PAPER_OFFSET = 1e-9
LAWS = ("log", "levenshtein", "reference")


def as_values(values: ArrayLike) -> NDArray[np.float64]:
    """Stimulus values as (n,) float64; InputError unless they are finite, different from each other and at least two."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
        raise InputError(f"values of shape {found.shape} given; a list of at least two finite numbers is needed")
    if len(np.unique(found)) < len(found):
        raise InputError("a stimulus value comes twice; every value may come once")
    return found


def log_distance(values: ArrayLike) -> NDArray[np.float64]:
    """|ln x_i - ln x_j|. Raises InputError for values that are not above 0."""
    x = as_values(values)
    if x.min() <= 0:
        raise InputError(f"the value {x.min():g} has no logarithm; the log law needs values above 0")
    v = np.log(x)
    return np.abs(v[:, None] - v[None, :])


def reference_distance(values: ArrayLike, reference: float, *, offset: float = 1.0) -> NDArray[np.float64]:
    """Distance on a logarithmic scale that is centred on a reference point R.

    With v_x = ln(|R - x| + offset): |v_i - v_j| for two values on the same side of R, v_i + v_j across it. With offset 1,
    our default, v is 0 at R and never negative, so this is the distance of signed coordinates. offset=1e-9 is the
    authors' script, in which R itself lies across from everything and its pairs get values near -15. offset=0 is
    refused if R is one of the values.
    """
    x = as_values(values)
    if not np.isfinite(reference):
        raise InputError(f"reference {reference} given; it is a finite value")
    away = np.abs(reference - x)
    if offset < 0 or (offset == 0 and not away.all()):
        raise InputError(
            f"offset={offset:g} with a stimulus at the reference {reference:g}; give offset=1, or leave that stimulus out"
        )
    v = np.log(away + offset)
    same = ~across(x, reference)
    np.fill_diagonal(same, True)
    return np.where(same, np.abs(v[:, None] - v[None, :]), v[:, None] + v[None, :])


def across(values: ArrayLike, reference: float) -> NDArray[np.bool_]:
    """(n, n) bool: pairs that do not lie strictly on the same side of the reference; the diagonal is False.

    This indicator alone explains most of the authors' reference-log distance, so it is the baseline to beat.
    """
    side = np.sign(as_values(values) - reference)
    found = side[:, None] * side[None, :] <= 0
    np.fill_diagonal(found, False)
    return np.asarray(found)


def edit_distance(values: ArrayLike, *, texts: Sequence[str] | None = None) -> NDArray[np.float64]:
    """Levenshtein distance of the decimal strings. texts: how the values are written; needed if they aren't whole numbers.

    One dynamic programme over all pairs at once: len^2 steps on (n, n) arrays.
    """
    strings = _written(values) if texts is None else list(texts)
    if len(strings) != len(as_values(values)):
        raise InputError(f"{len(strings)} texts given for {len(as_values(values))} values")
    n, longest = len(strings), max(map(len, strings))
    codes = np.full((n, longest), -1, dtype=np.int32)
    for row, text in enumerate(strings):
        codes[row, : len(text)] = [ord(letter) for letter in text]
    lengths = np.array([len(text) for text in strings])
    above = [np.full((n, n), column, dtype=np.int16) for column in range(longest + 1)]
    found = _at_end(above, lengths, 0)
    for row in range(1, longest + 1):
        here = [np.full((n, n), row, dtype=np.int16)]
        for column in range(1, longest + 1):
            differ = (codes[:, row - 1][:, None] != codes[:, column - 1][None, :]).astype(np.int16)
            moved = np.minimum(above[column] + 1, here[column - 1] + 1)
            here.append(np.minimum(moved, above[column - 1] + differ))
        above = here
        found = np.where((lengths == row)[:, None], _at_end(above, lengths, row), found)
    return found.astype(np.float64)


def _at_end(columns: list[NDArray[Any]], lengths: NDArray[Any], row: int) -> NDArray[Any]:
    """The cell (row, length of the second string) of every pair."""
    found = columns[0].copy()
    for column, cells in enumerate(columns):
        found[:, lengths == column] = cells[:, lengths == column]
    return found


def _written(values: ArrayLike) -> list[str]:
    x = as_values(values)
    if (x != np.round(x)).any():
        raise InputError(
            "values that aren't whole numbers can be written in many ways; give texts= for the edit distance"
        )
    return [str(int(value)) for value in x]


def law_distances(
    values: ArrayLike, *, reference: float, offset: float = 1.0, texts: Sequence[str] | None = None
) -> dict[str, NDArray[np.float64]]:
    """The three laws by name: log, levenshtein, reference."""
    return {
        "log": log_distance(values),
        "levenshtein": edit_distance(values, texts=texts),
        "reference": reference_distance(values, reference, offset=offset),
    }

"""Log-coding fits and troughs of planted tuning curves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.find.tuning import layer_tuning, log_coding, trough

YEARS = np.arange(1900, 2100)
AWAY = np.abs(YEARS - 2012).astype(float)
NOISE = np.random.default_rng(5).normal(0, 0.05, 200)


@pytest.mark.parametrize(
    ("curve", "best"),
    [
        (1 + 0.5 * np.log(AWAY + 1), "log"),
        (1 + 0.02 * AWAY, "linear"),
        (0.0001 * AWAY**2, "power"),
        (np.ones(200), "flat"),
    ],
)
def test_the_model_that_made_the_curve_wins(curve: np.ndarray, best: str) -> None:
    fits = log_coding(curve + NOISE, YEARS, 2012)
    for side in ("past", "future"):
        assert fits[side] is not None
        assert fits[side]["best"] == best


@given(st.floats(-2, 2), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_slope_and_r2_are_least_squares(slope: float, intercept: float) -> None:
    curve = intercept + slope * np.log(AWAY + 1) + NOISE
    fit = log_coding(curve, YEARS, 2012)["past"]
    past = YEARS < 2012
    line = np.polyfit(np.log(AWAY[past] + 1), curve[past], 1)
    assert fit is not None
    assert [fit["slope"], fit["intercept"]] == pytest.approx(line.tolist(), abs=1e-8)
    r = np.corrcoef(np.log(AWAY[past] + 1), curve[past])[0, 1]
    assert fit["r2"] == pytest.approx(r * r, abs=1e-9)


def test_the_papers_form_has_no_offset() -> None:
    curve = np.where(AWAY > 0, np.log(np.maximum(AWAY, 1)), 0)
    fit = log_coding(curve, YEARS, 2012, offset=0)["future"]
    assert fit is not None
    assert fit["slope"] == pytest.approx(1)
    assert fit["r2"] == pytest.approx(1)
    assert fit["n"] == 87


def test_a_constant_curve_is_flat_and_a_short_side_has_no_fit() -> None:
    fits = log_coding(np.full(200, 0.1), YEARS, 2097)
    assert fits["past"] is not None
    assert (fits["past"]["slope"], fits["past"]["r2"], fits["past"]["best"]) == (0, None, "flat")
    assert fits["future"] is None


def test_the_trough_is_found_in_any_order_and_flagged_at_the_border() -> None:
    curve = np.log(AWAY + 1)
    order = np.random.default_rng(0).permutation(200)
    assert trough(curve[order], YEARS[order]) == {"value": 2012, "smoothed": 2012, "border": False}
    assert trough(YEARS.astype(float), YEARS)["border"]


def test_layers_without_units_have_no_rows() -> None:
    rows = layer_tuning([None, np.log(AWAY + 1)], YEARS, 2012)
    assert [(row["layer"], row["side"]) for row in rows] == [(1, "past"), (1, "future")]


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="one finite number"):
        log_coding([1.0, 2.0], [1, 2, 3], 2)
    with pytest.raises(InputError, match="offset"):
        log_coding([1.0, 2.0], [1, 2], 2, offset=-1)
    with pytest.raises(InputError, match="odd"):
        trough([1.0, 2.0], [1, 2], smooth=2)

"""What a report says follows from its numbers: the short verdict, the sentence on each target, what is named as changed."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.measure.harm import harm
from patchclamp.measure.side_effect_verdict import ALPHA, said, verdict

NUMBERS = st.floats(-2, 2, allow_nan=False)
SHARES = st.floats(0, 1)
METRICS = ("perplexity", "answer loss", "choice accuracy")
ROWS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["target", "beside"]), "metric": st.sampled_from(METRICS),
        "plain": st.floats(0.1, 5), "effect": NUMBERS, "harm": NUMBERS, "control_mean": st.none() | NUMBERS,
        "p_holm": SHARES, "p_change_holm": SHARES, "n_documents": st.integers(1, 50),
    }
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=6))
def test_a_verdict_is_selective_only_if_all_targets_change_beyond_random_and_nothing_else_is_harmed(
    rows: list[dict[str, Any]],
) -> None:
    for number, row in enumerate(rows):
        row |= {
            "text": f"m{number}",
            "clamped": row["plain"] + row["effect"],
            "low": None,
            "high": None,
            "harm_high": row["harm"],
        }
        row["said"] = said(row, enough=row["n_documents"] > 5)
    lines = verdict(rows, [])
    targets = [row for row in rows if row["role"] == "target"]
    others = [row for row in rows if row["role"] == "beside"]

    def moved(row: dict[str, Any]) -> bool:
        return row["p_change_holm"] < ALPHA and row["effect"] != 0

    def above(row: dict[str, Any]) -> bool:
        control = row["control_mean"]
        return control is None or (row["p_holm"] < ALPHA and abs(row["effect"]) > abs(control))

    wanted = bool(targets and others) and all(moved(row) and above(row) for row in targets)
    wanted = wanted and not any(moved(row) and row["harm"] > 0 for row in others)
    wanted = wanted and all(moved(row) or row["n_documents"] > 5 for row in others)
    assert lines[0].startswith("Selective") == wanted
    assert sum(line.startswith("Target ") for line in lines) == len(targets)
    for row in others:
        named = [line for line in lines if re.search(rf"\b{row['text']} by ", line)]
        assert bool(named) == (moved(row) and row["harm"] != 0)


@settings(max_examples=25, deadline=None)
@given(plain=st.floats(0.01, 100), changed=st.floats(0.01, 100))
def test_harm_has_one_sign_and_turns_around(plain: float, changed: float) -> None:
    for metric in METRICS:
        value = harm(metric, plain, changed)
        worse = changed < plain if metric == "choice accuracy" else changed > plain
        assert (value > 0) == worse or value == pytest.approx(0, abs=1e-12)
        assert value == pytest.approx(-harm(metric, changed, plain))
    assert harm("perplexity", plain, changed) == pytest.approx(math.log(changed) - math.log(plain), abs=1e-9)
    assert math.isnan(harm("perplexity", 0.0, changed))

"""On the demo model: units that are core for one language only are needed for that language, random units are not."""

from __future__ import annotations

import numpy as np
import pytest

from patchclamp.data import demo_text
from patchclamp.find.core import core
from patchclamp.measure import effect
from patchclamp.models.load import load
from patchclamp.record import record


@pytest.mark.slow
def test_clamping_a_languages_own_core_neurons_hurts_that_language() -> None:
    model = load("demo")
    languages = ("fr", "ru", "zh")
    text = demo_text(split="find").subset(languages).limited(max_documents=24)
    recording = record(model, text, statistics={"core": {"alpha": 0.4, "beta": 0.2}}, quiet=True)
    own = core(recording, shuffles=20).select(classes=["specific"])
    on = demo_text(split="measure").subset(languages).limited(max_documents=8)
    effects = effect(model, own, on=on, controls=3, permutations=999, quiet=True)
    rows = [effects.row(name, name) for name in languages]
    assert all(row["effect"] > 3 * max(abs(row["control_mean"]), 1.0) for row in rows)
    matrix = np.log([[effects.row(a, b)["clamped"] / effects.row(a, b)["plain"] for b in languages] for a in languages])
    assert np.diag(matrix).mean() > 2 * matrix[~np.eye(3, dtype=bool)].mean()

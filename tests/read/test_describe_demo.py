"""Descriptions of the demo model's neurons on passages that nothing was described on; and the edit by description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchclamp.core.errors import InputError
from patchclamp.data import corpus, demo_text
from patchclamp.measure import effect
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet
from patchclamp.read.describe import describe, describer_of
from patchclamp.read.description_scores import score_descriptions
from patchclamp.read.description_uses import edit_effect
from patchclamp.read.descriptions import Description, Descriptions
from patchclamp.read.exemplar_store import ExemplarStore
from patchclamp.read.exemplars import exemplars
from patchclamp.record import record


@pytest.fixture(scope="module")
def store() -> ExemplarStore:
    model = load("demo")
    text = demo_text(("en", "ru"), split="find").limited(max_documents=90)
    recorded = record(model, text, statistics={"exemplars": {"k": 40}, "histogram": {}}, layers=(1, 4), quiet=True)
    rng = np.random.default_rng(0)
    units = [f"mlp.{layer}.{at}" for layer in (1, 4) for at in np.sort(rng.permutation(640)[:10]).tolist()]
    return exemplars(recorded, units=units, model=model, text=text, k=12, probe=40, held_out=12)


@pytest.mark.slow
@pytest.mark.parametrize(("describer", "gain"), [("words", 0.1), ("dissect", 0.02)])
def test_descriptions_beat_shuffled_ones_on_held_out_passages(
    store: ExemplarStore, describer: str, gain: float
) -> None:
    found = describe(store, describer=describer, quiet=True)
    scores = score_descriptions(store, found, describer_of(describer, store), controls=10).overall
    for metric in ("pearson", "part_auroc") if describer == "words" else ("pearson",):
        assert scores[metric]["gain"] > gain / (1 if metric == "pearson" else 3)  # type: ignore[operator]
        assert scores[metric]["p"] < 0.05  # type: ignore[operator]
        assert scores[metric]["control"] == pytest.approx(0.0 if metric == "pearson" else 0.5, abs=0.05)


def test_an_edit_clamps_the_units_of_a_keyword(tiny_gpt2: Any) -> None:
    texts = {
        "mlp.0.1": 'the word "river"',
        "mlp.1.2": 'the word "River" or the word "sea"',
        "mlp.2.3": 'the word "moon"',
    }
    found = Descriptions(
        tuple(Description(unit, text, 1.0, -1.0, -5.0, 2.0) for unit, text in texts.items()),
        "words", 0.2, model=tiny_gpt2.identity,
    )  # fmt: skip
    on = corpus(en=["The cat sat on the mat.", "The dog looked at the moon.", "Two and two make four."])
    made = edit_effect(tiny_gpt2, found, {"water": ["river", "sea"]}, on=on, controls=2, permutations=99, quiet=True)
    units = UnitSet.of(tiny_gpt2, ["mlp.0.1", "mlp.1.2"])
    plain = effect(tiny_gpt2, {"water": units}, on=on, to=0.0, controls=2, permutations=99, quiet=True)
    assert made.rows == plain.rows
    assert made.row("water", "en")["n_units"] == 2
    with pytest.raises(InputError, match="names no units"):
        edit_effect(tiny_gpt2, found, ["desert"], on=on)

"""TPH of the published rows, sentence perplexity, and the trade-off of planted interventions with their controls."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.data.corpora import corpus
from patchclamp.intervene import intervention
from patchclamp.measure.concept_rate import AVERAGE, concept_rate
from patchclamp.measure.measurement import Measurement
from patchclamp.measure.perplexity import perplexity
from patchclamp.measure.tradeoff import Tradeoff, sentence_perplexity, tph, tradeoff

PROMPTS = ["The cat", "Two and two make", "Le chat est assis sur", "The moon and the"]
TEXT = corpus(en=["The cat sat on the mat.", "Two and two make four."], fr=["Le chat est assis."])


@pytest.mark.parametrize(
    ("rate", "after", "before_perplexity", "perplexity", "published"),
    [
        (11.13, 4.71, 6.23, 9.84, 60.37),  # Llama-2, EigenShift
        (11.13, 3.59, 6.23, 19.3, 43.73),  # Llama-2, AurA
        (9.89, 4.65, 6.26, 9.89, 57.68),  # Mistral, EigenShift
        (8.80, 8.1, 22.14, 20.64, 14.66),  # GPT-2-XL, AurA: perplexity falls, which counts like a rise
        (9.74, 3.24, 8.99, 9.33, 78.86),  # Falcon, EigenShift
    ],
)
def test_published_rows_are_reproduced(
    rate: float, after: float, before_perplexity: float, perplexity: float, published: float
) -> None:
    found = tph((rate - after) / rate, (perplexity - before_perplexity) / before_perplexity)
    assert 100 * found == pytest.approx(published, abs=0.03)


def test_its_ends_are_those_of_the_method_file() -> None:
    assert tph(1, 0) == 1
    assert tph(1, math.inf) == 0
    assert tph(0, 0) == tph(-0.5, 0) == tph(math.nan, 0) == tph(1, math.nan) == 0
    assert 100 * tph(0.5768, (9.84 - 6.23) / 6.23) == pytest.approx(60.37, abs=0.02)
    assert 100 * tph(0.6774, (19.3 - 6.23) / 6.23) == pytest.approx(43.73, abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1), st.floats(-0.99, 50))
def test_it_lies_between_0_and_1_and_a_fall_counts_like_a_rise(reduction: float, change: float) -> None:
    assert 0 <= tph(reduction, change) <= 1
    assert tph(reduction, change) == tph(reduction, -change)
    assert tph(reduction, abs(change)) >= tph(reduction, abs(change) + 1) - 1e-12


def test_sentence_perplexity_is_a_mean_over_sentences() -> None:
    found = Measurement("perplexity", "en", np.array([2.0, 0.0, 3.0]), np.array([2, 0, 1]))
    assert sentence_perplexity(found) == pytest.approx((math.e + math.e**3) / 2)
    assert math.isnan(sentence_perplexity(Measurement("perplexity", "en", np.zeros(1), np.zeros(1, dtype=np.int64))))


@pytest.fixture(scope="module")
def made(tiny_llama: Any) -> Tradeoff:
    runs = {
        "nothing/1": intervention(tiny_llama, "mlp.0.1", scale=1.0),
        "heavy/0": intervention(tiny_llama, [f"mlp.2.{n}" for n in range(48)], to=0.0),
        "heavy/0.5": intervention(tiny_llama, [f"mlp.2.{n}" for n in range(48)], scale=0.5),
    }
    return tradeoff(
        tiny_llama,
        runs,
        PROMPTS,
        lambda text: "a" in text,
        TEXT,
        samples=6,
        max_new_tokens=5,
        resamples=100,
        quiet=True,
    )


def test_rows_hold_what_the_parts_measure(made: Tradeoff, tiny_llama: Any) -> None:
    rate = concept_rate(tiny_llama, PROMPTS, lambda text: "a" in text, samples=6, max_new_tokens=5, quiet=True)
    read = perplexity(tiny_llama, TEXT, quiet=True)
    assert made["none"]["rate"] == pytest.approx(rate[AVERAGE].value)
    both = [one.totals / one.weights for one in read.values()]
    assert made["none"]["perplexity"] == pytest.approx(np.exp(np.concatenate(both)).mean())
    assert made["none"]["tph"] is None
    row = made["heavy/0"]
    assert row["units"] == 48
    assert row["tph"] == pytest.approx(tph(row["reduction"], row["change"]))
    assert made.families == ("nothing", "heavy")
    assert made.best("heavy")["tph"] >= row["tph"]


def test_what_changes_nothing_changes_no_number(made: Tradeoff) -> None:
    row, plain = made["nothing/1"], made["none"]
    assert (row["rate"], row["perplexity"], row["tph"], row["p"]) == (plain["rate"], plain["perplexity"], 0.0, 1.0)
    assert (row["low"], row["high"]) == (plain["low"], plain["high"])  # the same draws


def test_it_is_saved_shown_and_drawn(made: Tradeoff, tmp_path: Path) -> None:
    again = Tradeoff.load(made.save(tmp_path / "curve.json"))
    assert again.rows == made.rows
    assert again["heavy/0"]["family"] == "heavy"
    assert "heavy/0" in repr(made)
    assert "heavy/0" in made._repr_html_()
    drawn = made.chart().to_dict()
    assert len(drawn["layer"]) == 2
    (tmp_path / "other.json").write_text('{"format": "patchclamp.tradeoff/1", "rows": []}')
    with pytest.raises(DamagedError, match="no complete"):
        Tradeoff.load(tmp_path / "other.json")


def test_infinite_perplexity_scores_nothing_and_survives_a_file(tmp_path: Path) -> None:
    from patchclamp.measure.tradeoff import _row

    rates = {"none": np.array([0.5, 1.0]), "x": np.array([0.0, 0.0])}
    losses = {"none": np.array([1.0, 2.0]), "x": np.array([800.0, 900.0])}
    rows = [_row(name, rates, {"none": 1.0, "x": 0.0}, losses, 3, 50, 0) for name in rates]
    assert rows[1]["perplexity"] == math.inf
    assert (rows[1]["tph"], rows[1]["tph_low"]) == (0.0, 0.0)
    found = Tradeoff(rows, rates, losses)
    assert Tradeoff.load(found.save(tmp_path / "a.json"))["x"]["perplexity"] == math.inf
    assert len(found.chart().to_dict()["layer"]) == 2


def test_a_concept_that_is_never_written_has_nothing_to_reduce(tiny_llama: Any) -> None:
    run = {"x": intervention(tiny_llama, "mlp.0.1", to=0.0)}
    found = tradeoff(tiny_llama, run, PROMPTS, lambda text: False, TEXT, samples=2, max_new_tokens=3, quiet=True)
    assert (found["x"]["reduction"], found["x"]["tph"]) == (0.0, 0.0)


def test_bad_input_is_one_clear_error(tiny_llama: Any, made: Tradeoff) -> None:
    item = intervention(tiny_llama, "mlp.0.1", to=0.0)
    with pytest.raises(InputError, match="plain model's name"):
        tradeoff(tiny_llama, {"none": item}, PROMPTS, bool, TEXT, quiet=True)
    with pytest.raises(InputError, match="no intervention is called"):
        made["other"]
    with pytest.raises(InputError, match="no family"):
        made.best("other")

"""Sweeps: every strength measured as if alone, random directions beside it, texts judged; files, charts, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.data import corpus
from patchclamp.data.demo import demo_text
from patchclamp.intervene import Direction, Interventions, intervention, mean_difference, steering
from patchclamp.intervene.steer import strengthened
from patchclamp.measure import perplexity
from patchclamp.measure.concept_rate import AVERAGE, concept_rate
from patchclamp.measure.steering import SteeringSweep, steering_sweep
from patchclamp.models.load import load

TEXT = {
    "en": ["The cat sat on the mat.", "The moon and the cat."],
    "fr": ["Le chat est assis.", "Il regarde la lune sur le tapis."],
}
PROMPTS = ["The cat", "Le chat", "Two and two"]
HOW: dict[str, Any] = {"controls": 3, "permutations": 999, "resamples": 50, "quiet": True}


def direction(model: Any) -> Direction:
    return Direction.of(model, "resid", 1, np.random.default_rng(0).standard_normal(32))


def has_e(text: str) -> bool:
    return "e" in text


@pytest.fixture(scope="module")
def swept(tiny_llama: Any) -> SteeringSweep:
    text = corpus(TEXT)
    return steering_sweep(
        tiny_llama, direction(tiny_llama), [-0.5, 0.5, 1.0], on=text, prompts=PROMPTS, judge=has_e, samples=2,
        max_new_tokens=4, text=text, **HOW,
    )  # fmt: skip


def test_every_row_is_what_measuring_by_hand_gives(tiny_llama: Any, swept: SteeringSweep) -> None:
    text = corpus(TEXT)
    base = steering(tiny_llama, direction(tiny_llama), 1.0, text=text)
    plain = perplexity(tiny_llama, text, quiet=True)
    before = concept_rate(tiny_llama, PROMPTS, has_e, samples=2, max_new_tokens=4, quiet=True)[AVERAGE].value
    assert (swept.strengths, swept.texts) == ((-0.5, 0.5, 1.0), ("en", "fr", "written"))
    for strength in swept.strengths:
        run = strengthened(base, strength)
        with run.applied(tiny_llama):
            values = perplexity(tiny_llama, text, quiet=True)
            rate = concept_rate(tiny_llama, PROMPTS, has_e, samples=2, max_new_tokens=4, quiet=True)[AVERAGE].value
        for label in ("en", "fr"):
            row = swept.row(strength, label)
            assert row["steered"] == pytest.approx(values[label].value, rel=1e-5)
            assert row["plain"] == pytest.approx(plain[label].value, rel=1e-5)
        assert (swept.row(strength, "written")["steered"], swept.row(strength, "written")["plain"]) == (rate, before)
        others = []
        for seed in range(3):
            with run.matched_random(seed).applied(tiny_llama):
                others.append(perplexity(tiny_llama, text, quiet=True)["en"].value - plain["en"].value)
        assert swept.row(strength, "en")["control_mean"] == pytest.approx(np.mean(others), rel=1e-4)


def test_a_sweep_can_be_saved_charted_and_shown(swept: SteeringSweep, tmp_path: Path) -> None:
    again = SteeringSweep.load(swept.save(tmp_path / "sweep.json"))
    assert again.rows == json.loads(json.dumps(swept.rows))
    assert set(again.written) == {"0", "-0.5", "0.5", "1"}
    assert [one["prompt"] for one in again.written["1"]] == PROMPTS
    panels = again.chart().to_dict()["concat"]
    assert [panel["title"] for panel in panels] == ["en", "fr", "written"]
    zero = [one for one in panels[0]["data"]["values"] if one["strength"] == 0]
    assert {one["kind"] for one in zero} == {"direction", "random directions"}
    assert "p_controls" in repr(swept)
    assert "<table" in swept._repr_html_()
    (tmp_path / "bad.json").write_text(json.dumps({"format": "patchclamp.steering/1"}))
    with pytest.raises(DamagedError):
        SteeringSweep.load(tmp_path / "bad.json")
    with pytest.raises(InputError, match="no row of strength"):
        swept.row(9.0, "en")


def test_interventions_are_swept_by_what_they_add(tiny_llama: Any, swept: SteeringSweep) -> None:
    text = corpus(TEXT)
    items = steering(tiny_llama, direction(tiny_llama), 7.0, text=text)
    again = steering_sweep(tiny_llama, items, [0.5], on=text, **HOW)
    assert again.row(0.5, "en")["steered"] == pytest.approx(swept.row(0.5, "en")["steered"], rel=1e-6)
    with pytest.raises(InputError, match="nothing is added"):
        steering_sweep(tiny_llama, Interventions.of(intervention(tiny_llama, ["mlp.0.3"], 0.0)), [0.5], on=text, **HOW)


def test_what_cannot_be_swept_is_said(tiny_llama: Any) -> None:
    one, text = direction(tiny_llama), corpus(TEXT)
    for wrong, message in (
        ({}, "give on="),
        ({"prompts": PROMPTS}, "judge"),
        ({"on": text, "strengths": [0.0, 1.0]}, "but 0"),
        ({"on": text, "strengths": [1.0, 1.0]}, "different"),
        ({"on": text, "strengths": [math.inf]}, "finite"),
        ({"on": text, "strengths": []}, "strengths"),
    ):
        with pytest.raises(InputError, match=message):
            steering_sweep(tiny_llama, one, **wrong)


@pytest.mark.slow
def test_steering_the_demo_model_to_german_grows_with_strength_and_beats_random_directions() -> None:
    model = load("demo", check=False)
    found, measured = demo_text(["en", "de"], split="find"), demo_text(["en", "de"], split="measure")
    swept = steering_sweep(
        model, mean_difference(model, "de", "en", text=found, layers=3), [0.2, 0.4], on=measured.limited(max_documents=10),
        text=found, **HOW,
    )  # fmt: skip
    for strength in (0.2, 0.4):
        away, kept = swept.row(strength, "en"), swept.row(strength, "de")
        assert math.log(away["steered"] / away["plain"]) > math.log(kept["steered"] / kept["plain"]) + 0.2
        assert away["effect"] > 5 * abs(away["control_mean"])
    assert swept.row(0.4, "en")["steered"] > swept.row(0.2, "en")["steered"]

"""The temporal finder on a hand-wired model, on the demo model, in noise, and on unusable recordings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.find.planted_years import REFERENCE, B, plant_years, recorded, tuning

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.data.generate.years import stimuli
from patchclamp.find import Finding
from patchclamp.find.temporal import temporal

YEARS = list(range(1900, 2100))
SPAN = "1900-2099"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recording of the planted model on `Year: y` and `Number: y`."""
    model = pc.load(str(plant_years(tmp_path_factory.mktemp("planted") / "model", YEARS)))
    return pc.record(model, pc.corpus(stimuli(YEARS)), sites=("mlp_out", "mlp"), statistics=("pooled",), quiet=True)


@pytest.fixture(scope="module")
def found(planted: Any) -> Finding:
    return temporal(planted, years=SPAN, reference=REFERENCE)


def test_only_the_planted_unit_is_found_and_its_mirror_is_the_number_unit(found: Finding) -> None:
    assert found.sets["year"].names() == ["mlp_out.0.8"]
    assert found.sets["number"].names() == ["mlp_out.0.10"]
    assert found.null["mirror"] == {"observed": 1, "mirrored": 1}


def test_scores_cover_all_units_and_mirror_each_other(found: Finding) -> None:
    assert found.scores is not None
    assert found.scores.shape == (2, 32)
    np.testing.assert_array_equal(found.scores[0], -found.scores[1])
    assert abs(found.scores[0, 9]) < 0.5  # tuned alike after both cues
    assert (found.scores[0, 16:] == 0).all()  # layer 1 writes nothing
    assert found.select(top=1)["year"].names() == ["mlp_out.0.8"]


def test_the_slope_is_recovered_on_both_sides_and_log_coding_wins(found: Finding) -> None:
    best = found.details["tuning"]["best"]
    for side in ("past", "future"):
        assert best[side]["slope"] == pytest.approx(B, abs=0.03)
        assert best[side]["best"] == "log"
        assert best[side]["r2"] > 0.95
    assert best["past"]["n"] == 112
    assert best["future"]["n"] == 87


def test_the_trough_lies_at_the_planted_reference(found: Finding) -> None:
    trough = found.details["tuning"]["trough"]
    assert trough == {"value": REFERENCE, "smoothed": REFERENCE, "border": False}
    population = np.array(found.details["tuning"]["population"])
    np.testing.assert_allclose(population, tuning(YEARS), atol=0.2)


def test_t_of_100_with_1000_pairs_passes_by_default_and_fails_under_exclude() -> None:
    rng = np.random.default_rng(0)
    number, year = rng.normal(size=(1000, 8)), rng.normal(size=(1000, 8))
    gap = rng.normal(size=1000)
    gap = (gap - gap.mean()) / gap.std(ddof=1)
    year[:, 3] = number[:, 3] + 100 / math.sqrt(1000) + gap  # d_z = 100 / sqrt(1000) = 3.16, t = 100
    recording = recorded([4, 4], year=year, number=number)
    default = temporal(recording, shuffles=0)
    assert default.unit_score is not None
    assert default.unit_score[3] * math.sqrt(1000) == pytest.approx(100, rel=1e-4)
    assert default.sets["year"].names() == ["mlp_out.0.3"]
    exclude = temporal(recording, shuffles=0, p_zero="exclude")
    assert not exclude.chosen.any()
    assert exclude.details["p_underflow"] == 1
    assert any("underflows" in note for note in exclude.notes)


def test_a_unit_in_the_scripts_narrow_window_passes_both_ways() -> None:
    """With 1000 pairs only 1.645 < d_z < 1.774 passes consistency and does not underflow: here d_z = 1.7, d above 2."""
    rng = np.random.default_rng(0)
    gap, number = rng.normal(size=1000), rng.normal(size=1000)
    gap = (gap - gap.mean()) / gap.std(ddof=1)
    gap -= gap @ number / (number @ number) * number
    number *= 0.5
    year = number.mean() + 1.7 + gap - 0.5 * number  # differences have standard deviation about 1
    year = number + (1.7 + (year - number - (year - number).mean()) / (year - number).std(ddof=1))
    for p_zero in ("log", "exclude"):
        found = temporal(recorded([1], year=year[:, None], number=number[:, None]), p_zero=p_zero, shuffles=0)
        assert found.unit_score is not None
        assert found.unit_score[0] == pytest.approx(1.7, abs=1e-4)
        assert found.details["p_underflow"] == 0
        assert found.details["largest"]["d"] > 2
        assert found.sets["year"].names() == ["mlp_out.0.0"]


def test_correction_within_layers_depends_on_the_layer_and_over_all_units_does_not() -> None:
    rng = np.random.default_rng(1)
    number, year = rng.normal(size=(40, 200)), rng.normal(size=(40, 200))
    year[:, 0] += 0.75
    narrow, wide = recorded([2, 198], year=year, number=number), recorded([100, 100], year=year, number=number)
    bars = {"d": 0.0, "consistency": 0.0, "q": 0.02, "shuffles": 0}
    each = [temporal(r, correction="layer", **bars).details["units"] for r in (narrow, wide)]
    both = [temporal(r, correction="all", **bars).chosen for r in (narrow, wide)]
    assert each[0][0]["log10_p_corrected"] == pytest.approx(each[0][0]["log10_p"] + math.log10(2), abs=1e-9)
    np.testing.assert_array_equal(both[0], both[1])


def test_nothing_is_found_in_noise_at_the_stated_error_rate() -> None:
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        year, number = rng.normal(size=(2, 30, 300))
        found = temporal(recorded([150, 150], year=year, number=number), d=0.0, consistency=0.0, q=0.05, shuffles=0)
        hits += bool(found.chosen[0].any())
    assert hits <= 8  # two layers at 0.05, the positive side only: 3 expected
    strict = temporal(recorded([150, 150], year=year, number=number))
    assert not strict.chosen.any()
    assert strict.null["named"] == {"observed": 0, "mean": 0.0, "max": 0, "share": None, "p": 1.0}


def test_exchanging_cue_and_control_is_the_null(found: Finding) -> None:
    assert found.null["available"]
    assert found.null["labels"]["year"]["mean"] == 0
    assert found.null["labels"]["year"]["p"] == pytest.approx(1 / 21)


def test_exchanging_the_labels_exchanges_the_sets(planted: Any, found: Finding) -> None:
    turned = temporal(planted, cue="number", control="year", shuffles=0)
    assert turned.sets["number"].names() == found.sets["number"].names()
    assert turned.sets["year"].names() == found.sets["year"].names()


def test_a_finding_is_saved_and_read_back(found: Finding, tmp_path: Path) -> None:
    read = Finding.load(found.save(tmp_path / "temporal.json"))
    assert read.sets["year"] == found.sets["year"]
    assert read.details["tuning"]["trough"] == found.details["tuning"]["trough"]
    assert read.select(fdr=1e-4)["year"].names() == found.select(fdr=1e-4)["year"].names()
    assert "units" in read.summary()


def test_the_same_units_come_from_a_recording_on_disk_in_small_shards(tmp_path: Path, found: Finding) -> None:
    model = pc.load(str(plant_years(tmp_path / "model", YEARS)))
    recording = pc.record(
        model, pc.corpus(stimuli(YEARS)), sites=("mlp_out",), statistics=("pooled",), out=tmp_path / "rec",
        shard_documents=37, batch_tokens=64, quiet=True,
    )  # fmt: skip
    again = temporal(recording, years=SPAN, reference=REFERENCE)
    np.testing.assert_allclose(again.scores, found.scores, rtol=1e-4, atol=1e-6)
    assert again.sets["year"] == found.sets["year"]


def test_layers_that_were_not_recorded_take_no_part(tmp_path: Path) -> None:
    model = pc.load(str(plant_years(tmp_path / "model", YEARS[:40])))
    recording = pc.record(
        model, pc.corpus(stimuli(YEARS[:40])), sites=("mlp_out",), layers=[1], statistics=("pooled",), quiet=True
    )
    assert not temporal(recording).chosen.any()


def test_without_values_there_are_no_tuning_curves(planted: Any) -> None:
    found = temporal(planted, shuffles=0)
    assert found.details["tuning"] is None
    assert any("years=" in note for note in found.notes)
    assert found.null["available"] is False


def test_the_demo_model_has_no_more_units_for_years_than_the_mirror_set_says() -> None:
    model = pc.load("demo")
    text = pc.corpus(stimuli(range(1700, 2021, 8)))
    recording = pc.record(model, text, sites=("mlp_out",), statistics=("pooled",), quiet=True)
    found = temporal(recording, years="1700-2020:8", reference=1860)
    mirror = found.null["mirror"]
    assert mirror["observed"] + mirror["mirrored"] == int(found.chosen.sum())
    if mirror["mirrored"] >= max(1, mirror["observed"]):
        assert any("no special place" in note for note in found.notes)


def test_unusable_recordings_and_arguments_are_refused(planted: Any) -> None:
    year = np.random.default_rng(0).normal(size=(6, 4))
    with pytest.raises(InputError, match="same stimulus"):
        temporal(recorded([4], year=year, number=year[:5]))
    with pytest.raises(InputError, match="at least 3"):
        temporal(recorded([4], year=year[:2], number=year[:2]))
    for wrong, said in [
        ({"cue": "number"}, "two labels"), ({"cue": "decade"}, "no label"), ({"site": "resid"}, "not recorded"),
        ({"correction": "none"}, "layer, all"), ({"p_zero": "drop"}, "log, exclude"), ({"pool": "first"}, "last"),
        ({"q": 0.0}, "in \\(0, 1\\)"), ({"d": -1.0}, "at least 0"), ({"consistency": 1.0}, "consistency"),
        ({"years": "1900-2000"}, "101 values"), ({"years": "then"}, "1700-2020"), ({"shuffles": -1}, "at least 0"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            temporal(planted, **wrong)


def test_stimuli_of_unequal_length_are_read_at_their_own_last_token_and_noted(tiny_llama: Any) -> None:
    texts = {"year": ["Y 1", "Y 12 and more", "Y 3"], "number": ["N 1", "N 12 and more", "N 3"]}
    recording = pc.record(tiny_llama, pc.corpus(texts), sites=("mlp_out",), statistics=("pooled",), quiet=True)
    found = temporal(recording, shuffles=0)
    assert any(note.startswith("2 stimuli have more or fewer tokens") for note in found.notes)
    alone = pc.record(
        tiny_llama, pc.corpus(year=texts["year"][1:2]), sites=("mlp_out",), statistics=("pooled",), quiet=True
    )
    np.testing.assert_allclose(
        recording.get("pooled", "year", "mlp_out").last[1], alone.get("pooled", "year", "mlp_out").last[0], atol=1e-5
    )


def test_a_recording_without_pooled_activations_is_refused(tiny_llama: Any) -> None:
    recording = pc.record(tiny_llama, pc.corpus(year=["a b"] * 3, number=["c d"] * 3), sites=("mlp_out",), quiet=True)
    with pytest.raises(InputError, match="--statistics pooled"):
        temporal(recording)

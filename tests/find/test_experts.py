"""Expert units: planted detectors are found, noise names none, intervals, multipliers and the length warning are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.find.pooled import ArrayRecording

from patchclamp.core.errors import InputError
from patchclamp.data.demo import demo_text
from patchclamp.find import Finding
from patchclamp.find.experts import experts, multipliers
from patchclamp.find.separation import separate
from patchclamp.intervene import clamp
from patchclamp.models.load import load
from patchclamp.record import record


def texts(n: int = 40, units: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Responses to rude and polite text; units 3 and 4 answer to rude text, 150 is silent on it."""
    rng = np.random.default_rng(seed)
    values = {label: rng.normal(size=(n, units)) for label in ("rude", "polite")}
    values["rude"][:, [3, 4]] += 2.5
    values["rude"][:, 150] -= 2.5
    return values


def noise(seed: int, labels: str = "ab") -> ArrayRecording:
    rng = np.random.default_rng(seed)
    return ArrayRecording({label: rng.normal(size=(30, 200)) for label in labels}, width=100)


@pytest.mark.parametrize("score", ["auroc", "ap"])
def test_planted_experts_and_anti_experts_are_found(score: str) -> None:
    recording = ArrayRecording(texts(), width=100)
    how = {"positive": "rude", "score": score, "shuffles": 120, "fdr": 0.01}
    assert experts(recording, **how).sets["rude"].names() == ["mlp.0.3", "mlp.0.4"]
    assert experts(recording, side="bottom", **how).sets["rude"].names() == ["mlp.1.50"]
    both = experts(recording, side="both", **how)
    assert both.sets["rude"].names() == ["mlp.0.3", "mlp.0.4", "mlp.1.50"]
    assert both.member[0, [3, 4, 150]].tolist() == [True, True, False]


def test_without_a_concept_each_label_stands_against_the_rest() -> None:
    values = texts()
    values["flat"] = np.random.default_rng(1).normal(size=(40, 200))
    found = experts(ArrayRecording(values, width=100))
    assert found.labels == ("rude", "polite", "flat")
    assert found.sets["rude"].names() == ["mlp.0.3", "mlp.0.4"]
    expected = separate(
        np.concatenate(list(values.values())).astype(np.float32), np.repeat(np.eye(3, dtype=bool), 40, 1)
    )
    np.testing.assert_allclose(found.scores, expected.auroc)
    np.testing.assert_allclose(found.p_values, expected.p("greater"), rtol=1e-6)


def test_some_labels_together_can_be_the_concept() -> None:
    values = texts() | {"insult": texts(seed=1)["rude"], "other": np.full((5, 200), 9.0)}
    found = experts(ArrayRecording(values, width=100), positive=["rude", "insult"], negative="polite")
    assert found.labels == ("rude+insult",)
    assert found.details["documents"]["rude+insult"] == {"positive": 80, "negative": 40}
    assert found.sets["rude+insult"].names() == ["mlp.0.3", "mlp.0.4"]


def test_noise_names_units_as_often_as_the_rate_says() -> None:
    named = [experts(noise(seed), positive="a", shuffles=0).chosen.any() for seed in range(60)]
    assert np.mean(named) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_the_papers_form_names_half_of_all_units_in_noise() -> None:
    found = experts(noise(0), positive="a", fdr=1.0, shuffles=5)
    assert found.chosen.mean() == pytest.approx(0.5, abs=0.1)
    null = found.null["labels"]["a"]
    assert null["best"]["observed"] == pytest.approx(null["best"]["mean"], abs=0.1)
    assert null["best"]["p"] > 0.05
    assert experts(noise(0), positive="a", fdr=1.0, top=7, shuffles=0).chosen.sum() == 7
    assert experts(noise(0), positive="a", fdr=1.0, share=0.1, shuffles=0).chosen.sum() == 20


def test_the_null_is_beside_the_planted_units() -> None:
    null = experts(ArrayRecording(texts(), width=100), positive="rude").null
    entry = null["labels"]["rude"]
    assert entry["observed"] == 2
    assert entry["mean"] == 0
    assert entry["best"]["observed"] > 0.9 > entry["best"]["max"]
    assert entry["kth"]["k"] == 2
    assert "shuffled" in null["said"]


def test_listed_units_carry_their_intervals() -> None:
    values = texts()
    rows = experts(ArrayRecording(values, width=100), positive="rude", listed=3).details["listed"]["rude"]
    assert [row["unit"] for row in rows][:2] == ["mlp.0.3", "mlp.0.4"] or rows[0]["unit"] == "mlp.0.4"
    assert [row["auroc"] for row in rows] == sorted((row["auroc"] for row in rows), reverse=True)
    assert all(row["low"] <= row["auroc"] <= row["high"] for row in rows)


def test_document_length_that_tells_apart_is_warned_of() -> None:
    values = texts()
    lengths = {"rude": np.full(40, 12), "polite": np.tile([4, 5], 20)}
    found = experts(ArrayRecording(values, width=100, tokens=lengths), positive="rude")
    assert found.details["length"]["rude"]["auroc"] == 1.0
    assert any("document length" in note for note in found.notes)
    even = {"rude": np.tile([4, 5], 20), "polite": np.tile([4, 5], 20)}
    quiet = experts(ArrayRecording(values, width=100, tokens=even), positive="rude")
    assert quiet.details["length"]["rude"]["auroc"] == 0.5
    assert not any("document length" in note for note in quiet.notes)


def test_max_pooling_of_longer_text_raises_every_response() -> None:
    rng = np.random.default_rng(0)
    short, long = (rng.normal(size=(60, n, 80)).max(1) for n in (4, 24))  # the same distribution for every token
    found = experts(
        ArrayRecording(
            {"long": long, "short": short}, width=80, tokens={"long": np.full(60, 24), "short": np.full(60, 4)}
        ),
        positive="long",
    )
    assert found.chosen.mean() > 0.95
    assert any("document length" in note for note in found.notes)


def test_a_finding_survives_its_file(tmp_path: Path) -> None:
    found = experts(ArrayRecording(texts(), width=100), positive="rude")
    again = Finding.load(found.save(tmp_path / "rude.json"))
    assert again.sets == found.sets
    assert again.select(fdr=0.05) == found.sets
    np.testing.assert_array_equal(again.scores, found.scores)


@pytest.mark.parametrize(
    ("area", "expected"), [(0.875, 0.25), (1.0, 0.0), (0.75, 0.5), (0.5, 1.0), (0.2, 1.0), (0.0, 1.0)]
)
def test_aura_multipliers_have_their_closed_form(area: float, expected: float) -> None:
    assert multipliers(area) == pytest.approx(expected)


def test_damp_and_det0_hit_the_experts_alone() -> None:
    areas = [0.9, 0.4, 0.7, 0.6]
    assert multipliers(areas, method="damp").tolist() == [0.5, 1, 0.5, 0.5]
    assert multipliers(areas, method="det0", n_experts=2).tolist() == [0, 1, 0, 1]
    assert multipliers(areas, method="damp", alpha=1.0).tolist() == [1, 1, 1, 1]
    for bad in ({"method": "aurora"}, {"method": "damp", "alpha": 2}, {"method": "det0", "n_experts": 4}):
        with pytest.raises(InputError):
            multipliers(areas, **bad)
    with pytest.raises(InputError, match="between 0 and 1"):
        multipliers([1.2])


def test_aura_on_shuffled_labels_scatters_about_one() -> None:
    rng = np.random.default_rng(0)
    found = separate(rng.normal(size=(200, 3000)), np.arange(200) < 50, what=("auroc",))
    scaled = multipliers(found.auroc)
    assert ((scaled >= 0) & (scaled <= 1)).all()
    spread = 2 * np.sqrt(201 / (12 * 50 * 150))  # of 1 - 2 (AUROC - 0.5), half of which is cut at 1
    assert np.sqrt((2 * (found.auroc - 0.5) ** 2 * 2).mean()) == pytest.approx(spread, rel=0.05)


def test_experts_of_a_real_model_take_multipliers() -> None:
    model = load("demo")
    text = demo_text(split="find", labels=("en", "fr")).limited(max_documents=25)
    found = experts(record(model, text, statistics=["pooled"], quiet=True), positive="fr", pool="mean", shuffles=5)
    assert found.null["labels"]["fr"]["best"]["max"] < found.null["labels"]["fr"]["best"]["observed"]
    units = found.select(top=50)["fr"]
    scale = multipliers(np.array(units.score_list()))
    ids = np.array([[1, 5, 9, 30]])
    plain = model.logits(torch.from_numpy(ids))
    with clamp(model, units, scale=scale):
        assert not torch.equal(model.logits(torch.from_numpy(ids)), plain)
    assert torch.equal(model.logits(torch.from_numpy(ids)), plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positive": "angry"}, "angry"),
        ({"positive": []}, "labels"),
        ({"positive": ["rude", "polite"]}, "0 negative"),
        ({"positive": "rude", "negative": "rude"}, "share labels"),
        ({"score": "f1"}, "score='f1'"),
        ({"side": "up"}, "side='up'"),
        ({"pool": "sum"}, "pool='sum'"),
        ({"fdr": 1.5}, "fdr=1.5"),
        ({"top": 500}, "top 500 units"),
        ({"score": "ap", "shuffles": 0}, "shuffles=0"),
        ({"shuffles": -1}, "shuffles=-1"),
        ({"sites": ["mlp", "mlp"]}, "name each once"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        experts(ArrayRecording(texts(), width=100), **arguments)


def test_text_of_one_label_is_refused() -> None:
    with pytest.raises(InputError, match="one label"):
        experts(ArrayRecording({"rude": texts()["rude"]}, width=100))

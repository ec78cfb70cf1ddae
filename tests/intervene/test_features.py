"""Features under everything that units go through: clamps, steering, generation, effects, files, edits, an atlas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.atlas import Atlas, build
from patchclamp.core.errors import MismatchError, ModelError
from patchclamp.data import corpus
from patchclamp.find import Finding, language
from patchclamp.find.attribution import attribute
from patchclamp.intervene import Direction, Interventions, clamp, edit, intervention
from patchclamp.measure import effect, perplexity
from patchclamp.models import LinearDictionary, UnitSet
from patchclamp.models.collect import collect
from patchclamp.record import Recording, record
from patchclamp.record.statistics import statistics

IDS = torch.randint(3, 300, (2, 6), generator=torch.Generator().manual_seed(1))
UNITS = ["sae.1.2", "sae.2.0", "sae.2.4"]
TEXT = {
    "en": ["The cat sat on the mat.", "A moon.", "Two and two make four."] * 4,
    "fr": ["Le chat est assis.", "La lune et le tapis.", "Deux."] * 4,
}


def dictionary(layer: int, seed: int = 0, **more: Any) -> LinearDictionary:
    generator = torch.Generator().manual_seed(seed + layer)
    rows, encoder = (torch.randn(shape, generator=generator) for shape in ((6, 32), (32, 6)))
    return LinearDictionary("sae", "resid", layer, rows, encoder=encoder, activation="relu", **more)


@pytest.fixture(scope="module")
def model(tiny_llama: Any) -> Any:
    return tiny_llama.with_features(dictionary(1), dictionary(2))


@pytest.fixture(scope="module")
def text() -> Any:
    return corpus(TEXT)


@pytest.fixture(scope="module")
def recording(model: Any, text: Any, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    arguments: dict[str, Any] = {entry.name: {} for entry in statistics}
    arguments["cofiring"] = {"units": [*UNITS, "mlp.0.1"]}
    folder = tmp_path_factory.mktemp("features") / "rec"
    return record(model, text, sites=("sae", "mlp"), statistics=arguments, out=folder, quiet=True, shard_documents=5)


def features_of(model: Any, text: list[str]) -> np.ndarray[Any, Any]:
    ids = (torch.tensor([model.tokenize(one)]) for one in text)
    return torch.cat([collect(model, "sae", one)[0, 1:] for one in ids]).numpy()


def test_every_statistic_records_features(model: Any, recording: Recording) -> None:
    for label in TEXT:
        x = features_of(model, TEXT[label]).astype(np.float64)
        moments, firing = recording.get("moments", label, "sae"), recording.get("firing", label, "sae")
        np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.max, x.max(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(firing.counts.sum(0), (x > 0).sum(0))
        np.testing.assert_allclose(recording.get("exemplars", label, "sae").value[0], x.max(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            recording.get("activations", label, "sae").rows(2)[:], x[:, 6:], rtol=1e-4, atol=1e-4
        )
    assert recording.layouts["sae"].widths == (0, 6, 6)


@pytest.mark.slow
def test_other_processes_record_the_same_features(model: Any, text: Any) -> None:
    asked: dict[str, Any] = {
        "sites": ("sae",),
        "statistics": ["moments", "activations"],
        "quiet": True,
        "shard_documents": 6,
    }
    alone = record(model, text, **asked)
    assert record(model, text, engine="processes", workers=1, **asked).fingerprint == alone.fingerprint


def test_a_finder_scores_features(model: Any, recording: Recording, tmp_path: Any) -> None:
    found = language(recording, site="sae", rate=0.2, shuffles=2, min_tokens=10)
    again = Finding.load(found.save(tmp_path / "found.json"))
    assert np.asarray(again.scores).shape == (2, 12)
    chosen = again.select(top=3)["fr"]
    chosen.check_model(model)
    assert chosen.sites == ("sae",)


@pytest.mark.parametrize("how", [{"to": 0.0}, {"to": [1.0, 2.0, -3.0]}, {"scale": -2.0}, {"add": 1.5}, {"to": "mean"}])
def test_clamps_move_the_stream_by_the_directions_of_what_changes(
    model: Any, tiny_llama: Any, recording: Recording, how: dict[str, Any]
) -> None:
    more = {"recording": recording} if how.get("to") == "mean" else {}
    one, old = dictionary(1), collect(model, "sae", IDS)[..., :6]
    f = old[..., 2]
    if "to" in how:
        means = recorded(recording)
        new = {str: means, list: 1.0, float: 0.0}[type(how["to"])]
        delta = new - f
    else:
        delta = f * (how["scale"] - 1) if "scale" in how else torch.full_like(f, how["add"])
    span = model.layouts["resid"].slice(1)
    expected = collect(tiny_llama, "resid", IDS)[..., span] + delta[..., None] * one.directions[2]
    with clamp(model, UNITS, **how, **more):
        found = collect(model, "resid", IDS)[..., span]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def recorded(recording: Recording) -> float:
    parts = [recording.get("moments", label, "sae") for label in TEXT]
    return float(sum(part.n * part.mean[2] for part in parts) / sum(part.n for part in parts))


def test_clamping_features_to_what_they_are_changes_no_bit(model: Any, tiny_llama: Any) -> None:
    plain = tiny_llama.logits(IDS)
    quiet = [name for name, high in zip(model.layouts["sae"].names(), collect(model, "sae", IDS).amax((0, 1)), strict=True)
             if high == 0]  # fmt: skip
    for units, how in ((UNITS, {"scale": 1.0}), (UNITS, {"add": 0.0}), (quiet, {"to": 0.0})):
        with clamp(model, units, **how):
            assert torch.equal(model.logits(IDS), plain)
    with pytest.raises(RuntimeError, match="inside"), clamp(model, UNITS, to=9.0), clamp(model, "mlp.0.1", to=1.0):
        assert not torch.equal(model.logits(IDS), plain)
        raise RuntimeError("inside")
    assert torch.equal(tiny_llama.logits(IDS), plain)


@pytest.mark.parametrize("scope", ["all", "prompt", "generated"])
def test_generation_is_the_same_with_and_without_a_cache(model: Any, scope: str) -> None:
    prompts = ["The cat", "Le chat est assis sur"]
    plain = model.generate(prompts, max_new_tokens=6)
    with clamp(model, ["sae.1.2", "mlp.0.3"], add=8.0, scope=scope):
        cached = model.generate(prompts, max_new_tokens=6)
        assert cached == model.generate(prompts, max_new_tokens=6, use_cache=False)
    assert cached != plain
    assert model.generate(prompts, max_new_tokens=6) == plain


def test_adding_to_a_feature_is_steering_along_its_direction(model: Any, tiny_llama: Any) -> None:
    one = dictionary(1)
    along = Direction.of(tiny_llama, one.site, one.layer, one.directions[3])
    with clamp(model, "sae.1.3", add=2.0):
        found = model.logits(IDS)
    with clamp(tiny_llama, along, add=2.0):
        torch.testing.assert_close(tiny_llama.logits(IDS), found, rtol=1e-4, atol=1e-4)
    within = Direction.of(model, "sae", 1, torch.eye(6)[3])
    with clamp(model, within, add=2.0):
        torch.testing.assert_close(model.logits(IDS), found, rtol=1e-4, atol=1e-4)
    with pytest.raises(MismatchError, match="sae"), clamp(tiny_llama, within, add=2.0):
        pass


def test_masks_and_shuffles_reach_features(model: Any, tiny_llama: Any) -> None:
    mask, plain = np.zeros((2, 6), dtype=bool), collect(tiny_llama, "resid", IDS)
    mask[1, 2:4] = True
    with clamp(model, UNITS, add=3.0, mask=mask):
        found = collect(model, "resid", IDS)
    changed = (found != plain)[..., model.layouts["resid"].slice(1)].any(-1).numpy()
    np.testing.assert_array_equal(changed, mask)
    before = tiny_llama.logits(IDS)
    with clamp(model, UNITS, shuffle=3):  # both share their weights, and so whatever is clamped
        assert torch.equal(model.logits(IDS), tiny_llama.logits(IDS))
        assert not torch.equal(model.logits(IDS), before)


def test_effects_are_measured_against_features_of_the_same_layers(model: Any, text: Any, tmp_path: Any) -> None:
    units = UnitSet.of(model, UNITS)
    control = units.matched_random(5)
    assert control.per_layer().tolist() == units.per_layer().tolist() == [0, 1, 2]
    found = effect(model, units, on=text, to=0.0, controls=2, permutations=999, resamples=50, quiet=True)
    with clamp(model, units, to=0.0):
        clamped = perplexity(model, text, quiet=True)
    for row in found.rows:
        assert abs(row["clamped"] - clamped[row["text"]].value) < 1e-3 * row["clamped"]
    with pytest.raises(MismatchError, match="sae"):
        effect(model.with_features(dictionary(0)), units, on=text, controls=0, permutations=99, quiet=True)


def test_interventions_on_features_are_data(model: Any, tiny_llama: Any, tmp_path: Any) -> None:
    items = intervention(tiny_llama, "mlp.0.1", to=0.0) + intervention(model, UNITS, add=1.0)
    again = Interventions.load(items.save(tmp_path / "items.json"))
    assert [item.describe() for item in again] == [item.describe() for item in items]
    with items.applied(model):
        expected = model.logits(IDS)
    with again.applied(model):
        assert torch.equal(model.logits(IDS), expected)
    with pytest.raises(MismatchError, match="with_features"):
        again.applied(tiny_llama).__enter__()


def test_other_dictionaries_of_the_name_are_refused(
    model: Any, tiny_llama: Any, recording: Recording, text: Any
) -> None:
    other = tiny_llama.with_features(dictionary(1, seed=5), dictionary(2))
    units = UnitSet.of(other, UNITS)
    for call in (
        lambda: clamp(other, UnitSet.of(model, UNITS), to=0.0).__enter__(),
        lambda: clamp(other, UNITS, to="mean", recording=recording).__enter__(),
        lambda: effect(model, units, on=text, quiet=True),
        lambda: recording.merge(record(other, text, sites=("sae", "mlp"), statistics=recording.arguments["statistics"],
                                       quiet=True)),
        lambda: build("a.duckdb", recordings=[recording], findings=[{"x": units}]),
    ):  # fmt: skip
        with pytest.raises(MismatchError, match="sae") as caught:
            call()
        assert "\n" not in str(caught.value)
    with clamp(other, "mlp.0.2", to="mean", recording=recording):  # neurons are the same whatever stands beside them
        pass


def test_an_interrupted_recording_is_not_resumed_with_other_features(
    model: Any, tiny_llama: Any, text: Any, tmp_path: Any
) -> None:
    kept = record(model, text, sites=("sae",), out=tmp_path / "rec", quiet=True)
    other = tiny_llama.with_features(dictionary(1, seed=5), dictionary(2))
    with pytest.raises(MismatchError, match="under that name"):
        record(other, text, sites=("sae",), out=tmp_path / "rec", resume=True, quiet=True)
    again = record(model, text, sites=("sae",), out=tmp_path / "rec", resume=True, quiet=True)
    assert again.fingerprint == kept.fingerprint
    assert record(other, text, sites=("sae",), quiet=True).fingerprint != kept.fingerprint


def test_an_atlas_holds_features_beside_neurons_and_takes_more(
    model: Any, tiny_llama: Any, recording: Recording, text: Any, tmp_path: Any
) -> None:
    first = record(tiny_llama, text, sites=("mlp",), quiet=True)
    path = tmp_path / "atlas.duckdb"
    with build(path, recordings=[first], quiet=True) as atlas:
        before = atlas.unit("mlp.2.5").to_dict()
    sets = {"some": UnitSet.of(model, UNITS)}
    with build(
        path, recordings=[recording], findings=[sets], model=model, corpus=text, append=True, quiet=True
    ) as atlas:
        page = atlas.unit("sae.2.4").to_dict()
        for then, now in zip(before["statistics"], atlas.unit("mlp.2.5").to_dict()["statistics"], strict=False):
            assert {key: now[key] for key in then} == then
        names = [row[0] for row in atlas.sql("SELECT name FROM units WHERE site = 'sae' ORDER BY unit_id").rows]
    assert names == model.layouts["sae"].names()
    label = next(row for row in page["statistics"] if row["label"] == "fr")
    assert label["mean"] == pytest.approx(float(recording.get("moments", "fr", "sae").mean[10]))
    with Atlas.open(path) as atlas:
        assert atlas.model["features"] == model.identity["features"]


def test_features_can_not_be_edited_into_a_checkpoint(model: Any) -> None:
    with pytest.raises(ModelError, match="features of a dictionary") as caught:
        edit(model, UNITS, "ablate")
    assert "use clamp" in str(caught.value)
    edited = edit(model, "mlp.1.3", "ablate")  # neurons can, dictionaries beside them or not
    assert "sae" not in edited.model.layouts


def test_attribution_of_features_is_the_slope_of_scaling_them(model: Any) -> None:
    prompts, answer = [IDS[0].tolist(), IDS[1].tolist()], [7, 9]
    options: dict[str, Any] = {"reduce": "sum", "score": "log-probability"}
    parts = list(attribute(model, prompts, answer, sites=("sae",), **options))
    found = np.zeros((2, 12))
    for part in parts:
        found[part.rows] = part.values.numpy()

    def scored(factor: float, unit: str) -> np.ndarray[Any, Any]:
        with clamp(model, unit, scale=factor):
            logits = model.logits(IDS)[:, -1].double().log_softmax(-1)
        return logits[[0, 1], answer].numpy()

    for place, unit in ((2, "sae.1.2"), (6, "sae.2.0"), (10, "sae.2.4")):
        slope = (scored(1.01, unit) - scored(0.99, unit)) / 0.02
        np.testing.assert_allclose(found[:, place], slope, rtol=0.05, atol=2e-3)

"""Evaluation against plain formulas on whole tensors, perfect and empty autoencoders, and one trained on the demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import patchclamp as pc
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.corpora import corpus
from patchclamp.measure import perplexity
from patchclamp.read.sae import sae as reading
from patchclamp.read.sae_evaluation import ALL, SAEEvaluation, evaluate_sae
from patchclamp.read.sae_kinds import JumpReLUSAE, ReLUSAE
from patchclamp.read.sae_training import train_sae
from patchclamp.record.activations import Activations

TEXTS = {
    "en": [
        "The cat sat on the mat.",
        "Two and two make four, three and three.",
        "The moon",
        "The cat looked at the moon.",
    ],
    "fr": ["Le chat est assis sur le tapis.", "Il regarde la lune et le chat."],
}


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def rows_of(model: Any, label: str | None = None, site: str = "resid", layer: int = 1) -> Tensor:
    text = corpus(TEXTS if label is None else {label: TEXTS[label]})
    return Activations.live(model, text, site, layer).all()


def perfect(width: int = 32, **more: Any) -> ReLUSAE:
    """Every coordinate as two features, its positive and its negative part."""
    eye = torch.eye(width)
    both = torch.cat([eye, -eye])
    return ReLUSAE(
        "sae", "resid", 1,
        **{"encoder": both.T.contiguous(), "encoder_bias": torch.zeros(2 * width), "directions": both,
           "decoder_bias": torch.zeros(width), **more},
    )  # fmt: skip


def rough(width: int = 32, count: int = 20, site: str = "resid", **more: Any) -> ReLUSAE:
    g = torch.Generator().manual_seed(0)
    encoder, rows = torch.randn(width, count, generator=g) / 4, torch.randn(count, width, generator=g) / 4
    bias = torch.full((count,), -0.3)
    bias[0] = -1e4  # a dead feature
    return ReLUSAE(
        "sae", site, 1, encoder=encoder, encoder_bias=bias, directions=rows, decoder_bias=torch.zeros(width), **more
    )


def test_a_perfect_autoencoder_costs_nothing(model: Any) -> None:
    found = evaluate_sae(perfect(), model, corpus(TEXTS)).overall
    assert found["explained_variance"] == pytest.approx(1, abs=1e-6)
    assert found["recovered"] == pytest.approx(1, abs=1e-4)
    assert found["recovered_mean"] == pytest.approx(1, abs=1e-4)
    assert found["l0"] == pytest.approx(32, abs=0.1)
    assert found["mse"] < 1e-8


def test_an_autoencoder_that_only_knows_the_mean_recovers_nothing_of_it(model: Any) -> None:
    mean = rows_of(model).mean(0)
    empty = JumpReLUSAE(
        "sae", "resid", 1, encoder=torch.zeros(32, 4), encoder_bias=torch.zeros(4), directions=torch.ones(4, 32),
        decoder_bias=mean, threshold=torch.ones(4),
    )  # fmt: skip
    found = evaluate_sae(empty, model, corpus(TEXTS)).overall
    assert found["explained_variance"] == pytest.approx(0, abs=1e-5)
    assert (found["l0"], found["dead"]) == (0, 1)
    assert found["recovered_mean"] == pytest.approx(0, abs=1e-4)
    assert found["loss_sae"] == pytest.approx(found["loss_mean"], abs=1e-5)


def test_numbers_are_those_of_plain_formulas(model: Any) -> None:
    sae = rough()
    found = evaluate_sae(sae, model, corpus(TEXTS), batch_tokens=40)
    for label in ("en", "fr", None):
        x = rows_of(model, label).double()
        features = (x @ sae.encoder.double() + sae.encoder_bias.double()).relu()
        error = x - features @ sae.directions.double()
        metrics = found.table[label or ALL]
        assert metrics["tokens"] == len(x)
        assert metrics["l0"] == pytest.approx(float((features > 0).sum(1).double().mean()))
        assert metrics["mse"] == pytest.approx(float(error.square().sum(1).mean()), rel=1e-5)
        variance = (x - x.mean(0)).square().sum()
        assert metrics["explained_variance"] == pytest.approx(1 - float(error.square().sum() / variance), rel=1e-4)
        assert metrics["dead"] == pytest.approx(float((features == 0).all(0).double().mean()))
    np.testing.assert_allclose(found.density, (features > 0).double().mean(0).numpy(), atol=1e-12)
    assert found.density[0] == 0
    on = features.sum(0) / (features > 0).sum(0).clamp(min=1)
    np.testing.assert_allclose(found.strength, on.numpy(), rtol=1e-4)


def test_losses_are_those_of_the_model_with_the_activations_replaced(model: Any) -> None:
    sae, text = rough(), corpus(TEXTS)
    found = evaluate_sae(sae, model, text, batch_tokens=40)
    plain = perplexity(model, text)
    for label in TEXTS:
        assert found.table[label]["loss"] == pytest.approx(float(np.log(plain[label].value)), abs=1e-5)
    ids = model.tokenize(TEXTS["fr"][0])

    def swapped(seen: Any) -> Tensor:
        new = seen.values.clone()
        new[1:] = sae.reconstruct(seen.values[1:])  # <s> stays as it is
        return new

    total, count = 0.0, 0
    for one in TEXTS["fr"]:
        ids = model.tokenize(one)
        with pc.models.hooks.change(model, {("resid", 1): swapped}):
            logits = model.logits(torch.tensor([ids]))[0].double()
        total -= sum(float(torch.log_softmax(logits[at - 1], -1)[ids[at]]) for at in range(1, len(ids)))
        count += len(ids) - 1
    metrics = found.table["fr"]
    assert metrics["loss_sae"] == pytest.approx(total / count, rel=1e-5)
    gap = metrics["loss_zero"] - metrics["loss"]
    assert metrics["recovered"] == pytest.approx((metrics["loss_zero"] - metrics["loss_sae"]) / gap)


def test_batching_changes_nothing_and_the_model_is_left_alone(model: Any) -> None:
    sae, text = rough(site="mlp_out"), corpus(TEXTS)
    before = model.logits(torch.tensor([[1, 5, 9]]))
    one, two = evaluate_sae(sae, model, text, batch_tokens=16), evaluate_sae(sae, model, text, batch_tokens=4096)
    for label in one.table:
        assert one.table[label] == pytest.approx(two.table[label], rel=1e-4, abs=1e-5)
    assert torch.equal(model.logits(torch.tensor([[1, 5, 9]])), before)


def test_without_losses_only_the_trunk_is_run_and_files_hold_what_was_found(model: Any, tmp_path: Path) -> None:
    found = evaluate_sae(rough(), model, corpus(en=TEXTS["en"]), loss=False)
    assert "recovered" not in found.overall
    assert list(found.table) == ["en"]
    found.save(tmp_path / "sae.json")
    back = SAEEvaluation.load(tmp_path / "sae.json")
    assert back.table == found.table
    np.testing.assert_array_equal(back.density, found.density)
    assert back.to_dict()["dictionary"]["fingerprint"] == rough().fingerprint
    assert found.rows()[0]["text"] == "en"


def test_what_does_not_fit_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="takes rows of 16"):
        evaluate_sae(rough(16), model, corpus(TEXTS))
    with pytest.raises(MismatchError, match="was made for the model other"):
        evaluate_sae(rough(model={"name": "other", "fingerprint": "x"}), model, corpus(TEXTS))
    with pytest.raises(InputError, match="layer"):
        evaluate_sae(ReLUSAE("sae", "resid", 9, **perfect().tensors()), model, corpus(TEXTS))


def test_training_remembers_the_model(tiny_llama: Any) -> None:
    rows = Activations.live(tiny_llama, corpus(TEXTS), "mlp", 2)
    sae = train_sae(rows, n_features=16, k=2, steps=5, batch=16)
    assert (sae.site, sae.layer, sae.d_in) == ("mlp", 2, 48)
    assert sae.model["fingerprint"] == tiny_llama.fingerprint
    assert sae.provenance["inputs"]["activations"]["corpus"]["labels"]["en"]["documents"] == 4
    evaluate_sae(sae, tiny_llama, corpus(TEXTS), loss=False)


@pytest.mark.slow
def test_features_of_an_autoencoder_trained_on_the_demo_model_are_units(tmp_path: Path) -> None:
    model = pc.load("demo")
    learnt, kept = (pc.demo_text(["en", "ja"], split=split).limited(max_documents=40) for split in ("find", "measure"))
    held_out = kept.limited(max_documents=10)
    found = reading(
        model, learnt, to=str(tmp_path / "sae"), export=str(tmp_path / "lens"), layer=2, n_features=512, k=16,
        steps=120, batch=512, held_out=held_out, concept="starts=t", quiet=True,
    )  # fmt: skip
    metrics = found.evaluation.overall
    assert metrics["explained_variance"] > 0.6
    assert metrics["recovered"] > 0.8
    assert metrics["recovered_mean"] > 0.8
    assert metrics["l0"] <= 16
    assert found.concept is not None
    assert 0 <= found.concept.rate <= found.concept.missed <= 1
    again = reading(model, held_out, load=str(tmp_path / "lens"), quiet=True)
    assert again.evaluation.overall["explained_variance"] == pytest.approx(metrics["explained_variance"], abs=1e-6)

    featured = model.with_features(found.sae)
    text = learnt.limited(max_documents=12)
    recording = pc.record(featured, text, sites=("sae",), statistics=("firing", "moments"), quiet=True)
    firing = {label: recording.get("firing", label, "sae") for label in ("en", "ja")}
    rate = {label: one.counts.sum(0) / one.n.sum() for label, one in firing.items()}
    best = int((torch.as_tensor(rate["ja"]) - torch.as_tensor(rate["en"])).argmax())
    assert rate["ja"][best] > 10 * rate["en"][best]  # a feature of Japanese
    unit = pc.UnitSet.of(featured, [f"sae.2.{best}"])
    effects = pc.effect(featured, {"ja feature": unit}, on=text, to=0.0, controls=3, permutations=400, resamples=50)
    change = {row["text"]: row["effect"] for row in effects.rows}
    assert abs(change["en"]) < abs(change["ja"])

"""Regions of key space in every layer: held-out coverage, planted skills, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from tests.find.planted_skill import noisy, shifted, text

import patchclamp as pc
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.find.skill_regions import ALPHAS, skill_regions
from patchclamp.intervene.key_space import Region

KINDS = ("skill", "rest", "more")


@pytest.fixture(scope="module")
def model():
    """Layer 0 sees nothing but noise; in layer 1 a few neurons are moved far by the skill."""
    gates = [shifted(units, 60, 3, kind=0, shift=12.0, seed=at) for at, units in enumerate([(), (4, 9, 33)])]
    return noisy(KINDS, gates, act="silu")


@pytest.fixture(scope="module")
def recording(model):
    return pc.record(model, pc.corpus(text(KINDS, documents=80)), statistics=("pooled", "moments"), quiet=True)


def test_the_layer_that_the_skill_moves_is_found_and_a_layer_of_noise_is_not_told_apart(recording) -> None:
    found = skill_regions(recording, forget="skill")
    assert found.best == 1
    best, noise = found.coverage(1), found.coverage(0)
    assert best.forget >= 0.8
    assert best.retain <= 0.1
    assert best.auroc > 0.95
    assert best.p_holm < 1e-6
    assert noise.p_holm > 0.01
    assert abs(noise.auroc - 0.5) < 0.2
    assert noise.forget_low <= noise.forget <= noise.forget_high
    assert found.counts == {
        "fit": 40, "forget validation": 20, "forget test": 20, "retain validation": 80, "retain test": 80,
    }  # fmt: skip
    assert len(best.curve) == len(ALPHAS)
    assert all(a[1] <= b[1] and a[2] <= b[2] for a, b in zip(best.curve, best.curve[1:], strict=False))
    assert skill_regions(recording, forget="skill").to_dict()["layers"] == found.to_dict()["layers"]


def test_the_region_is_fitted_to_the_last_tokens_of_half_the_documents(recording) -> None:
    region = skill_regions(recording, forget="skill", seed=5).regions[1]
    last = np.asarray(recording.get("pooled", "skill").last, dtype=np.float64)
    chosen = np.sort(np.random.default_rng(5).permutation(80)[:40])
    np.testing.assert_allclose(region.mean, last[chosen][:, 60:].mean(0))
    np.testing.assert_allclose(region.std, last[chosen][:, 60:].std(0, ddof=1))


def test_last_tokens_are_averaged_over_documents_of_different_length(model) -> None:
    """The paper's probe divides by all tokens and fails on texts of different length."""
    lines = [" ".join(f"skill{word}" for word in range(length)) for length in (3, 9, 17, 5)]
    rest = text(KINDS, documents=8)
    found = pc.record(model, pc.corpus({**rest, "skill": lines}), statistics=("pooled",), quiet=True)
    alone = [
        pc.record(model, pc.corpus(skill=[line], rest=rest["rest"]), statistics=("pooled",), quiet=True)
        for line in lines
    ]
    each = np.concatenate([np.asarray(one.get("pooled", "skill").last) for one in alone])
    np.testing.assert_allclose(np.asarray(found.get("pooled", "skill").last), each, atol=1e-5)
    region = Region.of(each, site="mlp", layer=0)
    np.testing.assert_allclose(region.mean, each.astype(np.float64).mean(0))


def test_all_tokens_make_the_region_that_their_vectors_make(model, recording) -> None:
    others = pc.record(model, pc.corpus(text(KINDS, documents=30, seed=9)), statistics=("pooled",), quiet=True)
    found = skill_regions(recording, forget="skill", fit="all", held_out=others)
    moments = recording.get("moments", "skill")
    region = found.regions[1]
    assert region.n == int(moments.n) == 80 * 20
    reach = np.maximum(moments.max - moments.mean, moments.mean - moments.min)[60:] / moments.std[60:]
    assert region.k == pytest.approx(reach.max())
    assert found.coverage(1).forget > 0.9
    assert found.counts["fit"] == 0
    apart = skill_regions(recording, forget="skill", held_out=others)
    assert apart.counts["fit"] == 80
    assert apart.counts["forget test"] == 15


@pytest.mark.parametrize(
    "arguments",
    [
        {"forget": "nothing"}, {"forget": "skill", "retain": ["skill"]}, {"forget": "skill", "site": "attn"},
        {"forget": "skill", "fit": "first"}, {"forget": "skill", "fit": "all"}, {"forget": "skill", "alphas": []},
        {"forget": "skill", "alphas": [-1.0]},
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(recording, arguments: dict) -> None:
    with pytest.raises(InputError):
        skill_regions(recording, **arguments)


def test_recordings_that_lack_something_are_refused(model, recording, tiny_llama) -> None:
    plain = pc.record(model, pc.corpus(text(KINDS, documents=4)), quiet=True)
    with pytest.raises(InputError, match="pooled"):
        skill_regions(plain, forget="skill")
    few = pc.record(model, pc.corpus(text(KINDS, documents=3)), statistics=("pooled",), quiet=True)
    with pytest.raises(InputError, match="at least 2"):
        skill_regions(few, forget="skill")
    some = pc.record(model, pc.corpus(text(KINDS)), statistics={"pooled": {"units": ["mlp.0.1"]}}, quiet=True)
    with pytest.raises(InputError, match="pooled"):
        skill_regions(some, forget="skill")
    with pytest.raises(MismatchError):
        skill_regions(
            recording,
            forget="skill",
            held_out=pc.record(
                tiny_llama, pc.corpus(skill=["a b c"] * 9, rest=["d e"] * 9), statistics=("pooled",), quiet=True
            ),
        )

"""Skill units: planted ones are found through record and find, nothing in noise; closed forms; ties; degenerate input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm, ttest_ind
from tests.find.planted_skill import noisy, shifted, text

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.find.skill import chosen_units, distributions, skill
from patchclamp.find.skill_distance import hellinger, importance, mean_difference, standardised, welch
from patchclamp.find.skill_normality import bucket_edges, kolmogorov
from patchclamp.record.statistics.histogram import Histogram
from patchclamp.record.statistics.shape import Distribution

KINDS = ("skill", "rest", "more")
WIDTH, PLANTED = 400, (3, 50, 77, 201)
LOWERED = (10, 120)


@pytest.fixture(scope="module")
def model():
    """Two layers of 400 neurons: 4 in each move up on "skill" by 3 standard deviations, 2 in each move down."""
    gates = []
    for layer in range(2):
        gate = shifted(PLANTED, WIDTH, 3, kind=0, shift=3.0, seed=layer)
        spread = np.sqrt((gate[list(LOWERED), :24] ** 2).sum(1))
        gate[list(LOWERED), 24] = -1.5 * spread
        gates.append(gate)
    return noisy(KINDS, gates)


@pytest.fixture(scope="module")
def recording(model):
    kept = ("shape", "moments", "histogram")
    return pc.record(model, pc.corpus(text(KINDS)), sites=("gate", "mlp"), statistics=kept, quiet=True)


@pytest.fixture(scope="module")
def pre(model):
    """What enters the activation function, where noise is normal."""
    return pc.record(model, pc.corpus(text(KINDS)), sites=("pre",), statistics=("shape", "histogram"), quiet=True)


def names(site: str, units) -> set[str]:
    return {f"{site}.{layer}.{unit}" for layer in range(2) for unit in units}


@pytest.mark.parametrize("distance", ["mean difference", "standardised", "hellinger"])
def test_planted_units_are_the_skills_set_and_lowered_ones_are_not(pre, distance: str) -> None:
    found = skill(pre, forget="skill", distance=distance, share=0.01)
    assert set(found.sets["skill"].names()) == names("pre", PLANTED)
    assert found.labels == ("skill",)
    assert found.null["labels"]["skill"]["mean"] <= 0.5
    assert found.site == "pre"
    unsigned = skill(pre, forget="skill", distance=distance, share=0.015, signed=False)
    assert set(unsigned.sets["skill"].names()) == names("pre", (*PLANTED, *LOWERED))
    wider = skill(pre, forget="skill", distance=distance, share=0.6)
    assert not set(wider.sets["skill"].names()) & names("pre", LOWERED)


def test_the_planted_shift_is_measured_in_standard_deviations(pre) -> None:
    found = skill(pre, forget="skill", distance="standardised")
    planted = [found.layout.position(pc.Unit.parse(name)) for name in names("pre", PLANTED)]
    assert found.scores[0, planted].mean() == pytest.approx(3.0, abs=0.25)
    lowered = [found.layout.position(pc.Unit.parse(name)) for name in names("pre", LOWERED)]
    assert found.scores[0, lowered].mean() == pytest.approx(-3.0, abs=0.25)
    others = np.setdiff1d(np.arange(found.layout.total), [*planted, *lowered])
    assert np.abs(found.scores[0, others]).max() < 0.6


def test_fdr_names_the_planted_units_of_every_label(pre) -> None:
    found = skill(pre)
    assert found.labels == KINDS
    by_fdr = found.select(fdr=0.01)
    assert names("pre", PLANTED) <= set(by_fdr["skill"].names())
    assert len(by_fdr["skill"]) <= 10


def test_selective_pruning_finds_what_is_larger_on_the_skill(recording) -> None:
    found = skill(recording, site="mlp", forget="skill", distance="importance", share=0.01)
    assert set(found.sets["skill"].names()) == names("mlp", PLANTED)
    shared = skill(recording, site="gate", forget="skill", share=0.01).details["shared_with_importance"]["skill"]
    assert shared == len(PLANTED) * 2


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_found_in_noise(seed: int) -> None:
    """Kinds that no neuron tells apart: at a false-discovery rate of 5% almost always no unit is named."""
    gates = [shifted((), WIDTH, 3, kind=0, shift=0.0, seed=seed)]
    noise = noisy(KINDS, gates, seed=seed)
    recording = pc.record(
        noise, pc.corpus(text(KINDS, seed=10 + seed)), sites=("gate",), statistics=("shape",), quiet=True
    )
    found = skill(recording, share=0.01, seed=seed)
    assert sum(map(len, found.select(fdr=0.05).values())) <= 1
    chance = found.null["labels"].values()
    assert np.mean([entry["share"] for entry in chance]) > 0.25  # shuffled labels put as many units above the bar


def test_p_values_of_noise_are_uniform_over_clusters_and_not_over_tokens() -> None:
    """Tokens that share a document share its level; the test over folds keeps its rate, one over tokens would not."""
    rng = np.random.default_rng(0)
    folds, tokens, units = 8, 50, 4000
    level = rng.normal(size=(2 * folds, 1, units))
    x = level + rng.normal(size=(2 * folds, tokens, units))
    clusters = Distribution(np.full(2 * folds, float(tokens)), x.mean(1), ((x - x.mean(1, keepdims=True)) ** 2).sum(1))
    a, b = (Distribution(clusters.n[half], clusters.mean[half], clusters.m2[half]) for half in (slice(8), slice(8, 16)))
    p = welch(a, b, signed=True)
    assert 0.03 < (p < 0.05).mean() < 0.07
    assert kstest(p, "uniform").pvalue > 1e-3
    flat = ttest_ind(x[:8].reshape(-1, units), x[8:].reshape(-1, units)).pvalue
    assert (flat < 0.05).mean() > 0.5


def test_welch_over_clusters_of_equal_size_is_welch() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 20)), 0.5 + 2 * rng.normal(size=(9, 20))
    parts = [Distribution(np.full(len(each), 7.0), each, np.zeros_like(each)) for each in (a, b)]
    expected = ttest_ind(a, b, equal_var=False)
    np.testing.assert_allclose(welch(*parts, signed=False), expected.pvalue, rtol=1e-9)
    signed = welch(*parts, signed=True)
    np.testing.assert_allclose(signed, np.where(expected.statistic > 0, expected.pvalue / 2, 1 - expected.pvalue / 2))


def normals(mean_f, std_f, mean_r, std_r) -> tuple[Distribution, Distribution]:
    n = 101.0
    return tuple(
        Distribution(np.array(n), np.atleast_1d(np.float64(m)), np.atleast_1d(np.float64(s)) ** 2 * (n - 1))
        for m, s in ((mean_f, std_f), (mean_r, std_r))
    )


@given(mean=st.floats(-5, 5), first=st.floats(0.1, 4), second=st.floats(0.1, 4))
@settings(max_examples=25, deadline=None)
def test_hellinger_equals_the_integral_over_both_densities(mean: float, first: float, second: float) -> None:
    x = np.linspace(-60, 60, 200_001)
    overlap = np.trapezoid(np.sqrt(norm.pdf(x, mean, first) * norm.pdf(x, 0, second)), x)
    found = hellinger(*normals(mean, first, 0.0, second))[0]
    assert abs(found) == pytest.approx(np.sqrt(max(1 - overlap, 0)), abs=2e-4)
    assert np.sign(found) == np.sign(mean) or mean == 0 or abs(found) < 1e-4
    back = hellinger(*normals(0.0, second, mean, first))[0]
    assert abs(back) == pytest.approx(abs(found), abs=1e-9)


def test_closed_forms_of_the_distances() -> None:
    skilled, rest = normals([4, 0, -2], [1, 2, 1], [0, 0, 0], [1, 1, 1])
    np.testing.assert_allclose(mean_difference(skilled, rest), [4, 0, -2])
    np.testing.assert_allclose(standardised(skilled, rest), [4, 0, -2])
    assert hellinger(skilled, rest)[1] > 0.2  # same mean, other spread
    sized = [Distribution(np.array(1.0), np.zeros(2), np.zeros(2), size=np.array(v)) for v in ([3.0, 0.0], [1.5, 0.0])]
    np.testing.assert_allclose(importance(*sized), [2.0, 0.0], atol=1e-6)


def test_constant_units_score_0_unless_their_means_differ() -> None:
    skilled, rest = normals([0.1, 1.0, 2.0], [0, 0, 1], [0.1, 0.0, 0.0], [0, 0, 1])
    assert standardised(skilled, rest)[0] == 0
    assert hellinger(skilled, rest)[0] == 0
    assert standardised(skilled, rest)[1] > 1e5
    assert hellinger(skilled, rest)[1] == pytest.approx(1)
    same = Distribution(np.ones(4), np.full((4, 1), 0.1), np.zeros((4, 1)))
    assert welch(same, same, signed=True) == pytest.approx(0.5)
    assert welch(same, same, signed=False) == pytest.approx(1)
    apart = Distribution(np.ones(4), np.full((4, 1), 0.9), np.zeros((4, 1)))
    assert welch(apart, same, signed=True)[0] < 1e-30
    assert welch(same, apart, signed=True)[0] == pytest.approx(1)


def test_the_papers_rule_keeps_ties_and_the_exact_rule_does_not() -> None:
    score = np.array([5.0, 3, 3, 3, 1, 1, 0, -1, -1, -2])
    positive = score > 0
    exact = chosen_units(score, 0.2, "exact", positive)
    assert np.flatnonzero(exact).tolist() == [0, 1]
    paper = chosen_units(score, 0.2, "paper", positive)  # rising order, position int(10 * 0.8) = 8 holds 3
    assert np.flatnonzero(paper).tolist() == [0, 1, 2, 3]
    assert chosen_units(score, 0.8, "exact", positive).sum() == 6
    assert (
        chosen_units(score, 0.8, "paper", positive).sum() == 9
    )  # int(10 * (1 - 0.8)) is 1 in floating point, as in the code
    assert not chosen_units(score, 0.0, "exact", positive).any()
    assert chosen_units(score, 0.0, "paper", positive).sum() == 1  # the code's clamped position is the highest unit


def test_choosing_agrees_with_select_and_the_ranking_is_over_all_layers(pre) -> None:
    found = skill(pre, share=0.02)
    for label, units in found.select(share=0.02).items():
        mine = found.sets[label]
        assert set(mine.names()) <= set(units.names())
        assert len(mine) == round(0.02 * found.layout.total)
    assert (found.sets["skill"].per_layer("pre") > 0).all()


def test_moments_alone_give_distances_but_no_null(recording, model) -> None:
    plain = pc.record(model, pc.corpus(text(KINDS)), sites=("gate",), quiet=True)
    found = skill(plain, forget="skill", share=0.01)
    np.testing.assert_allclose(found.scores, skill(recording, site="gate", forget="skill").scores, atol=1e-9)
    assert found.p_values is None
    assert not found.null["available"]
    assert "shape" in found.null["why"]
    with pytest.raises(InputError, match="fdr"):
        found.select(fdr=0.05)
    with pytest.raises(InputError, match="shape"):
        skill(plain, distance="importance")


def test_retain_and_forget_choose_the_comparison(recording) -> None:
    found = skill(recording, site="gate", forget="skill", retain=["more"])
    assert found.details["compared_with"] == {"skill": ["more"]}
    first, second = distributions(recording, "skill", retain=["more"], site="gate")
    np.testing.assert_allclose(found.scores[0], first.mean - second.mean, atol=1e-12)
    pooled = distributions(recording, "skill", site="gate")[1]
    assert int(pooled.n) == recording.tokens("rest") + recording.tokens("more")


def test_a_finding_survives_saving_and_is_seeded(recording, tmp_path) -> None:
    found, again = (skill(recording, site="gate", seed=3) for _ in range(2))
    assert found.null == again.null
    read = pc.Finding.load(found.save(tmp_path / "skill.sets.json"))
    assert {k: v.names() for k, v in read.sets.items()} == {k: v.names() for k, v in found.sets.items()}
    np.testing.assert_array_equal(read.p_values, found.p_values)


def test_unrecorded_layers_rank_last(model) -> None:
    some = pc.record(model, pc.corpus(text(KINDS)), sites=("gate",), statistics=("shape",), layers=[1], quiet=True)
    found = skill(some, share=0.4)
    assert not found.chosen[:, :WIDTH].any()
    assert np.isfinite(found.scores).all()
    assert any("recorded" in note for note in found.notes)


def test_normality_of_a_normal_unit_and_of_a_rectified_one(pre, recording) -> None:
    straight = skill(pre, forget="skill", share=0.01).details["normality"]["skill"]["skill"]
    rectified = skill(recording, site="mlp", forget="skill", share=0.01).details["normality"]["skill"]["rest"]
    assert straight["kolmogorov"]["median"] < 0.2
    assert rectified["kolmogorov"]["median"] > 2 * straight["kolmogorov"]["median"]
    assert rectified["skew"]["median"] > 1
    assert straight["units"] == 8


def test_kolmogorov_distance_over_buckets_is_close_to_that_over_values() -> None:
    import torch

    from patchclamp.models.units import Layout
    from patchclamp.record.statistics import Where

    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=4000), rng.exponential(size=4000), np.full(4000, 0.5)], 1).astype(np.float32)
    histogram = Histogram(Layout("mlp", (3,)), folds=1, bits=5)
    where = Where(np.zeros(4000, int), np.arange(4000), np.zeros(4000, int), np.arange(4000))
    histogram.begin(where)
    histogram.update(torch.from_numpy(x), 0, 0, where)
    histogram.close()
    far = kolmogorov(bucket_edges(histogram.edges), histogram.counts, x.mean(0), x.std(0, ddof=1))
    for unit in (0, 1):
        exact = kstest(x[:, unit], "norm", args=(x[:, unit].mean(), x[:, unit].std(ddof=1))).statistic
        assert far[unit] == pytest.approx(exact, abs=0.02)
    assert far[0] < 0.03
    assert far[2] == 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"forget": "nothing"}, {"forget": []}, {"forget": ["skill", "skill"]}, {"retain": ["nothing"]},
        {"forget": "skill", "retain": ["skill"]}, {"forget": "skill", "retain": []}, {"distance": "far"}, {"rule": "mine"},
        {"share": 1.5}, {"share": -0.1}, {"site": "mlp_out"}, {"min_tokens": 10**6}, {"shuffles": -1},
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(recording, arguments: dict) -> None:
    with pytest.raises(InputError):
        skill(recording, **{"site": "gate", **arguments})


def test_one_label_and_one_document_are_refused_or_noted(model) -> None:
    alone = pc.record(model, pc.corpus(skill=text(KINDS)["skill"]), sites=("gate",), quiet=True)
    with pytest.raises(InputError, match="one label"):
        skill(alone)
    single = {kind: lines[:1] * 1 for kind, lines in text(KINDS, length=60).items()}
    few = pc.record(model, pc.corpus(single), sites=("gate",), statistics=("shape",), quiet=True)
    found = skill(few, min_tokens=10)
    assert found.p_values is None
    assert not found.null["available"]
    counted = pc.record(model, pc.corpus(text(KINDS)), sites=("gate",), statistics=("firing",), quiet=True)
    with pytest.raises(InputError, match="shape"):
        skill(counted)

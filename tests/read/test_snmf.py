"""Semi-nonnegative matrix factorisation: planted factors come back, the objective never rises, blocks don't matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.data.corpora import Corpus, corpus
from patchclamp.models.features import load_dictionary
from patchclamp.read.snmf import Factors, factorise, snmf
from patchclamp.read.snmf_solver import Data, solve
from patchclamp.record import record
from patchclamp.record.activations import Activations


def planted(seed: int, k: int = 12, width: int = 128, n: int = 1500, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Rows of k sparse groups of 4 neurons, each active on 15 % of the rows; verification 1 of the method's file."""
    rng = np.random.default_rng(seed)
    groups = np.zeros((k, width))
    for j in range(k):
        groups[j, rng.choice(width, 4, replace=False)] = rng.uniform(0.5, 1.5, 4) * rng.choice([-1, 1], 4)
    strengths = rng.exponential(1, (n, k)) * (rng.random((n, k)) < 0.15)
    rows = strengths @ groups + noise * rng.standard_normal((n, width))
    return torch.from_numpy(rows).float(), torch.from_numpy(groups)


def matched(found: Tensor, truth: Tensor) -> np.ndarray:
    """Cosines of the planted directions with the found ones, matched one to one."""
    unit = torch.nn.functional.normalize
    cosine = (unit(truth.double(), dim=1) @ unit(found.double(), dim=1).T).numpy()
    rows, columns = linear_sum_assignment(-cosine)
    return np.asarray(cosine[rows, columns])


def held(rows: Tensor) -> Activations:
    return Activations.of_tensor(rows, site="mlp", layer=1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_groups_are_recovered(seed: int) -> None:
    rows, groups = planted(seed)
    found = factorise(held(rows), 12, sparsity=6 / 128, restarts=3)
    assert matched(found.features, groups).min() > 0.95
    assert found.record.explained > 0.97


def test_three_neurons_per_group_are_recovered_with_strengths() -> None:
    rng = np.random.default_rng(0)
    groups = torch.zeros(4, 64)
    for j in range(4):
        groups[j, 3 * j : 3 * j + 3] = torch.tensor([1, -0.5, 0.8])
    strengths = torch.from_numpy(rng.exponential(1, (600, 4)) * (rng.random((600, 4)) < 0.3)).float()
    found = factorise(held(strengths @ groups), 4, sparsity=3 / 64)
    assert matched(found.features, groups).min() > 0.999
    assert found.record.losses[-1] < 1e-6 * found.record.total
    order = [int((found.features[:, 3 * j] != 0).nonzero()[0]) for j in range(4)]
    lengths = groups.norm(dim=1)
    torch.testing.assert_close(found.strengths[:, order], strengths * lengths, atol=1e-3, rtol=1e-3)


def test_without_sparsity_the_same_data_are_explained_but_not_identified() -> None:
    rng = np.random.default_rng(1)
    groups = torch.zeros(4, 64)
    for j in range(4):
        groups[j, 3 * j : 3 * j + 3] = torch.tensor([1, -0.5, 0.8])
    strengths = torch.from_numpy(rng.exponential(1, (600, 4)) * (rng.random((600, 4)) < 0.3)).float()
    found = factorise(held(strengths @ groups), 4, sparsity=1.0, init="random", restarts=1)
    assert found.record.explained > 0.999
    assert matched(found.features, groups).min() < 0.99


def test_rank_one_has_its_closed_form() -> None:
    found = factorise(held(torch.tensor([[2.0, -1.0], [4.0, -2.0]])), 1, sparsity=1.0)
    torch.testing.assert_close(found.features[0], torch.tensor([0.8944, -0.4472]), atol=1e-3, rtol=0)
    strengths = found.strengths[:, 0] / found.strengths[:, 0].norm()
    torch.testing.assert_close(strengths, torch.tensor([0.4472, 0.8944]), atol=1e-3, rtol=0)


def test_shared_and_exclusive_neurons_are_told_apart() -> None:
    rng = np.random.default_rng(2)
    groups = torch.zeros(3, 12)
    groups[:, :2] = 1
    for j in range(3):
        groups[j, 4 + j] = 1
    which = torch.from_numpy(rng.integers(0, 3, 300))
    rows = groups[which] * torch.from_numpy(rng.uniform(0.5, 1.5, (300, 1))).float()
    rows += 0.01 * torch.from_numpy(rng.standard_normal(rows.shape)).float()
    found = factorise(held(rows), 3, sparsity=0.25)
    sharing = found.sharing()
    assert sharing.diagonal().tolist() == [3, 3, 3]
    assert (sharing - torch.diag(sharing.diagonal())).sum() == 6 * 2
    cosines = found.features @ found.features.T
    assert abs(float(cosines[0, 1]) - 2 / 3) < 0.02


def rising(losses: tuple[float, ...], total: float) -> float:
    """By how much an objective rises at most from one iteration to the next, as a share of the sum of squares."""
    return max(np.diff(losses), default=0.0) / max(total, 1e-300)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.integers(1, 12),
    st.floats(0.05, 1.0),
    st.sampled_from(["random", "kmeans", "svd"]),
    st.sampled_from(["descent", "published"]),
    st.integers(-3, 3),
)
def test_the_objective_never_rises(
    seed: int, n: int, width: int, sparsity: float, init: str, solver: str, scale: int
) -> None:
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, width))).float() * 10.0**scale
    k = max(1, min(n, width) // 2)
    found = factorise(
        held(rows), k, sparsity=sparsity, init=init, restarts=1, solver=solver, search_iterations=5, max_iterations=30,
        seed=seed,
    )  # fmt: skip
    assert rising(found.record.losses, found.record.total) <= 1e-12
    assert float(found.strengths.min()) >= 0
    kept = found.parameters["keep"]
    assert int((found.features != 0).sum(1).max()) <= kept
    left = (rows.double() - found.strengths.double() @ found.features.double()).square().sum()
    if solver == "descent":
        assert abs(float(left) - found.record.losses[-1]) <= 1e-5 * found.record.total


def test_the_published_alternation_may_rise_but_its_best_state_is_returned() -> None:
    rows, _ = planted(3, k=20, noise=0.1)
    found = factorise(
        held(rows), 20, sparsity=6 / 128, init="random", restarts=1, solver="published", max_iterations=150
    )
    assert rising(found.record.searched, found.record.total) > 0
    assert found.record.losses[-1] <= min(found.record.searched) * (1 + 1e-9)


def test_descent_ends_below_the_published_alternation() -> None:
    rows, _ = planted(4)
    both = [
        factorise(held(rows), 12, sparsity=6 / 128, init="random", restarts=1, solver=solver)
        for solver in ("descent", "published")
    ]
    assert both[0].record.losses[-1] <= both[1].record.losses[-1]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 700), st.sampled_from(["random", "kmeans", "svd"]))
def test_blocks_and_memory_do_not_matter(rows: int, init: str) -> None:
    data, _ = planted(5, k=5, width=40, n=300)
    whole = factorise(held(data), 5, sparsity=0.1, init=init, restarts=1, rows=300)
    parts = factorise(held(data), 5, sparsity=0.1, init=init, restarts=1, rows=rows)
    torch.testing.assert_close(parts.features, whole.features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.strengths, whole.strengths, atol=1e-4, rtol=1e-4)


def test_reading_the_data_anew_in_every_pass_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = planted(6, k=5, width=40, n=300)
    kept = factorise(held(data), 5, sparsity=0.1, rows=64)
    monkeypatch.setattr("patchclamp.read.snmf.CACHE", 0)
    anew = factorise(held(data), 5, sparsity=0.1, rows=64)
    torch.testing.assert_close(anew.features, kept.features)
    torch.testing.assert_close(anew.strengths, kept.strengths)


def test_order_of_tokens_moves_strengths_only() -> None:
    data, _ = planted(7, k=5, width=40, n=300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    plain = factorise(held(data), 5, sparsity=0.1, init="svd")
    moved = factorise(held(data[order]), 5, sparsity=0.1, init="svd")
    torch.testing.assert_close(moved.features, plain.features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.strengths, plain.strengths[order], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scaling_the_activations_scales_the_strengths(scale: float) -> None:
    data, _ = planted(8, k=5, width=40, n=300)
    plain, scaled = (factorise(held(x), 5, sparsity=0.1, init="random", restarts=1) for x in (data, data * scale))
    torch.testing.assert_close(scaled.features, plain.features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scaled.strengths / scale, plain.strengths, atol=1e-3, rtol=1e-3)


def test_the_same_seed_gives_the_same_numbers() -> None:
    data, _ = planted(9, k=5, width=40, n=300)
    one, two = (factorise(held(data), 5, sparsity=0.1, seed=3) for _ in range(2))
    assert torch.equal(one.features, two.features)
    assert torch.equal(one.strengths, two.strengths)


@pytest.mark.parametrize("init", ["random", "kmeans", "svd"])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_constant_activations_are_explained_and_finite(value: float, init: str) -> None:
    found = factorise(held(torch.full((20, 6), value)), 3, sparsity=1.0, init=init)
    assert torch.isfinite(found.features).all()
    assert torch.isfinite(found.strengths).all()
    assert found.record.explained > 1 - 1e-9
    assert bool((found.features == 0).all()) == (value == 0)


def test_zero_tokens_get_no_strength_and_equal_columns_do_no_harm() -> None:
    data, _ = planted(10, k=4, width=30, n=200)
    data[::5] = 0
    data[:, 7] = data[:, 8]
    found = factorise(held(data), 4, sparsity=0.2)
    assert float(found.strengths[::5].abs().max()) == 0
    assert torch.isfinite(found.features).all()


def test_a_dead_feature_begins_anew_from_what_is_reproduced_worst() -> None:
    data, groups = planted(11, k=2, width=60, n=400, noise=0.0)
    data = data.double()
    strengths = torch.rand(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    strengths[:, 1] = 0  # nothing uses the second feature
    whole = Data(held(data), 64, torch.device("cpu"), torch.float64)
    found = solve(whole, strengths, keep=4, iterations=50, tolerance=1e-9, patience=5)
    assert found.reseeded >= 1
    assert rising(tuple(found.losses), whole.total) <= 1e-12
    assert matched(found.features, groups).min() > 0.95


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": 7}, "number of neurons"),
        ({"k": 0}, "between 1"),
        ({"sparsity": 0.0}, "sparsity"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"init": "nmf"}, "init"),
        ({"solver": "adam"}, "solver"),
        ({"precision": "half"}, "precision"),
        ({"rows": 0}, "rows"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
    ],
)
def test_bad_arguments_are_refused(given: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        factorise(held(torch.randn(20, 6)), **{"k": 3, **given})


def test_bad_activations_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        factorise(held(torch.tensor([[1.0, float("nan")]])), 1)
    with pytest.raises(InputError, match="NaN or infinity"):
        factorise(held(torch.tensor([[1.0, float("inf")]])), 1)
    with pytest.raises(InputError, match="no activations"):
        factorise(held(torch.zeros(0, 4)), 1)
    with pytest.raises(InputError, match="2 tokens"):
        factorise(held(torch.randn(2, 8)), 3)


def test_new_tokens_get_the_strengths_of_non_negative_least_squares() -> None:
    from scipy.optimize import nnls

    data, _ = planted(12, k=5, width=40, n=300)
    found = factorise(held(data[:200]), 5, sparsity=0.1)
    expected = np.array([nnls(found.features.double().numpy().T, row)[0] for row in data[200:].double().numpy()])
    np.testing.assert_allclose(found.transform(held(data[200:]), rows=17).numpy(), expected, atol=1e-4)
    left = np.square(data[200:].numpy() - expected @ found.features.numpy()).sum()
    assert found.explained(held(data[200:])) == pytest.approx(1 - left / np.square(data[200:].numpy()).sum(), abs=1e-4)
    with pytest.raises(InputError, match="width"):
        found.transform(held(torch.randn(4, 3)))


def test_the_dictionary_reproduces_what_the_factors_do(tmp_path) -> None:
    data, _ = planted(13, k=5, width=40, n=300)
    found = factorise(held(data), 5, sparsity=0.1)
    features = found.dictionary()
    assert (features.name, features.site, features.layer, features.n_features) == ("snmf", "mlp", 1, 5)
    back = features.decode(features.encode(data))
    assert float((data - back).square().sum()) < 1.15 * found.record.losses[-1]
    features.save(tmp_path / "features")
    assert load_dictionary(tmp_path / "features").fingerprint == features.fingerprint
    with pytest.raises(InputError, match="come from"):
        factorise(Activations.of_tensor(data), 2).dictionary()
    with pytest.raises(InputError, match="all features are 0"):
        factorise(held(torch.zeros(9, 4)), 2).dictionary()


def test_factors_are_saved_and_read_back(tmp_path) -> None:
    data, _ = planted(14, k=5, width=40, n=100)
    found = factorise(held(data), 5, sparsity=0.1)
    back = Factors.load(found.save(tmp_path / "snmf.json"))
    assert torch.equal(back.features, found.features)
    assert torch.equal(back.strengths, found.strengths)
    assert back.record == found.record
    assert back.parameters == found.parameters
    assert back.rows() == found.rows()
    (tmp_path / "snmf.safetensors").write_bytes(b"broken")
    with pytest.raises(DamagedError):
        Factors.load(tmp_path / "snmf.json")


def test_the_reading_decomposes_a_layer_of_a_model_and_makes_features_of_it(tiny_gpt2, tmp_path) -> None:
    texts = corpus(
        en=["The cat sat on the mat.", "the moon and the cat"], de=["Die Katze sitzt auf der Matte.", "zum Mond"]
    )
    found = snmf(tiny_gpt2, text=texts, layer=1, k=4, contexts=3, to=str(tmp_path / "features"))
    rows = Activations.live(tiny_gpt2, texts, "mlp", 1).all()
    torch.testing.assert_close(factorise(held(rows), 4, restarts=1).features, found.features)
    assert (found.site, found.layer) == ("mlp", 1)
    best = found.strengths.max(0).values
    for context, strongest in zip(found.contexts, best, strict=True):
        assert len(context["tokens"]) <= 3
        assert context["tokens"][0]["strength"] == pytest.approx(float(strongest), rel=0.05, abs=1e-3)
        assert context["label"] == max(context["labels"], key=context["labels"].get)
    first = found.contexts[0]["tokens"][0]
    assert any(first["before"] + first["token"] + first["after"] in text for text in texts_of(texts))
    model = tiny_gpt2.with_features(load_dictionary(tmp_path / "features"))
    assert model.layouts["snmf"].widths[1] == 4
    assert found.rows()[0]["feature"] == "snmf.1.0"
    assert found.to_dict()["model"]["fingerprint"] == tiny_gpt2.fingerprint
    with pytest.raises(InputError, match="exists already"):
        snmf(tiny_gpt2, text=texts, to=str(tmp_path / "features"))
    with pytest.raises(InputError, match="layers 0 to 2"):
        snmf(tiny_gpt2, text=texts, layer=9)
    with pytest.raises(InputError, match="site"):
        snmf(tiny_gpt2, text=texts, site="nowhere")


def texts_of(text: Corpus) -> list[str]:
    return [document.text for label in text.labels for document in text.documents(label)]


def test_a_recording_a_running_model_and_a_tensor_give_the_same_features(tiny_gpt2, tmp_path, monkeypatch) -> None:
    texts = corpus(
        en=["The cat sat on the mat.", "the moon and the cat"], de=["Die Katze sitzt auf der Matte.", "zum Mond"]
    )
    recording = record(tiny_gpt2, texts, statistics=("activations",), out=tmp_path / "rec", quiet=True)
    monkeypatch.setattr("patchclamp.read.snmf.CACHE", 0)  # every pass reads from disk, or runs the model, again
    sources = [Activations.of_recording(recording, "mlp", 1), Activations.live(tiny_gpt2, texts, "mlp", 1)]
    found = [factorise(source, 4, sparsity=0.1, restarts=1, rows=7) for source in sources]
    whole = factorise(held(sources[1].all()), 4, sparsity=0.1, restarts=1)
    for one in found:
        torch.testing.assert_close(one.features, whole.features, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.strengths, whole.strengths, atol=1e-3, rtol=1e-3)
        assert one.provenance["inputs"]["activations"]["site"] == "mlp"

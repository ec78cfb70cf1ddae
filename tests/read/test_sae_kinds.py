"""Autoencoders against their formulas: what each kind keeps, ties, normalised rows, round trips through files and dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.models.features import load_dictionary
from patchclamp.read.sae import load_sae
from patchclamp.read.sae_kinds import KINDS, NORMALISE, SAE, TopKSAE, largest

D_IN, COUNT = 8, 20


def made(kind: str = "topk", *, seed: int = 0, **more: Any) -> SAE:
    g = torch.Generator().manual_seed(seed)
    parts: dict[str, Any] = {
        "encoder": torch.randn(D_IN, COUNT, generator=g),
        "encoder_bias": torch.randn(COUNT, generator=g) / 3,
        "directions": torch.randn(COUNT, D_IN, generator=g),
        "decoder_bias": torch.randn(D_IN, generator=g),
    }
    if kind in ("jumprelu", "batchtopk"):
        parts["threshold"] = torch.rand(COUNT, generator=g)
    if kind == "topk":
        parts["k"] = 3
    return KINDS[kind]("sae", "resid", 2, **{**parts, **more})


def rows(n: int = 30, seed: int = 1) -> Tensor:
    return 2 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) + 1


def by_hand(sae: Any, x: Tensor) -> Tensor:
    """Features by plain loops over rows, float64."""
    pre = (x.double() - sae.decoder_bias.double() * sae.input_bias) @ sae.encoder.double() + sae.encoder_bias.double()
    out = torch.zeros_like(pre)
    for number, row in enumerate(pre):
        if sae.kind == "topk":
            kept = sorted(range(COUNT), key=lambda at: (-float(row[at]), at))[: sae.k]
        elif sae.kind == "relu":
            kept = list(range(COUNT))
        else:
            kept = [at for at in range(COUNT) if row[at] > sae.threshold[at]]
        for at in kept:
            out[number, at] = max(float(row[at]), 0.0)
    return out


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("input_bias", [True, False])
def test_features_are_what_the_formula_says(kind: str, input_bias: bool) -> None:
    sae, x = made(kind, input_bias=input_bias), rows()
    features = sae.encode(x)
    torch.testing.assert_close(features.double(), by_hand(sae, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(features), features @ sae.directions + sae.decoder_bias)
    torch.testing.assert_close(sae.reconstruct(x), sae.decode(features))
    assert bool((sae.scale(x) == 1).all())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("normalise", NORMALISE)
def test_normalised_rows_are_explained_in_the_units_of_x(kind: str, normalise: str) -> None:
    sae, plain, x = made(kind, normalise=normalise), made(kind), rows()
    centre = x.mean(1, keepdim=True) if normalise in ("centre", "layer") else torch.zeros(len(x), 1)
    if normalise == "layer":
        scale, inside = (x - centre).std(1, keepdim=True), (x - centre) / ((x - centre).std(1, keepdim=True) + 1e-5)
    elif normalise == "norm":
        scale = x.norm(dim=1, keepdim=True) / D_IN**0.5
        inside = x / scale
    else:
        scale, inside = torch.ones(len(x), 1), x - centre
    torch.testing.assert_close(sae.encode(x), plain.encode(inside) * scale, rtol=1e-4, atol=1e-4)
    expected = plain.reconstruct(inside) * scale + centre
    torch.testing.assert_close(sae.reconstruct(x), expected, rtol=1e-4, atol=1e-4)
    sae.check()


def test_a_change_of_a_feature_moves_normalised_rows_as_it_says() -> None:
    sae, x = made("relu", normalise="layer"), rows()
    f = sae.encode(x)
    new = f.clone()
    new[:, 4] = 0
    moved = sae.moved(x, f, new)
    torch.testing.assert_close(moved, x - f[:, 4:5] * sae.directions[4])


def test_topk_keeps_exactly_k_and_of_equal_values_the_first() -> None:
    same = torch.ones(2, COUNT)
    same[1, 7] = 2
    kept = made("topk").activate(same)
    assert (kept > 0).sum(1).tolist() == [3, 3]
    assert kept[0].nonzero()[:, 0].tolist() == [0, 1, 2]
    assert kept[1].nonzero()[:, 0].tolist() == [0, 1, 7]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 6))
def test_the_largest_are_those_of_a_stable_sort(values: list[list[int]], k: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    found, at = largest(tensor, k)
    for row, kept, where in zip(values, found.tolist(), at.tolist(), strict=True):
        first = sorted(range(6), key=lambda i: (-row[i], i))[:k]
        assert sorted(where) == sorted(first)
        assert kept == [row[i] for i in where]


def test_negative_pre_activations_stay_off_even_among_the_largest() -> None:
    assert not made("topk").activate(-torch.ones(3, COUNT)).any()
    assert not made("jumprelu", threshold=torch.full((COUNT,), -1.0)).activate(torch.full((1, COUNT), -0.5)).any()


def test_a_row_of_zeros_is_no_division_by_zero() -> None:
    for normalise in NORMALISE:
        sae = made("relu", normalise=normalise)
        assert bool(torch.isfinite(sae.reconstruct(torch.zeros(2, D_IN))).all())


def test_batchtopk_encodes_each_row_on_its_own() -> None:
    sae, x = made("batchtopk"), rows()
    torch.testing.assert_close(torch.cat([sae.encode(row[None]) for row in x]), sae.encode(x))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_folder_gives_the_same_autoencoder_back(kind: str, tmp_path: Path) -> None:
    sae, x = made(kind, normalise="norm", labels=[f"f{i}" for i in range(COUNT)], provenance={"call": "test"}), rows()
    sae.save(tmp_path / "sae")
    for found in (load_dictionary(tmp_path / "sae"), load_sae(tmp_path / "sae")):
        assert type(found) is type(sae)
        assert (found.fingerprint, found.header["settings"]) == (sae.fingerprint, sae.header["settings"])
        assert found.labels is not None
        assert found.labels[3] == "f3"
        assert torch.equal(found.encode(x), sae.encode(x))


def test_the_fingerprint_is_of_the_numbers_not_of_the_dtype() -> None:
    sae = made("topk")
    assert sae.to(dtype=torch.bfloat16).fingerprint == sae.fingerprint
    assert made("topk", k=4).fingerprint != sae.fingerprint
    assert made("topk", seed=1).fingerprint != sae.fingerprint
    assert made("topk", normalise="layer").fingerprint != sae.fingerprint


def test_half_precision_encodes_in_its_own_dtype() -> None:
    sae = made("topk").to(dtype=torch.bfloat16)
    f = sae.encode(rows())
    assert f.dtype == torch.bfloat16
    assert bool(((f > 0).sum(1) <= 3).all())
    assert sae.reconstruct(rows().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"k": 0}, "k=0"),
        ({"k": COUNT + 1}, "20 features"),
        ({"normalise": "softmax"}, "normalise='softmax'"),
        ({"encoder": torch.zeros(COUNT, D_IN)}, "encoder has shape"),
        ({"decoder_bias": torch.zeros(3)}, "decoder_bias has shape"),
        ({"directions": torch.zeros(D_IN)}, "directions have shape"),
    ],
)
def test_parts_that_do_not_fit_are_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        made("topk", **more)


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    bad = made("relu", encoder_bias=torch.full((COUNT,), float("nan")))
    with pytest.raises(InputError, match="encoder_bias"):
        bad.save(tmp_path / "sae")
    assert not list(tmp_path.iterdir())


def test_altered_settings_are_noticed(tmp_path: Path) -> None:
    made("topk").save(tmp_path / "sae")
    header = tmp_path / "sae" / "features.json"
    header.write_text(header.read_text().replace('"k": 3', '"k": 4'))
    with pytest.raises(DamagedError):
        load_sae(tmp_path / "sae")


def test_other_dictionaries_and_empty_folders_are_no_autoencoders(tmp_path: Path) -> None:
    from patchclamp.models.features import LinearDictionary

    LinearDictionary.of_directions("lin", "resid", 0, torch.eye(4)).save(tmp_path / "lin")
    with pytest.raises(InputError, match="no sparse autoencoder"):
        load_sae(tmp_path / "lin")
    with pytest.raises(InputError, match="no features at"):
        load_sae(tmp_path)
    made().save(tmp_path / "sae")
    with pytest.raises(InputError, match="leave out site"):
        load_sae(tmp_path / "sae", site="mlp")


def test_topk_is_topk() -> None:
    assert isinstance(made("topk"), TopKSAE)

"""Folders in SAELens's format, written by hand as SAELens 6 and 5 write them, and ours. `scripts/sae_compat.py` compares with
the package itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.read.test_sae_kinds import COUNT, D_IN, made, rows
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.read.sae import load_sae
from patchclamp.read.sae_kinds import KINDS, BatchTopKSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from patchclamp.read.sae_lens import hook_of, load_sae_lens, save_sae_lens, tap_of


def weights(**more: Tensor) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(2)
    return {
        "W_enc": torch.randn(D_IN, COUNT, generator=g),
        "b_enc": torch.randn(COUNT, generator=g),
        "W_dec": torch.randn(COUNT, D_IN, generator=g),
        "b_dec": torch.randn(D_IN, generator=g),
        **more,
    }


def folder(path: Path, tensors: dict[str, Tensor], architecture: str = "standard", **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "sae_weights.safetensors")
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.4.hook_resid_post", "model_name": "gpt2"}
    whole = {
        "d_in": D_IN, "d_sae": COUNT, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none", "metadata": metadata,
        "architecture": architecture, **config,
    }  # fmt: skip
    (path / "cfg.json").write_text(json.dumps(whole))
    return path


def plain(w: dict[str, Tensor], x: Tensor, input_bias: bool = True) -> Tensor:
    return (x - w["b_dec"] * input_bias) @ w["W_enc"] + w["b_enc"]


def test_standard_topk_and_jumprelu_folders_say_what_they_compute(tmp_path: Path) -> None:
    x, w = rows(), weights()
    found = load_sae(folder(tmp_path / "a", w, apply_b_dec_to_input=False))
    assert isinstance(found, ReLUSAE)
    assert (found.site, found.layer, found.name) == ("resid", 4, "sae")
    torch.testing.assert_close(found.encode(x), plain(w, x, input_bias=False).relu())
    torch.testing.assert_close(found.reconstruct(x), plain(w, x, input_bias=False).relu() @ w["W_dec"] + w["b_dec"])

    top = load_sae(folder(tmp_path / "b", w, "topk", k=3, rescale_acts_by_decoder_norm=False))
    assert isinstance(top, TopKSAE)
    assert top.k == 3
    values, at = plain(w, x).topk(3, dim=1)
    torch.testing.assert_close(top.encode(x), torch.zeros(len(x), COUNT).scatter(1, at, values.relu()))

    jump = load_sae(folder(tmp_path / "c", weights(threshold=torch.full((COUNT,), 0.7)), "jumprelu"))
    assert isinstance(jump, JumpReLUSAE)
    pre = plain(w, x)
    torch.testing.assert_close(jump.encode(x), torch.where(pre > 0.7, pre, 0))


def test_decoder_norms_by_which_activations_are_rescaled_are_folded(tmp_path: Path) -> None:
    x, w = rows(), weights()
    norms = w["W_dec"].norm(dim=1)
    found = load_sae_lens(folder(tmp_path / "a", w, "topk", k=3, rescale_acts_by_decoder_norm=True))
    values, at = (plain(w, x) * norms).topk(3, dim=1)
    features = torch.zeros(len(x), COUNT).scatter(1, at, values.relu())
    torch.testing.assert_close(found.encode(x), features)
    torch.testing.assert_close(found.reconstruct(x), (features / norms) @ w["W_dec"] + w["b_dec"])
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(COUNT))


def test_a_batchtopk_training_folder_keeps_its_one_threshold(tmp_path: Path) -> None:
    x, w = rows(), weights(topk_threshold=torch.tensor(1.1, dtype=torch.float64))
    norms = w["W_dec"].norm(dim=1)
    found = load_sae_lens(folder(tmp_path / "a", w, "batchtopk", k=4, rescale_acts_by_decoder_norm=True))
    assert isinstance(found, BatchTopKSAE)
    pre = plain(w, x) * norms
    torch.testing.assert_close(found.encode(x), torch.where(pre > 1.1, pre, 0))


def test_a_factor_of_activations_is_folded_when_it_is_given(tmp_path: Path) -> None:
    x, w = rows(), weights()
    path = folder(tmp_path / "a", w, normalize_activations="expected_average_only_in")
    with pytest.raises(InputError, match="scaling="):
        load_sae(path)
    found = load_sae(path, scaling=0.5)
    features = plain(w, x * 0.5).relu()
    torch.testing.assert_close(found.encode(x), features)
    torch.testing.assert_close(found.reconstruct(x), (features @ w["W_dec"] + w["b_dec"]) / 0.5)
    with pytest.raises(InputError, match="no factor"):
        load_sae(folder(tmp_path / "b", w), scaling=0.5)


def test_flat_configurations_of_version_5_are_read(tmp_path: Path) -> None:
    w = weights(scaling_factor=torch.linspace(0.5, 2, COUNT))
    path = folder(tmp_path / "a", w)
    flat = {
        "d_in": D_IN, "d_sae": COUNT, "dtype": "float32", "hook_point": "blocks.7.hook_mlp_out", "hook_point_layer": 7,
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "normalize_activations": False,
    }  # fmt: skip
    (path / "cfg.json").write_text(json.dumps(flat))
    found = load_sae(path)
    assert isinstance(found, TopKSAE)
    assert (found.k, found.site, found.layer, found.input_bias) == (5, "mlp_out", 7, True)
    torch.testing.assert_close(found.directions, w["W_dec"] * w["scaling_factor"][:, None])


def test_models_with_centred_writing_weights_get_centred_rows(tmp_path: Path) -> None:
    w, x = weights(), rows()
    path = folder(tmp_path / "a", w, model_from_pretrained_kwargs={"center_writing_weights": True})
    found = load_sae(path)
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(found.encode(x), plain(w, centred).relu())
    torch.testing.assert_close(
        found.reconstruct(x), plain(w, centred).relu() @ w["W_dec"] + w["b_dec"] + x.mean(1, keepdim=True)
    )
    with pytest.raises(InputError, match="no configuration that centres rows"):
        save_sae_lens(found, tmp_path / "b")


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("site", ["resid", "mlp", "attn", "mlp_out", "attn_out", "pre"])
@pytest.mark.parametrize("normalise", ["none", "norm", "layer"])
def test_what_we_write_comes_back_the_same(kind: str, site: str, normalise: str, tmp_path: Path) -> None:
    sae = made(kind, normalise=normalise)
    sae = type(sae)("sae", site, 5, **sae.tensors(), **sae.settings())
    save_sae_lens(sae, tmp_path / "sae")
    back = load_sae(tmp_path / "sae")
    assert (type(back), back.fingerprint, back.settings()) == (type(sae), sae.fingerprint, sae.settings())
    assert torch.equal(back.encode(rows()), sae.encode(rows()))


def test_the_written_folder_is_what_saelens_expects(tmp_path: Path) -> None:
    save_sae_lens(made("batchtopk", k=4.0), tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu"  # as SAELens itself saves them for inference
    assert config["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (D_IN, COUNT, "float32")
    tensors = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    shapes = {name: tuple(values.shape) for name, values in tensors.items()}
    assert shapes == {
        "W_enc": (D_IN, COUNT), "b_enc": (COUNT,), "W_dec": (COUNT, D_IN), "b_dec": (D_IN,), "threshold": (COUNT,)
    }  # fmt: skip
    with pytest.raises(InputError, match="exists already"):
        save_sae_lens(made("topk"), tmp_path / "sae")


def test_half_precision_is_kept(tmp_path: Path) -> None:
    save_sae_lens(made("topk").to(dtype=torch.bfloat16), tmp_path / "sae")
    assert load_sae(tmp_path / "sae").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("hook", "tap"),
    [
        ("blocks.5.hook_resid_post", ("resid", 5)),
        ("blocks.5.hook_resid_pre", ("resid", 4)),
        ("blocks.0.hook_mlp_out", ("mlp_out", 0)),
        ("blocks.11.attn.hook_z", ("attn", 11)),
        ("blocks.3.mlp.hook_post", ("mlp", 3)),
        ("model.layers.12", ("resid", 12)),
        ("transformer.h.3.mlp", ("mlp_out", 3)),
        ("gpt_neox.layers.7.attention", ("attn_out", 7)),
        ("layers.2", ("resid", 2)),
    ],
)
def test_hook_names_are_taps(hook: str, tap: tuple[str, int]) -> None:
    assert tap_of(hook) == tap
    if hook.startswith("blocks.") and "pre" not in hook:
        assert hook_of(*tap) == hook


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    w = weights()
    for hook in ("blocks.0.hook_resid_pre", "blocks.3.hook_pos", "None", "model.layers.3.norm"):
        with pytest.raises(InputError, match="say site= and layer="):
            tap_of(hook)
    with pytest.raises(InputError, match="no hook for the site 'up'"):
        hook_of("up", 1)
    path = folder(tmp_path / "a", w, metadata={})
    with pytest.raises(InputError, match="say site= and layer="):
        load_sae(path)
    assert load_sae(path, site="mlp", layer=1, name="words").name == "words"
    with pytest.raises(InputError, match="'gated'"):
        load_sae(folder(tmp_path / "b", w, "gated"))
    with pytest.raises(InputError, match="r_mag"):
        load_sae(folder(tmp_path / "c", weights(r_mag=torch.zeros(COUNT))))
    with pytest.raises(InputError, match="covariance_whitening"):
        load_sae(folder(tmp_path / "d", w, normalize_activations="covariance_whitening"))
    with pytest.raises(InputError, match="tanh-relu"):
        load_sae(folder(tmp_path / "e", w, activation_fn="tanh-relu"))


def test_damaged_folders_are_noticed(tmp_path: Path) -> None:
    w = weights()
    del w["b_dec"]
    with pytest.raises(DamagedError, match="no b_dec"):
        load_sae(folder(tmp_path / "a", w))
    with pytest.raises(DamagedError, match="the configuration says"):
        load_sae(folder(tmp_path / "b", weights(), d_sae=7))
    path = folder(tmp_path / "c", weights())
    (path / "sae_weights.safetensors").write_bytes(b"no")
    with pytest.raises(DamagedError, match="truncated"):
        load_sae(path)
    (path / "sae_weights.safetensors").unlink()
    with pytest.raises(InputError, match="no weights at"):
        load_sae(path)
    (path / "cfg.json").write_text("[]")
    with pytest.raises(DamagedError, match="no configuration"):
        load_sae(path)

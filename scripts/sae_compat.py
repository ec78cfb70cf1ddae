"""Do our autoencoders and those of SAELens agree, both ways? Needs an environment with sae-lens 6:

    python -m venv venv-sae && venv-sae/bin/pip install -e . sae-lens
    venv-sae/bin/python scripts/sae_compat.py

Not part of the test suite: sae-lens brings a hundred packages. Every architecture is written by SAELens with random weights and
read here, then written here and read by SAELens; features and reconstructions on the same rows must agree to 1e-5 of their
largest number, and explained variance, L0 and MSE to 1e-5. Exit status 1 if anything differs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import sae_lens
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.saes.sae import SAEMetadata

from patchclamp.read.sae_evaluation import Sums
from patchclamp.read.sae_kinds import KINDS, SAE
from patchclamp.read.sae_lens import load_sae_lens, save_sae_lens

D_IN, COUNT, ROWS = 48, 160, 500
TOLERANCE = 1e-5
Case = tuple[str, Callable[[Path], Any]]


def main() -> int:
    """Run every case; prints the largest relative difference of each."""
    warnings.filterwarnings("ignore")
    print(f"sae-lens {sae_lens.__version__}, torch {torch.__version__}; {ROWS} rows of width {D_IN}, {COUNT} features")
    worst = 0.0
    for name, write in theirs():
        with tempfile.TemporaryDirectory() as folder:
            peer = write(Path(folder))
            mine = load_sae_lens(folder)
            gap = difference(mine, peer)
            with tempfile.TemporaryDirectory() as again:  # and back
                if mine.normalise != "centre":
                    save_sae_lens(mine, again)
                    gap = max(gap, difference(mine, sae_lens.SAE.load_from_disk(again)))
        worst = max(worst, shown(f"theirs: {name}", gap))
    for name, mine in ours():
        with tempfile.TemporaryDirectory() as folder:
            save_sae_lens(mine, folder)
            peer = sae_lens.SAE.load_from_disk(folder)
            back = load_sae_lens(folder)
        same = back.kind == mine.kind and (back.site, back.layer) == (mine.site, mine.layer)
        worst = max(worst, shown(f"ours: {name}", difference(mine, peer) if same else float("inf")))
    worst = max(worst, shown("explained variance, L0, MSE", metric_gap()))
    print("agreed" if worst <= TOLERANCE else f"DIFFER: {worst:.2g} is above {TOLERANCE}")
    return int(worst > TOLERANCE)


def theirs() -> Iterator[Case]:
    """name, function that writes a SAELens folder and returns SAELens's autoencoder."""
    plain = {
        "standard": sae_lens.StandardSAEConfig,
        "topk": sae_lens.TopKSAEConfig,
        "jumprelu": sae_lens.JumpReLUSAEConfig,
    }
    for name, config in plain.items():
        more = {"k": 7} if name == "topk" else {}
        for settings in (
            {},
            {"apply_b_dec_to_input": False},
            {"normalize_activations": "layer_norm"},
            {"normalize_activations": "constant_norm_rescale"},
        ):
            yield f"{name} {settings or ''}", partial(written, config, {**settings, **more})
    yield (
        "topk, rescaled by decoder norms",
        lambda path: written(sae_lens.TopKSAEConfig, {"k": 7, "rescale_acts_by_decoder_norm": True}, path),
    )
    yield "standard, configuration of version 5", old_standard
    yield "batchtopk trained, inference folder", lambda path: trained_batchtopk(path, inference=True)
    yield "batchtopk trained, training folder", lambda path: trained_batchtopk(path, inference=False)


def ours() -> Iterator[tuple[str, SAE]]:
    """name, an autoencoder of ours, of every kind, place and way to normalise that SAELens has a word for."""
    for kind in KINDS:
        for site, normalise in (("resid", "none"), ("mlp", "norm"), ("mlp_out", "layer"), ("pre", "none")):
            yield f"{kind} of {site}, normalise={normalise}", made(kind, site, normalise)


def made(kind: str, site: str, normalise: str) -> SAE:
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(COUNT, D_IN, generator=g)
    more: dict[str, Any] = {"k": 9} if "topk" in kind else {}
    if kind in ("jumprelu", "batchtopk"):
        more["threshold"] = torch.rand(COUNT, generator=g)
    return KINDS[kind](
        "sae", site, 3, encoder=rows.T.contiguous() / 5, encoder_bias=torch.randn(COUNT, generator=g) / 5,
        directions=rows, decoder_bias=torch.randn(D_IN, generator=g), normalise=normalise, **more,
    )  # fmt: skip


def written(config: Any, settings: dict[str, Any], path: Path) -> Any:
    names = SAEMetadata(hook_name="blocks.3.hook_resid_post", model_name="gpt2")
    peer = sae_lens.SAE.get_sae_class_for_architecture(config.architecture())(
        config(d_in=D_IN, d_sae=COUNT, metadata=names, **settings)
    )
    randomised(peer)
    peer.save_model(path)
    return peer


def old_standard(path: Path) -> Any:
    peer = written(sae_lens.StandardSAEConfig, {}, path)
    flat = {
        "d_in": D_IN, "d_sae": COUNT, "dtype": "float32", "hook_point": "blocks.3.hook_resid_post", "model_name": "gpt2",
        "activation_fn_str": "relu", "normalize_activations": "none", "apply_b_dec_to_input": True, "device": "cpu",
    }  # fmt: skip
    (path / "cfg.json").write_text(json.dumps(flat))
    return peer


def trained_batchtopk(path: Path, *, inference: bool) -> Any:
    """What SAELens writes after training; compared with the inference autoencoder that it makes of it itself."""
    names = SAEMetadata(hook_name="blocks.3.hook_resid_post", model_name="gpt2")
    peer = sae_lens.BatchTopKTrainingSAE(
        sae_lens.BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=COUNT, k=7, metadata=names)
    )
    randomised(peer)
    peer.topk_threshold.fill_(1.3)
    with tempfile.TemporaryDirectory() as other:
        peer.save_inference_model(other)
        expected = sae_lens.SAE.load_from_disk(other)
    if inference:
        peer.save_inference_model(path)
    else:
        peer.save_model(path)
    return expected


def randomised(peer: Any) -> None:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, values in peer.named_parameters():
            drawn = torch.randn(values.shape, generator=g) / 5
            values.copy_(drawn.abs() + 0.1 if name == "threshold" else drawn)


def rows() -> Tensor:
    g = torch.Generator().manual_seed(7)
    return 3 * torch.randn(ROWS, D_IN, generator=g) + torch.randn(D_IN, generator=g)


def difference(mine: SAE, peer: Any) -> float:
    """Largest difference of features (in SAELens's units) and reconstructions, relative to the largest number."""
    x = rows()
    with torch.no_grad():
        pairs = ((mine.encode(x) / mine.scale(x), peer.encode(x)), (mine.reconstruct(x), peer(x)))
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def metric_gap() -> float:
    mine, x = made("topk", "resid", "none"), rows()
    with tempfile.TemporaryDirectory() as folder:
        save_sae_lens(mine, folder)
        peer = sae_lens.SAE.load_from_disk(folder)
    sums, calculator, l0, squares = Sums(mine), ExplainedVarianceCalculator(), 0.0, 0.0
    for part in x.split(128):
        sums.add(mine, part)
        with torch.no_grad():
            features, back = peer.encode(part), peer(part)
        calculator.add_batch(sae_output=back, hidden_acts=part)
        l0 += float((features != 0).sum())
        squares += float((part - back).square().sum())
    found = sums.metrics()
    expected = {"explained_variance": calculator.compute(), "l0": l0 / ROWS, "mse": squares / ROWS}
    return max(abs(found[key] - value) / abs(value) for key, value in expected.items())


def shown(name: str, gap: float) -> float:
    print(f"{gap:10.2g}  {name}")
    return gap


if __name__ == "__main__":
    sys.exit(main())

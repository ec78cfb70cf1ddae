"""Folders of SAELens (`cfg.json`, `sae_weights.safetensors`): published autoencoders come in, ours go out.

Architectures standard, topk, batchtopk and jumprelu of SAELens 6, and the flat configurations that versions before 6
wrote. What doesn't change a feature or reconstruction is folded into the weights on the way in: decoder norms by which
activations are rescaled, and the scaling factors of fine-tuning. Written are plain inference folders: a BatchTopK
autoencoder is a jumprelu one there, as SAELens itself writes it.

Hook names are those of TransformerLens (`blocks.5.hook_resid_post`) and module names of Hugging Face models. The written
config says under `metadata.patchclamp` what only we know (kind, k, site, layer, fingerprint).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import atomic_write, read_json, write_json
from patchclamp.read.sae_kinds import KINDS, SAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.0.0"  # of SAELens, whose configuration this is
ARCHITECTURES = {"standard": "relu", "topk": "topk", "batchtopk": "batchtopk", "jumprelu": "jumprelu"}
NORMALISERS = {"none": "none", "constant_norm_rescale": "norm", "layer_norm": "layer"}
TAKEN = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "log_threshold", "topk_threshold", "scaling_factor")
_TL = {
    "hook_resid_post": "resid",
    "attn.hook_z": "attn",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_post": "mlp",
    "mlp.hook_pre": "pre",
}
_BLOCKS = r"(?:(?:model|language_model|transformer|gpt_neox|backbone|decoder|model\.decoder|model\.language_model)\.)*"
_MODULE = re.compile(rf"{_BLOCKS}(?:layers|h|blocks)\.(\d+)(?:\.(mlp|self_attn|attn|attention))?")


def load_sae_lens(
    folder: str | os.PathLike[str],
    *,
    name: str = "sae",
    site: str | None = None,
    layer: int | None = None,
    scaling: float | None = None,
) -> SAE:
    """The autoencoder of a SAELens folder; numbers as the files have them, in their dtype.

    site, layer: what it decomposes, by default what its hook name says. scaling: the factor of activations that SAELens
    calls norm_scaling_factor, for a folder of "expected_average_only_in" that lacks it. Raises InputError for an
    architecture or a hook that can't be taken, DamagedError for files that are truncated or contradict each other.
    """
    path = Path(folder)
    config = _flat(read_json(path / CONFIG))
    weights = _weights(path / WEIGHTS)
    if site is None or layer is None:
        found = tap_of(str(config.get("hook_name")))
        site, layer = site or found[0], found[1] if layer is None else layer
    try:
        sae = _assembled(config, _scaled(config, weights, path, scaling), path, name, site, layer)
    except KeyError as problem:
        raise DamagedError(f"{path} is incomplete: it has no {problem.args[0]}") from problem
    sae.folder = path.absolute()
    return sae


def save_sae_lens(sae: SAE, folder: str | os.PathLike[str]) -> Path:
    """Write an autoencoder so that `sae_lens.SAE.load_from_disk` reads it; the folder may exist, its two files may not.

    Raises InputError for rows that are centred before encoding, which SAELens has no word for.
    """
    if sae.normalise == "centre":
        raise InputError(
            "SAELens has no configuration that centres rows; keep this autoencoder in our own format (save)"
        )
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG, WEIGHTS):
        if (path / file).exists():
            raise InputError(f"{path / file} exists already; choose another folder or remove it first")
    from safetensors.torch import save_file

    own = sae.tensors()
    tensors = {
        "W_enc": own["encoder"],
        "b_enc": own["encoder_bias"],
        "W_dec": own["directions"],
        "b_dec": own["decoder_bias"],
    }
    if "threshold" in own:
        tensors["threshold"] = own["threshold"]
    with atomic_write(path / WEIGHTS) as part:
        save_file({key: values.detach().cpu().contiguous().clone() for key, values in tensors.items()}, part)
    write_json(path / CONFIG, _config(sae))
    return path


def tap_of(hook: str) -> tuple[str, int]:
    """Our site and layer of a hook name. InputError where no site of ours holds these values."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if match and match[2] == "hook_resid_pre" and int(match[1]) > 0:
        return "resid", int(match[1]) - 1
    if match and match[2] in _TL:
        return _TL[match[2]], int(match[1])
    if module := _MODULE.fullmatch(hook):
        inside = {None: "resid", "mlp": "mlp_out"}.get(module[2], "attn_out")
        return inside, int(module[1])
    raise InputError(
        f"the hook {hook!r} has no site here (known: {', '.join(f'blocks.L.{end}' for end in _TL)}, blocks.L.hook_resid_pre "
        "from layer 1 on, and blocks of Hugging Face models); say site= and layer="
    )


def hook_of(site: str, layer: int) -> str:
    """TransformerLens's name of a site; InputError for one that it has no hook for."""
    ends = {own: end for end, own in _TL.items()}
    if site not in ends:
        raise InputError(f"TransformerLens has no hook for the site {site!r}; it has them for {', '.join(ends)}")
    return f"blocks.{layer}.{ends[site]}"


# --- reading -----------------------------------------------------------------------------------------------------


def _flat(config: Any) -> dict[str, Any]:
    """The configuration with its metadata beside the rest; names of older versions become those of version 6."""
    if not isinstance(config, dict):
        raise DamagedError(f"{CONFIG} holds no configuration of an autoencoder")
    metadata = config.get("metadata") or {}
    flat = {**metadata, **{key: value for key, value in config.items() if key != "metadata"}}
    for old, new in {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}.items():
        if old in flat:
            flat.setdefault(new, flat[old])
    arguments = flat.get("activation_fn_kwargs") or {}
    if flat.get("activation_fn") == "topk" and "k" in arguments:
        flat.update(architecture="topk", k=arguments["k"])
    elif str(flat.get("activation_fn") or "relu") not in ("relu", "topk"):
        raise InputError(f"the activation function {flat['activation_fn']!r} can't be read; relu and topk can")
    flat.setdefault("architecture", "standard")
    flat.setdefault("apply_b_dec_to_input", True)
    normalise = flat.get("normalize_activations") or "none"
    flat["normalize_activations"] = "expected_average_only_in" if normalise is True else normalise
    return flat


def _weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"no weights at {path}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as problem:
        raise DamagedError(f"{path} can't be read ({problem}); it may be truncated") from problem


def _scaled(
    config: Mapping[str, Any], weights: dict[str, Tensor], path: Path, scaling: float | None
) -> dict[str, Tensor]:
    """Weights with the factor that activations are multiplied by, folded in."""
    needed = config["normalize_activations"] == "expected_average_only_in"
    if scaling is None and not needed:
        return weights
    if scaling is None or not needed:
        which = (
            "a factor that it doesn't hold; give it: scaling="
            if needed
            else f"no factor, but scaling={scaling} was given"
        )
        raise InputError(f"activations for {path} are to be multiplied by {which}")
    if config.get("rescale_acts_by_decoder_norm", False) and "topk_threshold" in weights:
        weights = {**weights, "topk_threshold": weights["topk_threshold"] / scaling}
    changed = {
        "W_enc": weights["W_enc"] * scaling,
        "W_dec": weights["W_dec"] / scaling,
        "b_dec": weights["b_dec"] / scaling,
    }
    return {**weights, **changed}


def _assembled(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path, name: str, site: str, layer: int
) -> SAE:
    architecture = str(config["architecture"])
    if architecture not in ARCHITECTURES:
        raise InputError(f"{path} is a {architecture!r} autoencoder; {', '.join(ARCHITECTURES)} can be read")
    if surplus := sorted(set(weights) - set(TAKEN)):
        raise InputError(
            f"{path} has weights that its architecture {architecture!r} doesn't explain: {', '.join(surplus)}"
        )
    encoder, bias, rows = (weights[key] for key in ("W_enc", "b_enc", "W_dec"))
    shape = (int(config["d_sae"]), int(config["d_in"]))
    if tuple(rows.shape) != shape:
        raise DamagedError(f"{path}: W_dec has shape {tuple(rows.shape)}, the configuration says {shape}")
    arguments: dict[str, Any] = {}
    threshold = _threshold(architecture, weights)
    if config.get("rescale_acts_by_decoder_norm", False) and architecture in ("topk", "batchtopk"):
        norms = torch.linalg.vector_norm(rows, dim=1)  # the threshold of batchtopk is in these units already
        encoder, bias, rows = encoder * norms, bias * norms, rows / norms[:, None].clamp_min(1e-8)
    if (factor := weights.get("scaling_factor")) is not None:
        rows = rows * factor[:, None]
    own = (config.get("patchclamp") or {}) if isinstance(config.get("patchclamp"), dict) else {}
    kind = str(own.get("kind", ARCHITECTURES[architecture]))
    kind = kind if kind in KINDS else ARCHITECTURES[architecture]
    if threshold is not None:
        arguments["threshold"] = threshold.to(rows.dtype).expand(len(rows)).contiguous()
    if kind == "topk":
        arguments["k"] = int(config["k"])
    if kind == "batchtopk":
        arguments["k"] = own.get("k", config.get("k"))
    return KINDS[kind](
        name,
        site,
        layer,
        encoder=encoder,
        encoder_bias=bias,
        directions=rows,
        decoder_bias=weights["b_dec"],
        input_bias=bool(config["apply_b_dec_to_input"]),
        normalise=_normalise(config, path, site),
        provenance={"call": "read.load_sae", "inputs": {"folder": str(path.absolute()), "config": dict(config)}},
        **arguments,
    )


def _threshold(architecture: str, weights: Mapping[str, Tensor]) -> Tensor | None:
    if architecture == "jumprelu":
        return weights["log_threshold"].exp() if "log_threshold" in weights else weights["threshold"]
    return weights["topk_threshold"] if architecture == "batchtopk" else None


def _normalise(config: Mapping[str, Any], path: Path, site: str) -> str:
    """Our word for how rows are normalised.

    Models that TransformerLens loaded with centred writing weights have a residual stream whose rows have mean 0, which
    the model itself doesn't: such an autoencoder is given centred rows.
    """
    given = str(config["normalize_activations"]).replace("expected_average_only_in", "none")  # see `_scaled`
    if given not in NORMALISERS:
        raise InputError(f"{path} normalises activations by {given!r}; {', '.join(NORMALISERS)} can be read")
    kept = (config.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights", False)
    if given == "none" and kept and site in ("resid", "mlp_out", "attn_out"):
        return "centre"
    return NORMALISERS[given]


# --- writing -----------------------------------------------------------------------------------------------------


def _config(sae: SAE) -> dict[str, Any]:
    kind = "jumprelu" if sae.kind == "batchtopk" else {own: theirs for theirs, own in ARCHITECTURES.items()}[sae.kind]
    words = {own: theirs for theirs, own in NORMALISERS.items()}
    own = {"kind": sae.kind, "site": sae.site, "layer": sae.layer, "fingerprint": sae.fingerprint}
    metadata: dict[str, Any] = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": VERSION,
        "model_name": sae.model.get("name"),
        "hook_name": hook_of(sae.site, sae.layer),
        "hook_head_index": None,
        "prepend_bos": False,
        "patchclamp": {**own, "k": getattr(sae, "k", None), "provenance": sae.provenance},
    }
    config: dict[str, Any] = {
        "architecture": kind,
        "d_in": sae.d_in,
        "d_sae": sae.n_features,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.input_bias,
        "normalize_activations": words[sae.normalise],
        "reshape_activations": "hook_z" if sae.site == "attn" else "none",
        "metadata": metadata,
    }
    if kind == "topk":
        config |= {"k": getattr(sae, "k", None), "rescale_acts_by_decoder_norm": False}
    return config

"""Biases for projections that have none: is there a switch in the config that adds them, and adding them as zeros.

Llama's `mlp_bias` is such a switch. It is found by trying: every boolean of the config with "bias" in its name that is
off is turned on for a model without memory (meta device); it serves if that only adds biases, the wanted ones among them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from patchclamp.core.errors import ModelError


def bias_switch(hf: Any, wanted: list[str]) -> tuple[str, list[str]]:
    """(config attribute, names of the biases it adds) so that all `wanted` bias parameters exist; the fewest it can be.

    hf: a PreTrainedModel. Raises ModelError if no switch gives them, saying which were tried.
    """
    config = hf.config.get_text_config()
    tried = [key for key, value in sorted(config.to_dict().items()) if "bias" in key and value is False]
    found: dict[str, list[str]] = {}
    for key in tried:
        added = _added_by(hf, key)
        if added is not None and set(wanted) <= set(added):
            found[key] = added
    if not found:
        raise ModelError(
            f"{type(hf).__name__} has no bias {wanted[0]} to hold a mean or another constant, and no switch of its config adds "
            f"one (tried: {', '.join(tried) or 'there is none'}). Constants can be written into models whose projection has a "
            "bias (GPT-2, OPT, BLOOM, GPT-NeoX, ...) or whose config can add it (Llama: mlp_bias); here use clamp instead"
        )
    switch = min(found, key=lambda key: (len(found[key]), key))
    return switch, found[switch]


def add_biases(hf: Any, switch: str, names: list[str]) -> None:
    """Turn the switch on and add the biases as zeros, in place."""
    setattr(hf.config.get_text_config(), switch, True)
    for name in names:
        owner = hf.get_submodule(name.rpartition(".")[0])
        weight = owner.weight
        width = getattr(owner, "out_features", None) or getattr(owner, "nf", None) or weight.shape[0]
        owner.bias = nn.Parameter(
            torch.zeros(int(width), dtype=weight.dtype, device=weight.device), requires_grad=False
        )


def _added_by(hf: Any, key: str) -> list[str] | None:
    """Parameters that a switch adds; None if it changes anything else or the model can't be built with it."""
    config = copy.deepcopy(hf.config)
    setattr(config.get_text_config(), key, True)
    try:
        with torch.device("meta"):
            trial = type(hf)(config)
    except Exception:  # a config that the architecture refuses, by whatever error, is no switch
        return None
    old = {name: tuple(value.shape) for name, value in hf.named_parameters(remove_duplicate=False)}
    new = {name: tuple(value.shape) for name, value in trial.named_parameters(remove_duplicate=False)}
    if any(new.get(name) != shape for name, shape in old.items()):
        return None
    added = sorted(set(new) - set(old))
    plain = all(name.endswith(".bias") and len(new[name]) == 1 for name in added)
    return added if added and plain else None

"""Weights that read units: the columns of a projection, scaled or folded into its bias. What an edit writes.

A unit of `mlp` (or a coordinate of `attn`) is read by one column of the down (or attention output) projection W.
Scaling the column by f equals scaling the unit by f; replacing the unit by m equals zeroing the column and adding
m * column to the projection's bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchclamp.core.errors import InputError, ModelError
from patchclamp.intervene.targets import Coordinates
from patchclamp.models.anatomy import SitePath, fused_weight, weight_of
from patchclamp.models.units import SITES as MODEL_SITES

SITES = ("mlp", "attn", "head")


@dataclass(frozen=True)
class Projection:
    """What reads the units of one slab (a dense layer, or one expert of it).

    weight: [out, in] view of the live tensor. bias: [out] view, or None. names: parameter names of weight and bias.
    inner: columns to edit, int64 into `in`. number: for each of them its place among the layer's chosen coordinates.
    """

    weight: Tensor
    bias: Tensor | None
    names: tuple[str, str]
    inner: Tensor
    number: NDArray[np.int64]


def projections(model: Any, part: Coordinates) -> list[Projection]:
    """The projections that read the coordinates of one tap of a LanguageModel; several where there are experts.

    Raises ModelError for what can't be edited: tied, shared or quantised weights, or a place that no projection reads.
    """
    site, layer = part.tap
    found = []
    for place in model.anatomy.site(site, layer).places:
        each = place.width // (place.experts or 1)
        for first in range(place.offset, place.offset + place.width, each):
            number = np.flatnonzero((part.inner >= first) & (part.inner < first + each))
            if len(number):
                projection = _projection(
                    model, place, (first - place.offset) // each, part.inner[number] - first, number
                )
                _check(model, projection, part.tap, place)
                found.append(projection)
    return found


def scale_columns(projection: Projection, factor: float | NDArray[np.float64]) -> None:
    """Multiply the columns by a factor (one, or one per chosen coordinate); 0 writes exact zeros."""
    weight, inner = projection.weight, projection.inner
    factors = np.broadcast_to(np.asarray(factor, dtype=np.float64), projection.number.shape)
    wide = weight[:, inner].double() * torch.from_numpy(factors.copy()).to(weight.device)
    weight[:, inner] = torch.where(torch.from_numpy(factors == 0).to(weight.device), 0.0, wide).to(weight.dtype)


def fold_into_bias(projection: Projection, values: NDArray[np.float64]) -> None:
    """Add column * value to the bias for every chosen coordinate; the columns are left as they are."""
    if projection.bias is None:
        raise ModelError(f"{projection.names[0]} has no bias to fold values into")
    chosen = torch.from_numpy(values[projection.number]).to(projection.weight.device)
    added = projection.weight[:, projection.inner].double() @ chosen
    projection.bias.copy_((projection.bias.double() + added).to(projection.bias.dtype))


def _projection(
    model: Any, place: SitePath, expert: int, inner: NDArray[np.int64], number: NDArray[np.int64]
) -> Projection:
    """What reads the units `inner` of one expert of a place (expert 0 of a dense one)."""
    module = model.anatomy.module(place.path)
    if place.where == "experts":
        matrix, name = fused_weight(module, place)[expert], f"{place.path}.{place.weight}"
        biases = _attribute(module, f"{place.weight}_bias")
        bias = None if biases is None else biases[expert]
        return Projection(matrix, bias, (name, f"{name}_bias"), torch.from_numpy(inner).to(matrix.device), number)
    weight = _attribute(module, "weight")
    if place.where != "input" or weight is None or weight.dim() != 2:
        raise ModelError(f"no weight matrix reads what {place.path} ({type(module).__name__}) holds; use clamp instead")
    columns = torch.from_numpy(inner + (0 if place.part is None else place.part[0])).to(weight.device)
    names = (f"{place.path}.weight", f"{place.path}.bias")
    return Projection(weight_of(module), _attribute(module, "bias"), names, columns, number)


def _attribute(module: nn.Module, path: str) -> Tensor | None:
    """A tensor at a dotted path within a module, or None."""
    *owners, name = path.split(".")
    for owner in owners:
        module = getattr(module, owner)
    value = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None


def _check(model: Any, projection: Projection, tap: tuple[str, int], place: SitePath) -> None:
    weight, name = projection.weight, projection.names[0]
    if weight.is_meta:
        raise ModelError(f"{name} is not in memory (offloaded); load the model without device_map to edit it")
    if not weight.is_floating_point():
        raise ModelError(f"{name} is quantised ({weight.dtype}); load the model in float32 or bfloat16 to edit it")
    try:
        parameter = model.hf.get_parameter(name)
    except AttributeError as problem:
        raise ModelError(
            f"{name} is no plain parameter (an adapter?); merge or remove adapters to edit the model"
        ) from problem
    everywhere = model.hf.named_parameters(remove_duplicate=False)
    others = [other for other, value in everywhere if value is parameter and other != name]
    entries = enumerate(model.anatomy.sites[tap[0]])
    layers = [
        layer for layer, entry in entries if entry is not None and any(p.path == place.path for p in entry.places)
    ]
    if others or len(layers) > 1:
        shared = f"tied to {', '.join(others)}" if others else f"shared by layers {', '.join(map(str, layers))}"
        raise ModelError(f"{name} is {shared}; an edit would change those too: use clamp instead")


def check_sites(sites: tuple[str, ...]) -> None:
    """Raise InputError for sites whose units no column stands for."""
    wrong = [site for site in sites if site not in SITES]
    if features := [site for site in wrong if site not in MODEL_SITES]:
        raise InputError(
            f"units of {', '.join(features)} are features of a dictionary, which no weight of the model stands for: a "
            "checkpoint can't hold the edit; use clamp instead, or save it as interventions"
        )
    if wrong:
        raise InputError(
            f"units of {', '.join(wrong)} can't be edited into weights; {', '.join(SITES)} can: for others use clamp "
            "(setting gate or up to 0 equals setting the mlp unit of the same index to 0; so does pre, where the "
            "activation function is 0 at 0)"
        )

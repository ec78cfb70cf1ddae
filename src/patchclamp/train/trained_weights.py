"""Which weights a training run may change: all, those of modules named by patterns, or those that belong to units."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.core.errors import InputError, ModelError
from patchclamp.intervene.targets import coordinates
from patchclamp.models.anatomy import SitePath, linear_shape
from patchclamp.models.units import UnitSet

Only = str | Sequence[str] | UnitSet | None


@dataclass(frozen=True, eq=False)
class Part:
    """A parameter, or some entries of it. mask: bool of the parameter's shape, None for all of it."""

    name: str
    parameter: nn.Parameter
    mask: Tensor | None = None

    @property
    def size(self) -> int:
        """How many numbers are trained."""
        return int(self.parameter.numel() if self.mask is None else self.mask.sum())

    def take(self, values: Tensor) -> Tensor:
        """The part's entries of a tensor of the parameter's shape, float32: of that shape, or (size,) under a mask."""
        return (values if self.mask is None else values[self.mask]).float()

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Put entries, shaped as `take` gives them, into the parameter."""
        if self.mask is None:
            self.parameter.copy_(values)
        else:
            self.parameter[self.mask] = values.to(self.parameter.dtype)


def trained_weights(model: Any, only: Only = None) -> list[Part]:
    """The weights of a LanguageModel that `only` names, each parameter once, in the model's order.

    only: None for all; patterns (`*`, `?`, `[...]`) of module or parameter names, such as "*.mlp.down_proj" or
    "model.layers.3.*"; or a set of units, whose weights are the columns that read them and, where a linear map computes
    them, the rows of that map: for mlp units the rows of the up and gate projections, too.
    InputError for a pattern that matches nothing, or units that no weights belong to; ModelError for weights that can't be
    trained (quantised or offloaded).
    """
    if isinstance(only, UnitSet):
        found = _of_units(model, only)
    else:
        found = _of_patterns(model, None if only is None else [only] if isinstance(only, str) else list(only))
    for part in found:
        if part.parameter.is_meta or not part.parameter.is_floating_point():
            what = "offloaded" if part.parameter.is_meta else f"quantised ({part.parameter.dtype})"
            raise ModelError(
                f"{part.name} is {what} and can't be trained; load the model whole, in float32 or bfloat16"
            )
    return found


def _of_patterns(model: Any, patterns: list[str] | None) -> list[Part]:
    known = dict(model.hf.named_parameters())
    if patterns is None:
        return [Part(name, parameter) for name, parameter in known.items()]
    if not patterns:
        raise InputError("only=[] would train nothing; give patterns of module names, units, or None for all weights")
    canonical = {id(parameter): name for name, parameter in known.items()}
    chosen: set[str] = set()
    for pattern in patterns:
        hits = [
            canonical[id(parameter)]
            for name, parameter in model.hf.named_parameters(remove_duplicate=False)
            if any(fnmatchcase(owner, pattern) for owner in _owners(name))
        ]
        if not hits:
            raise InputError(f"no module or parameter is called {pattern!r}; {_nearest(pattern, model.hf)}")
        chosen.update(hits)
    return [Part(name, parameter) for name, parameter in known.items() if name in chosen]


def _owners(name: str) -> Iterable[str]:
    """The parameter's name and the names of all modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _nearest(pattern: str, hf: nn.Module) -> str:
    names = [name for name, _ in hf.named_modules() if name]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return f"there are for example {', '.join(near)}"


def _of_units(model: Any, units: UnitSet) -> list[Part]:
    units.check_model(model)
    if not len(units):
        raise InputError("the set of units is empty, so nothing would be trained")
    masks: dict[str, Tensor] = {}
    for coordinate in coordinates(units):
        site, layer = coordinate.tap
        inner = torch.from_numpy(coordinate.inner)
        taken = False
        for name in (site, "pre", "up") if site == "mlp" else ("pre",) if site == "gate" else (site,):
            entry = model.anatomy.sites.get(name, ())
            for place in entry[layer].places if entry and entry[layer] is not None else ():
                taken |= _mark(model, place, inner, masks)
        if not taken:
            raise InputError(f"no weights belong to units of {site} in layer {layer}; name modules instead")
    known = dict(model.hf.named_parameters())
    canonical = {id(parameter): name for name, parameter in known.items()}
    aliases = dict(model.hf.named_parameters(remove_duplicate=False))
    renamed = {canonical[id(aliases[name])]: mask for name, mask in masks.items()}
    return [Part(name, known[name], renamed[name].to(known[name].device)) for name in known if name in renamed]


def _mark(model: Any, place: SitePath, inner: Tensor, masks: dict[str, Tensor]) -> bool:
    """Mark the weights of a layer's units `inner` at one place; whether there were any."""
    mine = inner[(inner >= place.offset) & (inner < place.offset + place.width)] - place.offset
    module = model.anatomy.module(place.path)
    if not len(mine):
        return False
    if place.where == "experts":
        weight = module.get_parameter(place.weight)
        mask = masks.setdefault(f"{place.path}.{place.weight}", torch.zeros(weight.shape, dtype=torch.bool))
        each = place.width // place.experts
        stacked = mask.view(place.experts, each, -1) if mask.dim() == 2 else mask
        columns = stacked if place.transposed else stacked.transpose(1, 2)  # [experts, width, d_model]
        columns[mine // each, mine % each] = True
        return True
    shape = linear_shape(module)
    if shape is None or place.where not in ("input", "output"):
        return False
    inputs, outputs = shape
    at = place.cut(torch.arange(inputs if place.where == "input" else outputs)).reshape(-1)[mine]
    weight = module.get_parameter("weight")
    mask = masks.setdefault(f"{place.path}.weight", torch.zeros(weight.shape, dtype=torch.bool))
    oriented = mask.T if type(module).__name__ == "Conv1D" else mask  # [out, in]
    if place.where == "input":
        oriented[:, at] = True
    else:
        oriented[at] = True
        if getattr(module, "bias", None) is not None:
            masks.setdefault(f"{place.path}.bias", torch.zeros(outputs, dtype=torch.bool))[at] = True
    return True

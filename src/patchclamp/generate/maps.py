"""The linear maps of a layer's MLP, found and checked: what can be cut down to some neurons, and what is refused.

An MLP can be cut to a set of neurons if everything between its up and down projections works on each neuron by itself (an
activation function, a product with a gate, dropout). That is tried once per kind of MLP, not believed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchclamp.core.errors import InputError, ModelError
from patchclamp.models.anatomy import linear_shape, weight_of
from patchclamp.models.hooks import forward_replaced, run

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

TRIAL_TOKENS = 4
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest value; others 2e-2
_TRIED: WeakKeyDictionary[nn.Module, set[tuple[Any, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class MlpMaps:
    """One layer's MLP. ups: modules d_model -> width, or -> 2 width where gate and up lie side by side; down: the way back."""

    layer: int
    width: int
    ups: tuple[nn.Module, ...]
    down: nn.Module
    paths: tuple[str, ...]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The up projections, then the down projection."""
        return (*self.ups, self.down)

    def copies(self, up: nn.Module) -> int:
        """Outputs of an up projection per neuron."""
        return int(shape_of(up)[1]) // self.width

    @property
    def bytes(self) -> int:
        """Bytes of the weights that are read for one token."""
        return sum(weight_of(module).numel() * weight_of(module).element_size() for module in self.modules)


def mlp_maps(model: LanguageModel, layers: Sequence[int]) -> list[MlpMaps]:
    """The maps of some layers' MLPs; ModelError naming the layer where an MLP can't be cut to some of its neurons."""
    anatomy = model.anatomy
    if anatomy.time_first or anatomy.pads:
        raise ModelError(f"a {anatomy.model_type} model keeps its tensors in another order; its MLPs can't be cut")
    found = [_maps(model, layer) for layer in layers]
    tried = _TRIED.setdefault(model.hf, set())
    for maps in found:
        kind = (
            type(anatomy.module(anatomy.blocks[maps.layer])),
            maps.width,
            *(type(module) for module in maps.modules),
        )
        if kind not in tried:
            _try(model, maps)
            tried.add(kind)
    return found


def layers_of(n_layers: int, layers: Sequence[float] | Sequence[int]) -> list[int]:
    """Layer numbers of a range of depth, (0.1, 1.0) = all but the first tenth, or of a list of whole numbers."""
    given = list(layers)
    if len(given) == 2 and any(isinstance(value, float) for value in given):
        first, last = given
        if not 0 <= first < last <= 1:
            raise InputError(f"layers={tuple(given)} given; a range of depth is two rising shares between 0 and 1")
        chosen = list(range(round(first * n_layers), round(last * n_layers)))
    else:
        chosen = sorted({int(value) for value in given})
        if chosen and not 0 <= chosen[0] <= chosen[-1] < n_layers:
            raise InputError(f"layers={given} given, but the model has {n_layers} (0-{n_layers - 1})")
    if not chosen:
        raise InputError(f"layers={tuple(given)} leaves no layer of {n_layers}")
    return chosen


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear map that is known to be one."""
    shape = linear_shape(module)
    if shape is None:
        raise ModelError(f"a {type(module).__name__} is no linear map")
    return shape


def _maps(model: LanguageModel, layer: int) -> MlpMaps:
    anatomy = model.anatomy
    block, form = anatomy.blocks[layer], anatomy.forms[layer]
    if form == "experts":
        raise ModelError(
            f"layer {layer} ({block}) has experts, which a router chooses for every token; core neurons of a text are for "
            "dense MLPs, so leave the layer out (layers=) or use another model"
        )
    if form not in ("plain", "gated") or "mlp" not in anatomy.sites:
        raise ModelError(
            f"layer {layer} ({block}) has no MLP that could be cut to its core neurons; leave it out (layers=)"
        )
    down = anatomy.site("mlp", layer)
    places = [entry for site in ("pre", "up") if (entry := anatomy.sites.get(site, (None,) * (layer + 1))[layer])]
    if down.also or down.part or len(places) < 2 or any(place.every for place in places):
        why = next((note for note in anatomy.notes if note.startswith(block)), f"its MLP is {form}")
        raise ModelError(
            f"layer {layer} ({block}) can't be cut to some neurons, its up projections aren't clear: {why}"
        )
    paths = tuple(dict.fromkeys(place.path for place in places))
    ups, last = tuple(anatomy.module(path) for path in paths), anatomy.module(down.path)
    maps = MlpMaps(layer, down.width, ups, last, (*paths, down.path))
    for path, module in zip(maps.paths, maps.modules, strict=True):
        _check_linear(path, module)
    widths = sum(maps.copies(up) for up in ups)
    if widths != (1 if form == "plain" else 2) or any(shape_of(up)[1] % maps.width for up in ups):
        raise ModelError(
            f"layer {layer} ({block}) can't be cut: its up projections have {widths} x {maps.width} outputs"
        )
    return maps


def _check_linear(path: str, module: nn.Module) -> None:
    """Only linear maps with floating-point weights can be cut by taking rows and columns; a class of its own is tried."""
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    floats = isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == 2
    known = type(module).forward in (nn.Linear.forward, Conv1D.forward)
    if not floats or not (known or _acts_linear(module)):
        raise ModelError(
            f"{path} is a {type(module).__name__}; only linear maps with floating-point weights can be cut to core neurons "
            "(merge adapters into the weights, or load the model without quantization)"
        )


def _acts_linear(module: nn.Module) -> bool:
    """Whether a module that is not of a class we know computes x W^T + b."""
    weight, bias = weight_of(module), getattr(module, "bias", None)
    if weight.is_meta:
        return False
    noise = torch.randn(TRIAL_TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        found, wanted = module(noise), F.linear(noise, weight, bias)
    scale = float(wanted.abs().max()) * TOLERANCE.get(weight.dtype, 2e-2)
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= scale


def _try(model: LanguageModel, maps: MlpMaps) -> None:
    """Refuse an MLP whose neurons aren't independent: with half of them, these must have the values that they have in all."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.randperm(maps.width, generator=generator)[: max(1, maps.width // 2)].sort().values
    vocabulary = int(model.hf.config.get_text_config(decoder=True).vocab_size)
    ids = torch.randint(0, vocabulary, (1, TRIAL_TOKENS), generator=generator)
    mixed = (
        f"layer {maps.layer}: the MLP of a {model.anatomy.model_type} model mixes its neurons before the down projection (a "
        "norm, or a choice among them), so it can't be cut to some; leave the layer out (layers=)"
    )
    try:
        whole, part = (_neurons(model, maps, ids, rows) for rows in (None, kept))
    except RuntimeError as problem:
        raise ModelError(mixed) from problem
    wanted = whole[..., kept.to(whole.device)]
    scale = float(wanted.abs().max()) * TOLERANCE.get(whole.dtype, 2e-2)
    if part.shape != wanted.shape or float((part - wanted).abs().max()) > scale + 1e-12:
        raise ModelError(mixed)


def _neurons(model: LanguageModel, maps: MlpMaps, ids: Tensor, kept: Tensor | None) -> Tensor:
    """What enters the down projection, with all neurons or only those kept; the output is that of all of them."""
    seen: list[Tensor] = []

    def cut(up: nn.Module) -> Callable[[Tensor], Tensor]:
        plain, copies = up.forward, maps.copies(up)

        def forward(x: Tensor) -> Tensor:
            out: Tensor = plain(x)
            return out if kept is None else out[..., rows_of(kept.to(out.device), maps.width, copies)]

        return forward

    def down(h: Tensor) -> Tensor:
        seen.append(h)
        return h.new_zeros(*h.shape[:-1], model.anatomy.d_model)

    with contextlib.ExitStack() as stack:
        for up in maps.ups:
            stack.enter_context(forward_replaced(up, cut(up)))
        stack.enter_context(forward_replaced(maps.down, down))
        resid = "resid" in model.anatomy.sites
        run(model, ids, stop_after=("resid", maps.layer) if resid else None)
    return seen[0].float() if seen[0].dtype != torch.float64 else seen[0]


def rows_of(kept: Tensor, width: int, copies: int) -> Tensor:
    """Output rows of an up projection that belong to some neurons; with two copies those of both halves."""
    return torch.cat([kept + width * number for number in range(copies)]) if copies > 1 else kept

"""Which weights stand behind or before a tap: where an affine change of its vector is written.

| tap | weights |
|---|---|
| `mlp`, `attn` (heads too) | behind: the projection that reads them, expert by expert |
| `pre`, `up`, `q`, `k`, `v`, `mlp_out`, `attn_out` | before: the projection whose output they are |
| `mlp_out` of experts | before: all their down projections, for what is linear |
| `gate` of a gated MLP | scaled only: behind, as the mlp unit of the same index |
| `embed` | before: the rows of the embedding, untied from the output layer where the config can say so |
| `resid` | added to only: before, as mlp_out, where the block adds that to its stream as it is |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patchclamp.core.errors import ModelError
from patchclamp.intervene.affine import Affine, OfUnits
from patchclamp.models.anatomy import SitePath, fused_weight, linear_shape, weight_of
from patchclamp.models.hooks import Tap
from patchclamp.models.norms import of_blocks
from patchclamp.models.units import SITES

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

BEHIND, BEFORE = ("mlp", "attn"), ("pre", "up", "q", "k", "v", "mlp_out", "attn_out")
CLOSE = 1e-2  # of the largest value, for a multiplier measured in bfloat16


@dataclass(frozen=True)
class Writer:
    """One weight matrix that a change is written into.

    path: of its module. weight, bias: parameter names. expert: number within a fused tensor, None for a matrix of its own.
    table: rows are vectors themselves (an embedding), which come out multiplied by `times`.
    """

    path: str
    weight: str
    bias: str | None
    expert: int | None = None
    table: bool = False
    times: float = 1.0

    def matrix(self, model: LanguageModel) -> Tensor:
        """The live weight as (outputs, inputs), a view; of an embedding (d_model, tokens)."""
        module = model.anatomy.module(self.path)
        if self.expert is not None:
            return fused_weight(module, self._place(model))[self.expert]
        return weight_of(module).T if self.table else weight_of(module)

    def offset(self, model: LanguageModel) -> Tensor | None:
        """The live bias (outputs,), a view; None where there is none."""
        found = None if self.bias is None else _attribute(model.hf, self.bias)
        return found if found is None or self.expert is None else found[self.expert]

    def _place(self, model: LanguageModel) -> SitePath:
        entries = (entry for entry in model.anatomy.sites["mlp"] if entry is not None)
        return next(place for entry in entries for place in entry.places if place.path == self.path and place.experts)


@dataclass(frozen=True, eq=False)
class Written:
    """One affine map to be written. behind: whether the writer reads the vector, or else gives it. part: which of its

    inputs (or outputs) are the vector, None for all. stage: maps of a later stage act on what those of earlier ones left.
    """

    writer: Writer
    affine: Affine
    behind: bool
    part: Tensor | None = None
    stage: int = 1


def routes(model: LanguageModel, tap: Tap, affine: Affine) -> list[Written]:
    """Where a change of the vector at a tap is written. ModelError, with the reason, where no weight holds it."""
    site, layer = tap
    if site not in SITES:
        raise ModelError(
            f"units of {site} are features of a dictionary, which no weight of the model stands for: a checkpoint can't hold "
            "the edit; use clamp instead, or save it as interventions"
        )
    entry = model.anatomy.site(site, layer)
    if site == "embed":
        return [_of_table(model, entry, affine)]
    if site == "resid":
        return _of_stream(model, layer, affine)
    if site == "gate" and entry.where != "input":
        return _of_gate(model, layer, affine)
    if site in BEHIND or entry.where == "input":
        return _behind(model, tap, entry, affine)
    if site in BEFORE:
        return _before(model, tap, entry, affine)
    raise ModelError(f"{site} of layer {layer} is given by no weights that an edit could change; use clamp instead")


def _behind(model: LanguageModel, tap: Tap, entry: SitePath, affine: Affine, stage: int = 1) -> list[Written]:
    """The projections that read the coordinates of a tap; several where there are experts."""
    places = entry.places
    if not isinstance(affine, OfUnits) and (len(places) > 1 or places[0].experts):
        raise ModelError(
            f"{tap[0]} of layer {tap[1]} is read by several projections, which can't hold a direction; use clamp"
        )
    found = []
    for place in places:
        each = place.width // (place.experts or 1)
        part = None if place.part is None else torch.arange(*place.part)
        for number, writer in enumerate(_writers(model, tap, place)):
            first = place.offset + number * each
            mine = affine.within(first, each) if isinstance(affine, OfUnits) else affine
            if mine is not None:
                found.append(Written(writer, mine, True, part, stage))
    return found


def _before(model: LanguageModel, tap: Tap, entry: SitePath, affine: Affine, stage: int = 1) -> list[Written]:
    """The projection whose output a tap is."""
    module = model.anatomy.module(entry.path)
    if linear_shape(module) is not None and not entry.also:
        rows = torch.arange(linear_shape(module)[1])  # type: ignore[index]
        part = None if entry.part is None else entry.cut(rows[None]).flatten()
        return [Written(_writers(model, tap, entry)[0], affine, False, part, stage)]
    if tap[0] == "mlp_out" and any(place.experts for place in model.anatomy.site("mlp", tap[1]).places):
        return _before_experts(model, tap, affine, stage)
    raise ModelError(
        f"{tap[0]} of layer {tap[1]} is what {entry.path} ({type(module).__name__}) gives, not the output of one projection; "
        "use clamp instead"
    )


def _before_experts(model: LanguageModel, tap: Tap, affine: Affine, stage: int) -> list[Written]:
    """What experts give together is a weighted sum of their outputs: a linear map of the sum is one of each of them."""
    if affine.constant:
        raise ModelError(
            f"mlp_out of layer {tap[1]} is a sum over experts, each weighted by its router: no weight adds a constant to it; "
            "use clamp or steer instead, or write it at attn_out"
        )
    holder = model.anatomy.site(*tap).path  # a shared MLP beside it is not part of what it gives
    return [
        Written(writer, affine, False, None, stage)
        for place in model.anatomy.site("mlp", tap[1]).places
        if f"{place.path}.".startswith(f"{holder}.")
        for writer in _writers(model, ("mlp", tap[1]), place)
    ]


def _of_gate(model: LanguageModel, layer: int, affine: Affine) -> list[Written]:
    """A gated MLP multiplies gate and up: a gate unit scaled is the mlp unit of the same index scaled."""
    if not isinstance(affine, OfUnits) or affine.constant or model.anatomy.forms[layer] != "gated":
        raise ModelError(
            f"gate of layer {layer} is multiplied by up, so only units scaled or set to 0 can be written (into the columns of "
            "the mlp units of the same index); use clamp instead, or change pre or mlp"
        )
    return _behind(model, ("mlp", layer), model.anatomy.site("mlp", layer), affine, stage=0)


def _of_stream(model: LanguageModel, layer: int, affine: Affine) -> list[Written]:
    """The stream is a sum; what is added behind a block may as well come out of its MLP."""
    if not affine.only_adds:
        raise ModelError(
            f"resid of layer {layer} is a sum of everything that was added to the stream before, which no weight gives: only "
            "adding to it can be written. To remove a direction write it at embed, attn_out and mlp_out of all layers "
            "(ablation(model, direction)), or use clamp"
        )
    norms = of_blocks(model)[layer]
    if "mlp" not in norms.after or norms.after["mlp"] is not None:
        why = "passes a norm on its way there" if "mlp" in norms.after else "could not be followed there"
        raise ModelError(
            f"what is added to resid of layer {layer} would have to come out of its MLP, whose output {why}; use clamp or "
            "steer instead, or change mlp_out"
        )
    entry = model.anatomy.site("mlp_out", layer)
    return _before(model, ("mlp_out", layer), entry, affine.times(1.0 / norms.times["mlp"]), stage=2)


def _of_table(model: LanguageModel, entry: SitePath, affine: Affine) -> Written:
    """The embedding, with the multiplier between its rows and what comes out."""
    module = model.anatomy.module(entry.path)
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Embedding) or not isinstance(weight, Tensor) or entry.part is not None:
        raise ModelError(
            f"embed is what {entry.path} ({type(module).__name__}) gives, which is no table; use clamp instead"
        )
    name = f"{entry.path}.weight"
    _check(model, ("embed", 0), entry, name, weight)
    ids = torch.arange(min(16, weight.shape[0]), device=weight.device)
    with torch.inference_mode():
        given, rows = module(ids).double(), weight[ids].double()
    times = float((given * rows).sum() / rows.square().sum().clamp(min=1e-30))
    if not times or not bool((given - times * rows).abs().max() <= CLOSE * given.abs().max()):
        raise ModelError(f"{entry.path} does more to its rows than multiply them; use clamp instead")
    return Written(
        Writer(entry.path, name, None, table=True, times=1.0 if abs(times - 1) < CLOSE else times), affine, False
    )


def _writers(model: LanguageModel, tap: Tap, place: SitePath) -> list[Writer]:
    """The matrix at a place, checked; one per expert where there are several."""
    module = model.anatomy.module(place.path)
    if place.where == "experts":
        name = f"{place.path}.{place.weight}"
        _check(model, tap, place, name, fused_weight(module, place))
        return [Writer(place.path, name, f"{name}_bias", expert=number) for number in range(place.experts)]
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ModelError(
            f"no weight matrix stands at {place.path} ({type(module).__name__}), where {tap[0]} of layer {tap[1]} is; use clamp"
        )
    name = f"{place.path}.weight"
    _check(model, tap, place, name, weight)
    return [Writer(place.path, name, f"{place.path}.bias")]


def _check(model: LanguageModel, tap: Tap, place: SitePath, name: str, weight: Tensor) -> None:
    """ModelError for weights that an edit can't or must not change."""
    if weight.is_meta:
        raise ModelError(f"{name} is not in memory (offloaded); load the model without device_map to edit it")
    if not weight.is_floating_point():
        raise ModelError(f"{name} is quantised ({weight.dtype}); load the model in float32 or bfloat16 to edit it")
    parameter = _attribute(model.hf, name)
    if not isinstance(parameter, nn.Parameter):
        raise ModelError(f"{name} is no plain parameter (an adapter?); merge or remove adapters to edit the model")
    everywhere = model.hf.named_parameters(remove_duplicate=False)
    others = [other for other, value in everywhere if value is parameter and other != name]
    entries = enumerate(model.anatomy.sites[tap[0]])
    layers = [n for n, entry in entries if entry is not None and any(p.path == place.path for p in entry.places)]
    if tap[0] == "embed" and others == [f"{model.anatomy.lm_head}.weight"]:
        return  # the output layer gets weights of its own
    if others or len(layers) > 1:
        shared = f"tied to {', '.join(others)}" if others else f"shared by layers {', '.join(map(str, layers))}"
        raise ModelError(f"{name} is {shared}; an edit would change those too: use clamp instead")


def _attribute(module: nn.Module, path: str) -> Any:
    """A tensor at a dotted path, or None."""
    *owners, name = path.split(".")
    for owner in owners:
        module = getattr(module, owner, None)  # type: ignore[assignment]
    value = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None

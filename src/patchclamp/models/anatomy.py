"""What a causal language model is made of: blocks, sites, heads, experts, LM head.

`find_anatomy(hf)` (in `discovery.py`) reads it from the module tree; this file says what an `Anatomy` holds and what
can be asked of it.

Sites of a layer:
- `mlp`: the vector that enters the MLP's down projection. Where a layer has experts, the units of expert e come
  e-th; shared experts, which every token passes, come after the routed ones as further experts of the same width.
- `gate`: the output of the activation function; for a plain MLP that is `mlp` itself. `up`: the output of the up
  projection; `pre`: the vector that enters the activation function, which is the gate projection's output (for a plain
  MLP the up projection's). All three exist only in dense layers, and only where a trial run showed which is which.
- `attn`: the vector that enters the attention output projection; `head` is its view by heads.
- `q`, `k`, `v`: the outputs of the attention's query, key and value projections, head after head, before any norm,
  rotation or convolution; `k` and `v` have the model's key-value heads. Absent where there are no such projections of
  their own (latent and linear attention, recurrent layers).
- `attn_out`, `mlp_out`: the outputs of these projections (of the whole expert module in a layer with experts).
- `resid`: the hidden state that leaves the block. `embed`: the token embedding, in layer 0.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout

if TYPE_CHECKING:
    from patchclamp.models.features import Dictionary

ENDS = ("final", "logits")


@dataclass(frozen=True)
class SitePath:
    """Where one site of one layer lies.

    path: dotted name of a module. where: "input" (its first argument), "output" (what it returns, or the first
    of a tuple), "final" and "logits" (the same of the trunk and of the whole model), "experts" (what is multiplied with its
    fused expert tensor `weight` inside its forward). width: units there. part: columns of the tensor that belong to the
    site (None = all); with `every`, columns of each group of so many (several projections in one, interleaved by heads).
    offset: first unit within the layer.
    experts: experts there (0 = dense). transposed: the fused tensor is [experts, width, d_model], not
    [experts, d_model, width]. also: further places of the same site and layer, after this one.
    """

    path: str
    where: str
    width: int
    part: tuple[int, int] | None = None
    every: int = 0
    offset: int = 0
    experts: int = 0
    weight: str = ""
    transposed: bool = False
    also: tuple[SitePath, ...] = ()

    @functools.cached_property
    def places(self) -> tuple[SitePath, ...]:
        """All places of the site, in the order of their units."""
        return (replace(self, also=()), *self.also) if self.also else (self,)

    def cut(self, values: torch.Tensor) -> torch.Tensor:
        """The site's columns of a module's tensor, as a view: (..., width), or (..., groups, columns) with `every`."""
        if self.part is None:
            return values
        grouped = values.unflatten(-1, (-1, self.every)) if self.every else values
        return grouped[..., self.part[0] : self.part[1]]

    @property
    def total_width(self) -> int:
        return sum(place.width for place in self.places)

    @property
    def total_experts(self) -> int:
        """Experts over all places; a dense place beside experts counts as width / expert width of them."""
        if not any(place.experts for place in self.places):
            return 0
        each = next(place.width // place.experts for place in self.places if place.experts)
        return self.total_width // each


@dataclass
class Anatomy:
    """The parts of one model. Paths are dotted module names within the `PreTrainedModel`.

    trunk: the smallest module around the blocks that takes input_ids. sites: site -> one SitePath per layer, None
    where a layer has no such site. heads: attention heads per layer (0 where there are none). forms: per layer
    "plain", "gated", "experts" or "none". soft_cap and logit_scale: logits = cap * tanh(scale * head(norm(x)) / cap).
    time_first: tensors inside are (seq, batch, width); pads: they may be longer than the input. notes: what was left
    out, and why. features: site -> layer -> the dictionary whose features are the units there (`with_features`).
    """

    model_type: str
    trunk: str
    blocks: list[str]
    sites: dict[str, tuple[SitePath | None, ...]]
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    heads: tuple[int, ...]
    embed: str | None
    final_norm: str | None
    lm_head: str | None
    tied: bool
    forms: tuple[str, ...]
    soft_cap: float | None = None
    logit_scale: float = 1.0
    time_first: bool = False
    pads: bool = False
    notes: tuple[str, ...] = ()
    features: Mapping[str, Mapping[int, Dictionary]] = field(default_factory=dict)
    root: Any = field(default=None, repr=False)
    _modules: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def module(self, path: str) -> nn.Module:
        """The module at a dotted path; looked up once."""
        if path not in self._modules:
            self._modules[path] = self.root.get_submodule(path)
        return self._modules[path]

    def site(self, site: str, layer: int) -> SitePath:
        """Where a tap lies (of a feature: the tap that its dictionary decomposes); InputError names what the model has.

        Two taps of the last layer are no sites of units: `final`, the normed state that enters the LM head, and `logits`.
        """
        if site in ENDS:
            return self._end(site, layer)
        if site in self.features:
            return self.site(self._dictionary(site, layer).site, layer)
        entries = self.sites.get("attn" if site == "head" else site)
        if entries is None or (site == "head" and not any(self.heads)):
            raise InputError(
                f"this {self.model_type} model has no site {site!r}; it has {', '.join(self.layouts)}{self._why(site)}"
            )
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} asked for, but the model has {self.n_layers} (0-{self.n_layers - 1})")
        found = entries[layer]
        if found is None or (site == "head" and not self.heads[layer]):
            have = [str(number) for number, entry in enumerate(entries) if entry is not None]
            raise InputError(
                f"layer {layer} has no site {site!r}; layers with it: {', '.join(have)}{self._why(site, layer)}"
            )
        return found

    def _end(self, site: str, layer: int) -> SitePath:
        if layer != self.n_layers - 1:
            raise InputError(f"{site!r} lies after the last layer, {self.n_layers - 1}; layer {layer} was asked for")
        if site == "final":
            return SitePath(self.trunk, "final", self.d_model)
        return SitePath("", "logits", int(self.root.config.get_text_config(decoder=True).vocab_size))

    def feature(self, site: str, layer: int) -> Dictionary | None:
        """The dictionary whose features a tap shows; None for a site of the model's own."""
        return self._dictionary(site, layer) if site in self.features else None

    def _dictionary(self, site: str, layer: int) -> Dictionary:
        layers = self.features[site]
        if layer not in layers:
            have = ", ".join(map(str, layers))
            raise InputError(f"layer {layer} has no site {site!r}; layers with a dictionary of that name: {have}")
        return layers[layer]

    def _why(self, site: str, layer: int | None = None) -> str:
        """The note that says why a site is missing, as the end of a message."""
        start = "" if layer is None else self.blocks[layer]
        notes = (
            note for note in self.notes if re.match(rf"{re.escape(start)}\b", note) and re.search(rf"\b{site}\b", note)
        )
        return next((f" ({note})" for note in notes), "")

    def leave_out(self, taps: Mapping[tuple[str, int], str]) -> None:
        """Take sites out of layers, each with the reason, which goes into the notes."""
        for (site, layer), reason in taps.items():
            entries = self.sites[site]
            self.sites[site] = (*entries[:layer], None, *entries[layer + 1 :])
            self.notes = (*self.notes, f"{self.blocks[layer]}.{site}: left out, {reason}")
        self.sites = {site: entries for site, entries in self.sites.items() if any(entries)}
        vars(self).pop("layouts", None)

    @functools.cached_property
    def layouts(self) -> dict[str, Layout]:
        """Site -> Layout; `head` (one unit per attention head) stands beside `attn` where heads are known."""
        found = {
            site: Layout(
                site,
                tuple(0 if entry is None else entry.total_width for entry in entries),
                tuple(0 if entry is None else entry.total_experts for entry in entries),
            )
            for site, entries in self.sites.items()
        }
        if "attn" in found and any(self.heads):
            found["head"] = Layout("head", self.heads)
        for site, layers in self.features.items():
            widths = [layers[layer].n_features if layer in layers else 0 for layer in range(self.n_layers)]
            found[site] = Layout(site, tuple(widths))
        return found

    def down(self, layer: int) -> nn.Module:
        """The down projection of a dense layer's MLP: Linear (weight [d_model, d_mlp]) or Conv1D ([d_mlp, d_model])."""
        entry = self.site("mlp", layer)
        if entry.also or entry.where != "input":
            raise InputError(f"layer {layer} has several down projections ({self.forms[layer]}); use down_weights")
        return self.module(entry.path)

    def down_weights(self, layer: int) -> list[tuple[int, torch.Tensor]]:
        """(first unit, weight [d_model, width]) of every down projection of a layer, one per expert; views, no copies."""
        found = []
        for place in self.site("mlp", layer).places:
            if place.where == "input":
                found.append((place.offset, weight_of(self.module(place.path))))
                continue
            each = place.width // place.experts
            stacked = fused_weight(self.module(place.path), place)
            found += [(place.offset + number * each, stacked[number]) for number in range(place.experts)]
        return found


def weight_of(module: nn.Module) -> torch.Tensor:
    """Weight of a linear map as [out, in], whatever the module's orientation; a view."""
    weight: Any = module.weight
    return weight.T if type(module).__name__ == "Conv1D" else weight


def fused_parameter(module: nn.Module, place: SitePath) -> nn.Parameter:
    """The fused down projection of all experts, as the model stores it."""
    return module.get_parameter(place.weight)


def fused_weight(module: nn.Module, place: SitePath) -> torch.Tensor:
    """The fused down projection as [experts, d_model, width]; a view."""
    weight, each = fused_parameter(module, place), place.width // place.experts
    stacked = weight.view(place.experts, each, -1) if weight.dim() == 2 else weight
    return stacked.transpose(1, 2) if place.transposed else stacked


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map (Linear and its quantized kin, Conv1D), None for other modules."""
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int):
        return int(module.weight.shape[0]), int(module.nf)  # type: ignore[arg-type,index]
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None

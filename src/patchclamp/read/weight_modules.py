"""Weight modules: the linear maps inside a model's blocks as named nodes, the groups in which they are pruned, masking.

`weight_modules(model)` gives one `WeightModule` per projection (`q.3`, `down.0`), or per attention and MLP block
(`attn.3`, `mlp.0`). A module's weights fall into groups that live or die together: an output row of a projection (an
input column of o and down), or, in blocks, a head with its rows of q, k, v and columns of o, and an MLP channel with its
rows of gate and up and its column of down (the coupled groups of LLM-Pruner; Ma et al. 2023, arXiv 2305.11627).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchclamp.core.errors import InputError, ModelError
from patchclamp.models.anatomy import SitePath, linear_shape, weight_of

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

KINDS = ("projection", "block")
ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


@dataclass(frozen=True, eq=False)
class Part:
    """Lines of one linear map. path: dotted name of its module. axis: 0 if the lines are output rows, 1 if input columns.

    lines: (n,) int64, which rows or columns. groups: (n,) int64, the group of the module that each belongs to.
    """

    path: str
    axis: int
    lines: Tensor
    groups: Tensor

    def weight(self, model: LanguageModel) -> Tensor:
        """The whole weight, (outputs, inputs), as a view."""
        return weight_of(model.anatomy.module(self.path))

    def line_length(self, model: LanguageModel) -> int:
        return int(self.weight(model).shape[1 - self.axis])


@dataclass(frozen=True, eq=False)
class WeightModule:
    """A node of the network. name: kind and layer, "q.3". block: "attention" or "mlp"."""

    name: str
    block: str
    layer: int
    parts: tuple[Part, ...]
    n_groups: int

    @property
    def paths(self) -> tuple[str, ...]:
        """Dotted names of the linear maps that it is made of."""
        return tuple(part.path for part in self.parts)

    def group_sizes(self, model: LanguageModel) -> NDArray[np.int64]:
        """(n_groups,) weights in each group."""
        sizes = np.zeros(self.n_groups, dtype=np.int64)
        for part in self.parts:
            np.add.at(sizes, part.groups.numpy(), part.line_length(model))
        return sizes


def weight_modules(
    model: LanguageModel, kind: str = "projection", *, layers: Sequence[int] | None = None
) -> list[WeightModule]:
    """The weight modules of a model, layer after layer: q, k, v, o, gate, up, down, or attn and mlp with kind="block".

    A fused map (q, k and v in one) counts as the projections that it holds. Other linear maps of a block, such as those
    of experts, are modules of their own, named by their path in the block, as "mlp.experts.2.w1.3"; in kind="block" they
    are left out. layers: only these (the paper leaves out the first 3 and the last of 32). Raises InputError for an
    unknown kind or layer, ModelError where no linear map is found or weights are quantized or offloaded.
    """
    if kind not in KINDS:
        raise InputError(f"modules={kind!r}; it is one of {', '.join(KINDS)}")
    wanted = list(range(model.anatomy.n_layers)) if layers is None else list(dict.fromkeys(layers))
    if wrong := [layer for layer in wanted if not 0 <= layer < model.anatomy.n_layers]:
        raise InputError(f"layer {wrong[0]} asked for; this model has 0 to {model.anatomy.n_layers - 1}")
    found: list[WeightModule] = []
    for layer in wanted:
        own = {name: part for name in (*ATTENTION, *MLP) if (part := _projection(model, name, layer)) is not None}
        if kind == "block":
            found += _blocks(model, own, layer)
            continue
        found += [_single(f"{name}.{layer}", _block_of(name), layer, part) for name, part in own.items()]
        found += _others(model, {part.path for part in own.values()}, layer)
    if not found:
        raise ModelError(
            f"{model.name} has no linear maps in its blocks that could be read as modules; nothing to prune"
        )
    for module in found:
        _check_weights(model, module)
    return found


@contextlib.contextmanager
def pruned(model: LanguageModel, modules: Sequence[WeightModule], removed: Mapping[str, Any]) -> Iterator[None]:
    """Inside, the removed groups' weights (and biases of output rows) are 0; afterwards they are what they were, exactly.

    removed: module name -> (n_groups,) bool. The model's fingerprint is settled before, so that it stays the whole one's.
    """
    _ = model.identity
    kept: list[tuple[Tensor, int, Tensor, Tensor]] = []
    try:
        for module in modules:
            gone = torch.as_tensor(np.asarray(removed[module.name], dtype=bool))
            for part in module.parts:
                lines = part.lines[gone[part.groups]]
                if len(lines):
                    kept += _zero(model.anatomy.module(part.path), part.axis, lines)
        yield
    finally:
        with torch.no_grad():
            for weight, axis, lines, before in reversed(kept):
                weight.index_copy_(axis, lines, before)


def weight_change(
    before: LanguageModel, after: LanguageModel, modules: Sequence[WeightModule]
) -> dict[str, dict[str, float]]:
    """Module name -> L2 norm of the change of its weights, the norm before, and the cosine between before and after."""
    found = {}
    for module in modules:
        moved = size = dot = other = 0.0
        for part in module.parts:
            old, new = (one.index_select(part.axis, part.lines.to(one.device)).cpu().double()
                        for one in (part.weight(before), part.weight(after)))  # fmt: skip
            if old.shape != new.shape:
                raise InputError(f"{module.name} has shape {tuple(old.shape)} before and {tuple(new.shape)} after")
            moved += float((new - old).square().sum())
            size += float(old.square().sum())
            other += float(new.square().sum())
            dot += float((old * new).sum())
        cosine = dot / (size * other) ** 0.5 if size and other else 1.0
        found[module.name] = {"change": moved**0.5, "norm": size**0.5, "cosine": cosine}
    return found


def _projection(model: LanguageModel, name: str, layer: int) -> Part | None:
    """The part that a named projection is; None where the layer has no single linear map that does its work."""
    form = model.anatomy.forms[layer]
    if name == "gate" and form != "gated":
        return None  # a plain MLP has one matrix before its activation function: up
    site = {"o": "attn", "gate": "pre", "down": "mlp", "up": "pre" if form == "plain" else "up"}.get(name, name)
    entries = model.anatomy.sites.get(site)
    place = None if entries is None else entries[layer]
    side = 1 if name in ("o", "down") else 0
    if place is None or place.also or place.experts or place.where != ("input" if side else "output"):
        return None
    shape = linear_shape(model.anatomy.module(place.path))
    if shape is None:
        return None
    lines = _lines(place, shape[0] if side else shape[1])
    return Part(place.path, side, lines, torch.arange(len(lines)))


def _lines(place: SitePath, size: int) -> Tensor:
    return place.cut(torch.arange(size)).reshape(-1)


def _single(name: str, block: str, layer: int, part: Part) -> WeightModule:
    return WeightModule(name, block, layer, (part,), len(part.lines))


def _block_of(name: str) -> str:
    return "attention" if name in ATTENTION else "mlp"


def _blocks(model: LanguageModel, own: Mapping[str, Part], layer: int) -> list[WeightModule]:
    """The attention block by heads that share keys and values, the MLP block by channels, where the layer has them."""
    found = []
    attention = [own[name] for name in ATTENTION if name in own]
    heads = model.anatomy.heads[layer]
    if "o" in own and "v" in own and heads:
        shared = max(1, len(own["v"].lines) // max(1, len(own["o"].lines) // heads))  # key-value heads
        if all(len(part.lines) % shared == 0 for part in attention):
            parts = tuple(replace(part, groups=part.groups // (len(part.lines) // shared)) for part in attention)
            found.append(WeightModule(f"attn.{layer}", "attention", layer, parts, shared))
    channels = [own[name] for name in MLP if name in own]
    if "down" in own and all(len(part.lines) == len(own["down"].lines) for part in channels):
        found.append(WeightModule(f"mlp.{layer}", "mlp", layer, tuple(channels), len(own["down"].lines)))
    return found


def _others(model: LanguageModel, taken: set[str], layer: int) -> list[WeightModule]:
    """Further linear maps of a block, each by its output rows."""
    block = model.anatomy.blocks[layer]
    inside = model.anatomy.module(block).named_modules()
    attention = getattr((model.anatomy.sites.get("attn") or [None] * (layer + 1))[layer], "path", "")
    near = attention.rpartition(".")[0]
    found = []
    for name, module in inside:
        path, shape = f"{block}.{name}", linear_shape(module)
        if shape is None or path in taken or not name or any(True for _ in module.children()):
            continue
        kind = "attention" if near not in ("", block) and path.startswith(near) else "mlp"
        part = Part(path, 0, torch.arange(shape[1]), torch.arange(shape[1]))
        found.append(_single(f"{name}.{layer}", kind, layer, part))
    return found


def _check_weights(model: LanguageModel, module: WeightModule) -> None:
    for part in module.parts:
        weight = part.weight(model)
        if weight.is_meta or not weight.is_floating_point():
            raise ModelError(
                f"the weight of {part.path} is {'offloaded' if weight.is_meta else f'quantized ({weight.dtype})'}; load the "
                "model in a floating-point dtype on its device to prune it"
            )


def _zero(module: nn.Module, axis: int, lines: Tensor) -> list[tuple[Tensor, int, Tensor, Tensor]]:
    """Set lines of a map to 0; what is needed to undo it: (tensor, axis, lines, values)."""
    changed = []
    tensors = [(weight_of(module), axis)]
    bias: Any = getattr(module, "bias", None)
    if axis == 0 and isinstance(bias, Tensor):
        tensors.append((bias, 0))
    with torch.no_grad():
        for tensor, where in tensors:
            at = lines.to(tensor.device)
            changed.append((tensor, where, at, tensor.index_select(where, at).clone()))
            tensor.index_fill_(where, at, 0)
    return changed

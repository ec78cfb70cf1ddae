"""Which direction of the residual stream a unit writes, or reads: one row per unit, block by block, for every site.

Written directions: what one unit of activation adds to the residual stream.
- `mlp`: rows of the down projection, expert by expert. `attn`: rows of the attention output projection.
- `head`: the head's strongest path from stream to stream: the largest singular value of W_V W_O with what it writes. Its sign is
  arbitrary: both ends of a head's map belong together.
- `resid`, `embed`, `mlp_out`, `attn_out`: the coordinates of the stream themselves.
- features of a dictionary on any of these sites: its decoder rows, brought to the stream.
Read directions: what a unit's activation is the product of the (normed) stream with.
- `up`, `gate`, `pre`, `q`, `k`, `v`: rows of the projection that gives them.

A written direction of a layer whose output passes a norm or a multiplier on its way to the stream carries it; a read one
carries the gain of the norm in front of the projection if `fold`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.models.anatomy import linear_shape, weight_of
from patchclamp.models.norms import BlockNorms, linear_part, of_blocks

if TYPE_CHECKING:
    from patchclamp.models.features import Dictionary
    from patchclamp.models.load import LanguageModel

STREAM = ("resid", "embed", "mlp_out", "attn_out")
READ = {"up": "mlp", "gate": "mlp", "pre": "mlp", "q": "attn", "k": "attn", "v": "attn"}
_SUBLAYER = {"mlp": "mlp", "mlp_out": "mlp", "attn": "attn", "attn_out": "attn", "head": "attn"}


@dataclass(frozen=True, eq=False)
class Directions:
    """Rows (n, d_model) of the units offset .. offset + n - 1 of a layer. reads: whether the units read them, not write."""

    layer: int
    offset: int
    rows: Tensor
    reads: bool = False


def sites_with_directions(model: LanguageModel) -> tuple[str, ...]:
    """The sites of a model whose units have a direction in the residual stream."""
    features = model.anatomy.features
    able = {*STREAM, *READ, "mlp", "attn", "head"}
    return tuple(site for site in model.layouts if site in able or site in features)


def output_directions(model: LanguageModel, site: str, *, fold: bool = True) -> Iterator[Directions]:
    """All units of a site with their direction, in the order of the site's layout; weights are views where they can be.

    fold: read directions carry the gain of the norm in front of their projection, if the model has one there.
    InputError for a site without directions, ModelError for weights that are NaN, infinite, quantized or not in memory.
    """
    if site not in model.layouts:
        raise InputError(f"{model.name} has no site {site!r}; it has {', '.join(model.layouts)}")
    if site not in sites_with_directions(model):
        able = ", ".join(sites_with_directions(model))
        raise InputError(f"units of {site!r} have no direction in the residual stream; those of {able} have")
    norms = of_blocks(model) if site not in ("resid", "embed") else []
    for layer, width in enumerate(model.layouts[site].widths):
        if width:
            for found in _of_layer(model, site, layer, norms[layer] if norms else None, fold):
                yield _checked(found, model, site)


def untraced(model: LanguageModel, site: str) -> list[int]:
    """Layers whose norms could not be told, so that directions of the site are those of the bare weights there."""
    name = READ.get(site) or _SUBLAYER.get(site)
    if name is None:
        return []
    kind = "before" if site in READ else "after"
    layers = [layer for layer, width in enumerate(model.layouts[site].widths) if width]
    norms = of_blocks(model)
    return [layer for layer in layers if name not in getattr(norms[layer], kind)]


def _of_layer(
    model: LanguageModel, site: str, layer: int, norms: BlockNorms | None, fold: bool
) -> Iterator[Directions]:
    if site in model.anatomy.features:
        yield from _of_features(model, model.anatomy.features[site][layer], layer, norms)
        return
    if site in READ:
        rows = _read_rows(model, site, layer)
        norm = None if norms is None else norms.before.get(READ[site])
        if fold and norm is not None:
            rows = linear_part(norm, rows.shape[1]).pulled_back(rows.float())
        yield Directions(layer, 0, rows, reads=True)
        return
    for offset, rows in written_rows(model, site, layer):
        yield Directions(layer, offset, _passed_on(rows, norms, _SUBLAYER.get(site)))


def written_rows(model: LanguageModel, site: str, layer: int) -> Iterator[tuple[int, Tensor]]:
    """(first unit, rows (n, d_model)) of `mlp`, `attn`, `head` or a place of the stream, as their projection gives them:
    before what stands between the sub-layer's output and the stream. Views of the weights where they can be."""
    anatomy = model.anatomy
    if site in STREAM:
        yield 0, torch.eye(anatomy.d_model, device=model.device)
    elif site == "mlp":
        for offset, weight in anatomy.down_weights(layer):
            yield offset, weight.detach().T
    elif site == "attn":
        for place in anatomy.site("attn", layer).places:
            yield place.offset, _output_projection(model, layer, place.path, place.width).T
    else:
        yield 0, head_directions(model, layer)


def head_directions(model: LanguageModel, layer: int) -> Tensor:
    """(heads, d_model) float32: what each head writes along its strongest path, as long as that path is strong.

    The first left singular vector of W_O W_V of a head times its singular value, turned so that its largest coordinate is
    positive. Where the layer has no value projection of its own, W_O alone.
    """
    anatomy = model.anatomy
    place = anatomy.site("attn", layer)
    heads = anatomy.heads[layer]
    out = _output_projection(model, layer, place.path, place.width).float()  # (d_model, width)
    size = place.width // heads
    has_values = "v" in anatomy.sites and anatomy.sites["v"][layer] is not None
    values = _read_rows(model, "v", layer).float() if has_values else None  # (kv heads * size, d_model)
    found = []
    for head in range(heads):
        writes = out[:, head * size : (head + 1) * size]
        if values is not None:
            groups = max(1, heads // max(1, values.shape[0] // size))
            own = head // groups * size
            _, r = torch.linalg.qr(values[own : own + size].T)  # W_V = r^T times orthonormal rows
            u, s, _ = torch.linalg.svd(writes @ r.T, full_matrices=False)
        else:
            u, s, _ = torch.linalg.svd(writes, full_matrices=False)
        row = u[:, 0] * s[0]
        found.append(row if row[row.abs().argmax()] >= 0 else -row)
    return torch.stack(found)


def _of_features(
    model: LanguageModel, dictionary: Dictionary, layer: int, norms: BlockNorms | None
) -> Iterator[Directions]:
    """Decoder rows of a dictionary, through the output projection where it decomposes what enters one."""
    rows, site = dictionary.directions.detach().float(), dictionary.site
    if site in STREAM:
        yield Directions(layer, 0, _passed_on(rows, norms, _SUBLAYER.get(site)))
    elif site in ("mlp", "attn"):
        total: Any = 0
        for offset, weight in written_rows(model, site, layer):
            total = total + rows[:, offset : offset + weight.shape[0]].to(weight.device) @ weight.float()
        yield Directions(layer, 0, _passed_on(total, norms, site))
    else:
        raise InputError(
            f"features of {site!r} have no direction in the residual stream; those of {', '.join((*STREAM, 'mlp', 'attn'))} have"
        )


def _passed_on(rows: Tensor, norms: BlockNorms | None, sublayer: str | None) -> Tensor:
    """What of a sub-layer's output reaches the stream: through the norm behind it (up to a factor), times its multiplier."""
    if norms is None or sublayer is None:
        return rows
    norm, times = norms.after.get(sublayer), norms.times.get(sublayer, 1.0)
    passed = rows if norm is None else linear_part(norm, rows.shape[1])(rows.float())
    return passed if times == 1.0 else passed * times


def _read_rows(model: LanguageModel, site: str, layer: int) -> Tensor:
    """(units, d_model): the rows of the projection whose output the site is (of `gate` the one that enters the activation)."""
    anatomy = model.anatomy
    if site == "gate":
        if "pre" not in anatomy.sites or anatomy.sites["pre"][layer] is None:
            raise InputError(f"the projection behind gate of layer {layer} is not known; read up or mlp instead")
        site = "pre"
    rows = []
    for place in anatomy.site(site, layer).places:
        module = anatomy.module(place.path)
        if place.where != "output" or linear_shape(module) is None:
            raise InputError(f"{site} of layer {layer} is not the output of a projection ({place.path})")
        rows.append(place.cut(_dense(module, place.path).T).flatten(1).T)
    found = torch.cat(rows) if len(rows) > 1 else rows[0]
    if found.shape[1] != anatomy.d_model:
        raise InputError(f"{site} of layer {layer} reads vectors of {found.shape[1]} numbers, not the residual stream")
    return found


def _output_projection(model: LanguageModel, layer: int, path: str, width: int) -> Tensor:
    """(d_model, width): the attention output projection."""
    module = model.anatomy.module(path)
    if linear_shape(module) is None:
        raise InputError(f"attn of layer {layer} enters {path}, which is no linear map to the residual stream")
    weight = _dense(module, path)
    if tuple(weight.shape) != (model.anatomy.d_model, width):
        raise InputError(
            f"attn of layer {layer}: {path} has shape {tuple(weight.shape)}, not ({model.anatomy.d_model}, {width})"
        )
    return weight


def _dense(module: Any, path: str) -> Tensor:
    weight = weight_of(module).detach()
    if not weight.is_floating_point() or weight.is_meta:
        raise ModelError(f"the weight of {path} is quantized or offloaded; load a dense copy to read its directions")
    return weight


def _checked(found: Directions, model: LanguageModel, site: str) -> Directions:
    rows = found.rows
    if not rows.is_floating_point() or rows.is_meta:
        raise ModelError(
            f"{site} of layer {found.layer} is quantized or offloaded; load a dense copy to read its directions"
        )
    if rows.shape[1] != model.anatomy.d_model:
        raise InputError(
            f"{site} of layer {found.layer} has directions of {rows.shape[1]} numbers, not {model.anatomy.d_model}"
        )
    if not bool(torch.isfinite(rows.sum(dtype=torch.float32))) and not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows).all(1)).nonzero()[0])
        name = model.layouts[site].unit(model.layouts[site].offsets[found.layer] + found.offset + bad)
        raise ModelError(f"the weights of {name} (layer {found.layer}, row {found.offset + bad}) are NaN or infinite")
    return found


def chosen_rows(found: Directions, start: int, positions: Sequence[int] | None) -> tuple[list[int] | None, Tensor]:
    """Flat positions and rows of a block; all (None) or those among `positions`, which are sorted. start: of its layer."""
    if positions is None:
        return None, found.rows
    first = start + found.offset
    inside = [p for p in positions if first <= p < first + found.rows.shape[0]]
    index = torch.tensor([p - first for p in inside], dtype=torch.long, device=found.rows.device)
    return inside, found.rows[index]

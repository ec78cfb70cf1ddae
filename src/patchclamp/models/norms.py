"""What the norms of a model do to a direction: the gain that each multiplies by, and whether it takes the mean away first.

A norm is x -> g * (x - mean(x)) / size(x) + b (LayerNorm) or x -> g * x / size(x) + b (RMSNorm). Along a direction w it acts,
up to the positive number 1/size(x), as g * (w - mean(w)) or g * w: its linear part, which `linear_part` measures from outside, so
that norms with 1 + g, without g, or in a class of their own need no table.

Which norm stands where is measured as well: `of_blocks` runs a few tokens and keeps, for every layer, the norm with which
the values recorded at the sites are reproduced.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patchclamp.core.errors import ModelError
from patchclamp.models.anatomy import weight_of
from patchclamp.models.collect import collect

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

_TOKENS = 6
_CLOSE = 1e-2  # of the largest value; bfloat16 models reproduce theirs to some 1e-2
_LARGEST = 20.0  # multipliers beyond are norms of outputs so small that they act as a constant factor
_NORM = ("norm", "ln_", "layernorm")
_STREAM = ("resid", "attn_out", "mlp_out")


_KNOWN: weakref.WeakKeyDictionary[nn.Module, list[BlockNorms]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class LinearPart:
    """gain: (d,) float32. centres: whether the mean is taken away before the gain."""

    gain: Tensor
    centres: bool

    def __call__(self, rows: Tensor) -> Tensor:
        """Directions (n, d) behind the norm, up to a positive factor of each state: gain * (w - mean(w)) or gain * w."""
        centred = rows - rows.mean(1, keepdim=True) if self.centres else rows
        return centred * self.gain.to(rows.device)

    def pulled_back(self, rows: Tensor) -> Tensor:
        """Rows that are multiplied with what the norm gives, as rows that are multiplied with what enters it."""
        scaled = rows * self.gain.to(rows.device)
        return scaled - scaled.mean(1, keepdim=True) if self.centres else scaled


def linear_part(norm: nn.Module, width: int, name: str = "the norm") -> LinearPart:
    """Measure the gain of a norm over (..., width); ModelError if it is no such map."""
    held = next(norm.parameters(), None)
    device, dtype = (torch.device("cpu"), torch.float32) if held is None else (held.device, held.dtype)

    def called(x: Tensor) -> Tensor:
        with torch.inference_mode():
            out: Any = norm(x.to(device=device, dtype=dtype))
        return (out[0] if isinstance(out, tuple) else out).float().cpu()

    generator = torch.Generator().manual_seed(0)
    # shuffled halves of +1 and -1 (and a 0 where the width is odd): mean 0, so centring changes nothing
    probes = torch.zeros(8, width)
    for probe in probes:
        order = torch.randperm(width, generator=generator)
        probe[order[: width // 2]], probe[order[width // 2 : width // 2 * 2]] = 1.0, -1.0
    odd = (called(probes) - called(-probes)) / 2 * (width // 2 * 2 / width) ** 0.5
    gain = (odd * probes).sum(0) / probes.square().sum(0).clamp(min=1)
    x = torch.randn(4, width, generator=generator)
    offset = called(x + 10.0) - called(x)
    centres = bool(offset.abs().max() <= 0.1 * (called(x) - called(-x)).abs().max())
    found = LinearPart(gain, centres)
    expected = found(x)
    size = (x - x.mean(1, keepdim=True) if centres else x).square().mean(1, keepdim=True).sqrt()
    seen = (called(x) - called(-x)) / 2
    if not bool((seen - expected / size).abs().max() <= 0.05 * expected.abs().max().clamp(min=1e-6)):
        raise ModelError(f"{name} ({type(norm).__name__}) is no norm of the kind gain * x / size(x); use norm='none'")
    return found


@dataclass(frozen=True, eq=False)
class BlockNorms:
    """The norms of one layer. before: (sub-layer "mlp" or "attn") -> norm that its input passes, None if it passes none.

    after: norm that its output passes on the way to the residual stream. times: what it is multiplied by there. A
    sub-layer that is missing was not understood. unknown: nothing could be compared in this layer.
    """

    before: dict[str, nn.Module | None]
    after: dict[str, nn.Module | None]
    times: dict[str, float]
    unknown: bool = False


def of_blocks(model: LanguageModel) -> list[BlockNorms]:
    """The norms of every layer, as those with which recorded values can be reproduced from one another.

    A layer in which nothing could be compared (the first, where positions are added to the embedding) is taken to be
    built like the first one that was understood.
    """
    if model.hf not in _KNOWN:
        _KNOWN[model.hf] = _filled(model, list(_measured(model)))
    return _KNOWN[model.hf]


def _filled(model: LanguageModel, found: list[BlockNorms]) -> list[BlockNorms]:
    """Layers that could not be compared get the norms of the first one that could, by their names."""
    for kind in ("before", "after"):
        for name in ("mlp", "attn"):
            known = next((layer for layer, norms in enumerate(found) if name in getattr(norms, kind)), None)
            if known is None:
                continue
            path = _path_in_block(model, known, getattr(found[known], kind)[name])
            for layer, norms in enumerate(found):
                if name not in getattr(norms, kind) and norms.unknown:
                    getattr(norms, kind)[name] = _in_block(model, layer, path)
                    norms.times.setdefault(name, found[known].times.get(name, 1.0))
    return found


def _path_in_block(model: LanguageModel, layer: int, norm: nn.Module | None) -> str | None:
    block = model.anatomy.module(model.anatomy.blocks[layer])
    return next((path for path, module in block.named_modules() if module is norm), None)


def _in_block(model: LanguageModel, layer: int, path: str | None) -> nn.Module | None:
    if path is None:
        return None
    block = model.anatomy.module(model.anatomy.blocks[layer])
    return dict(block.named_modules()).get(path)


def _measured(model: LanguageModel) -> Iterator[BlockNorms]:
    anatomy = model.anatomy
    vocabulary = int(model.hf.get_input_embeddings().weight.shape[0])
    ids = torch.randint(0, vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
    padding = getattr(model.hf.config.get_text_config(decoder=True), "pad_token_id", None)
    if padding is not None:
        ids[ids == padding] = int(padding == 0)
    wanted = ("resid", "embed", "attn_out", "mlp_out", "pre", "up", "q")
    seen = {site: model.layouts[site].split(collect(model, site, ids)[0]) for site in wanted if site in model.layouts}
    for layer in range(anatomy.n_layers):
        here = {site: each[layer] for site, each in seen.items() if each[layer].numel()}
        stream = seen.get("resid" if layer else "embed", [])
        entering = stream[max(layer - 1, 0)] if stream else None
        yield _of_layer(model, layer, here, entering if entering is not None and entering.numel() else None)


def _of_layer(model: LanguageModel, layer: int, here: dict[str, Tensor], entering: Tensor | None) -> BlockNorms:
    candidates = [None, *_norms_of(model, layer)]
    before: dict[str, nn.Module | None] = {}
    after: dict[str, nn.Module | None] = {}
    times: dict[str, float] = {}
    sound = entering is not None and all(bool(torch.isfinite(values).all()) for values in (entering, *here.values()))
    if entering is not None and any(here[site].shape != entering.shape for site in _STREAM if site in here):
        sound = False  # several streams side by side: nothing is simply added
    if entering is not None and sound and "resid" in here and "mlp_out" in here:
        _fit_outputs(here, entering, candidates, after, times)
        middles = [entering]
        if "attn_out" in here and "attn" in after:
            middles.append(entering + times["attn"] * _through(after["attn"], here["attn_out"]))
        _fit_inputs(model, layer, here, middles, candidates, before)
    return BlockNorms(before, after, times, unknown=not after)


def _fit_outputs(
    here: dict[str, Tensor],
    entering: Tensor,
    candidates: list[nn.Module | None],
    after: dict[str, nn.Module | None],
    times: dict[str, float],
) -> None:
    """resid = entering + a * norm(attn_out) + m * norm(mlp_out): the simplest norms that fit, with their multipliers."""
    added = here["resid"] - entering
    sublayers = [name for name in ("attn", "mlp") if f"{name}_out" in here]
    pairs = itertools.product(candidates, repeat=len(sublayers))
    for norms in sorted(pairs, key=lambda chosen: sum(norm is not None for norm in chosen)):
        columns = [_through(norm, here[f"{name}_out"]) for name, norm in zip(sublayers, norms, strict=True)]
        basis = torch.stack([column.flatten() for column in columns], 1).double()
        found = torch.linalg.lstsq(basis, added.flatten().double()[:, None]).solution.flatten()
        if _same((basis @ found).float(), added.flatten()) and bool(((found > 0) & (found < _LARGEST)).all()):
            after.update(zip(sublayers, norms, strict=True))
            times.update(zip(sublayers, (round(float(value), 3) for value in found), strict=True))
            return


def _fit_inputs(
    model: LanguageModel,
    layer: int,
    here: dict[str, Tensor],
    middles: list[Tensor],
    candidates: list[nn.Module | None],
    before: dict[str, nn.Module | None],
) -> None:
    """The norm with which a projection's recorded output is that projection of a normed residual stream."""
    for name, sites in (("mlp", ("pre", "up")), ("attn", ("q",))):
        site = next((site for site in sites if site in here), None)
        if site is None:
            continue
        place = model.anatomy.site(site, layer)
        module = model.anatomy.module(place.path)
        for norm, stream in itertools.product(candidates, middles):
            with torch.inference_mode():
                entering = _through(norm, stream).to(weight_of(module).device, weight_of(module).dtype)
                values = place.cut(module(entering)).flatten(1).float().cpu()
            if _same(values, here[site]):
                before[name] = norm
                break


def _norms_of(model: LanguageModel, layer: int) -> list[nn.Module]:
    """Modules of a block that look like norms over the residual stream."""
    block = model.anatomy.module(model.anatomy.blocks[layer])
    found = []
    for path, module in block.named_modules():
        named = path.rpartition(".")[2].lower() + type(module).__name__.lower()
        weight = getattr(module, "weight", None)
        fits = weight is None or tuple(weight.shape) == (model.anatomy.d_model,)
        if path and any(part in named for part in _NORM) and fits and not list(module.children()):
            found.append(module)
    return found


def _through(norm: nn.Module | None, values: Tensor) -> Tensor:
    if norm is None:
        return values
    held = next(norm.parameters(), None)
    given = values if held is None else values.to(held.device, held.dtype)
    with torch.inference_mode():
        out: Any = norm(given)
    return (out[0] if isinstance(out, tuple) else out).float().cpu()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= _CLOSE * b.abs().max().clamp(min=1e-6))

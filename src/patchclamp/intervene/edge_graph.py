"""Heads and MLPs as a graph: who writes into the residual stream, who reads it through which norm, which edges there are.

Senders: "embed", "head.3.2", "mlp.3". Receivers: "head.3.2.q" (of k and v there are as many as the model has key-value
heads), "mlp.3" (what the MLP reads), "logits" (what the final norm reads). An edge runs from a sender to a receiver above it.
What a model does is measured on a few tokens, not guessed: that each reader reads a norm of the residual stream, and that
the stream is the sum of what heads and MLPs write. A model of another kind is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from patchclamp.core.errors import InputError, ModelError
from patchclamp.intervene.path_runs import Recorded, close, kv_groups
from patchclamp.models.anatomy import SitePath, weight_of
from patchclamp.models.hooks import watch_calls

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

_GRAPHS: WeakKeyDictionary[nn.Module, EdgeGraph] = WeakKeyDictionary()


@dataclass(frozen=True)
class Reader:
    """One linear map of the residual stream.

    site: "q", "k", "v" of attention, "pre", "up" of the MLP. path: its module. norm: the norm module in front, "" for none.
    entry: which of the module's outputs are the site's.
    """

    site: str
    layer: int
    entry: SitePath
    norm: str


@dataclass(eq=False)
class EdgeGraph:
    """Senders, receivers and edges of one model.

    senders, receivers: names. valid: (n_senders, n_receivers) bool, whether there is such an edge. attention, mlp: layer ->
    readers. scales: layer -> (attention, mlp), what their outputs are multiplied with before they are added.
    """

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    valid: Tensor
    attention: tuple[tuple[Reader, ...], ...]
    mlp: tuple[tuple[Reader, ...], ...]
    scales: tuple[tuple[float, float], ...]
    parallel: bool
    final_norm: str
    heads: tuple[int, ...]
    sender_slices: dict[str, slice] = field(default_factory=dict)
    receiver_slices: dict[str, slice] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return len(self.heads)

    def edges(self) -> Iterator[tuple[str, str]]:
        """Every edge as (sender, receiver)."""
        for s, r in self.valid.nonzero().tolist():
            yield self.senders[s], self.receivers[r]

    def edge(self, sender: str, receiver: str) -> tuple[int, int]:
        """Numbers of sender and receiver; InputError for an edge that the model hasn't."""
        if sender not in self.senders or receiver not in self.receivers:
            unknown, known = (receiver, self.receivers) if sender in self.senders else (sender, self.senders)
            raise InputError(f"{unknown!r} is none of this model's; there are {known[0]}, {known[1]}, ..., {known[-1]}")
        found = self.senders.index(sender), self.receivers.index(receiver)
        if not bool(self.valid[found]):
            raise InputError(f"there is no edge from {sender} to {receiver}: it doesn't lie above")
        return found

    def below(self, group: str) -> slice:
        """The senders that a group of receivers ("q.3", "mlp.3", "logits") can read: the first so many."""
        if group == "logits":
            return slice(0, len(self.senders))
        kind, layer = group.split(".")
        if kind == "mlp" and not self.parallel:
            return slice(0, self.sender_slices[f"head.{layer}"].stop)
        return slice(0, self.sender_slices[f"head.{layer}"].start)


def edge_graph(model: LanguageModel) -> EdgeGraph:
    """The graph of a model, worked out once. ModelError for a model whose stream is no such sum, with the reason."""
    if model.hf not in _GRAPHS:
        _GRAPHS[model.hf] = _built(model)
    return _GRAPHS[model.hf]


def linear(model: LanguageModel, reader: Reader) -> tuple[Tensor, Tensor | None]:
    """Weight (width, d_model) and bias (width,) of a reader, the site's outputs only."""
    module: Any = model.anatomy.module(reader.entry.path)
    weight, bias = weight_of(module), getattr(module, "bias", None)
    cut = reader.entry.cut(weight.T).flatten(1).T
    return cut, None if bias is None else reader.entry.cut(bias[None]).flatten(1)[0]


def writing(model: LanguageModel, layer: int) -> Tensor:
    """(d_model, n_heads, head_dim): what each head's vector is multiplied with when it is written."""
    module = model.anatomy.module(model.anatomy.site("attn", layer).path)
    heads = model.anatomy.heads[layer]
    return weight_of(module).unflatten(1, (heads, -1))


def normed(model: LanguageModel, path: str, stream: Tensor) -> Tensor:
    """A norm of ours applied to residual streams (..., d_model); the stream itself where there is none."""
    if not path:
        return stream
    module = model.anatomy.module(path)
    found: Tensor = module(stream.to(next(module.parameters(), stream)))
    return found


def _built(model: LanguageModel) -> EdgeGraph:
    anatomy = model.anatomy
    _check_sites(model)
    probe = _Probe(model)
    attention, mlp, scales, parallel = [], [], [], []
    for layer in range(anatomy.n_layers):
        norm, stream = probe.read(layer, anatomy.site("q", layer).path)
        attention.append(tuple(Reader(site, layer, anatomy.site(site, layer), norm) for site in ("q", "k", "v")))
        mlp_norm, middle = probe.read(layer, anatomy.site("pre", layer).path)
        sites = ["pre"] if anatomy.forms[layer] == "plain" else ["pre", "up"]
        mlp.append(tuple(Reader(site, layer, anatomy.site(site, layer), mlp_norm) for site in sites))
        scale, beside = probe.added(layer, stream, middle)
        scales.append(scale)
        parallel.append(beside)
    if len(set(parallel)) > 1:
        raise ModelError(
            f"some layers of {model.name} run attention and MLP side by side and some don't; edges can't be told"
        )
    senders, receivers, sender_slices, receiver_slices = _names(model)
    graph = EdgeGraph(
        senders, receivers, torch.zeros(len(senders), len(receivers), dtype=torch.bool), tuple(attention), tuple(mlp),
        tuple(scales), parallel[0], anatomy.final_norm or "", anatomy.heads, sender_slices, receiver_slices,
    )  # fmt: skip
    for group, where in receiver_slices.items():
        graph.valid[graph.below(group), where] = True
    return graph


def _names(model: LanguageModel) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, slice], dict[str, slice]]:
    anatomy = model.anatomy
    senders, receivers = ["embed"], list[str]()
    sent: dict[str, slice] = {"embed": slice(0, 1)}
    received: dict[str, slice] = {}
    for layer, heads in enumerate(anatomy.heads):
        sent[f"head.{layer}"] = slice(len(senders), len(senders) + heads)
        senders += [f"head.{layer}.{head}" for head in range(heads)]
        sent[f"mlp.{layer}"] = slice(len(senders), len(senders) + 1)
        senders.append(f"mlp.{layer}")
        for site in ("q", "k", "v"):
            count = heads if site == "q" else kv_groups(model, site, layer)
            received[f"{site}.{layer}"] = slice(len(receivers), len(receivers) + count)
            receivers += [f"head.{layer}.{head}.{site}" for head in range(count)]
        received[f"mlp.{layer}"] = slice(len(receivers), len(receivers) + 1)
        receivers.append(f"mlp.{layer}")
    received["logits"] = slice(len(receivers), len(receivers) + 1)
    return tuple(senders), (*receivers, "logits"), sent, received


def _check_sites(model: LanguageModel) -> None:
    anatomy = model.anatomy
    for layer in range(anatomy.n_layers):
        for site in ("attn", "q", "k", "v", "pre", "mlp_out", "attn_out", "resid"):
            have = model.layouts.get(site)
            if have is None or not have.widths[layer] or have.experts[layer]:
                raise ModelError(
                    f"layer {layer} of this {anatomy.model_type} model has no site {site!r} of one vector for each position, so "
                    "the edges between its heads and MLPs can't be told; patch heads and mlp_out instead"
                )
        writes = anatomy.module(anatomy.site("attn", layer).path)
        for path in [writes, *(anatomy.module(anatomy.site(site, layer).path) for site in ("q", "k", "v", "pre"))]:
            weight = getattr(path, "weight", None)
            if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta:
                raise ModelError(f"layer {layer} of {model.name} has no dense weights, which edges are computed from")


class _Probe:
    """One pass over a few tokens: what went into and came out of norms and projections."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, anatomy = model, model.anatomy
        words = int(model.hf.config.get_text_config(decoder=True).vocab_size)
        ids = ((torch.arange(6, device=model.device) * 7 + model.pad_id + 1) % words)[None]
        self.norms: list[list[str]] = []
        names: set[str] = set()
        for layer, block in enumerate(anatomy.blocks):
            inside = [
                f"{block}.{name}" for name, module in anatomy.module(block).named_modules() if name and _is_norm(module)
            ]
            self.norms.append(inside)
            paths = [anatomy.site(site, layer).path for site in ("q", "pre")]
            names.update(inside, paths)
        if anatomy.final_norm:
            names.add(anatomy.final_norm)
        modules = {name: anatomy.module(name) for name in names}
        with torch.no_grad():
            found = watch_calls(lambda: model.trunk_module(**model.inputs(ids, torch.ones_like(ids))), modules)
        self.seen = {name: tuple(None if t is None else _flat(t) for t in pair) for name, pair in found.items()}
        taps = [(site, layer) for layer in range(anatomy.n_layers) for site in ("attn_out", "mlp_out")]
        self.written = Recorded(model, ids, torch.ones_like(ids), taps).values  # copies: some models add in place

    def read(self, layer: int, path: str) -> tuple[str, Tensor]:
        """The norm in front of a projection ("" for none) and the stream that it reads."""
        given = self._tensor(path, 0)
        for norm in self.norms[layer]:
            into, out = self.seen[norm]
            if out is not None and into is not None and torch.equal(out, given):
                return norm, into
        return "", given

    def added(self, layer: int, stream: Tensor, middle: Tensor) -> tuple[tuple[float, float], bool]:
        """What attention and MLP outputs are multiplied with, and whether the MLP reads the same stream as the attention."""
        attention, mlp = self.written["attn_out", layer].float(), self.written["mlp_out", layer].float()
        after = self._after(layer)
        parallel = torch.equal(stream, middle)
        if parallel:
            scale = _fitted(after - stream, attention, mlp)
            whole = stream + scale[0] * attention + scale[1] * mlp
        else:
            first, second = _fitted(middle - stream, attention), _fitted(after - middle, mlp)
            scale = (first[0], second[0])
            if not close(self.model, stream + scale[0] * attention, middle):
                raise self._refusal(layer)
            whole = middle + scale[1] * mlp
        if not close(self.model, whole, after):
            raise self._refusal(layer)
        return (scale[0], scale[1]), parallel

    def _after(self, layer: int) -> Tensor:
        anatomy = self.model.anatomy
        if layer + 1 < anatomy.n_layers:
            return self.read(layer + 1, anatomy.site("q", layer + 1).path)[1]
        if anatomy.final_norm:
            return self._tensor(anatomy.final_norm, 0)
        raise ModelError(f"{self.model.name} has no final norm, so what its logits read can't be told")

    def _tensor(self, path: str, which: int) -> Tensor:
        found = self.seen[path][which]
        if found is None:
            raise ModelError(f"{path} was not called with a tensor, so the edges of this model can't be told")
        return found

    def _refusal(self, layer: int) -> ModelError:
        return ModelError(
            f"what layer {layer} of this {self.model.anatomy.model_type} model reads is not the sum of what heads and MLPs "
            "wrote before (their outputs are normed on the way, say); patch heads and mlp_out instead of edges"
        )


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    named = "norm" in type(module).__name__.lower()
    return not any(True for _ in module.children()) and (named or (isinstance(weight, Tensor) and weight.dim() == 1))


def _flat(values: Tensor) -> Tensor:
    return values.detach().reshape(-1, values.shape[-1]).float()


def _fitted(target: Tensor, *parts: Tensor) -> tuple[float, ...]:
    """The factors with which parts add up to the target (least squares); within rounding of 1 they are 1."""
    matrix = torch.stack([part.double().ravel() for part in parts], 1)
    found = torch.linalg.lstsq(matrix, target.double().ravel()[:, None]).solution[:, 0]
    return tuple(1.0 if abs(value - 1) < 1e-3 else float(value) for value in found.tolist())

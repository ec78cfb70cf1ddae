"""Attribution patching: what patching would do, estimated for all parts or edges at once from gradients.

    estimated = attribute_parts(model, task, "head")            # as patch(...), from a few backward passes for all parts
    edges = attribute_edges(model, task)                        # every edge, gradients averaged on the way (EAP-IG)
    edges = attribute_edges(model, task, steps=1)               # from one gradient (EAP): cheaper, and at times far off
    circuit = edges.top(k=100)

The effect of giving a receiver another value from a sender is, to first order, (source - base) of the sender's output times
the gradient of the logit difference by what the receiver reads, pulled back through the receiver's norm as it is at the
point of the gradient. Sources: Nanda 2023 (attribution patching), Syed, Rager & Conmy 2023 (EAP, arXiv:2310.10348), Hanna,
Pezzelle & Belinkov 2024 (EAP-IG, arXiv:2403.17806; here at the midpoints of the steps, which needs fewer of them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.core.progress import progress
from patchclamp.data.paired import PairedTask, Pairs
from patchclamp.intervene.edge_graph import EdgeGraph, Reader, edge_graph, linear, normed, writing
from patchclamp.intervene.edge_scores import EdgeScores
from patchclamp.intervene.patched_rows import WAYS, PatchedRows, parts_of
from patchclamp.intervene.patching import (
    ALL,
    Position,
    fitting,
    length_sorted,
    named_positions,
    plain_parts,
    plain_positions,
)
from patchclamp.intervene.patching_result import Patching
from patchclamp.intervene.path_patching import encoded, identity_of, made_by, plain_position
from patchclamp.intervene.path_runs import Readout
from patchclamp.models.hooks import Seen, Tap, change, watch_calls
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


def attribute_parts(
    model: LanguageModel,
    task: PairedTask | Pairs,
    what: str | UnitSet = "head",
    *,
    by: str | None = None,
    layers: Iterable[int] | None = None,
    positions: str | Sequence[Position] = ALL,
    way: str = "noise",
    steps: int = 5,
    batch_size: int = 16,
    quiet: bool = True,
) -> Patching:
    """The first-order estimate of `patch(...)` with the same arguments: a `Patching` whose method is "attribution".

    steps: m > 1 averages the gradient over m points on the straight line between the two runs' embeddings; 1 takes it in
    the run that is patched into. One forward and one backward pass for each batch and step, whatever is patched.
    Exact where the logit difference is linear in the part; misses what saturates (a softmax far from its edge, say).
    InputError and ModelError as `patch`.
    """
    _check(way, steps, batch_size)
    layers = None if layers is None else list(layers)
    pairs = encoded(model, task)
    parts = parts_of(model, what, by, layers)
    named = named_positions(pairs, positions)
    arguments = {
        "what": plain_parts(what), "by": by, "layers": layers, "positions": plain_positions(positions), "way": way,
        "steps": steps, "batch_size": batch_size,
    }  # fmt: skip
    n, taps = len(pairs), list(dict.fromkeys(part.tap for part in parts))
    patched = np.full((len(parts), len(named), n), np.nan)
    base, source = np.zeros(n), np.zeros(n)
    with progress("attributing", n, unit="pairs", quiet=quiet) as advance:
        for batch, index in length_sorted(pairs, fitting(model, batch_size, 1)[0]):
            width = batch.clean.shape[1]
            runs = PatchedRows(model, batch, taps, way=way, both=True)
            base[index], source[index] = runs.base.numpy(), runs.source.numpy()
            gradients = _part_gradients(model, batch, taps, way, steps)
            for p, (_, mask) in enumerate(named):
                chosen = mask[index][:, :width]
                there = chosen.any(1).numpy()
                for c, part in enumerate(parts):
                    where = slice(None) if part.columns is None else part.columns
                    moved = (runs.values[part.tap] - runs.own[part.tap])[..., where].float()
                    each = (moved * gradients[part.tap][..., where]).sum(-1).double().cpu()
                    change_ = (each * chosen).sum(1).numpy()
                    patched[c, p, index[there]] = (base[index] + change_)[there]
            advance(len(index))
    settings = {
        "what": what if isinstance(what, str) else "units", "by": by, "way": way, "method": "attribution", "steps": steps,
    }  # fmt: skip
    names = tuple(name for name, _ in named)
    return Patching(
        tuple(part.name for part in parts), names, patched, base, source, settings, identity_of(task),
        dict(model.identity), made_by("intervene.attribute_parts", model, task, arguments),
    )  # fmt: skip


def attribute_edges(
    model: LanguageModel,
    task: PairedTask | Pairs,
    *,
    position: Position | None = None,
    way: str = "noise",
    steps: int = 5,
    batch_size: int = 8,
    quiet: bool = True,
) -> EdgeScores:
    """Estimated effect of every edge between embedding, heads, MLPs and logits, as `EdgeScores`.

    position: where the sender's output differs that the edge carries: a spot, list or index; None: everywhere.
    way: "noise": the receiver reads the sender's corrupted output in the clean run; "denoise": the other way round.
    steps: as in `attribute_parts`. ModelError for models whose residual stream is not the sum of what heads and MLPs write.
    """
    _check(way, steps, batch_size)
    graph = edge_graph(model)
    pairs = encoded(model, task)
    readout = Readout(model)
    readout.check(pairs)
    mask = named_positions(pairs, [ALL if position is None else position])[0][1]
    shape = (len(graph.senders), len(graph.receivers))
    total, squares = np.zeros(shape), np.zeros(shape)
    base, source = np.zeros(len(pairs)), np.zeros(len(pairs))
    with progress("attributing edges", len(pairs), unit="pairs", quiet=quiet) as advance:
        for batch, index in length_sorted(pairs, fitting(model, batch_size, 1)[0]):
            chosen = mask[index][:, : batch.clean.shape[1]].to(model.device)
            found = _Edges(model, graph, batch, way, steps, chosen)
            effects = found.effects().numpy()  # (senders, receivers, n)
            total += effects.sum(-1)
            squares += np.square(effects).sum(-1)
            base[index], source[index] = found.base, found.source
            advance(len(index))
    n = len(pairs)
    mean = total / n
    spread = np.sqrt(np.clip(squares / n - np.square(mean), 0, None) / max(n - 1, 1))
    settings = {
        "way": way,
        "method": "attribution",
        "steps": steps,
        "position": "all" if position is None else str(position),
    }
    arguments = {"position": plain_position(position), "way": way, "steps": steps, "batch_size": batch_size}
    return EdgeScores(
        graph.senders, graph.receivers, graph.valid.numpy(), mean, spread, base, source, settings, identity_of(task),
        dict(model.identity), made_by("intervene.attribute_edges", model, task, arguments),
    )  # fmt: skip


def _check(way: str, steps: int, batch_size: int) -> None:
    if way not in WAYS:
        raise InputError(f"way={way!r} given; it is one of {', '.join(WAYS)}")
    if steps < 1 or batch_size < 1:
        raise InputError(f"steps={steps}, batch_size={batch_size}; at least 1 each is needed")


# --- gradients ---------------------------------------------------------------------------------------------------


def _points(steps: int) -> list[float]:
    """How far from the base run to the source run gradients are taken."""
    return [0.0] if steps == 1 else [(step + 0.5) / steps for step in range(steps)]


def _sides(pairs: Pairs, way: str) -> tuple[Tensor, Tensor]:
    return (pairs.clean, pairs.corrupt) if way == "noise" else (pairs.corrupt, pairs.clean)


def _embeddings(model: LanguageModel, pairs: Pairs, way: str) -> tuple[Tensor, Tensor]:
    """(n * seq, d_model) token embeddings of the base and of the source run."""
    if "embed" not in model.anatomy.sites:
        raise ModelError(f"{model.name} has no site embed, where gradients start")
    runs = PatchedRows(model, pairs, [("embed", 0)], way=way, both=True)
    return (runs.own["embed", 0].flatten(0, 1), runs.values["embed", 0].flatten(0, 1))


def _start(between: Tensor) -> Callable[[Seen], Tensor]:
    """A change of the embeddings to a point between the runs, from which on gradients are kept."""

    def start(seen: Seen) -> Tensor:
        leaf = between.to(seen.values).detach().clone().requires_grad_()
        return leaf.clone()  # some models go on in place, which a leaf forbids

    return start


def _difference(model: LanguageModel, readout: Readout, pairs: Pairs, ids: Tensor) -> Tensor:
    """(n,) logit differences, as part of the graph that leads to them."""
    hidden = model.trunk(ids, pairs.mask, grad=True)
    rows = torch.arange(len(pairs), device=hidden.device)
    states = hidden[rows, pairs.end.to(hidden.device)]
    found = readout.logits(states, torch.stack([pairs.answer, pairs.wrong], 1))
    return found[:, 0] - found[:, 1]


def _part_gradients(
    model: LanguageModel, pairs: Pairs, taps: Sequence[Tap], way: str, steps: int
) -> Mapping[Tap, Tensor]:
    """tap -> (n, seq, width) float32 gradient of each pair's logit difference, averaged over the points."""
    readout, (ids, _) = Readout(model), _sides(pairs, way)
    first, last = _embeddings(model, pairs, way)
    found = {tap: torch.zeros(()) for tap in taps}
    for point in _points(steps):
        kept: dict[Tap, Tensor] = {}

        def keep(seen: Seen, kept: dict[Tap, Tensor] = kept) -> Tensor:
            kept[seen.site, seen.layer] = seen.values.clone()
            return kept[seen.site, seen.layer]

        start = _start(first + point * (last - first))
        with torch.enable_grad(), change(model, {("embed", 0): start}), change(model, dict.fromkeys(taps, keep)):
            explained = _difference(model, readout, pairs, ids)
        gradients = torch.autograd.grad(explained.sum(), [kept[tap] for tap in taps], allow_unused=True)
        for tap, gradient in zip(taps, gradients, strict=True):
            if gradient is None:
                gradient = torch.zeros_like(kept[tap])
            shaped = gradient.float().reshape(*ids.shape, -1) / len(_points(steps))
            found[tap] = found[tap].to(shaped.device) + shaped
    return found


class _Edges:
    """Edge effects of one batch."""

    def __init__(
        self, model: LanguageModel, graph: EdgeGraph, pairs: Pairs, way: str, steps: int, chosen: Tensor
    ) -> None:
        self.model, self.graph, self.pairs, self.way, self.steps = model, graph, pairs, way, steps
        taps = [(site, layer) for layer in range(graph.n_layers) for site in ("attn", "mlp_out")]
        runs = PatchedRows(model, pairs, taps, way=way, both=True)
        self.base, self.source = runs.base.numpy(), runs.source.numpy()
        self.embeddings = _embeddings(model, pairs, way)
        self.chosen = chosen[:, :, None]
        streams = [self._entering(side) for side in _sides(pairs, way)]
        self.moved: dict[Tap, Tensor] = {tap: (runs.values[tap] - runs.own[tap]).float() * self.chosen for tap in taps}
        self.moved["embed", 0] = (streams[1] - streams[0]) * self.chosen

    def effects(self) -> Tensor:
        """(n_senders, n_receivers, n) float64: how far each edge lowers the logit difference."""
        found = torch.zeros(len(self.graph.senders), len(self.graph.receivers), len(self.pairs), dtype=torch.float64)
        points = _points(self.steps)
        first, last = self.embeddings
        for point in points:
            for group, pulled in self._pulled(first + point * (last - first)):
                where, below = self.graph.receiver_slices[group], self.graph.below(group)
                for start, outputs in self._outputs(below.stop):
                    # (senders, n, seq, d) with (receivers, n, seq, d)
                    each = torch.einsum("snld,rnld->srn", outputs, pulled.to(outputs))
                    found[start : start + len(outputs), where] -= each.double().cpu() / len(points)
        return found

    def _outputs(self, stop: int) -> Iterable[tuple[int, Tensor]]:
        """(number of the first sender, how far their outputs moved (senders, n, seq, d_model)), group by group."""
        graph = self.graph
        for group, where in graph.sender_slices.items():
            if where.start >= stop:
                return
            kind, _, layer = group.partition(".")
            if kind == "embed":
                yield 0, self.moved["embed", 0][None]
            elif kind == "mlp":
                yield where.start, self.moved["mlp_out", int(layer)][None] * graph.scales[int(layer)][1]
            else:
                weight = writing(self.model, int(layer)).float()  # (d_model, heads, head_dim)
                each = self.moved["attn", int(layer)].unflatten(-1, weight.shape[1:])
                yield where.start, torch.einsum("nlhc,dhc->hnld", each, weight) * graph.scales[int(layer)][0]

    def _entering(self, ids: Tensor) -> Tensor:
        """(n, seq, d_model) residual stream that enters the first block in a plain run."""
        reader = self.graph.attention[0][0]
        with torch.no_grad():
            seen = self._watched([reader.norm or reader.entry.path], lambda: self.model.trunk(ids, self.pairs.mask))
        return seen[0][0].detach().float().reshape(*ids.shape, -1)

    def _watched(self, paths: Sequence[str], call: Callable[[], object]) -> list[tuple[Tensor, Tensor]]:
        found = watch_calls(call, {path: self.model.anatomy.module(path) for path in dict.fromkeys(paths)})
        return [found[path] for path in paths]

    def _pulled(self, embedding: Tensor) -> Iterable[tuple[str, Tensor]]:
        """(group, (receivers, n, seq, d_model) gradients by the stream that each receiver reads), group by group."""
        graph, model = self.graph, self.model
        ids = _sides(self.pairs, self.way)[0]
        readers = [reader for layer in (*graph.attention, *graph.mlp) for reader in layer]
        paths = [path for reader in readers for path in (reader.entry.path, reader.norm or reader.entry.path)]
        scores: list[Tensor] = []

        def call() -> None:
            scores.append(_difference(model, Readout(model), self.pairs, ids))

        with torch.enable_grad(), change(model, {("embed", 0): _start(embedding)}):
            seen = self._watched([*paths, graph.final_norm], call)
            outputs = [seen[2 * number][1] for number in range(len(readers))]
            gradients = torch.autograd.grad(
                scores[0].sum(), [*outputs, seen[-1][0]], allow_unused=True, materialize_grads=True
            )
        streams = [seen[2 * number + 1][0].detach() for number in range(len(readers))]
        by_group: dict[str, list[int]] = {}
        for number, reader in enumerate(readers):
            group = f"{reader.site}.{reader.layer}" if reader.site in ("q", "k", "v") else f"mlp.{reader.layer}"
            by_group.setdefault(group, []).append(number)
        for group, numbers in by_group.items():
            one = readers[numbers[0]]
            stream = streams[numbers[0]].reshape(*ids.shape, -1)
            wanted = [self._read(readers[number], gradients[number], group) for number in numbers]
            yield group, self._through_norm(one, stream, torch.stack(wanted).sum(0))
        yield "logits", gradients[-1].float().reshape(1, *ids.shape, -1)

    def _read(self, reader: Reader, gradient: Tensor, group: str) -> Tensor:
        """(receivers, n, seq, d_model): the gradient by what a projection reads, receiver by receiver."""
        where = self.graph.receiver_slices[group]
        n, seq = self.pairs.clean.shape
        weight, _ = linear(self.model, reader)  # (width, d_model)
        cut = reader.entry.cut(gradient.reshape(n * seq, -1)).flatten(1).float()
        count = where.stop - where.start
        return torch.einsum(
            "trw,rwd->rtd", cut.unflatten(1, (count, -1)), weight.float().unflatten(0, (count, -1))
        ).reshape(count, n, seq, -1)

    def _through_norm(self, reader: Reader, stream: Tensor, gradient: Tensor) -> Tensor:
        """Pull gradients by a norm's output back to its input, at the stream that it read."""
        if not reader.norm:
            return gradient
        with torch.enable_grad():
            many = stream.float().expand(len(gradient), *stream.shape).detach().clone().requires_grad_()
            out = normed(self.model, reader.norm, many)
            [found] = torch.autograd.grad(out, many, gradient.to(out.dtype))
        return found.float()

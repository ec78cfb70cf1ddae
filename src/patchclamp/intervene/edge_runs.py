"""Exact runs of a model in which chosen edges carry another run's values: every reader gets its own residual stream.

In the run that is patched into, each receiver (queries, keys and values head by head, each MLP, the logits) reads the sum of
what all senders wrote, where for chosen edges the sender's output is that of the other run. With no edge chosen that is the
plain run, with all edges the other run, up to rounding; with one edge it is what edge attribution estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.data.paired import PairedTask, Pairs
from patchclamp.intervene.edge_graph import EdgeGraph, Reader, edge_graph, linear, normed, writing
from patchclamp.intervene.patched_rows import WAYS
from patchclamp.intervene.patching import fitting, length_sorted
from patchclamp.intervene.path_patching import encoded
from patchclamp.intervene.path_runs import Readout, Recorded, chunks
from patchclamp.models.hooks import Seen, Tap, change, observe, run, watch_calls

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

ELEMENTS = 40_000_000  # numbers of sender outputs held at once: 160 MB in float32
TOKENS = 8192  # positions of one forward pass


def patch_edges(
    model: LanguageModel,
    task: PairedTask | Pairs,
    sets: Sequence[Iterable[tuple[str, str]]],
    *,
    way: str = "noise",
    batch_size: int = 16,
) -> NDArray[np.float64]:
    """(n_sets, n) logit differences, for each set of edges (sender, receiver) with all its edges patched together.

    One forward pass of the patched model over all pairs for each set, many sets as rows of one batch. InputError for an edge
    that the model hasn't, ModelError for models whose edges can't be told (see `edge_graph`).
    """
    graph = edge_graph(model)
    masks = torch.zeros(len(sets), *graph.valid.shape, dtype=torch.bool)
    for number, edges in enumerate(sets):
        for sender, receiver in edges:
            masks[number][graph.edge(sender, receiver)] = True
    return run_masks(model, task, masks, way=way, batch_size=batch_size)


def run_masks(
    model: LanguageModel,
    task: PairedTask | Pairs,
    masks: Tensor,
    *,
    way: str = "noise",
    batch_size: int = 16,
    mean: bool = False,
) -> NDArray[np.float64]:
    """(n_sets, n) logit differences; masks: (n_sets, n_senders, n_receivers) bool, the edges that carry other values.

    mean: those values are means over the source run's tokens (pairs and positions) instead of each pair's own.
    """
    if way not in WAYS:
        raise InputError(f"way={way!r} given; it is one of {', '.join(WAYS)}")
    graph, pairs = edge_graph(model), encoded(model, task)
    Readout(model).check(pairs)
    found = np.zeros((len(masks), len(pairs)))
    means = _means(model, graph, pairs, way, batch_size) if mean else None
    for batch, index in length_sorted(pairs, fitting(model, batch_size, 1)[0]):
        found[:, index] = _Batch(model, graph, batch, way, means).differences(masks).numpy()
    return found


class _Batch:
    """Runs over one batch of pairs."""

    def __init__(
        self, model: LanguageModel, graph: EdgeGraph, pairs: Pairs, way: str, means: Mapping[Tap, Tensor] | None
    ) -> None:
        self.model, self.graph, self.pairs = model, graph, pairs
        self.ids, other = (pairs.clean, pairs.corrupt) if way == "noise" else (pairs.corrupt, pairs.clean)
        self.readout = Readout(model)
        base, source = written(model, graph, self.ids, pairs.mask), written(model, graph, other, pairs.mask)
        if means is not None:
            source = {tap: means[tap].expand_as(values) for tap, values in source.items()}
        self.streams = self._plain_streams()
        self.start = base["embed", 0]
        self.source = self._by_sender(source)
        self.base_sums = {group: outputs.sum(0) for group, outputs in self._by_sender(base).items()}

    def differences(self, masks: Tensor) -> Tensor:
        """(n_sets, n) float64."""
        if not len(masks):
            return torch.zeros(0, len(self.pairs), dtype=torch.float64)
        senders = max(1, int(masks.any(0).any(1).sum()))
        most = max(1, min(ELEMENTS // (senders * self.start.numel()), TOKENS // len(self.start)))
        return torch.cat([self._run(torch.stack(some)) for some in chunks(list(masks), most)])

    def _run(self, masks: Tensor) -> Tensor:
        """One pass with len(masks) copies of the batch."""
        copies, graph = len(masks), self.graph
        passed = _Passed(masks.to(self.start.device), self.start)
        passed.told(0, (self.start - self.source["embed"])[:, None], torch.zeros_like(self.start)[None])
        states: list[Tensor] = []

        def told(seen: Seen) -> None:
            group = f"{'head' if seen.site == 'attn' else 'mlp'}.{seen.layer}"
            values = seen.values.detach().reshape(copies, *self.ids.shape, -1)
            out = self._out({(seen.site, seen.layer): values}, group).to(self.start.device)
            first = graph.sender_slices[group].start
            passed.told(first, out - self.source[group][:, None], out.sum(0) - self.base_sums[group])

        def projected(reader: Reader, group: str) -> Callable[[Seen], Tensor]:
            def replaced(seen: Seen) -> Tensor:
                new = seen.values
                count = graph.receiver_slices[group].stop - graph.receiver_slices[group].start
                for copy, receivers, streams in passed.read(graph, group, self.streams[group]):
                    new = _copy(seen.values) if new is seen.values else new
                    parts = new.view(copies, len(self.start), count, -1)
                    parts[copy, :, receivers] = self._projected(reader, receivers, streams).to(new)
                return new

            return replaced

        def final(seen: Seen) -> Tensor:
            new = seen.values
            for copy, _, streams in passed.read(graph, "logits", self.streams["logits"]):
                new = _copy(seen.values) if new is seen.values else new
                new.view(copies, len(self.start), -1)[copy] = streams[0].to(new)
            return new

        def keep(seen: Seen) -> None:
            states.append(seen.values.detach())

        functions: dict[Tap, Callable[[Seen], Tensor]] = {("resid", graph.n_layers - 1): final}
        for layer in range(graph.n_layers):
            functions |= {(r.site, layer): projected(r, f"{r.site}.{layer}") for r in graph.attention[layer]}
            functions |= {(r.site, layer): projected(r, f"mlp.{layer}") for r in graph.mlp[layer]}
        taps = [(site, layer) for layer in range(graph.n_layers) for site in ("attn", "mlp_out")]
        with (
            change(self.model, functions),
            observe(self.model, taps, told),
            observe(self.model, [self.readout.tap], keep),
        ):
            run(self.model, self.ids.repeat(copies, 1), self.pairs.mask.repeat(copies, 1))
        return self._difference(states[-1], copies)

    def _difference(self, states: Tensor, copies: int) -> Tensor:
        n, seq = self.ids.shape
        ends = torch.arange(copies * n, device=states.device) * seq + self.pairs.end.repeat(copies).to(states.device)
        return self.readout.difference(states[ends].reshape(copies, n, -1), self.pairs)

    def _projected(self, reader: Reader, receivers: Tensor, streams: Tensor) -> Tensor:
        """(n * seq, receivers, width each) of some parts of a projection, which read streams (receivers, n * seq, d_model)."""
        weight, bias = linear(self.model, reader)
        group = f"mlp.{reader.layer}" if reader.site in ("pre", "up") else f"{reader.site}.{reader.layer}"
        count = self.graph.receiver_slices[group].stop - self.graph.receiver_slices[group].start
        parts = weight.unflatten(0, (count, -1))[receivers]  # (receivers, width each, d_model)
        found = torch.einsum("rtd,rwd->trw", normed(self.model, reader.norm, streams).to(weight), parts)
        return found if bias is None else found + bias.unflatten(0, (count, -1))[receivers]

    def _plain_streams(self) -> dict[str, Tensor]:
        """What every group of receivers reads in the plain run that is patched into, (n * seq, d_model)."""
        graph, anatomy = self.graph, self.model.anatomy
        paths = {"logits": graph.final_norm}
        for readers in (*graph.attention, *graph.mlp):
            for reader in readers:
                group = f"mlp.{reader.layer}" if reader.site in ("pre", "up") else f"{reader.site}.{reader.layer}"
                paths[group] = reader.norm or reader.entry.path
        modules = {path: anatomy.module(path) for path in paths.values()}
        seen = watch_calls(lambda: run(self.model, self.ids, self.pairs.mask), modules)
        return {
            group: seen[path][0].detach().float().reshape(-1, self.model.anatomy.d_model)
            for group, path in paths.items()
        }

    def _by_sender(self, outputs: Mapping[Tap, Tensor]) -> dict[str, Tensor]:
        """Group of senders -> (senders, n * seq, d_model): what they write."""
        found = {"embed": outputs["embed", 0][None]}
        for group in self.graph.sender_slices:
            if group != "embed":
                found[group] = self._out(
                    {tap: values[None] for tap, values in outputs.items() if tap[0] != "embed"}, group
                )[:, 0]
        return found

    def _out(self, values: Mapping[Tap, Tensor], group: str) -> Tensor:
        """(senders, copies, n * seq, d_model) that a group writes, from taps (copies, n, seq, width)."""
        kind, layer = group.split(".")
        if kind == "mlp":
            out = values["mlp_out", int(layer)].float().flatten(1, 2)[None]
            return out * self.graph.scales[int(layer)][1]
        weight = writing(self.model, int(layer)).float()  # (d_model, heads, head_dim)
        each = values["attn", int(layer)].float().flatten(1, 2).unflatten(-1, weight.shape[1:])
        return torch.einsum("kthc,dhc->hktd", each, weight) * self.graph.scales[int(layer)][0]


class _Passed:
    """What has been written so far in a pass of patched copies, and what readers with patched edges read because of it.

    The model's own stream is the sum of what was written, so a reader without patched edges is left alone; others read that
    sum less what their patched edges take away.
    """

    def __init__(self, masks: Tensor, start: Tensor) -> None:
        self.masks = masks  # (copies, senders, receivers) bool
        self.used = masks.any(2).any(0)  # senders out of which some edge is patched
        self.drift = (
            torch.zeros_like(start).expand(len(masks), *start.shape).clone()
        )  # written so far, less the plain run's
        self.apart: dict[int, Tensor] = {}  # sender -> (copies, n * seq, d_model): how far it is from the source run

    def told(self, first: int, apart: Tensor, moved: Tensor) -> None:
        """Senders from number `first` on have written. apart: (senders, copies or 1, n * seq, d_model)."""
        self.drift += moved
        for number, one in enumerate(apart, start=first):
            if bool(self.used[number]):
                self.apart[number] = one.expand_as(self.drift)

    def read(self, graph: EdgeGraph, group: str, plain: Tensor) -> Iterable[tuple[int, Tensor, Tensor]]:
        """(copy, receivers (k,), streams (k, n * seq, d_model)) for each copy in which edges into the group are patched."""
        below = graph.below(group)
        mine = self.masks[:, below, graph.receiver_slices[group]]
        for copy in mine.any(2).any(1).nonzero()[:, 0].tolist():
            receivers = mine[copy].any(0).nonzero()[:, 0]
            senders = mine[copy].any(1).nonzero()[:, 0].tolist()
            apart = torch.stack([self.apart[sender][copy] for sender in senders])
            taken = mine[copy][senders][:, receivers].T.to(apart) @ apart.flatten(1)
            yield copy, receivers, (plain + self.drift[copy]) - taken.view(len(receivers), *plain.shape)


def written(model: LanguageModel, graph: EdgeGraph, ids: Tensor, mask: Tensor) -> dict[Tap, Tensor]:
    """Heads' vectors and MLP outputs (n, seq, width) of a plain run; ("embed", 0): the first stream (n * seq, d_model)."""
    taps = [(site, layer) for layer in range(graph.n_layers) for site in ("attn", "mlp_out")]
    reader = graph.attention[0][0]
    path = reader.norm or reader.entry.path
    recorded: list[Recorded] = []

    def call() -> None:
        recorded.append(Recorded(model, ids, mask, taps))

    entering = watch_calls(call, {path: model.anatomy.module(path)})[path][0]
    found = {tap: values.float().reshape(*ids.shape, -1) for tap, values in recorded[0].values.items()}
    found["embed", 0] = entering.detach().float().reshape(-1, entering.shape[-1])
    return found


def _copy(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


def _means(model: LanguageModel, graph: EdgeGraph, pairs: Pairs, way: str, batch_size: int) -> dict[Tap, Tensor]:
    """tap -> (width,) mean over the source run's tokens, of every sender's output and of the entering stream."""
    sums: dict[Tap, Tensor] = {}
    count = 0
    for batch, _ in length_sorted(pairs, fitting(model, batch_size, 1)[0]):
        side = batch.corrupt if way == "noise" else batch.clean
        real = batch.mask.reshape(-1)
        for tap, values in written(model, graph, side, batch.mask).items():
            rows = values.reshape(-1, values.shape[-1])[real.to(values.device)].double()
            sums[tap] = sums.get(tap, torch.zeros((), dtype=torch.float64, device=rows.device)) + rows.sum(0)
        count += int(real.sum())
    return {tap: (total / count).float() for tap, total in sums.items()}

"""The forward passes of path patching: record both runs, carry senders to receivers, run again with what receivers read.

With every attention vector held at its clean value a residual stream runs along one position alone. So a sender's change
is carried to its receivers by running the real model on sequences of one token, attention vectors fed in from the
recording: every norm, MLP and projection is the model's own, and all senders are rows of one batch. Whether a model
reproduces its clean values in this way is measured; where it does not, whole prompts are run.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from patchclamp.core.errors import ModelError
from patchclamp.models.anatomy import weight_of
from patchclamp.models.hooks import Seen, Tap, change, observe, run
from patchclamp.models.prefix import Prefix

if TYPE_CHECKING:
    from patchclamp.data.paired import Pairs
    from patchclamp.models.load import LanguageModel

LIMITS = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Node:
    """One part of a model: kind "head" (layer, index), "mlp" (layer) or "embed"."""

    kind: str
    layer: int = 0
    index: int = 0

    def __str__(self) -> str:
        if self.kind == "embed":
            return "embed"
        return f"mlp.{self.layer}" if self.kind == "mlp" else f"head.{self.layer}.{self.index}"


def limit(model: LanguageModel) -> float:
    """Largest difference, beside the largest value, that counts as none in the model's precision."""
    return LIMITS.get(model.dtype, 1e-4)


def close(model: LanguageModel, one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same up to rounding."""
    one, other = one.float(), other.float().to(one.device)
    size = max(float(other.abs().max()) if other.numel() else 0.0, 1e-6)
    gap = float((one - other).abs().max()) if one.numel() else 0.0
    return gap <= limit(model) * size  # False for NaN


class Recorded:
    """Values of some taps in one plain pass. values: tap -> (batch * seq, width), on the tap's device."""

    def __init__(self, model: LanguageModel, ids: Tensor, mask: Tensor, taps: Iterable[Tap]) -> None:
        self.values: dict[Tap, Tensor] = {}

        def keep(seen: Seen) -> None:
            self.values[seen.site, seen.layer] = seen.values.detach().clone()

        with observe(model, dict.fromkeys(taps), keep):
            run(model, ids, mask)


@dataclass(frozen=True, eq=False)
class Grid:
    """Which positions of a batch are run.

    ids: (rows, seq) of the run that is patched into; other: the same of the run that values come from. mask: (rows, seq)
    or None. positions: (rows, seq) for models that take them. index: (rows * seq,) flat positions within the recording.
    patched, held: (rows * seq,) bool, where senders are replaced and where the attention is held.
    """

    ids: Tensor
    other: Tensor
    mask: Tensor | None
    positions: Tensor | None
    index: Tensor
    patched: Tensor
    held: Tensor

    @property
    def size(self) -> int:
        return len(self.index)


def column_grid(base: Tensor, source: Tensor, chosen: Tensor) -> Grid:
    """Every chosen position as a sequence of one token. base, source: (n, seq) ids; chosen: (n, seq) bool."""
    index = chosen.reshape(-1).nonzero()[:, 0]
    ids, other = base.reshape(-1)[index][:, None], source.reshape(-1)[index][:, None]
    everywhere = torch.ones_like(index, dtype=torch.bool)
    return Grid(ids, other, None, (index % base.shape[1])[:, None], index, everywhere, everywhere)


def whole_grid(base: Tensor, source: Tensor, mask: Tensor, chosen: Tensor, held: Tensor) -> Grid:
    """Whole prompts. chosen: where senders are replaced; held: where attention is held at its clean value."""
    index = torch.arange(base.numel(), device=base.device)
    return Grid(base, source, mask, None, index, chosen.reshape(-1), held.reshape(-1))


class Carrier:
    """Carries the change of many senders along the residual stream to where receivers read."""

    def __init__(
        self,
        model: LanguageModel,
        grid: Grid,
        base: Recorded,
        source: Recorded,
        *,
        freeze_mlps: bool,
        taps: Sequence[Tap],
    ) -> None:
        self.model, self.grid, self.base, self.source = model, grid, base, source
        self.freeze_mlps, self.taps = freeze_mlps, tuple(taps)

    def carried(self, senders: Sequence[Node | None]) -> dict[Tap, Tensor]:
        """tap -> (n_senders, grid size, width): what arrives there when each sender alone is replaced (None: nothing)."""
        count, size = len(senders), self.grid.size
        found: dict[Tap, Tensor] = {}

        def keep(seen: Seen) -> None:
            found[seen.site, seen.layer] = seen.values.detach().reshape(count, size, -1).clone()

        with contextlib.ExitStack() as stack:
            # a receiver's MLP is read as it comes, then held: so its reader is entered before what holds it
            early = {tap: _reader(keep) for tap in self.taps if tap[0] == "mlp_out"}
            stack.enter_context(change(self.model, early))
            stack.enter_context(change(self.model, self._changes(senders)))
            stack.enter_context(observe(self.model, [tap for tap in self.taps if tap[0] != "mlp_out"], keep))
            self._run(senders)
        return found

    def _run(self, senders: Sequence[Node | None]) -> None:
        grid, count = self.grid, len(senders)
        ids = grid.ids.repeat(count, 1).reshape(count, *grid.ids.shape).clone()
        for number, sender in enumerate(senders):
            if sender is not None and sender.kind == "embed":
                patched = grid.patched.reshape(grid.ids.shape)
                ids[number] = torch.where(patched, grid.other, grid.ids)
        mask = None if grid.mask is None else grid.mask.repeat(count, 1)
        inputs = self.model.inputs(ids.flatten(0, 1), mask)
        takes = inspect.signature(self.model.trunk_module.forward).parameters
        if grid.positions is not None and "position_ids" in takes:
            inputs["position_ids"] = grid.positions.repeat(count, 1).to(self.model.device)
        with torch.inference_mode():
            self.model.trunk_module(**inputs)

    def _changes(self, senders: Sequence[Node | None]) -> dict[Tap, Callable[[Seen], Tensor]]:
        anatomy = self.model.anatomy
        mlps = {node.layer for node in senders if node is not None and node.kind == "mlp"}
        functions: dict[Tap, Callable[[Seen], Tensor]] = {}
        for layer in range(anatomy.n_layers):
            functions["attn", layer] = self._replacing(senders, "head", hold=True)
            if (self.freeze_mlps and _has(self.model, "mlp_out", layer)) or layer in mlps:
                functions["mlp_out", layer] = self._replacing(senders, "mlp", hold=self.freeze_mlps)
        return functions

    def _replacing(self, senders: Sequence[Node | None], kind: str, *, hold: bool) -> Callable[[Seen], Tensor]:
        """Hold a tap at the values of the base run, but for the senders there, which get those of the source run."""

        def replaced(seen: Seen) -> Tensor:
            tap, values = (seen.site, seen.layer), seen.values
            new = values.reshape(len(senders), self.grid.size, -1).clone()
            index = self.grid.index.to(values.device)
            held, patched = self.grid.held.to(values.device), self.grid.patched.to(values.device)
            if hold:
                new = torch.where(held[:, None], self.base.values[tap][index], new)
            for number, node in enumerate(senders):
                if node is None or node.kind != kind or node.layer != seen.layer:
                    continue
                where = self.columns(node)
                new[number, :, where] = torch.where(
                    patched[:, None], self.source.values[tap][index][:, where], new[number, :, where]
                )
            return new.reshape(values.shape)

        return replaced

    def columns(self, node: Node) -> slice:
        """The coordinates of a sender's tap that are the sender's."""
        if node.kind != "head":
            return slice(None)
        return head_columns(self.model, "attn", node)


def head_columns(model: LanguageModel, site: str, node: Node) -> slice:
    """Coordinates of a head in attn or q, or of the keys or values that it reads in k or v."""
    heads = model.anatomy.heads[node.layer]
    width = model.layouts[site].widths[node.layer]
    size = model.layouts["attn"].widths[node.layer] // heads
    if site == "q":
        size = width // heads
    elif site in ("k", "v"):
        groups = kv_groups(model, site, node.layer)
        size = width // groups
        first = node.index // (heads // groups) * size
        return slice(first, first + size)
    return slice(node.index * size, (node.index + 1) * size)


def kv_groups(model: LanguageModel, site: str, layer: int) -> int:
    """Key-value heads of a layer. Keys are as wide as queries, values as wide as what the heads write."""
    heads = model.anatomy.heads[layer]
    each = model.layouts["q" if site == "k" else "attn"].widths[layer] // heads
    width = model.layouts[site].widths[layer]
    if width % each or heads % (width // each):
        raise ModelError(
            f"{site} of layer {layer} has {width} coordinates, which {heads} heads of {each} can't share; heads there can't be "
            "told apart"
        )
    return width // each


def _reader(see: Callable[[Seen], None]) -> Callable[[Seen], Tensor]:
    def read(seen: Seen) -> Tensor:
        see(seen)
        return seen.values

    return read


def _has(model: LanguageModel, site: str, layer: int) -> bool:
    return site in model.layouts and bool(model.layouts[site].widths[layer])


class Readout:
    """Logit difference answer - wrong from the states that enter the LM head, in float32: no row over the vocabulary."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.tap: Tap = ("final", model.anatomy.n_layers - 1)
        anatomy = model.anatomy
        module = None if anatomy.lm_head is None else anatomy.module(anatomy.lm_head)
        weight: Any = getattr(module, "weight", None)
        if module is None or not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta:
            raise ModelError(f"{model.name} has no dense LM head, so logit differences can't be read from its states")
        self.weight = weight_of(module)  # (vocabulary, d_model)
        if self.weight.dim() != 2 or self.weight.shape[1] != anatomy.d_model:
            raise ModelError(
                f"the LM head of {model.name} has shape {tuple(self.weight.shape)}; (vocabulary, {anatomy.d_model}) is needed: "
                "something else stands between its residual stream and its logits"
            )
        bias: Any = getattr(module, "bias", None)
        self.bias = bias if isinstance(bias, Tensor) else None

    def logits(self, states: Tensor, tokens: Tensor) -> Tensor:
        """(rows, k) float32 logits of tokens (rows, k), from states (rows, d_model)."""
        ids = tokens.to(self.weight.device)
        found = torch.einsum("rd,rkd->rk", states.float().to(self.weight.device), self.weight[ids].float())
        return self._finished(found if self.bias is None else found + self.bias[ids].float())

    def every(self, states: Tensor) -> Tensor:
        """(rows, vocabulary) float32 logits of all tokens."""
        found = states.float().to(self.weight.device) @ self.weight.T.float()
        return self._finished(found if self.bias is None else found + self.bias.float())

    def _finished(self, products: Tensor) -> Tensor:
        anatomy = self.model.anatomy
        found = products * anatomy.logit_scale
        return found if not anatomy.soft_cap else anatomy.soft_cap * torch.tanh(found / anatomy.soft_cap)

    def difference(self, states: Tensor, pairs: Pairs) -> Tensor:
        """(..., n) logit differences on the CPU, float64, from states (..., n, d_model)."""
        lead = states.shape[:-2]
        tokens = torch.stack([pairs.answer, pairs.wrong], 1)  # (n, 2)
        rows = tokens.expand(*lead, *tokens.shape).reshape(-1, 2)
        found = self.logits(states.reshape(-1, states.shape[-1]), rows).double().cpu()
        return (found[:, 0] - found[:, 1]).reshape(*lead, len(pairs))

    def check(self, pairs: Pairs) -> None:
        """ModelError unless the states give the model's own logits."""
        few = pairs.rows(slice(0, 2))
        rows = torch.arange(len(few), device=self.model.device)
        whole = self.model.logits(few.clean, few.mask)[rows, few.end].float()
        states = Recorded(self.model, few.clean, few.mask, [self.tap]).values[self.tap]
        states = states.reshape(*few.clean.shape, -1)[rows.to(states.device), few.end.to(states.device)]
        tokens = torch.stack([few.answer, few.wrong], 1)
        if not close(self.model, self.logits(states, tokens), whole.gather(1, tokens.to(whole.device))):
            raise ModelError(
                f"the logits of {self.model.name} are not its LM head times the state that enters it; something else stands "
                "between them, so logit differences can't be read"
            )


class Runs(Protocol):
    """Something that runs the same columns of the same rows again and again, for the sake of active observers."""

    def run(self) -> None: ...


class Above(Prefix):
    """A prefix of the trunk: no logits over the whole vocabulary. times: copies of the batch, one after another."""

    def __init__(self, model: Any, layer: int, input_ids: Tensor, attention_mask: Tensor, times: int = 1) -> None:
        super().__init__(model, layer, input_ids, attention_mask)
        self.input_ids, self.attention_mask = input_ids.repeat(times, 1), attention_mask.repeat(times, 1)
        self._output = _repeated(self._output, len(input_ids), times)

    def run(self) -> None:
        """Run the blocks from the layer up for the sake of active observers, under whatever changes are active."""
        self._refuse_changes_below()
        with self._skipping() if self.exact else contextlib.nullcontext():
            run(self.model, self.input_ids, self.attention_mask)


def _repeated(output: Any, rows: int, times: int) -> Any:
    """A block's output for copies of its batch."""
    if isinstance(output, Tensor) and output.dim() and len(output) == rows:
        return output.repeat(times, *[1] * (output.dim() - 1))
    if isinstance(output, tuple | list):
        return type(output)(_repeated(item, rows, times) for item in output)
    return output


def rerun(
    model: LanguageModel,
    above: Runs,
    arrived: Mapping[Tap, Tensor],
    receivers: Sequence[tuple[Tap, list[Node]]],
    chosen: Tensor,
    ends: Tensor,
    readout: Readout,
    *,
    twins: bool,
) -> Tensor:
    """(rows, d_model) final states at the last tokens, with what receivers read replaced at the chosen positions.

    arrived: tap -> (k, width), one row per chosen position, in order. receivers: taps and the nodes that read there.
    chosen: (rows, seq) bool; ends: (rows,). twins: the second half of `above`'s rows are the same prompts without
    replaced keys or values: heads that share them with a receiver keep what they computed there.
    """
    flat = chosen.reshape(-1).nonzero()[:, 0]
    rows, seq = chosen.shape
    states: dict[Tap, Tensor] = {}

    def replacing(tap: Tap, nodes: list[Node]) -> Callable[[Seen], Tensor]:
        site = tap[0]
        where = torch.zeros(model.layouts[site].widths[tap[1]], dtype=torch.bool)
        for node in nodes:
            where[slice(None) if node.kind == "mlp" else head_columns(model, site, node)] = True
        columns = where.nonzero()[:, 0]

        def replaced(seen: Seen) -> Tensor:
            index, inner = flat.to(seen.values.device), columns.to(seen.values.device)
            new = seen.values.clone()
            new[index[:, None], inner[None, :]] = arrived[tap].to(seen.values)[:, inner]
            return new

        return replaced

    def joined(nodes: list[Node]) -> Callable[[Seen], Tensor]:
        def both(seen: Seen) -> Tensor:
            first, second = seen.values.chunk(2)
            new = second.clone()
            for node in nodes:
                where = head_columns(model, "attn", node)
                new[:, where] = first[:, where]
            return torch.cat([new, new])

        return both

    def keep(seen: Seen) -> None:
        index = (torch.arange(rows, device=ends.device) * seq + ends).to(seen.values.device)
        states[seen.site, seen.layer] = seen.values[index]

    functions = {tap: replacing(tap, nodes) for tap, nodes in receivers}
    if twins:
        functions |= {("attn", tap[1]): joined(nodes) for tap, nodes in receivers}
    with change(model, functions), observe(model, [readout.tap], keep):
        above.run()
    return states[readout.tap]


def chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """At most `size` at a time, in order."""
    for start in range(0, len(items), max(1, size)):
        yield list(items[start : start + max(1, size)])

"""Path patching: how much of a flipped answer travels from a sender straight to given receivers (arXiv 2310.08744, 2211.00593).

    scores = path_patch(model, ioi(200, model.tokenizer))                                     # heads -> final residual, END
    path_patch(model, task, scores.top(0.02), component="q")                                  # heads -> the movers' queries
    path_patch(model, task, gatherers, component="v", position="S2")                          # -> values read at a named spot

For every sender: run the clean prompt with the sender's output taken from the corrupted one and every other head held at its
clean output, so that only the residual stream (and the MLPs on it, unless frozen) carries the change; note what the
receivers would read; run the clean prompt once more with nothing but that replaced. The score is the share of the flip,
100 * (LD_clean - LD_patched) / (LD_clean - LD_corrupt), of the logit difference answer - wrong at the last token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.arrays import packed
from patchclamp.core.errors import InputError, ModelError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.paired import PairedTask, Pairs
from patchclamp.intervene.patching_result import Patching
from patchclamp.intervene.path_closed_form import closed_form_states, closed_form_taps
from patchclamp.intervene.path_nodes import Receivers, check_held, reaches, receivers_of, senders_of, shares
from patchclamp.intervene.path_runs import (
    Above,
    Carrier,
    Node,
    Readout,
    Recorded,
    chunks,
    close,
    column_grid,
    rerun,
    whole_grid,
)
from patchclamp.intervene.path_tail import Tail, tail_of
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.hooks import Tap
    from patchclamp.models.load import LanguageModel

FREEZE = ("all", "position")
WAYS = ("noise", "denoise")
BELOW = ("any", "all")
TOKENS = 8192  # positions of one forward pass


def path_patch(
    model: LanguageModel,
    task: PairedTask | Pairs,
    receivers: str | UnitSet | Iterable[str] = "final",
    *,
    component: str = "",
    position: str | Tensor | None = "END",
    senders: str | UnitSet | Iterable[str] = "heads",
    freeze_mlps: bool = False,
    freeze: str = "all",
    way: str = "noise",
    below: str = "any",
    batch_size: int = 32,
    batch_tokens: int = TOKENS,
    quiet: bool = True,
) -> Patching:
    """Effects of every sender on the answer through the receivers: a `Patching` whose parts are the senders, at one position.

    task: minimal pairs, or their token ids. receivers: "final" (the residual stream that enters the final norm, at the
    last token), heads ("head.9.6", or a UnitSet of them), or MLPs ("mlp.3", what the MLP of layer 3 reads).
    component: what of the heads: "q", "k" or "v". Of keys and values that several heads share, only what the receivers
    read is replaced. position: where senders and receivers are replaced: a spot or list of the task, token indices (n,),
    a mask (n, seq), or None for all positions. senders: "heads", "all" (with MLPs and "embed"), names, or a UnitSet.
    freeze_mlps: hold the MLPs between at their clean outputs too (the paper's default is not to).
    freeze: heads are held at "all" positions, or at the patched "position" only (the paper's; then an effect on the final
    residual also leaks through later positions). way: "noise" puts corrupted values into the clean run, "denoise" clean
    ones into the corrupted run. below: senders must lie below "any" receiver, or below "all" of them (the paper's).
    Senders above the receivers get exactly 0. batch_size: pairs at once; batch_tokens: positions of one forward pass.

    Differs from the reference: receivers' recorded values are copies (there `z` is overwritten in place), heads are held at
    all positions by default, and senders of several layers are one batch.
    Raises InputError for unknown receivers, spots and settings, ModelError for layers whose mixing of positions can't be held.
    """
    for name, value, known in (("freeze", freeze, FREEZE), ("way", way, WAYS), ("below", below, BELOW)):
        if value not in known:
            raise InputError(f"{name}={value!r} given; it is one of {', '.join(known)}")
    if batch_size < 1 or batch_tokens < 1:
        raise InputError(f"batch_size={batch_size}, batch_tokens={batch_tokens}; at least 1 each is needed")
    receivers, senders = _listed(receivers), _listed(senders)
    pairs = encoded(model, task)
    chosen = chosen_positions(pairs, position)
    read = receivers_of(model, receivers, component)
    nodes = senders_of(model, senders)
    check_held(model)
    readout = Readout(model)
    readout.check(pairs)
    job = _Job(model, read, nodes, readout, freeze_mlps, freeze, way, batch_tokens)
    job.reaching = [number for number, node in enumerate(nodes) if reaches(node, read, below)]
    # pairs whose positions stand alike go together: fewer columns are run
    order = np.lexsort([pairs.end.cpu().numpy(), chosen.long().argmax(1).cpu().numpy()])
    pairs, chosen, back = pairs.rows(order.tolist()), chosen[order.tolist()], np.argsort(order)
    parts, start = [], 0
    with progress("path patching", len(pairs), unit="pairs", quiet=quiet) as advance:
        for batch in pairs.batches(batch_size):
            parts.append(job.batch(batch, chosen[start : start + len(batch), : batch.clean.shape[1]]))
            start += len(batch)
            advance(len(batch))
    patched, base, source = (torch.cat(part, -1).numpy()[..., back] for part in zip(*parts, strict=True))
    where = "all" if position is None else position if isinstance(position, str) else "given"
    settings = {
        "method": "path patching", "receivers": [str(node) for _, group in read for node in group] or "final",
        "component": component, "freeze_mlps": freeze_mlps, "freeze": freeze, "way": way, "below": below,
        "columns": job.columns, "closed_form": bool(job.closed), "cache": bool(job.tails),
    }  # fmt: skip
    arguments = {
        "receivers": _names(receivers), "component": component, "position": plain_position(position), "senders": _names(senders),
        "freeze_mlps": freeze_mlps, "freeze": freeze, "way": way, "below": below, "batch_size": batch_size,
        "batch_tokens": batch_tokens,
    }  # fmt: skip
    return Patching(
        tuple(map(str, nodes)), (where,), patched[:, None], base, source, settings, identity_of(task),
        dict(model.identity), made_by("intervene.path_patch", model, task, arguments),
    )  # fmt: skip


def encoded(model: LanguageModel, task: PairedTask | Pairs) -> Pairs:
    """The token ids of a paired task on the model's device."""
    if isinstance(task, Pairs):
        return task.to(model.device)
    if not isinstance(task, PairedTask):
        raise InputError(f"a {type(task).__name__} given; patching needs a PairedTask (or its Pairs)")
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} came without a tokenizer; give the pairs' token ids, or load(..., tokenizer=...)"
        )
    return task.encode(model.tokenizer, model.device)


def chosen_positions(pairs: Pairs, position: str | Tensor | None) -> Tensor:
    """(n, seq) bool: where a position stands in every pair. InputError names the item that lacks it."""
    n, seq = pairs.clean.shape
    if position is None:
        return pairs.mask.clone()
    if isinstance(position, str):
        where = pairs.lists[position] if position in pairs.lists else pairs.at(position)[:, None]
    else:
        given = torch.as_tensor(position, device=pairs.clean.device)
        if given.dtype == torch.bool:
            if given.shape != (n, seq):
                raise InputError(f"a mask of shape {tuple(given.shape)} given; ({n}, {seq}) is needed")
            where = torch.where(given, torch.arange(seq, device=given.device), -1)
        elif given.dim() in (1, 2) and len(given) == n:
            where = given.long().reshape(n, -1)
        else:
            raise InputError(f"positions of shape {tuple(given.shape)} given; one for each of the {n} pairs is needed")
    outside = (where > pairs.end[:, None]) | (where < -1)
    absent = (where < 0).all(1)
    for bad, said in ((outside.any(1), "lies outside its prompt"), (absent, "is not there")):
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            name = repr(position) if isinstance(position, str) else f"{where[row].tolist()}"
            raise InputError(
                f"item {int(pairs.numbers[row])}: the position {name} {said} (tokens 0 to {int(pairs.end[row])})"
            )
    marks = torch.zeros(n, seq + 1, dtype=torch.bool, device=where.device)
    marks.scatter_(1, where.masked_fill(where < 0, seq), True)
    return marks[:, :seq]


def identity_of(task: PairedTask | Pairs) -> dict[str, Any]:
    """Plain data that says which pairs were run: a task's identity, or number and fingerprint of token ids."""
    if isinstance(task, PairedTask):
        return dict(task.identity)
    found = hashlib.sha256()
    own = {name: getattr(task, name) for name in ("clean", "corrupt", "mask", "answer", "wrong", "end")}
    for name, values in [*own.items(), *sorted(task.spots.items()), *sorted(task.lists.items())]:
        found.update(f"{name}{tuple(values.shape)}".encode())
        found.update(values.detach().cpu().long().numpy().tobytes())
    return {"kind": "tokens", "items": len(task), "fingerprint": found.hexdigest()}


def made_by(call: str, model: LanguageModel, task: PairedTask | Pairs, arguments: dict[str, Any]) -> dict[str, Any]:
    """The call, its arguments, the identities of model and pairs, versions and time, to store beside a result."""
    return provenance(call, arguments=arguments, inputs={"model": dict(model.identity), "task": identity_of(task)})


def plain_position(position: Any) -> Any:
    """A position as plain data: spots and token indices as they are, tensors as {"array": ...}."""
    if position is None or isinstance(position, str | int):
        return position
    given = torch.as_tensor(position).detach().cpu()
    return {"array": packed((given if given.dtype == torch.bool else given.long()).numpy())}


def _listed(given: str | UnitSet | Iterable[str]) -> str | UnitSet | list[str]:
    """Receivers or senders as what can be read more than once."""
    return given if isinstance(given, str | UnitSet) else list(given)


def _names(given: str | UnitSet | Iterable[str]) -> str | list[str]:
    """Receivers or senders as plain data: names; words such as "final" as they are."""
    return given if isinstance(given, str) else [str(name) for name in given]


class _Job:
    """One call of `path_patch`: what stays the same over batches of pairs."""

    def __init__(
        self,
        model: LanguageModel,
        receivers: Receivers,
        senders: Sequence[Node],
        readout: Readout,
        freeze_mlps: bool,
        freeze: str,
        way: str,
        batch_tokens: int,
    ) -> None:
        self.model, self.receivers, self.senders, self.readout = model, receivers, senders, readout
        self.freeze_mlps, self.freeze, self.way, self.tokens = freeze_mlps, freeze, way, batch_tokens
        self.tails: bool | None = None  # whether last columns can be run on a cache; measured when first of use
        self.apart = False  # whether positions were seen to stay apart while attention is held
        self.columns: bool | None = None  # whether positions can be run alone; measured in the first batch
        held = freeze_mlps and freeze == "all" and not receivers
        self.extra_taps = closed_form_taps(model) if held else []
        self.closed: bool | None = None if self.extra_taps else False  # whether the closed form holds; measured too
        self.reaching: list[int] = []
        self.twins = any(shares(model, tap, nodes) for tap, nodes in receivers)

    def batch(self, pairs: Pairs, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n_senders, n) patched, (n,) base and (n,) source logit differences, float64 on the CPU."""
        ids = [pairs.clean, pairs.corrupt]
        first, second = ids if self.way == "noise" else ids[::-1]
        runs = [Recorded(self.model, one, pairs.mask, self._taps()) for one in (first, second)]
        rows = torch.arange(len(pairs), device=pairs.end.device)
        ends = rows * pairs.clean.shape[1] + pairs.end
        plain = []
        for run in runs:
            states = run.values[self.readout.tap]
            plain.append(self.readout.difference(states[ends.to(states.device)], pairs))
        patched = plain[0].repeat(len(self.senders), 1)
        if self.receivers:
            self._through(pairs, chosen, first, second, runs, patched)
        else:
            self._final(pairs, chosen, first, second, runs, patched)
        return patched, plain[0], plain[1]

    def _taps(self) -> list[Tap]:
        layers = range(self.model.anatomy.n_layers)
        taps: list[Tap] = [("attn", layer) for layer in layers]
        if self.freeze_mlps or any(node.kind == "mlp" for node in self.senders):
            have = self.model.layouts.get("mlp_out")
            taps += [("mlp_out", layer) for layer in layers if have is not None and have.widths[layer]]
        return [*taps, *self.extra_taps, self.readout.tap, *(tap for tap, _ in self.receivers)]

    def _carrier(
        self, chosen: Tensor, first: Tensor, second: Tensor, pairs: Pairs, runs: list[Recorded], taps: list[Tap]
    ) -> Carrier:
        """Columns where the model reproduces itself column by column, else whole prompts."""
        how: dict[str, Any] = {"freeze_mlps": self.freeze_mlps, "taps": taps}
        if self.columns is not False:
            carrier = Carrier(self.model, column_grid(first, second, chosen), *runs, **how)
            if self.columns is None:
                self.columns = _reproduces(carrier, runs[0])
            if self.columns:
                return carrier
        everywhere = torch.ones_like(chosen)
        if not self.apart:
            self._check_apart(first, pairs.mask, runs)
        return Carrier(self.model, whole_grid(first, second, pairs.mask, chosen, everywhere), *runs, **how)

    def _check_apart(self, ids: Tensor, mask: Tensor, runs: list[Recorded]) -> None:
        """With all attention held another first token must not move any other position; ModelError if it does."""
        first = torch.zeros_like(mask)
        first[:, 0] = True
        grid = whole_grid(ids, ids.roll(1, 1), mask, first, torch.ones_like(mask))
        carrier = Carrier(self.model, grid, runs[0], runs[0], freeze_mlps=False, taps=[self.readout.tap])
        plain, moved = carrier.carried([None, Node("embed")])[self.readout.tap]
        others = (mask & ~first).reshape(-1).to(plain.device)
        if not close(self.model, moved[others], plain[others]):
            raise ModelError(
                f"{self.model.name} mixes positions beside its attention heads, which can't be held, so paths through the "
                "residual stream alone can't be told from others"
            )
        self.apart = True

    def _final(
        self, pairs: Pairs, chosen: Tensor, first: Tensor, second: Tensor, runs: list[Recorded], patched: Tensor
    ) -> None:
        """Senders to the final residual: what arrives at the last token is the answer."""
        at_end = torch.zeros_like(chosen)
        at_end[torch.arange(len(pairs), device=chosen.device), pairs.end] = True
        leaks = self.freeze == "position" and bool((chosen & ~at_end).any())
        counts = torch.ones(len(pairs), dtype=torch.bool) if leaks else (chosen & at_end).any(1).cpu()
        exact = None if self.closed is False else self._closed(pairs, at_end, runs)
        if exact is not None and self.closed:
            patched += torch.where(counts, exact, 0.0)
            return
        if leaks:
            how: dict[str, Any] = {"freeze_mlps": self.freeze_mlps, "taps": [self.readout.tap]}
            carrier = Carrier(self.model, whole_grid(first, second, pairs.mask, chosen, chosen), *runs, **how)
        else:
            carrier = self._carrier(at_end, first, second, pairs, runs, [self.readout.tap])
        ends = at_end.reshape(-1)[carrier.grid.index].nonzero()[:, 0]
        moved = torch.zeros_like(patched)
        for part in self._parts(carrier.grid.size):
            states = carrier.carried([None, *(self.senders[number] for number in part)])[self.readout.tap]
            found = self.readout.difference(states[:, ends.to(states.device)], pairs)
            moved[part] = found[1:] - found[0]
        if exact is not None:
            self.closed = close(self.model, exact, moved)
        patched += torch.where(counts, moved, 0.0)

    def _closed(self, pairs: Pairs, at_end: Tensor, runs: list[Recorded]) -> Tensor:
        """(n_senders, n) movement of the logit difference by the closed form."""
        rows = at_end.reshape(-1).nonzero()[:, 0]
        states = closed_form_states(self.model, runs[0], runs[1], rows, self.senders)
        plain = runs[0].values[self.readout.tap]
        plain = self.readout.difference(plain[rows.to(plain.device)], pairs)
        return self.readout.difference(states, pairs) - plain

    def _through(
        self, pairs: Pairs, chosen: Tensor, first: Tensor, second: Tensor, runs: list[Recorded], patched: Tensor
    ) -> None:
        """Senders to what heads or MLPs read; then the clean run with that replaced."""
        taps = [tap for tap, _ in self.receivers]
        carrier = self._carrier(chosen, first, second, pairs, runs, taps)
        inside = chosen.reshape(-1)[carrier.grid.index].nonzero()[:, 0]
        copies = 2 if self.twins else 1
        at_once = min(max(1, self.tokens // (copies * chosen.numel())), max(1, len(self.reaching)))
        above, start = self._above(first, pairs, chosen, runs[0], copies * at_once)
        many, ends = chosen[:, start:].repeat(copies * at_once, 1), (pairs.end - start).repeat(copies * at_once)
        many[at_once * len(pairs) :] = False
        half = self.model.dtype in (torch.bfloat16, torch.float16)
        before = self._rerun(above, self._plain(runs[0], chosen, at_once), many, ends, pairs) if half else None
        for part in self._parts(carrier.grid.size):
            arrived = carrier.carried([None, *(self.senders[number] for number in part)])
            moved = {tap: (values[1:] - values[:1])[:, inside.to(values.device)] for tap, values in arrived.items()}
            for some in chunks(range(len(part)), at_once):
                filled = some + [some[-1]] * (at_once - len(some))  # one prefix serves all: the last is repeated
                read = self._plain(runs[0], chosen, at_once)
                read = {tap: (values + moved[tap][filled].flatten(0, 1)) for tap, values in read.items()}
                found = self._rerun(above, read, many, ends, pairs)
                if before is not None:  # in half precision two batches differ by rounding: compare within one
                    found = patched[[part[number] for number in filled]] + found - before
                patched[[part[number] for number in some]] = found[: len(some)]

    def _above(
        self, first: Tensor, pairs: Pairs, chosen: Tensor, base: Recorded, times: int
    ) -> tuple[Above | Tail, int]:
        """What is run with replaced readings, and its first column: the last columns, or else the upper blocks."""
        lowest = min(layer for (_, layer), _ in self.receivers)
        start, seq, n_layers = int(chosen.any(0).long().argmax()), chosen.shape[1], self.model.anatomy.n_layers
        if self.tails is not False and start > 0 and (seq - start) * n_layers < seq * (n_layers - lowest):
            check = base if self.tails is None else None
            tail = tail_of(self.model, first, pairs.mask, start, times, check, self.readout.tap)
            self.tails = tail is not None
            if tail is not None:
                return tail, start
        return Above(self.model, lowest, first, pairs.mask, times), 0

    def _plain(self, run: Recorded, chosen: Tensor, times: int) -> dict[Tap, Tensor]:
        """tap -> (times * chosen positions, width): what receivers read in the run that is patched into."""
        index = chosen.reshape(-1).nonzero()[:, 0]
        return {tap: run.values[tap][index.to(run.values[tap].device)].repeat(times, 1) for tap, _ in self.receivers}

    def _rerun(
        self, above: Above | Tail, arrived: dict[Tap, Tensor], many: Tensor, ends: Tensor, pairs: Pairs
    ) -> Tensor:
        states = rerun(self.model, above, arrived, self.receivers, many, ends, self.readout, twins=self.twins)
        kept = states[: len(states) // 2] if self.twins else states
        return self.readout.difference(kept.reshape(-1, len(pairs), states.shape[-1]), pairs)

    def _parts(self, size: int) -> Iterable[list[int]]:
        return chunks(self.reaching, max(1, self.tokens // max(1, size)))


def _reproduces(carrier: Carrier, base: Recorded) -> bool:
    """Whether nothing patched gives what the plain run gave."""
    try:
        found = carrier.carried([None])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, ModelError):
        return False
    for tap, values in found.items():
        expected = base.values[tap]
        if not close(carrier.model, values[0], expected[carrier.grid.index.to(expected.device)]):
            return False
    return True

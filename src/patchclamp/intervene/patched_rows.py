"""Many patched copies of a batch in one forward pass: each row takes other parts of another run, and its answer is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.intervene.path_runs import Above, Node, Readout, Recorded, chunks, head_columns, kv_groups
from patchclamp.models.hooks import Seen, Tap, change, observe
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.data.paired import Pairs
    from patchclamp.models.load import LanguageModel

BY = ("layer", "head", "unit")
WAYS = ("noise", "denoise")


@dataclass(frozen=True)
class Part:
    """What can be patched: some columns of a tap (None: the whole vector), under a name such as "head.3.2"."""

    name: str
    tap: Tap
    columns: slice | None = None

    @property
    def layer(self) -> int:
        return self.tap[1]


@dataclass(frozen=True, eq=False)
class Patch:
    """A part replaced at chosen positions, (n, seq) bool."""

    part: Part
    chosen: Tensor


class PatchedRows:
    """One batch of pairs, the run that is patched into and the values that are put there.

    way: "noise" patches corrupted values into the clean run, "denoise" clean values into the corrupted run. base, source:
    (n,) float64 logit differences of the two plain runs. values: tap -> (n, seq, width); by default those of the source
    run, for the taps that are asked for. own: with both=True the same of the run that is patched into, else empty.
    """

    def __init__(
        self,
        model: LanguageModel,
        pairs: Pairs,
        taps: Iterable[Tap],
        *,
        way: str = "noise",
        tokens: int = 8192,
        values: Mapping[Tap, Tensor] | None = None,
        both: bool = False,
    ) -> None:
        self.model, self.pairs = model, pairs
        self.readout = Readout(model)
        sides = (pairs.clean, pairs.corrupt) if way == "noise" else (pairs.corrupt, pairs.clean)
        self.ids = sides[0]
        self.at_once = max(1, tokens // self.ids.numel())
        taps = list(taps)
        plain = Recorded(model, sides[0], pairs.mask, [self.readout.tap, *(taps if both else [])])
        other = Recorded(model, sides[1], pairs.mask, [self.readout.tap, *([] if values is not None else taps)])
        self.base, self.source = (self._difference(run.values[self.readout.tap], 1)[0] for run in (plain, other))
        self.own = self._shaped(plain) if both else {}
        self.values: Mapping[Tap, Tensor] = self._shaped(other) if values is None else values

    def _shaped(self, run: Recorded) -> dict[Tap, Tensor]:
        return {tap: found.reshape(*self.ids.shape, -1) for tap, found in run.values.items()}

    def differences(self, rows: Sequence[Sequence[Patch]]) -> Tensor:
        """(n_rows, n) float64 logit differences, one row per list of patches made together; rows run many at a time.

        Blocks below the lowest patch run once per call, so rows that start in one layer belong in one call.
        """
        if not rows:
            return torch.zeros(0, len(self.pairs), dtype=torch.float64)
        lowest = min((patch.part.layer for row in rows for patch in row), default=0)
        at_once = min(self.at_once, len(rows))
        above = Above(self.model, lowest, self.ids.repeat(at_once, 1), self.pairs.mask.repeat(at_once, 1))
        # in half precision batches of other sizes differ by rounding: compare within one
        half = self.model.dtype in (torch.bfloat16, torch.float16)
        plain = self._run(above, [()] * at_once) if half else None
        found = []
        for some in chunks(rows, at_once):
            full = some + [some[-1]] * (at_once - len(some))  # one prefix serves all: the last row is repeated
            patched = self._run(above, full)
            found.append((patched if plain is None else patched - plain + self.base)[: len(some)])
        return torch.cat(found)

    def _run(self, above: Above, rows: Sequence[Sequence[Patch]]) -> Tensor:
        taps = dict.fromkeys(patch.part.tap for row in rows for patch in row)
        states: list[Tensor] = []

        def keep(seen: Seen) -> None:
            states.append(seen.values.detach())

        functions = {tap: self._replacing(tap, rows) for tap in taps}
        with change(self.model, functions), observe(self.model, [self.readout.tap], keep):
            above.run()
        return self._difference(states[-1], len(rows))

    def _replacing(self, tap: Tap, rows: Sequence[Sequence[Patch]]) -> Callable[[Seen], Tensor]:
        mine = [(k, patch) for k, row in enumerate(rows) for patch in row if patch.part.tap == tap]

        def replaced(seen: Seen) -> Tensor:
            if seen.rows is not None:
                raise ModelError(
                    f"{tap[0]} of layer {tap[1]} belongs to experts, which see other tokens in each run; patch mlp_out there"
                )
            new = seen.values.reshape(len(rows), *self.ids.shape, -1).clone()
            other = self.values[tap].to(new)
            for k, patch in mine:
                where = slice(None) if patch.part.columns is None else patch.part.columns
                chosen = patch.chosen.to(new.device)[:, :, None]
                new[k, :, :, where] = torch.where(chosen, other[:, :, where], new[k, :, :, where])
            return new.reshape(seen.values.shape)

        return replaced

    def _difference(self, states: Tensor, copies: int) -> Tensor:
        """(copies, n) logit differences from the final states of all positions."""
        n, seq = self.ids.shape
        ends = torch.arange(copies * n, device=states.device) * seq + self.pairs.end.repeat(copies).to(states.device)
        return self.readout.difference(states[ends].reshape(copies, n, -1), self.pairs)


def parts_of(
    model: LanguageModel, what: str | UnitSet, by: str | None = None, layers: Iterable[int] | None = None
) -> list[Part]:
    """The parts that a word or a unit set names, layer after layer.

    what: a site, or "head"; by: "layer" (the whole vector), "head" (heads; of q, k and v too), "unit" (every coordinate); by
    default heads of "head" and whole vectors of other sites. A UnitSet names units (or heads) itself. InputError for what the
    model lacks.
    """
    if isinstance(what, UnitSet):
        return _units(model, what)
    if by is not None and by not in BY:
        raise InputError(f"by={by!r} given; it is one of {', '.join(BY)}")
    site = "attn" if what == "head" else what
    by = by or ("head" if what == "head" else "layer")
    if site not in model.anatomy.sites or (what == "head" and "head" not in model.layouts):
        raise InputError(f"no site is called {what!r} here; this model has {', '.join(model.layouts)}")
    if by == "head" and site not in ("attn", "q", "k", "v"):
        raise InputError(f"{what} has no heads; by='head' goes with head, q, k and v")
    widths = model.layouts[site].widths
    have = [layer for layer, width in enumerate(widths) if width and (by != "head" or model.anatomy.heads[layer])]
    chosen = have if layers is None else [int(layer) for layer in layers]
    if missing := [layer for layer in chosen if layer not in have]:
        raise InputError(f"layer {missing[0]} has no {what}; layers with it are {', '.join(map(str, have))}")
    found = []
    for layer in chosen:
        tap = (site, layer)
        _refuse_experts(model, tap)
        if by == "layer":
            found.append(Part("embed" if site == "embed" else f"{what}.{layer}", tap))
        elif by == "head":
            found += _heads(model, site, layer)
        else:
            found += [Part(f"{what}.{layer}.{unit}", tap, slice(unit, unit + 1)) for unit in range(widths[layer])]
    return found


def _heads(model: LanguageModel, site: str, layer: int) -> list[Part]:
    """The heads of a layer: "head.3.2"; of queries "head.3.2.q"; keys and values have the model's key-value heads."""
    count = model.anatomy.heads[layer] if site in ("attn", "q") else kv_groups(model, site, layer)
    size = model.layouts[site].widths[layer] // count
    suffix = "" if site == "attn" else f".{site}"
    return [
        Part(f"head.{layer}.{head}{suffix}", (site, layer), slice(head * size, (head + 1) * size))
        for head in range(count)
    ]


def _units(model: LanguageModel, units: UnitSet) -> list[Part]:
    units.check_model(model)
    if not len(units):
        raise InputError("the unit set is empty; there is nothing to patch")
    found = []
    for unit in units:
        tap = ("attn" if unit.site == "head" else unit.site, unit.layer)
        _refuse_experts(model, tap)
        columns = slice(unit.index, unit.index + 1)
        if unit.site == "head":
            columns = head_columns(model, "attn", Node("head", unit.layer, unit.index))
        found.append(Part(str(unit), tap, columns))
    return sorted(found, key=lambda part: part.layer)


def _refuse_experts(model: LanguageModel, tap: Tap) -> None:
    if model.layouts[tap[0]].experts[tap[1]]:
        raise ModelError(
            f"{tap[0]} of layer {tap[1]} belongs to experts, which see other tokens in each run; patch mlp_out there"
        )

"""Heads that are made to look where they are told: at given positions their attention is forced to given other positions.

    forced = force_attention(model, ["head.12.3", "head.13.4"], to=pairs.end, sources=pairs.lists["wrong colors"])
    with forced.applied(model):
        ...

What a head takes from position j is its attention to j times the value of j. So attention that is known needs no softmax:
z_h[to] becomes the weighted mean of the head's values, under any attention kernel, with values shared by several heads too.
Merullo, Eickhoff & Pavlick 2024 (arXiv 2310.08744), section 5, set rows of eager attention instead; the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from patchclamp.core.arrays import packed, unpacked
from patchclamp.core.errors import InputError, ModelError
from patchclamp.intervene.kinds import Change, kinds
from patchclamp.intervene.path_runs import close, kv_groups
from patchclamp.models.hooks import Seen, Step, changed_layers, observe, run
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.hooks import Tap
    from patchclamp.models.load import LanguageModel

CHECK_TOKENS = 4
_KNOWN: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()


@kinds.add("force-attention")
@dataclass(frozen=True, eq=False)
class ForcedAttention(Change):
    """Attention of heads, prompt by prompt, replaced by given weights at given positions.

    heads: units head.L.H. to: bool (n, L), the positions that look; every prompt has one row, in the order of the batch,
    and positions count its own tokens (padding in front of a prompt does not move them). weights: float64 (n, L) for all
    heads, or (n_heads, n, L) in the set's canonical order: how much each position is attended to; a row that sums to 1 is
    attention, another sum scales what the head gives. Positions after the end of the arrays are left alone; a batch of
    k * n rows (beams) uses each row k times. note: free text kept with the data.
    """

    heads: UnitSet
    to: NDArray[np.bool_]
    weights: NDArray[np.float64]
    note: str = ""

    def __post_init__(self) -> None:
        if self.heads.sites not in ((), ("head",)):
            raise InputError(f"heads are needed (head.9.6), but the set has units of {', '.join(self.heads.sites)}")
        to, weights = np.asarray(self.to), np.asarray(self.weights, dtype=np.float64)
        if to.dtype != bool or to.ndim != 2:
            raise InputError(f"`to` is a bool array (prompts, positions), not {to.dtype} of shape {to.shape}")
        if weights.shape not in (to.shape, (len(self.heads), *to.shape)):
            raise InputError(
                f"weights have shape {weights.shape}; {to.shape} or {(len(self.heads), *to.shape)} is needed"
            )
        if not np.isfinite(weights).all():
            raise InputError("attention weights must be finite numbers; NaN or infinity was given")
        used = (weights != 0).any(0) if weights.ndim == 3 else weights != 0
        first = np.where(to.any(1), to.argmax(1), to.shape[1])
        late = used & (np.arange(to.shape[1])[None, :] > first[:, None])
        if late.any():
            row = int(late.any(1).argmax())
            raise InputError(
                f"item {row}: position {first[row]} can't attend to position {int(late[row].argmax())}, which comes after it"
            )
        object.__setattr__(self, "to", to)
        object.__setattr__(self, "weights", weights)

    @property
    def model(self) -> Mapping[str, Any]:
        """Identity of the model it belongs to."""
        return self.heads.model

    def check_model(self, model: Any) -> None:
        """Raise MismatchError unless `model` is the model of the heads."""
        self.heads.check_model(model)

    def compiled(self, model: LanguageModel) -> list[tuple[Tap, Callable[[Seen], Tensor]]]:
        """A reader of the values and a writer of the heads for every layer."""
        check_values(model, {unit.layer for unit in self.heads})
        found: list[tuple[Tap, Callable[[Seen], Tensor]]] = []
        for layer in sorted({unit.layer for unit in self.heads}):
            forcing = _Forcing(model, self, layer)
            found += [(("v", layer), forcing.read), (("head", layer), forcing.write)]
        return found

    def lowest_block(self) -> int | None:
        """The lowest layer with one of the heads; None without heads."""
        return min((unit.layer for unit in self.heads), default=None)

    @property
    def n_units(self) -> int:
        return len(self.heads)

    def matched_random(self, seed: int) -> ForcedAttention:
        """As many random heads of every layer, forced to the same positions."""
        return replace(self, heads=self.heads.matched_random(seed))

    @property
    def n_rows(self) -> int:
        """Prompts whose attention is forced."""
        return len(self.to)

    def of_rows(self, index: Any) -> ForcedAttention:
        """The same for some of the prompts (a slice, a list of numbers, a mask)."""
        return replace(self, to=self.to[index], weights=self.weights[..., index, :])

    def describe(self) -> str:
        names = self.heads.names()
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        sources = int(np.count_nonzero(self.weights if self.weights.ndim == 2 else self.weights.any(0)))
        said = f"attention of {len(names)} heads ({shown}) forced at {int(self.to.sum())} positions of {len(self.to)} prompts"
        return f"{said} to {sources} positions{f' ({self.note})' if self.note else ''}"

    def to_dict(self) -> dict[str, Any]:
        arrays = {"to": packed(self.to), "weights": packed(self.weights)}
        return {"heads": self.heads.names(), **arrays, "note": self.note}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> ForcedAttention:
        heads = UnitSet.of(model, data["heads"])
        return cls(heads, unpacked(data["to"]), unpacked(data["weights"]), data.get("note", ""))


def force_attention(
    model: LanguageModel,
    heads: UnitSet | Iterable[str] | str,
    to: ArrayLike | Tensor,
    sources: ArrayLike | Tensor,
    *,
    length: int | None = None,
    note: str = "",
) -> ForcedAttention:
    """Heads that at `to` attend to nothing but `sources`, equally to each: an intervention of the kind "force-attention".

    to: token index of every prompt (n,), several (n, m) filled up with -1, or a mask bool (n, L). sources: indices (n, m)
    filled up with -1, a mask bool (n, L), or weights float (n, L) that are used as they are. length: L, where only indices
    are given; by default what they need. Indices count a prompt's own tokens, from 0.
    InputError, with the item's number, for a prompt without sources or a source after `to`; ModelError for a model in
    which values don't reach the output projection as they are (attention sinks, norms of values, output gates).
    """
    names = [heads] if isinstance(heads, str) else heads
    units = names if isinstance(names, UnitSet) else UnitSet.of(model, list(names))
    units.check_model(model)
    given_to, given_sources = _array(to), _array(sources)
    widths = [array.shape[1] for array in (given_to, given_sources) if array.ndim == 2 and array.dtype.kind in "bf"]
    widths += [int(array.max(initial=-1)) + 1 for array in (given_to, given_sources) if array.dtype.kind == "i"]
    width = max([*widths, length or 0])
    marks = _marks(given_to, width, "to")
    if given_sources.dtype.kind == "f":
        weights = np.zeros((len(given_sources), width))
        weights[:, : given_sources.shape[1]] = given_sources
    else:
        weights = _marks(given_sources, width, "sources").astype(np.float64)
        counts = weights.sum(1)
        if (counts == 0).any():
            raise InputError(f"item {int((counts == 0).argmax())} has no sources: there is nothing to attend to")
        weights /= counts[:, None]
    if len(marks) != len(weights):
        raise InputError(f"`to` is of {len(marks)} prompts and `sources` of {len(weights)}; they go together by number")
    if not marks.any(1).all():
        raise InputError(f"item {int((~marks.any(1)).argmax())} has no position to force attention at")
    check_values(model, {unit.layer for unit in units})
    return ForcedAttention(units, marks, weights, note)


class _Forcing:
    """What the hooks run for the heads of one layer: keep the values, then write what the heads give."""

    def __init__(self, model: LanguageModel, item: ForcedAttention, layer: int) -> None:
        self.n, self.length = item.to.shape
        self.to = torch.from_numpy(item.to)
        chosen = [number for number, unit in enumerate(item.heads) if unit.layer == layer]
        self.heads = [unit.index for unit in item.heads if unit.layer == layer]
        weights = item.weights[chosen] if item.weights.ndim == 3 else item.weights[None]
        self.weights = torch.from_numpy(np.ascontiguousarray(weights)).float()  # (heads or 1, n, L)
        self.groups = kv_groups(model, "v", layer)
        self.each = model.anatomy.heads[layer] // self.groups
        self.layer = layer
        self.kept: Tensor | None = None  # (batch, columns so far, groups, head_dim)
        self.first: Tensor | None = None  # (batch,) column of each row's first token

    def read(self, seen: Seen) -> Tensor:
        """Keep the values of the prompt's columns; a forward pass over a KV cache sees only the new ones."""
        step = seen.step
        if step.start == 0:
            self.first = _first_column(step, seen.values.device)
            self.kept = None
        elif step.start >= self._last_column():
            return seen.values
        new = seen.values.reshape(step.batch, step.seq, self.groups, -1)
        self.kept = new if self.kept is None else torch.cat([self.kept, new.to(self.kept.device)], 1)
        return seen.values

    def write(self, seen: Seen) -> Tensor:
        step, values = seen.step, seen.values  # (batch * seq, heads, head_dim)
        if step.batch % self.n:
            raise InputError(f"attention is forced for {self.n} prompts, but the batch has {step.batch} rows")
        if step.start >= self._last_column():
            return values
        kept, first = self._complete(step)
        times = step.batch // self.n  # beams: each prompt's row several times, next to each other
        to = self.to.to(values.device).repeat_interleave(times, 0)
        columns = (
            torch.arange(self.length, device=values.device)[None, :] + first[:, None]
        )  # (batch, L) column of token t
        within = to & (columns >= step.start) & (columns < step.start + step.seq)
        if not bool(within.any()):
            return values
        weights = self.weights.to(values.device).repeat_interleave(times, 1)
        table = columns.clamp(max=kept.shape[1] - 1)[..., None, None].expand(-1, -1, *kept.shape[2:])
        aligned = kept.gather(1, table).float()  # (batch, L, groups, head_dim), row t is token t
        rows, tokens = within.nonzero(as_tuple=True)
        flat = rows * step.seq + columns[rows, tokens] - step.start
        new = values.clone()
        for number, head in enumerate(self.heads):
            mine = weights[number if len(weights) > 1 else 0]
            given = torch.einsum("bl,bld->bd", mine, aligned[:, :, head // self.each])
            new[flat, head] = given[rows].to(values.dtype)
        return new

    def _last_column(self) -> int:
        """Columns from here on belong to no prompt."""
        return self.length + (0 if self.first is None else int(self.first.max()))

    def _complete(self, step: Step) -> tuple[Tensor, Tensor]:
        if self.kept is None or self.first is None or self.kept.shape[1] != step.start + step.seq:
            raise InputError(
                f"attention can't be forced from column {step.start} on: the values before it were computed outside the context"
            )
        return self.kept, self.first


def _first_column(step: Step, device: torch.device) -> Tensor:
    if step.attention_mask is None:
        return torch.zeros(step.batch, dtype=torch.int64, device=device)
    return step.attention_mask.long().argmax(1).to(device)


def check_values(model: LanguageModel, layers: Iterable[int]) -> None:
    """ModelError unless the first token of a text, which sees only itself, gets exactly its own value in every head.

    This is where attention sinks, norms of values, gates behind the attention and unknown sharing of values show. Measured
    once per layer, when nothing is being changed.
    """
    known = _KNOWN.setdefault(model.hf, {})
    wanted = sorted(set(layers))
    for layer in wanted:
        model.anatomy.site("v", layer)
        model.anatomy.site("head", layer)
    unknown = [layer for layer in wanted if layer not in known]
    if unknown and not changed_layers(model):
        values: dict[Tap, Tensor] = {}

        def keep(seen: Seen) -> None:
            values[seen.site, seen.layer] = seen.values[0].detach()

        ids = torch.arange(3, 3 + CHECK_TOKENS, device=model.device)[None, :] % _vocabulary(model)
        with observe(model, [(site, layer) for site in ("v", "attn") for layer in unknown], keep):
            run(model, ids)
        for layer in unknown:
            groups = kv_groups(model, "v", layer)
            own = values["v", layer].reshape(groups, -1).repeat_interleave(model.anatomy.heads[layer] // groups, 0)
            known[layer] = close(model, values["attn", layer], own.reshape(-1).to(values["attn", layer].device))
    for layer in wanted:
        if not known.get(layer, True):
            raise ModelError(
                f"in layer {layer} of {model.name} the first token, which sees only itself, does not get its own value: a sink, "
                "a norm or a gate stands between values and heads, so attention there can't be forced through the values"
            )


def _vocabulary(model: LanguageModel) -> int:
    return int(model.hf.config.get_text_config(decoder=True).vocab_size)


def _array(given: ArrayLike | Tensor) -> NDArray[Any]:
    array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    if array.dtype.kind not in "bif" or array.ndim not in (1, 2) or (array.ndim == 1 and array.dtype.kind != "i"):
        raise InputError(
            f"an array of {array.dtype} and shape {array.shape} given; token indices (n,) or (n, m), a mask (n, L), or weights "
            "(n, L) are needed"
        )
    return array


def _marks(array: NDArray[Any], width: int, name: str) -> NDArray[np.bool_]:
    """bool (n, width) from indices filled up with -1, or from a narrower mask."""
    if array.dtype.kind == "f":
        raise InputError(f"`{name}` is an array of fractions; token indices or a mask are needed")
    marks = np.zeros((len(array), width), dtype=bool)
    if array.dtype.kind == "b":
        marks[:, : array.shape[1]] = array
        return marks
    for row, indices in enumerate(array.reshape(len(array), -1)):
        if (indices < -1).any():
            raise InputError(f"item {row}: `{name}` holds {int(indices.min())}; token indices start at 0, -1 fills up")
        marks[row, indices[indices >= 0]] = True
    return marks

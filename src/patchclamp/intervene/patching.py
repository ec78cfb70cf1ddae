"""Activation patching: put one part's values from the other run into a run and see how far the answer moves.

    found = patch(model, ioi(100, model.tokenizer))                        # every head, at all positions together
    found = patch(model, task, "resid", positions=["IO", "S1", "S2", "END"])
    found = patch(model, task, "mlp_out", positions="each", way="denoise")
    found = patch(model, task, found_units)                                # chosen neurons, one by one

"noise" puts corrupted values into the clean run: what breaks without them? "denoise" puts clean values into the corrupted
run: what suffices to repair it? Both scores are percent of the flip, 100 where the answer moves all the way.
Sources: Vig et al. 2020 (arXiv:2004.12265), Meng et al. 2022 (arXiv:2202.05262), Heimersheim & Nanda 2024 (arXiv:2404.15255).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.data.paired import PairedTask, Pairs
from patchclamp.intervene.patched_rows import WAYS, Part, Patch, PatchedRows, parts_of
from patchclamp.intervene.patching_result import Patching
from patchclamp.intervene.path_patching import chosen_positions, encoded, identity_of, made_by, plain_position
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

Position = str | int | Tensor
ALL, EACH = "all", "each"


def patch(
    model: LanguageModel,
    task: PairedTask | Pairs,
    what: str | UnitSet = "head",
    *,
    by: str | None = None,
    layers: Iterable[int] | None = None,
    positions: str | Sequence[Position] = ALL,
    way: str = "noise",
    batch_size: int = 32,
    batch_tokens: int = 8192,
    quiet: bool = True,
) -> Patching:
    """Patch every part at every position, one at a time; the logit differences of all pairs, as `Patching`.

    what: "head", a site ("mlp_out", "attn_out", "resid", "embed", "mlp", "q", ...), or a UnitSet, whose units are patched one
    by one. by: "layer" (whole vectors), "head" (of q, k, v too) or "unit" (every coordinate); heads of "head" and whole
    vectors otherwise. positions: "all" (together), "each" (every token position by itself), or a list of spots and lists of
    the task, token indices, "all". way: "noise" or "denoise". batch_size: pairs at once; batch_tokens: positions of a pass.

    Rows of one batch are different patches; the blocks below a layer run once. Where a position is not in a prompt (a
    shorter prompt, an absent spot), that pair has NaN there and does not count.
    InputError for unknown parts, positions and ways; ModelError for units of experts, which no two runs share.
    """
    if way not in WAYS:
        raise InputError(f"way={way!r} given; it is one of {', '.join(WAYS)}")
    if batch_size < 1 or batch_tokens < 1:
        raise InputError(f"batch_size={batch_size}, batch_tokens={batch_tokens}; at least 1 each is needed")
    layers = None if layers is None else list(layers)
    pairs = encoded(model, task)
    parts = parts_of(model, what, by, layers)
    named = named_positions(pairs, positions)
    arguments = {
        "what": plain_parts(what), "by": by, "layers": layers, "positions": plain_positions(positions), "way": way,
        "batch_size": batch_size, "batch_tokens": batch_tokens,
    }  # fmt: skip
    batch_size, batch_tokens = fitting(model, batch_size, batch_tokens)
    n = len(pairs)
    patched = np.full((len(parts), len(named), n), np.nan)
    base, source = np.zeros(n), np.zeros(n)
    with progress("patching", n * len(parts) * len(named), unit="patches", quiet=quiet) as advance:
        for batch, index in length_sorted(pairs, batch_size):
            width = batch.clean.shape[1]
            chosen = [mask[index][:, :width].to(model.device) for _, mask in named]
            work = PatchedRows(model, batch, {part.tap for part in parts}, way=way, tokens=batch_tokens)
            base[index], source[index] = work.base.numpy(), work.source.numpy()
            for cells in _by_layer(parts, chosen):
                found = work.differences([[Patch(parts[c], chosen[p])] for c, p in cells])
                for (c, p), row in zip(cells, found.numpy(), strict=True):
                    there = chosen[p].any(1).cpu().numpy()
                    patched[c, p, index[there]] = row[there]
                advance(len(cells) * len(index))
    settings = {"what": what if isinstance(what, str) else "units", "by": by, "way": way, "method": "patching"}
    names = tuple(name for name, _ in named)
    return Patching(
        tuple(part.name for part in parts), names, patched, base, source, settings, identity_of(task),
        dict(model.identity), made_by("intervene.patch", model, task, arguments),
    )  # fmt: skip


def patch_together(
    model: LanguageModel,
    task: PairedTask | Pairs,
    what: Sequence[str | UnitSet] | str | UnitSet,
    *,
    positions: str | Sequence[Position] = ALL,
    way: str = "noise",
    batch_size: int = 32,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(n,) logit differences with all the parts that the words or sets name patched at once, at each of the positions.

    what: one word or set as in `patch`, or several; none: the plain run.
    """
    pairs = encoded(model, task)
    words = [what] if isinstance(what, str | UnitSet) else list(what)
    parts = [part for word in words for part in parts_of(model, word)]
    together = torch.stack([mask for _, mask in named_positions(pairs, positions)]).any(0)
    found = np.zeros(len(pairs))
    for batch, index in length_sorted(pairs, fitting(model, batch_size, 1)[0]):
        chosen = together[index][:, : batch.clean.shape[1]].to(model.device)
        work = PatchedRows(model, batch, {part.tap for part in parts}, way=way)
        found[index] = work.differences([[Patch(part, chosen) for part in parts]])[0].numpy()
    return found


def named_positions(pairs: Pairs, positions: str | Sequence[Position]) -> list[tuple[str, Tensor]]:
    """(name, (n, seq) bool on the CPU) of each position that was asked for; a pair that lacks it has a row of False."""
    n, seq = pairs.clean.shape
    if isinstance(positions, str):
        positions = list(range(seq)) if positions == EACH else [positions]
    if not len(positions):
        raise InputError('no positions given; "all", "each", or a list of spots')
    found = []
    for position in positions:
        if isinstance(position, str) and position == ALL:
            found.append((ALL, pairs.mask.cpu()))
        elif isinstance(position, bool):
            raise InputError(f"{position} is no position; give spots, token indices, 'all' or 'each'")
        elif isinstance(position, int):
            if not 0 <= position < seq:
                raise InputError(f"position {position} asked for, but the longest prompt has tokens 0 to {seq - 1}")
            column = torch.zeros(n, seq, dtype=torch.bool)
            column[:, position] = True
            found.append((str(position), column & pairs.mask.cpu()))
        elif isinstance(position, Tensor):
            found.append(("given", chosen_positions(pairs, position).cpu()))
        else:
            found.append((position, _spot(pairs, position)))
    return found


def _spot(pairs: Pairs, name: str) -> Tensor:
    """(n, seq) bool of a spot or list; InputError if no pair has it."""
    n, seq = pairs.clean.shape
    where = (pairs.lists[name] if name in pairs.lists else pairs.at(name)[:, None]).cpu()
    if not bool((where >= 0).any()):
        raise InputError(f"no pair has the spot {name!r}")
    marks = torch.zeros(n, seq + 1, dtype=torch.bool)
    marks.scatter_(1, where.masked_fill(where < 0, seq), True)
    return marks[:, :seq]


def length_sorted(pairs: Pairs, size: int) -> Iterable[tuple[Pairs, np.ndarray[Any, np.dtype[np.int64]]]]:
    """Batches of pairs of like length with their numbers: little padding, and the same results in any order."""
    order = torch.argsort(pairs.end.cpu(), stable=True)
    for start in range(0, len(order), size):
        index = order[start : start + size]
        yield pairs.rows(index.to(pairs.clean.device)), index.numpy()


def fitting(model: LanguageModel, batch_size: int, batch_tokens: int) -> tuple[int, int]:
    """1 and 1 for a model whose values move with padding or batch mates (the check at loading saw it)."""
    if model.report is not None and model.report.warnings:
        return 1, 1
    return batch_size, batch_tokens


def plain_parts(what: str | UnitSet) -> Any:
    """What is patched as plain data: a word as it is, a set as {"units": names}."""
    return what if isinstance(what, str) else {"units": what.names()}


def plain_positions(positions: str | Sequence[Position]) -> Any:
    """Positions as plain data."""
    return positions if isinstance(positions, str) else [plain_position(position) for position in positions]


def _by_layer(parts: Sequence[Part], chosen: Sequence[Tensor]) -> Iterable[list[tuple[int, int]]]:
    """(part, position) cells of one layer after another; positions that no pair of the batch has are left out."""
    there = [p for p, mask in enumerate(chosen) if bool(mask.any())]
    order = sorted(range(len(parts)), key=lambda c: parts[c].layer)
    for _, same in itertools.groupby(order, key=lambda c: parts[c].layer):
        yield [(c, p) for c in same for p in there]

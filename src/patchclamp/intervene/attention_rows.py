"""Attention weights read out of any attention kernel, and attention with some positions taken away.

    rows = attention_rows(model, ["head.12.3"], pairs.clean, pairs.mask, pairs.end)       # (heads, n, seq)
    blocked = block_attention(model, gatherers, pairs.clean, pairs.mask, pairs.end, question)

A head gives its attention-weighted mean of values. With one-hot vectors in place of the values this mean *is* the attention: one
further forward pass reads head_dim positions of it at once, whatever kernel, positions or masks the model uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.intervene.attention_override import ForcedAttention, check_values
from patchclamp.intervene.interventions import Intervention
from patchclamp.intervene.kinds import Interventions
from patchclamp.intervene.path_runs import Node, head_columns, kv_groups, limit
from patchclamp.models.hooks import Seen, change, observe, run
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.hooks import Tap
    from patchclamp.models.load import LanguageModel


def attention_rows(
    model: LanguageModel, heads: UnitSet | Iterable[str], ids: Tensor, mask: Tensor, to: Tensor
) -> Tensor:
    """(n_heads, n, seq) float32 on the CPU: attention of heads (canonical order) at one position of every prompt.

    ids, mask: (n, seq); to: (n,) column that looks. Under whatever changes are active. Heads whose attention is being
    forced have no weights of their own: they are refused (ModelError), like layers whose values don't reach the heads as
    they are. Costs 1 + seq / head_dim forward passes.
    """
    units = _heads(model, heads)
    layers = sorted({unit.layer for unit in units})
    check_values(model, layers)
    n, seq = ids.shape
    rows = torch.arange(n) * seq + to.cpu()
    plain: dict[int, Tensor] = {}
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def keep(seen: Seen) -> None:
        plain[seen.layer] = seen.values.detach().clone()

    with observe(model, [("attn", layer) for layer in layers], keep):
        run(model, ids, mask)
    size = min(model.layouts["attn"].widths[layer] // model.anatomy.heads[layer] for layer in layers)
    for start in range(0, seq, size):

        def probe(seen: Seen, start: int = start) -> Tensor:
            columns = torch.arange(seen.step.seq, device=seen.values.device).repeat(seen.step.batch) - start
            groups = kv_groups(model, "v", seen.layer)
            marks = torch.zeros(len(columns), groups, seen.values.shape[1] // groups, device=seen.values.device)
            inside = (columns >= 0) & (columns < size)
            marks[inside.nonzero()[:, 0], :, columns[inside]] = 1.0
            return marks.reshape(seen.values.shape).to(seen.values.dtype)

        def passed(seen: Seen) -> Tensor:
            values = seen.values[rows.to(seen.values.device)]
            blocks = values.reshape(n, model.anatomy.heads[seen.layer], -1)[..., :size]
            found[seen.layer].append(blocks.float().cpu())
            return plain[seen.layer].to(seen.values)

        probes: dict[Tap, Callable[[Seen], Tensor]] = {("v", layer): probe for layer in layers}
        with change(model, probes), change(model, {("attn", layer): passed for layer in layers}):
            run(model, ids, mask)
    whole = {layer: torch.cat(parts, -1)[..., :seq] for layer, parts in found.items()}  # (n, heads, seq)
    weights = torch.stack([whole[unit.layer][:, unit.index] for unit in units])
    _check_sums(model, units, weights)
    return weights


def block_attention(
    model: LanguageModel,
    heads: UnitSet | Iterable[str],
    ids: Tensor,
    mask: Tensor,
    to: Tensor,
    sources: Tensor,
    *,
    renormalise: bool = True,
    note: str = "",
) -> ForcedAttention:
    """Heads that at `to` do not see the source positions; the rest of their attention is scaled up to sum to 1.

    ids, mask, sources: (n, seq), sources bool: what is hidden from the heads; to: (n,). The attention that is left is
    measured layer by layer, each under the blocks below it, and kept as weights of these prompts: what a mask of the scores
    does. renormalise=False leaves the other weights as they are, as if the values of the hidden positions were 0.
    InputError, with the item's number, where nothing would be left to attend to.
    """
    units = _heads(model, heads)
    if not bool(mask[:, 0].all()):
        raise InputError("prompts are padded in front; pad them on the right, so that columns count their own tokens")
    hidden = sources.cpu().bool()
    marks = np.zeros(hidden.shape, dtype=bool)
    marks[np.arange(len(marks)), to.cpu().numpy()] = True
    done: list[ForcedAttention] = []
    for layer in sorted({unit.layer for unit in units}):
        here = units.layers([layer])
        with Interventions(done).applied(model):
            weights = attention_rows(model, here, ids, mask, to)
        left = weights.masked_fill(hidden[None], 0.0).double()
        left = left.masked_fill(torch.arange(left.shape[2])[None, None, :] > to.cpu()[None, :, None], 0.0)
        if renormalise:
            sums = left.sum(-1, keepdim=True)
            least = torch.finfo(model.dtype).tiny  # softmax keeps its relative precision down to here
            if bool((sums <= least).any()):
                row = int((sums <= least).any(0).nonzero()[0, 0])
                raise InputError(f"item {row}: nothing is left to attend to when the sources are hidden")
            left = left / sums
        done.append(ForcedAttention(here, marks, left.numpy(), note))
    return ForcedAttention(units, marks, np.concatenate([one.weights for one in done]), note)


def silence_values(model: LanguageModel, heads: UnitSet | Iterable[str], where: Tensor) -> Intervention:
    """The values of heads at some positions set to 0 for every position that looks (the reference's form of blocking).

    where: bool (n, columns), padding included, as masks of interventions are. InputError where heads outside the set
    read the same values: `block_attention` can hide positions from single heads.
    """
    units = _heads(model, heads)
    names: list[str] = []
    for layer in sorted({unit.layer for unit in units}):
        chosen = {unit.index for unit in units if unit.layer == layer}
        each = model.anatomy.heads[layer] // kv_groups(model, "v", layer)
        for head in sorted(chosen):
            group = set(range(head // each * each, head // each * each + each))
            if others := ", ".join(f"head.{layer}.{other}" for other in sorted(group - chosen)):
                raise InputError(
                    f"head.{layer}.{head} shares its values with {others}; use block_attention, which hides positions from "
                    "single heads"
                )
            columns = head_columns(model, "v", Node("head", layer, head))
            names += [f"v.{layer}.{index}" for index in range(columns.start, columns.stop)]
    target = UnitSet.of(model, list(dict.fromkeys(names)))
    return Intervention(target, "set", 0.0, mask=where.cpu().numpy().astype(bool))


def _heads(model: LanguageModel, heads: UnitSet | Iterable[str]) -> UnitSet:
    units = heads if isinstance(heads, UnitSet) else UnitSet.of(model, list(heads))
    units.check_model(model)
    if units.sites != ("head",):
        raise InputError(
            f"heads are needed (head.9.6), at least one; the set has {', '.join(units.sites) or 'no units'}"
        )
    return units


def _check_sums(model: LanguageModel, units: UnitSet, weights: Tensor) -> None:
    """Attention sums to 1; what doesn't is none."""
    for unit, rows in zip(units, weights, strict=True):
        if not bool(((rows.sum(-1) - 1).abs() <= max(limit(model), 1e-3)).all()):
            raise ModelError(
                f"what was read as the attention of {unit} does not sum to 1; is its attention being forced, or the head changed?"
            )

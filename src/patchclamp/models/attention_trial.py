"""A trial of the sites `q`, `k`, `v`: do they act in the attention as queries, keys and values do?

What is read from names could be wrong, so each is set to something and the vector that enters the output projection
is looked at: values at 0 leave nothing of it; the query of one position moves that position alone; queries at 0 and
keys at 0 both make all scores equal, hence do the very same (or, where a norm with a bias follows, keys do nothing once
all values are equal). Together with the widths, which are given, this tells every column of a fused projection. All
layers are tried in the same forward passes: each passes on its plain output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from patchclamp.models.hooks import Change, Seen, Tap, change

SITES = ("q", "k", "v")
POSITION = 3  # whose query is moved


def tried_layers(model: Any) -> list[int]:
    """Layers with any of the sites q, k, v."""
    entries = [model.anatomy.sites.get(site, ()) for site in SITES]
    return [layer for layer in range(model.anatomy.n_layers) if any(one and one[layer] is not None for one in entries)]


def refuted(model: Any, input_ids: Tensor, limit: float) -> dict[Tap, str]:
    """The taps of q, k, v that do not act as such, each with what was seen instead; empty if all do.

    input_ids: (1, seq) with seq > 5. limit: largest difference that counts as none, beside the largest value.
    """
    layers = tried_layers(model)
    has = {(site, layer) for site in SITES for layer in layers if _present(model, site, layer)}
    if not layers or input_ids.shape[1] <= POSITION + 1:
        return {}
    reached: set[Tap] = set()
    plain = _attended(model, input_ids, layers, {}, None)
    found: dict[Tap, str] = {}

    def under(**functions: Change) -> dict[int, list[Tensor]]:
        def counted(seen: Seen) -> Tensor:
            reached.add((seen.site, seen.layer))
            return functions[seen.site](seen)

        changes = {tap: counted for tap in has if tap[0] in functions}
        return _attended(model, input_ids, layers, changes, plain)

    no_v, no_q, no_k = under(v=_zero), under(q=_zero), under(k=_zero)
    moved_q = under(q=_turned)
    for layer in layers:
        size = _largest(plain[layer])
        if ("v", layer) in has and not _largest(no_v[layer]) <= limit * size:
            found["v", layer] = "with the values at 0 the attention still gives something"
        if ("q", layer) in has and not _apart(_elsewhere(moved_q[layer]), _elsewhere(plain[layer])) <= limit * size:
            found["q", layer] = "the query of one position moves other positions"
        if {("q", layer), ("k", layer)} <= has:
            apart, effect = _apart(no_q[layer], no_k[layer]), _apart(no_q[layer], plain[layer])
            if not apart <= min(limit * size, effect / 4):
                found["k", layer] = "queries at 0 and keys at 0 are not the same"
    if doubtful := [layer for site, layer in found if site == "k" and ("v", layer) in has - found.keys()]:
        same_v, same_v_other_k, other_k = under(v=_first), under(v=_first, k=_turned), under(k=_turned)
        for layer in doubtful:
            apart, effect = _apart(same_v[layer], same_v_other_k[layer]), _apart(other_k[layer], plain[layer])
            if ("q", layer) not in found and apart <= min(limit * _largest(plain[layer]), effect / 4):
                del found["k", layer]
    never = "the model never computes it"
    return found | dict.fromkeys(sorted(has - reached), never)


def _present(model: Any, site: str, layer: int) -> bool:
    entries = model.anatomy.sites.get(site)
    return entries is not None and entries[layer] is not None


def _attended(
    model: Any, ids: Tensor, layers: list[int], changes: Mapping[Tap, Change], plain: dict[int, list[Tensor]] | None
) -> dict[int, list[Tensor]]:
    """What enters the output projection, layer by layer and call by call (a shared module is called more than once).

    plain: what to pass on instead, so that a change in one layer does not reach the next.
    """
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def keep(seen: Seen) -> Tensor:
        calls = found[seen.layer]
        calls.append(seen.values.detach().float().cpu())
        return seen.values if plain is None else plain[seen.layer][len(calls) - 1].to(seen.values)

    with change(model, changes), change(model, {("attn", layer): keep for layer in layers}):
        model.trunk(ids)
    return found


def _zero(seen: Seen) -> Tensor:
    return torch.zeros_like(seen.values)


def _first(seen: Seen) -> Tensor:
    """The values of the first position everywhere."""
    return seen.values[:1].expand_as(seen.values)


def _turned(seen: Seen) -> Tensor:
    """Another query (or key) at one position: the values of the position before it, the other way round."""
    new = seen.values.clone()
    new[POSITION] = -seen.values[POSITION - 1]
    return new


def _elsewhere(calls: list[Tensor]) -> list[Tensor]:
    """(seq, width) of every call without the position whose query was moved."""
    return [torch.cat([call[:POSITION], call[POSITION + 1 :]]) for call in calls]


def _apart(ones: list[Tensor], others: list[Tensor]) -> float:
    """Largest difference over all calls."""
    return max((float((one - other).abs().max()) for one, other in zip(ones, others, strict=True)), default=0.0)


def _largest(calls: list[Tensor]) -> float:
    return max((float(call.abs().max()) for call in calls), default=0.0)

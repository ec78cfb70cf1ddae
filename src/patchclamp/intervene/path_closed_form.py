"""What senders add to the final residual stream when everything between is held: one matrix product for all heads of a layer.

With heads and MLPs held at their clean outputs, a head's change reaches the final residual as W_O (z_corrupt - z_clean) and
nothing else. This holds where blocks add to the stream what their sublayers give; whether a model does is measured, by
comparing with the forward passes of the first batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.intervene.path_runs import Node, Recorded
from patchclamp.models.anatomy import weight_of

if TYPE_CHECKING:
    from patchclamp.models.hooks import Tap
    from patchclamp.models.load import LanguageModel


def closed_form_taps(model: LanguageModel) -> list[Tap]:
    """What must be recorded beside heads and MLPs; empty where a model has no closed form."""
    anatomy, last = model.anatomy, model.anatomy.n_layers - 1
    have = {"resid", "embed"} <= set(anatomy.sites) and anatomy.final_norm is not None
    dense = all(
        entry is not None
        and entry.where == "input"
        and isinstance(getattr(anatomy.module(entry.path), "weight", None), Tensor)
        and anatomy.module(entry.path).weight.is_floating_point()  # type: ignore[operator]
        for entry in anatomy.sites.get("attn", (None,))
    )
    return [("resid", last), ("embed", 0)] if have and dense else []


def closed_form_states(
    model: LanguageModel, base: Recorded, source: Recorded, rows: Tensor, senders: Sequence[Node]
) -> Tensor:
    """(n_senders, n, d_model) states that enter the LM head when each sender alone is replaced at the rows.

    rows: (n,) flat positions of the recordings at which the answer is read.
    """
    anatomy, last = model.anatomy, model.anatomy.n_layers - 1

    def moved(tap: Tap) -> Tensor:
        return (
            source.values[tap][rows.to(source.values[tap].device)] - base.values[tap][rows.to(base.values[tap].device)]
        )

    stream = base.values["resid", last]
    stream = stream[rows.to(stream.device)]
    by_layer: dict[int, Tensor] = {}
    found = []
    for node in senders:
        if node.kind == "head" and node.layer not in by_layer:
            module = anatomy.module(anatomy.site("attn", node.layer).path)
            heads = anatomy.heads[node.layer]
            weight = weight_of(module).unflatten(1, (heads, -1))  # (d_model, heads, head_dim)
            change = moved(("attn", node.layer)).unflatten(1, (heads, -1)).to(weight.dtype)  # (n, heads, head_dim)
            by_layer[node.layer] = torch.einsum("nhk,dhk->hnd", change, weight)
        if node.kind == "head":
            delta = by_layer[node.layer][node.index]
        else:
            delta = moved(("embed", 0) if node.kind == "embed" else ("mlp_out", node.layer))
        found.append(stream + delta.to(stream))
    norm: Any = anatomy.module(anatomy.final_norm or "")
    with torch.inference_mode():
        states: Tensor = norm(torch.stack(found))
    return states

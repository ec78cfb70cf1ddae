"""One site's values of one forward pass in one tensor: for checks and small inputs, not for corpora."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchclamp.models.hooks import Seen, Tap, observe


class Collector:
    """An observer that keeps (batch * seq, total) float32 values of one site; rows that an expert did not get are 0."""

    def __init__(self, model: Any, site: str) -> None:
        self.layout = model.layouts[site]
        self.values = torch.zeros(0)

    def __call__(self, one: Seen) -> None:
        if not self.values.numel():
            self.values = torch.zeros(one.step.batch * one.step.seq, self.layout.total)
        start = self.layout.offsets[one.layer] + one.offset
        columns, new = slice(start, start + one.values.shape[1]), one.values.detach().float().cpu()
        if one.rows is None:
            self.values[:, columns] += new
        else:
            self.values[:, columns] = self.values[:, columns].index_add(0, one.rows.cpu(), new)

    def layer(self, layer: int) -> Tensor:
        """(batch * seq, width) of one layer."""
        return self.values[:, self.layout.slice(layer)]


def taps_of(model: Any, *sites: str) -> list[Tap]:
    """Every (site, layer) that a model has, of some sites or of all."""
    chosen = {site: model.layouts[site] for site in (sites or model.layouts)}
    return [(site, layer) for site, layout in chosen.items() for layer, width in enumerate(layout.widths) if width]


def collect(model: Any, site: str, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """(batch, seq, total) float32 values of all units of a site in one forward pass."""
    collector = Collector(model, site)
    with observe(model, taps_of(model, site), collector):
        model.trunk(input_ids, attention_mask)
    return collector.values.view(*input_ids.shape, -1)

"""One layer's MLP cut to the core neurons of every text of a batch: contiguous sub-matrices, exact for every row.

A cut is a list of functions that take the place of the up projections and the down projection; what the model computes
between them (activation, gate, dropout) works on fewer neurons without knowing it.
- one text: rows of the up projections, columns of the down projection;
- several texts, "union": the sub-matrices of the union of the cores, and neurons outside a row's own core set to 0 before the
  down projection; every weight is read once for the whole batch;
- several texts, "grouped": a sub-matrix per text, multiplied in one batched product;
- "masked": the whole MLP with zeros outside the core, what the others must equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from patchclamp.generate.maps import MlpMaps, rows_of
from patchclamp.generate.weights import Call, Weights, linear

FORMS = ("auto", "union", "grouped", "masked")
UNION_UP_TO = 0.85  # neurons of the union over those of all cores; below this, one wider product is faster
UNION_UP_TO_FLOAT32 = (
    0.5  # on a CPU, whose float32 products of few rows are bound by arithmetic (measured for 2 to 8 texts)
)


@dataclass(frozen=True, eq=False)
class Cut:
    """calls: for the up projections in order, then the down projection. bytes: of the weights that a step reads. form: which."""

    calls: tuple[Call, ...]
    bytes: int
    form: str


def cut_to(
    maps: MlpMaps, cores: Sequence[Tensor], texts: Sequence[int], weights: Weights, form: str, device: torch.device
) -> Cut:
    """The cut of a layer. cores: neurons of each text, rising. texts: the text of every row of the batch."""
    whole = all(len(core) == maps.width for core in cores)
    if whole:
        return Cut(tuple(weights.dense(module) for module in maps.modules), maps.bytes, "whole")
    if form == "masked":
        mask = membership(cores, maps.width)[list(texts)].to(device)
        ups = [weights.dense(up) for up in maps.ups]
        return Cut((*ups, _masked(weights.dense(maps.down), mask)), maps.bytes, form)
    if len(cores) == 1:
        return _one(maps, cores[0], weights, device)
    union = torch.unique(torch.cat([core.cpu() for core in cores]))
    even = _even(texts, len(cores))
    if form == "auto":
        slow = device.type == "cpu" and weights.weight(maps.down).dtype == torch.float32
        most = UNION_UP_TO_FLOAT32 if slow else UNION_UP_TO
        form = "grouped" if even and len(union) > most * sum(map(len, cores)) else "union"
    if form == "grouped" and even:
        return _grouped(maps, cores, weights, device)
    mask = membership(cores, maps.width)[:, union][list(texts)].to(device)
    shared = _one(maps, union, weights, device)
    return Cut((*shared.calls[:-1], _masked(shared.calls[-1], mask)), shared.bytes, "union")


def membership(cores: Sequence[Tensor], width: int) -> Tensor:
    """(texts, width) bool on the CPU: whether a neuron is in a text's core."""
    mask = torch.zeros(len(cores), width, dtype=torch.bool)
    for row, core in zip(mask, cores, strict=True):
        row[core.cpu()] = True
    return mask


def only(h: Tensor, mask: Tensor) -> Tensor:
    """What enters the down projection, 0 outside each row's core. h: (rows, positions, width) or flat; mask: (rows, width)."""
    return h.view(len(mask), -1, h.shape[-1]).masked_fill(~mask[:, None], 0).view(h.shape)


def _masked(down: Call, mask: Tensor) -> Call:
    def call(h: Tensor) -> Tensor:
        return down(only(h, mask))

    return call


def _one(maps: MlpMaps, core: Tensor, weights: Weights, device: torch.device) -> Cut:
    parts = [weights.rows(up, rows_of(core, maps.width, maps.copies(up)), device) for up in maps.ups]
    parts.append(weights.columns(maps.down, core, device))
    return Cut(tuple(linear(*part) for part in parts), sum(_size(*part) for part in parts), "sliced")


def _grouped(maps: MlpMaps, cores: Sequence[Tensor], weights: Weights, device: torch.device) -> Cut:
    """Sub-matrices of all texts side by side; a text with a smaller core gets rows and columns of zeros."""
    most = max(map(len, cores))
    calls, size = [], 0
    for up in maps.ups:
        copies = maps.copies(up)
        cut = [weights.rows(up, rows_of(core, maps.width, copies), device) for core in cores]
        weight = torch.stack([_filled(w, 0, copies, most) for w, _ in cut])
        bias = (
            None if cut[0][1] is None else torch.stack([_filled(b, 0, copies, most) for _, b in cut if b is not None])
        )
        calls.append(_batched(weight, bias))
        size += _size(weight, bias)
    columns = [weights.columns(maps.down, core, device) for core in cores]
    weight, bias = torch.stack([_filled(w, 1, 1, most) for w, _ in columns]), columns[0][1]
    shared = None if bias is None else bias.expand(len(cores), -1)
    return Cut((*calls, _batched(weight, shared)), size + _size(weight, bias), "grouped")


def _filled(part: Tensor, axis: int, copies: int, most: int) -> Tensor:
    """A sub-matrix with zeros up to `most` neurons, in each of its copies."""
    missing = most - part.shape[axis] // copies
    if not missing:
        return part
    padding = (0, missing) if axis == part.dim() - 1 else (0, 0, 0, missing)
    return torch.cat([F.pad(one, padding) for one in part.chunk(copies, axis)], axis)


def _batched(weight: Tensor, bias: Tensor | None) -> Call:
    """x W^T + b with a weight (texts, out, in) and bias (texts, out) per text, rows of a text side by side."""
    across = weight.transpose(1, 2)

    def call(x: Tensor) -> Tensor:
        rows = x.reshape(len(weight), -1, x.shape[-1])
        out = torch.bmm(rows, across) if bias is None else torch.baddbmm(bias[:, None], rows, across)
        return out.view(*x.shape[:-1], weight.shape[1])

    return call


def _even(texts: Sequence[int], count: int) -> bool:
    """Whether every text has as many rows as any other, side by side and in order."""
    each = len(texts) // count
    return list(texts) == [text for text in range(count) for _ in range(each)]


def _size(weight: Tensor, bias: Tensor | None) -> int:
    return weight.numel() * weight.element_size() + (0 if bias is None else bias.numel() * bias.element_size())

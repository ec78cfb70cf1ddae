"""One pass over pictures: the threshold of every channel, and the pictures that drive it most.

MILAN (Hernandez et al. 2022, arXiv 2201.11114), section 3: a unit's exemplars are the inputs of highest pooled activation (its
maximum over positions); a position belongs to an exemplar where the activation is above eta, the 0.99 quantile of all the
unit's positions. Both are exact, whatever the order of the pictures and the size of the batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.pictures import Pictures
from patchclamp.models.units import Layout
from patchclamp.read.vision_model import VisionModel

TAIL_BYTES = 512 << 20  # for the values above the quantile of one layer; more positions are thinned out evenly
POOLED = 4096  # pictures whose pooled activations are kept, to draw examples of the whole range from


@dataclass(frozen=True, eq=False)
class ImageRecording:
    """What the channels of a network did over pictures. Arrays are flat over all layers (`layout`).

    thresholds: (total,) float64, eta. top_ids, top_values: (total, kept) picture numbers and pooled activations, falling; equal
    ones by the smaller number. pooled_ids: (n,) an even choice of pictures; pooled: (n, total) float32, their pooled
    activations. positions: how many positions of each layer eta was taken over.
    """

    layout: Layout
    thresholds: NDArray[np.float64]
    top_ids: NDArray[np.int64]
    top_values: NDArray[np.float32]
    pooled_ids: NDArray[np.int64]
    pooled: NDArray[np.float32]
    positions: tuple[int, ...]
    k: int
    quantile: float
    model: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dead(self) -> NDArray[np.bool_]:
        """(total,) bool: no picture drives the unit above its threshold, so that its exemplars show nothing."""
        return np.asarray(self.top_values[:, 0] <= self.thresholds)

    def __repr__(self) -> str:
        dead = int(self.dead.sum())
        return f"ImageRecording({self.layout.total} channels in {self.layout.n_layers} layers, {dead} of them dead)"


def record_images(
    model: VisionModel,
    pictures: Pictures,
    *,
    k: int = 15,
    quantile: float = 0.99,
    batch: int = 128,
    quiet: bool = True,
) -> ImageRecording:
    """Thresholds and strongest pictures of all channels in one pass.

    k: exemplars of a unit; as many again are kept for scoring where there are enough pictures. quantile: of a unit's positions
    over all pictures, linearly interpolated (numpy's default), above which a position counts.
    InputError for k outside 1 to the number of pictures, or a quantile outside (0, 1).
    """
    n = len(pictures)
    if not 0 < quantile < 1:
        raise InputError(f"quantile={quantile} given; it lies between 0 and 1, such as 0.99")
    if k < 1 or k > n:
        raise InputError(f"k={k} exemplars asked for; with {n} pictures it must be 1-{n}")
    tops = TopImages(model.layout.total, min(2 * k, n))
    tails = [
        Tail(width, n, height * wide, quantile)
        for width, (height, wide) in zip(model.layout.widths, model.map_sizes, strict=True)
    ]
    kept = np.unique(np.linspace(0, n - 1, min(n, POOLED)).round().astype(np.int64))
    pooled = np.zeros((len(kept), model.layout.total), dtype=np.float32)
    with progress("record pictures", n, unit="pictures", quiet=quiet) as advance:
        for ids, pixels in pictures.batches(batch):
            maps = model.maps(pixels)
            highest = torch.cat([values.amax((2, 3)) for values in maps], 1).cpu().numpy()
            tops.update(highest, ids.numpy())
            rows = np.isin(kept, ids.numpy())
            pooled[rows] = highest[np.isin(ids.numpy(), kept)]
            for tail, values in zip(tails, maps, strict=True):
                tail.update(values, ids)
            advance(len(ids))
    return ImageRecording(
        layout=model.layout,
        thresholds=np.concatenate([tail.value() for tail in tails]),
        top_ids=tops.ids,
        top_values=tops.values,
        pooled_ids=kept,
        pooled=pooled,
        positions=tuple(tail.n for tail in tails),
        k=k,
        quantile=quantile,
        model=model.identity,
        provenance=provenance(
            "read.record_images",
            arguments={"k": k, "quantile": quantile},
            inputs={"model": model.identity, "pictures": pictures.identity},
        ),
    )


class TopImages:
    """The pictures of highest value of every unit, whatever the order they come in; equal values by the smaller number.

    ids, values: (units, k), falling; until k pictures have been seen the rest is -1 and -inf.
    """

    def __init__(self, units: int, k: int) -> None:
        self.ids = np.full((units, k), -1, dtype=np.int64)
        self.values = np.full((units, k), -np.inf, dtype=np.float32)

    def update(self, values: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        """values: (pictures, units) of the pictures `ids`, each given once."""
        k = self.ids.shape[1]
        every = np.concatenate([self.values, values.T.astype(np.float32)], 1)
        number = np.concatenate([self.ids, np.broadcast_to(ids, (len(self.ids), len(ids)))], 1)
        order = np.lexsort((np.where(number < 0, np.iinfo(np.int64).max, number), -every), axis=-1)[:, :k]
        self.values = np.take_along_axis(every, order, 1)
        self.ids = np.take_along_axis(number, order, 1)


class Tail:
    """The exact quantile of a stream of known length, from its largest values alone: (1 - quantile) of it is kept.

    pictures of which every `step`-th counts where all would not fit into 512 MiB; n: positions that count.
    """

    def __init__(self, units: int, pictures: int, positions: int, quantile: float) -> None:
        each = max(1, math.ceil(units * positions * (1 - quantile) * 4))
        self.step = max(1, math.ceil(pictures * each / TAIL_BYTES))
        self.n = len(range(0, pictures, self.step)) * positions
        place = quantile * (self.n - 1)
        self.low, self.share = math.floor(place), place - math.floor(place)
        self.size = self.n - self.low
        self.largest = torch.full((units, 0), 0.0)

    def update(self, maps: Tensor, ids: Tensor) -> None:
        """maps: (pictures, units, height, width) of the pictures `ids`."""
        chosen = maps[(ids % self.step == 0).to(maps.device)]
        if not len(chosen):
            return
        values = chosen.transpose(0, 1).flatten(1)
        every = torch.cat(
            [self.largest.to(values.device), values.topk(min(self.size, values.shape[1]), dim=1).values], 1
        )
        self.largest = every.topk(min(self.size, every.shape[1]), dim=1).values

    def value(self) -> NDArray[np.float64]:
        """(units,) float64: the quantile, linearly interpolated between its two neighbours in rank."""
        found = (
            self.largest.cpu().numpy().astype(np.float64)
        )  # falling: the last is the rank `low`, before it `low + 1`
        below = found[:, self.size - 1]
        above = found[:, max(self.size - 2, 0)]
        return below + self.share * (above - below)

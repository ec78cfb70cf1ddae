"""The direction that parts a layer's states, and damping it: layer experts as an intervention.

Shaik et al. 2025 (arXiv 2509.16660) call a layer an expert if two clusters of its states match a label, but never act on
it. The plain way to act is to scale or remove what tells the clusters apart: the difference of their centres. Where the
clusters are of something else (languages, say) the difference of the labels' means is the direction to take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.layer_experts import matched
from patchclamp.find.recordings import RecordingLike
from patchclamp.find.responses import Responses, responses
from patchclamp.find.separation import auroc
from patchclamp.intervene.interventions import Intervention
from patchclamp.intervene.kinds import Interventions
from patchclamp.intervene.targets import Direction
from patchclamp.models.units import Layout, layouts_of

BY = ("clusters", "labels")


@dataclass(frozen=True, eq=False)
class LayerDirections:
    """Layers by how well they tell a label, and the direction along which they do.

    by: "clusters" or "labels". layers: best first (lower layers first among equals). auroc: (len(layers),) float64; of
    clusters the balanced accuracy, from 0.5 to 1, of labels that of the states along the direction. vectors: (len(layers),
    width) float64, centre of the concept minus centre of the rest. rest: (len(layers),) float64, coefficient of the rest's
    centre along the vector.
    """

    model: Any
    site: str
    by: str
    pool: str
    layers: tuple[int, ...]
    auroc: NDArray[np.float64]
    vectors: NDArray[np.float64]
    rest: NDArray[np.float64]

    def damped(self, *, top: int = 1, scale: float = 0.0, scope: str = "all") -> Interventions:
        """Scale the component along the direction in the so many best layers; 0 removes it, and what the rest has of it.

        InputError for more layers than there are.
        """
        order = self._best(top)
        layers = tuple(int(self.layers[at]) for at in order)
        target = Direction.of(self.model, self.site, layers, self.vectors[order])
        what: dict[str, Any] = {"operation": "project"} if scale == 0 else {"operation": "scale", "value": scale}
        return Interventions([Intervention(target, scope=scope, note=f"between {self.by}", **what)])

    def moved(self, *, top: int = 1, scope: str = "all") -> Interventions:
        """Set the component along the direction to what the rest has on average, in the so many best layers."""
        return Interventions(
            Intervention(
                Direction.of(self.model, self.site, self.layers[at], self.vectors[at]),
                "set",
                float(self.rest[at]),
                scope,
                note=f"as without the concept, by {self.by}",
            )
            for at in self._best(top)
        )

    def _best(self, top: int) -> NDArray[np.int64]:
        """Places of the best layers in `layers`, from the lowest layer up."""
        if not 1 <= top <= len(self.layers):
            raise InputError(f"top={top} of {len(self.layers)} layers asked for")
        return np.argsort(self.layers[:top])

    def tested(self, recording: RecordingLike, *, positive: str | Sequence[str]) -> dict[int, float]:
        """Layer -> AUROC of other documents' states along the direction: what a linear probe still tells there.

        recording: of the same model, perhaps recorded under an intervention, with the same labels.
        """
        read, truth = _read(recording, positive, self.site, self.pool)
        states = dict(_by_layer(read, layouts_of(recording.model)[self.site]))
        return {
            layer: float(auroc(states[layer] @ vector[:, None], truth)[0])
            for layer, vector in zip(self.layers, self.vectors, strict=True)
        }


def layer_directions(
    recording: RecordingLike,
    *,
    positive: str | Sequence[str],
    site: str = "resid",
    pool: str = "mean",
    by: str = "clusters",
    seed: int = 0,
) -> LayerDirections:
    """What parts every layer's pooled states: its two clusters, as `layer_experts` finds them, or the labels.

    positive: label, or labels that together are the concept, against all others. site, pool, seed: as there. by:
    "clusters" or "labels". Layers whose states all fall into one cluster are left out. InputError where none is left, or
    for one class only.
    """
    if by not in BY:
        raise InputError(f"by={by!r}; choose {' or '.join(BY)}")
    read, truth = _read(recording, positive, site, pool)
    found: list[tuple[float, int, NDArray[np.float64], float]] = []
    for layer, states in _by_layer(read, layouts_of(recording.model)[site]):
        mine = truth if by == "labels" else _cluster(states, truth, seed)
        if not 0 < mine.sum() < len(mine):
            continue
        other = states[~mine].mean(0)
        vector = states[mine].mean(0) - other
        if not vector.any():
            continue
        area = matched(mine, truth)["auroc"] if by == "clusters" else float(auroc(states @ vector[:, None], truth)[0])
        found.append((area, layer, vector, float(other @ vector / (vector @ vector))))
    if not found:
        raise InputError(f"no layer's {site} states fall into two clusters; are all documents the same?")
    found.sort(key=lambda row: (-row[0], row[1]))
    areas, layers, vectors, rest = zip(*found, strict=True)
    return LayerDirections(
        dict(recording.model), site, by, pool, layers, np.array(areas), np.stack(vectors), np.array(rest)
    )


def _read(
    recording: RecordingLike, positive: str | Sequence[str], site: str, pool: str
) -> tuple[Responses, NDArray[np.bool_]]:
    read = responses(recording, site, pool)
    truth = read.of_labels((positive,) if isinstance(positive, str) else tuple(positive))
    if not 0 < truth.sum() < len(truth):
        raise InputError(f"positive={positive} leaves {int((~truth).sum())} other documents; both classes are needed")
    return read, truth


def _cluster(states: NDArray[np.float64], truth: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """The one of two clusters that matches the label better."""
    from sklearn.cluster import KMeans

    cluster = KMeans(2, n_init=10, random_state=seed).fit_predict(states).astype(bool)
    right = (cluster[truth].mean() + (~cluster[~truth]).mean()) / 2
    return cluster if right >= 0.5 else ~cluster


def _by_layer(read: Responses, layout: Layout) -> list[tuple[int, NDArray[np.float64]]]:
    """(layer, states (n, width)) of every recorded layer; InputError for a layer recorded in part."""
    found = []
    for layer in range(layout.n_layers):
        span = layout.slice(layer)
        first, last = np.searchsorted(read.places, (span.start, span.stop)).tolist()
        if first == last:
            continue
        if last - first != span.stop - span.start:
            raise InputError(f"only some of the units of layer {layer} were recorded; a direction needs all of them")
        found.append((layer, np.ascontiguousarray(read.columns(first, last).T, dtype=np.float64)))
    return found

"""The four stages of a network's layers, from where specific, related and general neurons lie.

Understanding, reasoning in a shared space, turning to the output language, writing words (Zhang et al. 2025). The
paper reads the borders by eye; the executable rule here is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGES = ("understanding", "shared reasoning", "output transformation", "vocabulary output")
WINDOW = 3
QUIET = 0.25


@dataclass(frozen=True)
class Stages:
    """Which layers make up each stage.

    layers: stage -> (first, last) layer, both included, or None for an empty stage. selective, general: smoothed share
    of all specific + related, and of all general neurons, in each layer. notes: what is missing and why.
    """

    layers: dict[str, tuple[int, int] | None]
    selective: tuple[float, ...]
    general: tuple[float, ...]
    notes: tuple[str, ...]

    def of(self, layer: int) -> str | None:
        """The stage a layer belongs to, None if the network could not be divided."""
        for stage, span in self.layers.items():
            if span is not None and span[0] <= layer <= span[1]:
                return stage
        return None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def divide(specific: Sequence[int], related: Sequence[int], general: Sequence[int]) -> Stages:
    """Divide layers by their counts of the three classes, each (n_layers,).

    f = (specific + related) / their total, g = general / its total, both smoothed over 3 layers (fewer at the ends).
    Stage 2 is the longest run of layers with f < max f / 4 (the first of equally long ones), stage 1 what lies before;
    of the layers after it stage 3 ends at the (first) minimum of g, stage 4 is the rest. A stage without layers is
    None and noted: four are never forced.
    """
    f = _smoothed(np.asarray(specific, dtype=float) + np.asarray(related, dtype=float))
    g = _smoothed(np.asarray(general, dtype=float))
    nothing: dict[str, tuple[int, int] | None] = dict.fromkeys(STAGES)
    if not f.any():
        return Stages(nothing, _tuple(f), _tuple(g), ("no specific or related neurons, so no stages",))
    first, last = _longest_run(f < QUIET * f.max())
    if first > last:
        note = f"no layer holds less than {QUIET:.0%} of the peak share of specific and related neurons, so no stages"
        return Stages(nothing, _tuple(f), _tuple(g), (note,))
    notes = []
    border = len(f) - 1
    if g[last + 1 :].any():
        border = last + 1 + int(np.argmin(g[last + 1 :]))
    elif last + 1 < len(f):
        notes.append("no general neurons after stage 2, so stages 3 and 4 can't be told apart")
    spans = ((0, first - 1), (first, last), (last + 1, border), (border + 1, len(f) - 1))
    layers = {stage: span if span[0] <= span[1] else None for stage, span in zip(STAGES, spans, strict=True)}
    notes += [
        f"stage {number} ({stage}) has no layers"
        for number, (stage, span) in enumerate(layers.items(), 1)
        if span is None
    ]
    return Stages(layers, _tuple(f), _tuple(g), tuple(notes))


def _smoothed(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the total, averaged over WINDOW layers; at the ends over those that exist."""
    shares, box, edge = counts / (counts.sum() or 1.0), np.ones(WINDOW), WINDOW // 2
    sums, layers = (np.convolve(values, box)[edge : edge + len(counts)] for values in (shares, np.ones_like(shares)))
    return np.asarray(sums / layers)


def _longest_run(quiet: NDArray[np.bool_]) -> tuple[int, int]:
    """First and last position of the longest run of True, (0, -1) if there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return 0, -1
    best = int(np.argmax(ends - starts))
    return int(starts[best]), int(ends[best]) - 1


def _tuple(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(values.tolist())

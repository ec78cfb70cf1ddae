"""The firing counts that language identification needs, taken from a recording and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.recordings import RecordingLike
from patchclamp.models.units import Layout, layouts_of


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of the units that were recorded, which may be those of some layers only.

    cells: (labels, folds, units) int64, tokens at which a unit fired. tokens: (labels, folds) int64. recorded:
    (layout.total,) bool, which units the last axis of cells stands for. threshold: above which they count as firing.
    """

    labels: tuple[str, ...]
    layout: Layout
    cells: NDArray[np.int64]
    tokens: NDArray[np.int64]
    recorded: NDArray[np.bool_]
    threshold: float
    signal: str = "gate"  # what counts as firing in a gated MLP, see the statistic `firing`

    @property
    def total(self) -> NDArray[np.int64]:
        """Counts over all folds, (labels, units)."""
        return np.asarray(self.cells.sum(axis=1))

    def spread(self, values: NDArray[Any], missing: Any) -> NDArray[Any]:
        """An array (..., units) over recorded units as one (..., layout.total), `missing` elsewhere."""
        if self.recorded.all():
            return values
        wide = np.full((*values.shape[:-1], self.layout.total), missing, dtype=values.dtype)
        wide[..., self.recorded] = values
        return wide


def gather(recording: RecordingLike, site: str, *, min_tokens: int, keep_folds: bool) -> Counts:
    """Counts of every label at one site; keep_folds: False adds the folds up at once, for an eighth of the memory.

    Raises InputError for fewer than two labels, a site that was not recorded, and labels with too few tokens.
    """
    labels = tuple(recording.labels)
    if len(labels) < 2:
        raise InputError(
            f"the recording has {'one label, ' + labels[0] if labels else 'no label'}; language neurons are found by comparison, "
            "so record at least two"
        )
    if min_tokens < 1:
        raise InputError(f"min_tokens={min_tokens} given; it is at least 1")
    if site not in recording.sites:
        raise InputError(f"site {site!r} was not recorded; this recording has {', '.join(recording.sites)}")
    layout = layouts_of(recording.model)[site]
    recorded, threshold, signal = np.ones(layout.total, dtype=bool), 0.0, "gate"
    cells: list[NDArray[np.int64]] = []
    tokens: list[NDArray[np.int64]] = []
    for label in labels:
        firing = recording.get("firing", label, site)
        recorded, threshold = np.asarray(firing.recorded), float(firing.threshold)  # the same for all labels
        signal = str(getattr(firing, "signal", signal))
        state = firing.state()
        counts, n = (np.asarray(state[key], dtype=np.int64) for key in ("counts", "n"))
        if n.sum() < min_tokens:
            raise InputError(
                f"label {label!r} has {n.sum()} tokens; at least {min_tokens} are needed (min_tokens), so give it more text"
            )
        if not keep_folds:
            counts, n = counts.sum(axis=0, keepdims=True), n.sum(keepdims=True)
        cells.append(counts if recorded.all() else counts[:, recorded])
        tokens.append(n)
    return Counts(labels, layout, np.stack(cells), np.stack(tokens), recorded, threshold, signal)

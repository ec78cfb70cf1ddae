"""What skill finding reads from a recording: every unit's distribution in cells of documents, and sums that add up over cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.recordings import RecordingLike
from patchclamp.models.units import Layout, layouts_of
from patchclamp.record.statistics.shape import Distribution

Floats = NDArray[np.float64]
PREFERRED = ("pre", "gate", "mlp")


@dataclass(frozen=True, eq=False)
class Cells:
    """Distributions of the units that were recorded, in cells: the folds of each label, or each label whole.

    given: (cells,) which label a cell belongs to. parts: `Distribution` with leading axis (cells,), only cells with tokens.
    recorded: (layout.total,) bool, which units the last axis stands for. folded: whether labels are cut into folds at all.
    """

    labels: tuple[str, ...]
    layout: Layout
    given: NDArray[np.int64]
    parts: Distribution
    recorded: NDArray[np.bool_]
    folded: bool

    def of(self, labels: NDArray[np.bool_]) -> Distribution:
        """The cells of some labels, (labels,) bool, still apart."""
        mine = np.flatnonzero(labels[self.given])
        part = self.parts
        moments = (None if each is None else each[mine] for each in (part.m3, part.m4, part.size))
        return Distribution(part.n[mine], part.mean[mine], part.m2[mine], *moments)

    def whole(self, labels: NDArray[np.bool_]) -> Distribution:
        """The distribution over all tokens of some labels."""
        some = self.of(labels)
        found: Distribution | None = None
        for at in range(len(some.n)):
            moments = (None if each is None else each[at] for each in (some.m3, some.m4, some.size))
            cell = Distribution(some.n[at], some.mean[at], some.m2[at], *moments)
            found = cell if found is None else found.merge(cell)
        if found is None:
            raise InputError("no tokens were recorded for the labels compared")
        return found

    def spread(self, values: NDArray[Any], missing: Any) -> NDArray[Any]:
        """An array (..., units) over recorded units as one (..., layout.total), `missing` elsewhere."""
        if self.recorded.all():
            return values
        wide = np.full((*values.shape[:-1], self.layout.total), missing, dtype=values.dtype)
        wide[..., self.recorded] = values
        return wide


class Sums:
    """The cells as sums about each unit's overall mean, which simply add up: for many regroupings of the same cells."""

    def __init__(self, parts: Distribution) -> None:
        n = parts.n[:, None]
        self.n = parts.n
        self.centre = (n * parts.mean).sum(0) / n.sum()
        moved = parts.mean - self.centre
        self.first = n * moved
        self.second = parts.m2 + n * moved**2
        self.size = None if parts.size is None else n * parts.size

    def of(self, cells: NDArray[np.int64]) -> Distribution:
        """The distribution over some cells, without skew and kurtosis."""
        n = self.n[cells].sum()
        first = self.first[cells].sum(0)
        second = np.maximum(self.second[cells].sum(0) - first**2 / max(n, 1), 0.0)
        size = None if self.size is None else self.size[cells].sum(0) / max(n, 1)
        return Distribution(np.asarray(n), self.centre + first / max(n, 1), second, size=size)


def gather(recording: RecordingLike, site: str | None, *, min_tokens: int) -> Cells:
    """The cells of a recording at one site: folds from the statistic `shape`, whole labels from `moments`.

    site: None takes the first of pre, gate and mlp that was recorded. InputError for a single label, a site or statistic that
    was not recorded, and labels with fewer than `min_tokens` tokens.
    """
    labels = tuple(recording.labels)
    if len(labels) < 2:
        raise InputError(
            f"the recording has {'one label, ' + labels[0] if labels else 'no label'}; a skill is found by comparison with other "
            "text, so record at least two"
        )
    where = chosen_site(recording, site)
    statistic = next((name for name in ("shape", "moments") if name in recording.statistics), None)
    if statistic is None:
        raise InputError(
            f"the recording holds {', '.join(recording.statistics)}; a skill needs the statistic shape (or moments)"
        )
    given: list[int] = []
    kept: list[Distribution] = []
    recorded = np.ones(0, dtype=bool)
    for number, label in enumerate(labels):
        found = recording.get(statistic, label, where)
        recorded = np.asarray(found.recorded)
        cells = found.by_fold if statistic == "shape" else _single(found)
        if cells.n.sum() < min_tokens:
            raise InputError(
                f"label {label!r} has {int(cells.n.sum())} tokens; at least {min_tokens} are needed (min_tokens), so give "
                "it more text"
            )
        filled = np.flatnonzero(cells.n > 0)
        given += [number] * len(filled)
        kept.append(_taken(cells, filled, recorded))
    return Cells(
        labels,
        layouts_of(recording.model)[where],
        np.array(given, dtype=np.int64),
        _stacked(kept),
        recorded,
        statistic == "shape",
    )


def chosen_site(recording: RecordingLike, site: str | None) -> str:
    """The site asked for, or the first of pre, gate and mlp that was recorded; InputError if it was not recorded."""
    if site is None:
        found = next((name for name in (*PREFERRED, *recording.sites) if name in recording.sites), None)
        if found is not None:
            return found
    elif site in recording.sites:
        return site
    raise InputError(
        f"site {site!r} was not recorded; this recording has {', '.join(recording.sites)}. Skills are read where the MLP's "
        "activation function begins: record with sites=('pre',)"
    )


def _single(moments: Any) -> Distribution:
    n = np.asarray(moments.n, dtype=np.float64).reshape(1)
    return Distribution(n, np.asarray(moments.mean)[None], np.asarray(moments.m2)[None])


def _taken(cells: Distribution, filled: NDArray[np.int64], recorded: NDArray[np.bool_]) -> Distribution:
    """Only cells with tokens and units that were recorded."""

    def part(values: Floats) -> Floats:
        return values[filled] if recorded.all() else values[filled][:, recorded]

    rest = (None if each is None else part(each) for each in (cells.m3, cells.m4, cells.size))
    return Distribution(cells.n[filled], part(cells.mean), part(cells.m2), *rest)


def _stacked(parts: Sequence[Distribution]) -> Distribution:
    def joined(name: str) -> Floats | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    mean, m2 = (np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "m2"))
    return Distribution(
        np.concatenate([part.n for part in parts]), mean, m2, *(joined(name) for name in ("m3", "m4", "size"))
    )

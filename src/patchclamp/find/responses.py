"""One response per document and unit, read from a recording: what experts and relation neurons are ranked by.

The `pooled` statistic holds it (`record(model, text, statistics=["pooled"])`); values stay memory-mapped and are read
some units at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.finding import names_at, spans
from patchclamp.find.recordings import RecordingLike
from patchclamp.models.units import Layout, Unit, layouts_of

POOLS = ("mean", "max", "last")


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses of all pooled units of some sites to all documents with a token that counts.

    labels: of the recording. document_label: (n,) int64, which label each document has. tokens: (n,) int64, how many of
    its tokens count. layouts: of the sites; the flat axis (total,) holds them one after another. places: (m,) flat
    positions of the units that were pooled. skipped: documents without a token, left out.
    """

    labels: tuple[str, ...]
    layouts: tuple[Layout, ...]
    pool: str
    document_label: NDArray[np.int64]
    tokens: NDArray[np.int64]
    places: NDArray[np.int64]
    skipped: int
    _parts: tuple[_Part, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.document_label), len(self.places)

    @property
    def total(self) -> int:
        return sum(layout.total for layout in self.layouts)

    def columns(self, start: int, stop: int) -> NDArray[np.float32]:
        """Responses of units start..stop (positions in `places`), contiguous (stop - start, n) float32.

        InputError names a unit whose response is not finite.
        """
        found, at = [], 0
        for part in self._parts:
            first, last = max(start - at, 0), min(stop - at, len(part.units))
            if first < last:
                found.append(part.read(first, last))
            at += len(part.units)
        values = np.concatenate(found) if len(found) > 1 else found[0]
        if not np.isfinite(values).all():
            bad = start + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise InputError(
                f"{names_at(self.layouts, [self.places[bad]])[0]}: {self.pool} responses hold values that are not finite; "
                "record again in float32, or leave the layer out"
            )
        return values

    def spread(self, values: NDArray[Any], missing: Any) -> NDArray[Any]:
        """An array (..., m) as one (..., total), `missing` for units that were not pooled."""
        if len(self.places) == self.total:
            return values
        wide = np.full((*values.shape[:-1], self.total), missing, dtype=values.dtype)
        wide[..., self.places] = values
        return wide

    def place_of(self, name: str) -> int:
        """Which column a unit is, by name."""
        unit = Unit.parse(name)
        flat = spans(self.layouts)[unit.site].start
        flat += next(layout for layout in self.layouts if layout.site == unit.site).position(unit)
        return int(np.searchsorted(self.places, flat))

    def of_labels(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) bool: documents of some labels. InputError for a label that was not recorded."""
        unknown = [name for name in names if name not in self.labels]
        if unknown or not names:
            raise InputError(f"labels {list(names)} given; the recording has {', '.join(self.labels)}")
        return np.isin(self.document_label, [self.labels.index(name) for name in names])


@dataclass(frozen=True, eq=False)
class _Part:
    """One site: its `Rows` label after label, which of their rows count, which of their columns."""

    pieces: tuple[NDArray[Any], ...]
    rows: tuple[NDArray[np.bool_], ...]
    units: NDArray[np.int64]  # columns to read, ascending

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        wanted = self.units[first:last]
        low, high = int(wanted[0]), int(wanted[-1]) + 1
        chosen = slice(None) if high - low == len(wanted) else wanted - low
        cut = [piece[:, low:high][:, chosen][rows] for piece, rows in zip(self.pieces, self.rows, strict=True)]
        return np.ascontiguousarray(np.concatenate(cut).T, dtype=np.float32)


def responses(recording: RecordingLike, sites: str | Sequence[str] | None = "mlp", pool: str = "mean") -> Responses:
    """Read the pooled responses of one site or several (None: all that were recorded).

    pool: mean, max or last over the tokens of a document that count. InputError for a recording without the statistic
    `pooled`, with fewer than two labels, a site that was not recorded, or no document with a token in some label.
    """
    if pool not in POOLS:
        raise InputError(f"pool={pool!r}; choose {', '.join(POOLS)}")
    if "pooled" not in recording.statistics:
        raise InputError(
            f"the recording has {', '.join(recording.statistics)} but not pooled, one value per document and unit; "
            'record it with statistics=["pooled"] (--statistics pooled)'
        )
    labels = tuple(recording.labels)
    if len(labels) < 2:
        raise InputError(f"the recording has one label, {labels[0]}; at least two are needed to tell apart")
    wanted = (sites,) if isinstance(sites, str) else tuple(recording.sites if sites is None else sites)
    for site in wanted:
        if site not in recording.sites:
            raise InputError(f"site {site!r} was not recorded; the recording has {', '.join(recording.sites)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise InputError(f"sites {list(wanted)} given; name each once")
    counts = [np.asarray(recording.get("pooled", label, wanted[0]).n) for label in labels]
    for label, n in zip(labels, counts, strict=True):
        if not n.any():
            raise InputError(f"no document of label {label!r} has a token that counts")
    layouts = tuple(layouts_of(recording.model)[site] for site in wanted)
    parts, places, start = [], [], 0
    for site, layout in zip(wanted, layouts, strict=True):
        part, flat = _part(recording, labels, site, pool)
        parts.append(part)
        places.append(start + flat)
        start += layout.total
    tokens = np.concatenate(counts)
    kinds = np.repeat(np.arange(len(labels)), [len(n) for n in counts])
    kept = tokens > 0
    return Responses(
        labels, layouts, pool, kinds[kept], tokens[kept], np.concatenate(places), int((~kept).sum()), tuple(parts)
    )


def inputs_of(recording: RecordingLike) -> dict[str, Any]:
    """What made the responses, for provenance."""
    folder = None if recording.folder is None else str(recording.folder.absolute())
    return {
        "recording": {"fingerprint": recording.fingerprint, "path": folder, "corpus": dict(recording.corpus)},
    }


def _part(recording: RecordingLike, labels: Sequence[str], site: str, pool: str) -> tuple[_Part, NDArray[np.int64]]:
    """What to read of a site, and the flat positions of its units."""
    pieces, rows = [], []
    units = np.zeros(0, dtype=np.int64)
    recorded = np.zeros(0, dtype=bool)
    for label in labels:
        pooled = recording.get("pooled", label, site)
        units, recorded, at = np.asarray(pooled.units), np.asarray(pooled.recorded), 0
        for piece in getattr(pooled, pool).pieces:
            pieces.append(piece)
            rows.append(np.asarray(pooled.n)[at : at + len(piece)] > 0)
            at += len(piece)
    columns = np.flatnonzero(recorded[units])
    if not len(columns):
        raise InputError(f"no unit of site {site!r} was pooled")
    return _Part(tuple(pieces), tuple(rows), columns), units[columns]

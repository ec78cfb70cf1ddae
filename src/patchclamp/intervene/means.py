"""Recorded means of units, to clamp them to: from a recording's moments, of one label or pooled over labels by tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.intervene.targets import coordinates
from patchclamp.models.units import UnitSet, check_features, describe

if TYPE_CHECKING:
    from patchclamp.record.recording import Recording


def recorded_means(recording: Recording | None, units: UnitSet, *, label: str | None = None) -> NDArray[np.float64]:
    """Mean activation of every coordinate of the set, shape (n_coordinates,) float64, in the set's canonical order.

    A head stands for its block of `attn` coordinates, so `attn` must have been recorded. label: which label's mean;
    None pools all labels, each weighted by its tokens. Raises InputError where the recording lacks the statistic,
    site or label, MismatchError for a recording of another model.
    """
    if recording is None:
        raise InputError("to='mean' needs recording=, a recording with the statistic 'moments' of this model")
    if recording.model.get("fingerprint") != units.model.get("fingerprint"):
        raise MismatchError(
            f"the recording is of model {describe(recording.model)}, the units belong to {describe(units.model)}"
        )
    check_features("these units", units.model, recording.model, units.sites)
    if label is not None and label not in recording.labels:
        raise InputError(f"the recording has no label {label!r}; it has {', '.join(recording.labels)}")
    labels = recording.labels if label is None else (label,)
    parts = coordinates(units)
    needed = sorted({part.tap[0] for part in parts})
    missing = [site for site in needed if site not in recording.sites]
    if missing:
        raise InputError(f"site {', '.join(missing)} was not recorded; record with sites={needed} (heads need 'attn')")
    if "moments" not in recording.statistics:
        raise InputError(f"the recording holds {', '.join(recording.statistics)}; means need the statistic 'moments'")
    pooled = {site: pooled_means(recording, site, labels) for site in needed}
    offsets = {site: units.layouts[site].offsets for site in needed}
    chunks = [pooled[part.tap[0]][offsets[part.tap[0]][part.tap[1]] + part.inner] for part in parts]
    for part, chunk in zip(parts, chunks, strict=True):
        if not np.isfinite(chunk).all():
            raise InputError(
                f"{part.tap[0]} of layer {part.tap[1]} was not recorded; record that layer too, or drop its units"
            )
    return np.concatenate(chunks) if chunks else np.zeros(0)


def pooled_means(recording: Recording, site: str, labels: tuple[str, ...]) -> NDArray[np.float64]:
    """Mean of every unit of a site over the tokens of some labels, shape (total,) float64, NaN where nothing was recorded."""
    total: NDArray[np.float64] | None = None
    tokens = 0.0
    for label in labels:
        moments = recording.get("moments", label, site)
        n = float(np.asarray(moments.n).reshape(-1)[0])
        part = n * np.asarray(moments.mean, dtype=np.float64)
        total, tokens = part if total is None else total + part, tokens + n
    if total is None or not tokens:
        raise InputError(f"the recording has no tokens for {', '.join(labels)}")
    return total / tokens

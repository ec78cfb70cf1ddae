"""How many units would pass a skill's bar if the labels of the documents meant nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.find.skill_cells import Cells, Sums
from patchclamp.find.skill_distance import Distance

Floats = NDArray[np.float64]
WHAT = (
    "documents of a label lie in folds; each shuffle hands the (label, fold) cells, whole, to labels at random, as many cells to "
    "each label as it had; distances are computed again, and counted is how many units reach the lowest score of the label's set"
)


def shuffled_cells(
    cells: Cells,
    skills: NDArray[np.int64],
    retained: NDArray[np.bool_],
    distance: Distance,
    scores: Floats,
    chosen: NDArray[np.bool_],
    *,
    signed: bool,
    shuffles: int,
    seed: int,
) -> dict[str, Any]:
    """The record of a null, as `Finding.null` holds it.

    skills: (rows,) the labels found, retained: (rows, labels) bool what each is compared with. scores, chosen: (rows, units)
    as observed. A set always holds the share that was asked for, so what chance tells is the bar: the mean number of units
    that reach it under shuffled labels, over the set's size, estimates the share of the set that is there by chance. p of a
    label: (1 + shuffles in which at least as many units reach its bar) / (1 + shuffles).
    """
    if shuffles < 0:
        raise InputError(f"shuffles={shuffles} given; it is at least 0 (0: no null)")
    record: dict[str, Any] = {"shuffles": shuffles, "seed": seed, "cells": len(cells.given), "what": WHAT}
    if shuffles == 0:
        return record | {"available": False, "why": "shuffles=0 was asked for"}
    involved = np.asarray(retained.any(axis=0))
    involved[skills] = True
    if not cells.folded or np.bincount(cells.given, minlength=len(involved))[involved].max() < 2:
        why = (
            "every label's text lies in a single piece; record the statistic shape (which keeps folds of documents apart) "
            "over at least two documents per label"
        )
        return record | {"available": False, "why": why}
    bars = np.array([row[mine].min() if mine.any() else np.inf for row, mine in zip(scores, chosen, strict=True)])
    moved = np.flatnonzero(involved[cells.given])
    sums, rng = Sums(cells.parts), np.random.default_rng(seed)
    counts: list[list[int]] = []
    unions: list[int] = []
    tops: list[list[float]] = []
    with progress("shuffling labels", shuffles) as advance:
        for _ in range(shuffles):
            given = cells.given.copy()
            given[moved] = rng.permutation(cells.given[moved])
            null = np.stack(
                [
                    oriented(
                        distance(sums.of(np.flatnonzero(given == skill)), sums.of(np.flatnonzero(rest[given]))), signed
                    )
                    for skill, rest in zip(skills, retained, strict=True)
                ]
            )
            reached = null >= bars[:, None]
            counts.append(reached.sum(axis=1).tolist())
            unions.append(int(reached.any(axis=0).sum()))
            tops.append(null.max(axis=1, initial=-np.inf).tolist())
            advance(1)
    per_label = np.array(counts)
    names = [cells.labels[skill] for skill in skills]
    return record | {
        "available": True,
        "named": _against(int(chosen.any(axis=0).sum()), np.array(unions)),
        "labels": {name: _against(int(chosen[at].sum()), per_label[:, at]) for at, name in enumerate(names)},
        "bars": {name: _finite(bars[at]) for at, name in enumerate(names)},
        "highest": {name: float(np.mean([top[at] for top in tops])) for at, name in enumerate(names)},
    }


def oriented(distance: Floats, signed: bool) -> Floats:
    """Scores: the distance itself, or its size where the direction does not count."""
    return distance if signed else np.abs(distance)


def _against(observed: int, null: NDArray[Any]) -> dict[str, Any]:
    return {
        "observed": observed,
        "mean": float(null.mean()),
        "max": int(null.max()),
        "share": float(null.mean() / observed) if observed else None,
        "p": float((1 + (null >= observed).sum()) / (1 + len(null))) if observed else 1.0,
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

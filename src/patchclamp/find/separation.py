"""How well every unit tells labelled documents apart: AUROC, average precision, DeLong errors, p-values; all units at once.

    found = separate(values, positive)       # values (documents, units), positive (labels, documents) bool
    found.auroc, found.ap                    # (labels, units)
    found.interval(), found.p("greater")     # DeLong interval, Mann-Whitney p-value

One sort per unit serves all labels, in blocks of units that fit the cache; documents may be memory-mapped `Rows`.
Tied values count as one threshold (average precision) and as half a pair (AUROC). Rank statistics of parts can't be
averaged, so documents of all labels are ranked together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.separation_null import mann_whitney_p

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Columns = Callable[[int, int], NDArray[Any]]

FIELDS = ("auroc", "se", "ties", "ap", "ap_low")
_READ = 1 << 22  # values read at once
_CELLS = 1 << 15  # values ranked at once: a quarter megabyte a temporary, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class Separation:
    """What separates the positives of each label from its negatives, (labels, units) float64 each; None if not asked for.

    auroc: probability that a positive lies above a negative, ties one half; 0.5 for a constant unit. se: its standard
    error (DeLong et al. 1988), NaN with a single positive or negative. ties: share of ties, sum(t^3 - t) / (n^3 - n).
    ap: average precision, sum (R_i - R_{i-1}) P_i over distinct thresholds from the highest; the prevalence for a
    constant unit. ap_low: the same of the negated values. positives, negatives: (labels,) int64.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    auroc: Floats | None = None
    se: Floats | None = None
    ties: Floats | None = None
    ap: Floats | None = None
    ap_low: Floats | None = None

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """DeLong interval of the AUROC, auroc -+ z se cut to [0, 1]; it has no width where separation is perfect."""
        if not 0 < level < 1:
            raise InputError(f"level={level}; an interval's level lies between 0 and 1, such as 0.95")
        auroc, se = self._given("auroc"), self._given("se")
        reach = NormalDist().inv_cdf((1 + level) / 2) * se
        return np.clip(auroc - reach, 0, 1), np.clip(auroc + reach, 0, 1)

    def p(self, alternative: str = "two-sided") -> Floats:
        """Mann-Whitney p-values of the AUROC, (labels, units); see `mann_whitney_p`."""
        auroc, ties = self._given("auroc"), self._given("ties")
        rows = zip(auroc, ties, self.positives.tolist(), self.negatives.tolist(), strict=True)
        return np.stack([mann_whitney_p(a, n1, n0, ties=t, alternative=alternative) for a, t, n1, n0 in rows])

    def _given(self, name: str) -> Floats:
        value: Floats | None = getattr(self, name)
        if value is None:
            raise InputError(f"{name} was not computed; add it to what=")
        return value


def separate(
    values: Any, positive: ArrayLike, *, among: ArrayLike | None = None, what: tuple[str, ...] = FIELDS
) -> Separation:
    """Every unit as a one-feature classifier of each label.

    values: (n documents, m units): an array, `Rows` of a recording, or anything with `shape` and
    `columns(start, stop) -> (stop - start, n)`. positive: (labels, n) bool, or (n,) for one label. among: which
    documents count for each label (all by default); the others are left out. what: fields to compute.
    InputError for values that are not finite, shapes that don't match, and a label without positives or negatives.
    """
    truth, counted = checked_labels(values, positive, among)
    parts = [found for _, found in blocks(values, truth, counted, what)]
    joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in what} if parts else {}
    return Separation(truth.sum(1), (counted & ~truth).sum(1), **joined)


def auroc(values: Any, positive: ArrayLike, *, among: ArrayLike | None = None) -> Floats:
    """Area under the ROC curve, (labels, units), or (units,) for labels of shape (documents,)."""
    return _squeezed(separate(values, positive, among=among, what=("auroc",)).auroc, positive)


def average_precision(values: Any, positive: ArrayLike, *, among: ArrayLike | None = None) -> Floats:
    """Average precision with ties as one threshold, (labels, units), or (units,) for labels of shape (documents,)."""
    return _squeezed(separate(values, positive, among=among, what=("ap",)).ap, positive)


def checked_labels(values: Any, positive: ArrayLike, among: ArrayLike | None = None) -> tuple[Bools, Bools]:
    """Labels as (labels, n) bool arrays: which documents are positive and which count. InputError as in `separate`."""
    shape = tuple(values.shape)
    if len(shape) != 2:
        raise InputError(f"values of shape (documents, units) are needed, not {shape}")
    truth = np.atleast_2d(np.asarray(positive))
    if truth.dtype != np.bool_ or truth.ndim != 2 or truth.shape[1] != shape[0]:
        raise InputError(
            f"labels are bool of shape (labels, {shape[0]}) or ({shape[0]},), not {truth.dtype} {np.shape(positive)}"
        )
    counted = np.ones_like(truth) if among is None else np.broadcast_to(np.atleast_2d(np.asarray(among)), truth.shape)
    if counted.dtype != np.bool_:
        raise InputError(f"among= is bool, one per document, not {counted.dtype}")
    truth = truth & counted
    for number, (ones, all_) in enumerate(zip(truth.sum(1).tolist(), counted.sum(1).tolist(), strict=True)):
        if not 0 < ones < all_:
            raise InputError(
                f"label number {number} has {ones} positive and {all_ - ones} negative documents; both are needed"
            )
    return truth, counted


def blocks(
    values: Any, truth: Bools, counted: Bools, what: tuple[str, ...]
) -> Iterator[tuple[slice, dict[str, Floats]]]:
    """`separate` piece by piece: (columns, field -> (labels, columns)); for whoever keeps less than all of it."""
    unknown = [name for name in what if name not in FIELDS]
    if unknown or not what:
        raise InputError(f"what={what}; choose among {', '.join(FIELDS)}")
    n, m = values.shape
    read, wide, step = columns_of(values), max(1, _READ // n), max(1, _CELLS // n)
    everything = bool(counted.all())
    for start in range(0, m, wide):
        chunk = read(start, min(start + wide, m))
        if not np.isfinite(chunk).all():
            bad = start + int(np.flatnonzero(~np.isfinite(chunk).all(1))[0])
            raise InputError(
                f"unit number {bad} has values that are not finite; leave out its layer or those documents"
            )
        found: dict[str, Floats] = {name: np.empty((len(truth), len(chunk))) for name in what}
        for at in range(0, len(chunk), step):
            order, ends = ranked(chunk[at : at + step])
            for label, (ones, used) in enumerate(zip(truth, counted, strict=True)):
                one = ones[order].astype(np.float64)
                zero = 1 - one if everything else (used & ~ones)[order].astype(np.float64)
                for name, result in _measured(one, zero, ends, what).items():
                    found[name][label, at : at + step] = result
        yield slice(start, start + len(chunk)), found


def ranked(values: NDArray[Any]) -> tuple[NDArray[np.int64], Bools | None]:
    """Order of documents by descending value for each unit, and where a run of equal values ends (None: no ties).

    values: (units, n), finite. Returns order (units, n) int64 and ends (units, n) bool. float32 values are sorted
    together with their document's number as one 64-bit integer, several times faster than an indirect sort.
    """
    if values.dtype == np.float32:
        bits = (values + np.float32(0)).view(np.uint32)  # + 0 makes -0.0 and 0.0 one value
        descending = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
        keys = (descending.astype(np.uint64) << np.uint64(32)) | np.arange(values.shape[1], dtype=np.uint64)
        keys.sort(axis=1)
        order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        keys >>= np.uint64(32)
    else:
        order = np.argsort(-values, axis=1, kind="stable")
        keys = np.take_along_axis(values, order, axis=1)
    ends = np.ones(order.shape, dtype=bool)
    np.not_equal(keys[:, 1:], keys[:, :-1], out=ends[:, :-1])
    return order, None if ends.all() else ends


def columns_of(values: Any) -> Columns:
    """A function (start, stop) -> contiguous (stop - start, n) array of some units, float32 or float64."""
    if hasattr(values, "columns"):
        own: Columns = values.columns
        return own
    pieces = values.pieces if hasattr(values, "pieces") else [np.asarray(values)]

    def read(start: int, stop: int) -> NDArray[Any]:
        cut = np.concatenate([piece[:, start:stop] for piece in pieces])
        return np.ascontiguousarray(cut.T, dtype=np.float32 if cut.dtype in (np.float16, np.float32) else np.float64)

    return read


def _measured(one: Floats, zero: Floats, ends: Bools | None, what: tuple[str, ...]) -> dict[str, Floats]:
    """The fields of one label for some units. one, zero: (units, n), 1.0 where the document of that rank is positive,
    or negative; documents that don't count are neither."""
    tp, tp_before, d_tp = _cumulated(one, ends)
    fp, fp_before, d_fp = _cumulated(zero, ends)
    n1, n0 = tp[:, -1:], fp[:, -1:]  # (units, 1), the same in every row
    found: dict[str, Floats] = {}
    if "auroc" in what or "se" in what:
        below = (n0 - fp + d_fp / 2) / n0  # share of negatives below a positive of this rank, ties half
        area = _dot(d_tp, below) / n1[:, 0]
        found["auroc"] = area
        if "se" in what:
            above = (tp_before + d_tp / 2) / n1  # share of positives above a negative of this rank
            found["se"] = _delong(area, _dot(d_tp, below**2), _dot(d_fp, above**2), n1[:, 0], n0[:, 0])
    if "ties" in what:
        n = (n1 + n0)[:, 0]
        found["ties"] = np.zeros(len(one)) if ends is None else (((d_tp + d_fp) ** 3).sum(1) - n) / (n**3 - n)
    if "ap" in what:
        found["ap"] = _dot(d_tp, tp / np.maximum(tp + fp, 1)) / n1[:, 0]
    if "ap_low" in what:
        left = n1 - tp_before
        found["ap_low"] = _dot(d_tp, left / np.maximum(left + n0 - fp_before, 1)) / n1[:, 0]
    return {name: found[name] for name in what}


def _cumulated(one: Floats, ends: Bools | None) -> tuple[Floats, Floats, Floats]:
    """Counts up to each rank, before its run of ties, and within the run; the last is 0 except where a run ends."""
    total = np.cumsum(one, axis=1)
    if ends is None:
        return total, total - one, one
    reached = np.maximum.accumulate(np.where(ends, total, 0), axis=1)
    before = np.zeros_like(total)
    before[:, 1:] = reached[:, :-1]
    return total, before, np.where(ends, total - before, 0)


def _delong(area: Floats, squares1: Floats, squares0: Floats, n1: Floats, n0: Floats) -> Floats:
    """Standard error from the sums of squared structural components of positives and negatives, whose mean is `area`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of_positives = (squares1 - n1 * area**2) / (n1 - 1)
        of_negatives = (squares0 - n0 * area**2) / (n0 - 1)
        return np.sqrt(np.maximum(of_positives, 0) / n1 + np.maximum(of_negatives, 0) / n0)


def _dot(a: Floats, b: Floats) -> Floats:
    return np.einsum("ij,ij->i", a, b)


def _squeezed(found: Floats | None, positive: ArrayLike) -> Floats:
    if found is None:
        raise InputError("nothing was computed")
    return found[0] if np.ndim(positive) == 1 else found

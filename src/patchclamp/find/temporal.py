"""Temporal units: which units prefer "Year: 1900" over "Number: 1900", and how they are tuned to the years.

Paper: Li et al. 2025, arXiv 2507.15851. The statistics lie in `paired`, the tuning fits in `tuning`, the distance laws
in `distances`, `distance_fits` and `reference`, the probes in `probes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.generate.years import parse_values
from patchclamp.find.finding import Finding, finders
from patchclamp.find.paired import Paired, compare_paired, log_benjamini_hochberg
from patchclamp.find.ranking import highest
from patchclamp.find.tuning import layer_tuning, trough
from patchclamp.models.units import Layout

if TYPE_CHECKING:
    from patchclamp.record.recording import Recording

CORRECTIONS = ("layer", "all")
P_ZERO = ("log", "exclude")
POOLS = ("last", "mean", "max")
POPULATION = 1000
_TABLE = 1000
_COLUMNS = 2048


@finders.add("temporal")
def temporal(
    recording: Recording,
    *,
    cue: str = "year",
    control: str = "number",
    site: str = "mlp_out",
    d: float = 2.0,
    q: float = 1e-4,
    consistency: float = 0.95,
    correction: str = "layer",
    p_zero: str = "log",
    pool: str = "last",
    years: str | None = None,
    reference: float = 2025,
    offset: float = 1.0,
    shuffles: int = 20,
    seed: int = 0,
) -> Finding:
    """Find the units that prefer one condition of paired stimuli, such as years over plain numbers.

    The recording holds the statistic `pooled`; document i of both labels is the same stimulus ("Year: 1900" and
    "Number: 1900"), as `data.generate.years.stimuli` writes them.

    cue: label of the stimuli whose units are looked for. control: label to compare with. site: `mlp_out`, the MLP's output in
    the residual stream, is the paper's; `mlp` has the neurons. d: least Cohen's d, exclusive. q: largest corrected p of the
    paired t-test, exclusive. consistency: least share of stimuli with cue > control, exclusive. correction: by
    Benjamini-Hochberg within each layer (`layer`, the paper's) or over all units (`all`). p_zero: `log` computes p-values
    in logarithms; `exclude` is the authors' script, which leaves out p-values that underflow to 0 and so rejects
    its strongest units. pool: which activation of a stimulus counts, `last` (the paper's), `mean` or `max`. years: values of
    the stimuli, as 1700-2020 or 1700-2020:10 or 1700,1750; needed for tuning curves. reference: the year around which
    log coding is fitted. offset: of the log, ln(abs(year - reference) + offset); 0 is the paper's. shuffles: how often cue
    and control are exchanged at random within stimuli to learn what chance names (0: not at all). seed: of that.

    `sets[cue]` passes all three bars; `sets[control]` is the mirror set, what passes them the other way round: a scan
    that finds as many there has found a difference between two texts, not a sense of time. Scores: Cohen's d (pooled
    standard deviation of the two conditions), with its sign turned for the control. unit_score: d_z, the mean difference over
    the standard deviation of the differences, in which strong tuning to the stimuli does not count against a unit.
    p_values: two-sided p where the unit prefers the label, else 1. Tuning curves, trough, and fits per layer are in
    `details["tuning"]`, the strongest 1,000 chosen units in `details["units"]`.

    Differs from the paper: p-values are exact however small they are; float64 throughout; the null and the rival tuning
    models are ours. Raises InputError for labels with unequal numbers of documents, fewer than 3 stimuli, a stimulus
    without a token that counts, and values out of range.
    """
    bars = Bars(d, math.log(q) if 0 < q < 1 else math.nan, consistency, correction, p_zero)
    _check(bars, recording, cue, control, pool, shuffles, offset)
    layout = recording.layouts[site] if site in recording.layouts else recording.get("pooled", cue, site).layout
    read = _Reader(recording, cue, control, site, pool, layout)
    values = _values(years, read.n)
    paired = Paired.joined([compare_paired(*block) for _, block in read.blocks()])
    table = read.spread(paired)
    corrected = corrected_log_p(table.log_p, layout, read.recorded, bars)
    chosen = np.stack([bars.passed(table, corrected), bars.passed(table, corrected, mirrored=True)])
    chosen &= read.recorded
    null = _null(read, layout, bars, chosen, shuffles, seed, (cue, control))
    p = np.exp(table.log_p)
    arguments = {
        "cue": cue, "control": control, "site": site, "d": d, "q": q, "consistency": consistency, "pool": pool,
        "correction": correction, "p_zero": p_zero, "years": years, "reference": reference, "offset": offset,
        "shuffles": shuffles, "seed": seed,
    }  # fmt: skip
    details = _details(read, layout, table, corrected, chosen, values, reference, offset)
    folder = recording.folder
    source = {"fingerprint": recording.fingerprint, "path": None if folder is None else str(folder.absolute())}
    return Finding(
        method="temporal",
        labels=(cue, control),
        layout=layout,
        model=dict(recording.model),
        chosen=chosen,
        scores=np.stack([table.d, -table.d]),
        unit_score=table.d_z,
        p_values=np.stack([np.where(table.d > 0, p, 1.0), np.where(table.d < 0, p, 1.0)]).astype(np.float32),
        null=null,
        parameters={**arguments, "stimuli": read.n},
        details=details,
        notes=_notes(recording, read, details, chosen, bars, (cue, control)),
        provenance=provenance(
            "find.temporal",
            arguments=arguments,
            inputs={"recording": {**source, "corpus": dict(recording.corpus)}},
            seed=seed,
        ),
    )


@dataclass(frozen=True)
class Bars:
    """What a chosen unit must pass. log_q: natural logarithm of the largest corrected p."""

    d: float
    log_q: float
    consistency: float
    correction: str = "layer"
    p_zero: str = "log"

    def passed(self, table: Paired, corrected: NDArray[np.float64], *, mirrored: bool = False) -> NDArray[np.bool_]:
        """(units,) bool: corrected p, effect size and consistency all beyond the bars, for the cue or, mirrored, against it."""
        effect, share = (-table.d, table.reverse) if mirrored else (table.d, table.consistency)
        return np.asarray((corrected < self.log_q) & (effect > self.d) & (share > self.consistency))


def corrected_log_p(
    log_p: NDArray[np.float64], layout: Layout, recorded: NDArray[np.bool_], bars: Bars
) -> NDArray[np.float64]:
    """Benjamini-Hochberg corrected log p per unit, (total,); 0 for units that take no part."""
    part = recorded.copy()
    if bars.p_zero == "exclude":
        p = np.exp(log_p)
        part &= (p > 0) & (p < 1)
    found = np.zeros(layout.total)
    spans = [slice(0, layout.total)] if bars.correction == "all" else [layout.slice(k) for k in range(layout.n_layers)]
    for span in spans:
        inside = part[span]
        found[span] = np.where(inside, 0.0, found[span])
        found[np.arange(layout.total)[span][inside]] = log_benjamini_hochberg(log_p[span][inside])
    return found


class _Reader:
    """Pooled activations of both conditions, some columns at a time, and where they lie in the flat axis."""

    def __init__(self, recording: Recording, cue: str, control: str, site: str, pool: str, layout: Layout) -> None:
        pooled = [recording.get("pooled", label, site) for label in (cue, control)]
        counts = [len(each.n) for each in pooled]
        if counts[0] != counts[1]:
            raise InputError(
                f"{cue!r} has {counts[0]} documents and {control!r} {counts[1]}; document i of both must be the same stimulus"
            )
        if counts[0] < 3:
            raise InputError(f"{counts[0]} stimuli recorded; at least 3 are needed")
        for label, each in zip((cue, control), pooled, strict=True):
            if not each.n.all():
                raise InputError(f"document {int(np.argmin(each.n))} of {label!r} has no token that counts")
        self.n = counts[0]
        self.tokens = [each.n for each in pooled]
        self._rows = [getattr(each, pool) for each in pooled]
        self._total = layout.total
        units = np.asarray(pooled[0].units)
        here = pooled[0].recorded[units]
        self._columns = np.flatnonzero(here)
        self.positions = units[self._columns]
        self.recorded = np.zeros(layout.total, dtype=bool)
        self.recorded[self.positions] = True

    def blocks(self) -> Any:
        """(flat positions, (cue, control) arrays (n, columns)), block by block."""
        for start in range(0, len(self._columns), _COLUMNS):
            chosen = self._columns[start : start + _COLUMNS]
            dense = chosen[-1] - chosen[0] == len(chosen) - 1  # a slice reads a mapped file without copying it first
            columns: Any = slice(chosen[0], chosen[-1] + 1) if dense else chosen
            yield (
                self.positions[start : start + _COLUMNS],
                tuple(np.concatenate([piece[:, columns] for piece in rows.pieces]) for rows in self._rows),
            )

    def curve(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean activation of some units at each stimulus of the cue, (n,)."""
        columns = self._columns[np.searchsorted(self.positions, positions)]
        pieces = [piece[:, columns].astype(np.float64) for piece in self._rows[0].pieces]
        return np.asarray(np.concatenate(pieces).mean(1))

    def spread(self, paired: Paired) -> Paired:
        """From recorded units to the whole flat axis; the others get 0 throughout."""
        wide = []
        for name in Paired.__dataclass_fields__:
            full = np.zeros(self._total)
            full[self.positions] = getattr(paired, name)
            wide.append(full)
        return Paired(*wide)


def _null(
    read: _Reader,
    layout: Layout,
    bars: Bars,
    chosen: NDArray[np.bool_],
    shuffles: int,
    seed: int,
    labels: tuple[str, str],
) -> dict[str, Any]:
    """What the same bars choose when cue and control are exchanged within a random half of the stimuli."""
    observed = dict(zip(labels, chosen.sum(1).tolist(), strict=True))
    record: dict[str, Any] = {
        "what": "cue and control are exchanged within each stimulus with probability 1/2, for all units alike",
        "shuffles": shuffles,
        "seed": seed,
        "mirror": {"observed": observed[labels[0]], "mirrored": observed[labels[1]]},
    }
    if not shuffles:
        return record | {"available": False, "why": "shuffles=0 was asked for"}
    flips = np.random.default_rng(seed).integers(0, 2, size=(shuffles, read.n)).astype(bool)
    tables: list[list[Paired]] = [[] for _ in range(shuffles)]
    for _, (first, second) in read.blocks():
        for flip, parts in zip(flips[:, :, None], tables, strict=True):
            parts.append(compare_paired(np.where(flip, second, first), np.where(flip, first, second)))
    named = []
    for parts in tables:
        table = read.spread(Paired.joined(parts))
        corrected = corrected_log_p(table.log_p, layout, read.recorded, bars)
        named.append([int((bars.passed(table, corrected, mirrored=m) & read.recorded).sum()) for m in (False, True)])
    counts = np.array(named)
    record |= {"available": True, "named": _against(int(chosen.any(0).sum()), counts.sum(1))}
    record["labels"] = {label: _against(observed[label], counts[:, at]) for at, label in enumerate(labels)}
    return record


def _against(observed: int, null: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "observed": observed,
        "mean": float(null.mean()),
        "max": int(null.max()),
        "share": float(null.mean() / observed) if observed else None,
        "p": float((1 + (null >= observed).sum()) / (1 + len(null))),
    }


def _details(
    read: _Reader,
    layout: Layout,
    table: Paired,
    corrected: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    values: list[int] | None,
    reference: float,
    offset: float,
) -> dict[str, Any]:
    picked = np.flatnonzero(chosen[0])
    ranked = picked[np.argsort(-table.d[picked], kind="stable")][:_TABLE]
    units = [
        {
            "unit": name,
            "d": float(table.d[at]),
            "d_z": float(table.d_z[at]),
            "log10_p": float(table.log_p[at] / math.log(10)),
            "log10_p_corrected": float(corrected[at] / math.log(10)),
            "consistency": float(table.consistency[at]),
            "mean_cue": float(table.mean_first[at]),
            "mean_control": float(table.mean_second[at]),
        }
        for name, at in zip(layout.names(ranked), ranked.tolist(), strict=True)
    ]
    sizes = np.maximum(layout.widths, 1)
    per_layer = np.array([part.sum() for part in layout.split(chosen[0])])
    return {
        "share": float(len(picked) / max(1, read.recorded.sum())),
        "share_per_layer": (per_layer / sizes).tolist(),
        "p_underflow": int((np.exp(table.log_p[read.recorded]) == 0).sum()),
        "largest": {
            "d": float(table.d.max()),
            "d_z": float(table.d_z.max()),
            "consistency": float(table.consistency.max()),
        },
        "units": units,
        "tuning": None if values is None else _tuning(read, layout, table, picked, values, reference, offset),
    }


def _tuning(
    read: _Reader,
    layout: Layout,
    table: Paired,
    picked: NDArray[np.int64],
    values: list[int],
    reference: float,
    offset: float,
) -> dict[str, Any]:
    """Population and layer curves of the chosen units over the stimuli, their trough, and the fits of each layer."""
    curves: list[NDArray[np.float64] | None] = []
    for layer in range(layout.n_layers):
        span = layout.slice(layer)
        mine = picked[(picked >= span.start) & (picked < span.stop)]
        curves.append(read.curve(mine) if len(mine) else None)
    found: dict[str, Any] = {"years": list(values), "reference": reference, "offset": offset, "population": None}
    if len(picked):
        strongest = picked[highest(table.d[picked], POPULATION)]
        population = read.curve(strongest)
        found |= {"population": population.tolist(), "units": len(strongest), "trough": trough(population, values)}
    fits = layer_tuning(curves, values, reference, offset=offset)
    best = {
        side: max(mine, key=lambda row: row["r2"] if row["r2"] is not None else -1)
        for side in ("past", "future")
        if (mine := [row for row in fits if row["side"] == side])
    }
    return found | {
        "layers": [None if curve is None else curve.tolist() for curve in curves],
        "fits": fits,
        "best": best,
    }


def _values(years: str | None, n: int) -> list[int] | None:
    if years is None:
        return None
    values = parse_values(years)
    if len(values) != n:
        raise InputError(f"years={years!r} are {len(values)} values, but {n} stimuli were recorded")
    return values


def _check(bars: Bars, recording: Recording, cue: str, control: str, pool: str, shuffles: int, offset: float) -> None:
    if cue == control:
        raise InputError(f"cue and control are both {cue!r}; two labels are compared")
    for name, value, known in (
        ("correction", bars.correction, CORRECTIONS), ("p_zero", bars.p_zero, P_ZERO), ("pool", pool, POOLS),
    ):  # fmt: skip
        if value not in known:
            raise InputError(f"{name}={value!r} given; it is one of {', '.join(known)}")
    if math.isnan(bars.log_q) or not 0 <= bars.consistency < 1 or not math.isfinite(bars.d) or bars.d < 0:
        raise InputError(
            f"d={bars.d}, consistency={bars.consistency} and q given; d is at least 0, consistency in [0, 1), q in (0, 1)"
        )
    if shuffles < 0 or offset < 0:
        raise InputError(f"shuffles={shuffles}, offset={offset}; both are at least 0")
    if "pooled" not in recording.statistics:
        raise InputError(
            f"this recording holds {', '.join(recording.statistics)}; the temporal finder needs `pooled`: record with "
            "statistics=('pooled',) (--statistics pooled)"
        )


def _notes(
    recording: Recording,
    read: _Reader,
    details: dict[str, Any],
    chosen: NDArray[np.bool_],
    bars: Bars,
    labels: tuple[str, str],
) -> tuple[str, ...]:
    notes = []
    mine, mirror = chosen.sum(1).tolist()
    if mirror >= mine and mirror:
        notes.append(
            f"{mirror} units prefer {labels[1]!r} and {mine} prefer {labels[0]!r} by the same bars: a difference between two "
            "texts, no special place for the first"
        )
    if uneven := _uneven(read.tokens):
        notes.append(
            f"{uneven} stimuli have more or fewer tokens than most of their condition; each is read at its own last token"
        )
    if bars.p_zero == "exclude" and details["p_underflow"]:
        notes.append(f"{details['p_underflow']} units were left out because their p underflows to 0 (p_zero='exclude')")
    if details["tuning"] is None:
        notes.append("no tuning curves: give the stimuli's values, as years='1700-2020'")
    return tuple(notes)


def _uneven(tokens: Sequence[NDArray[np.int64]]) -> int:
    """Stimuli whose number of tokens is not the commonest of their condition."""
    return sum(int((counts != np.bincount(counts).argmax()).sum()) for counts in tokens)


make_callable(__name__)

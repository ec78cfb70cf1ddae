"""Expert units: whose activation tells text of a concept from other text (AUROC or average precision of each unit).

Suau, Zappella, Apostoloff 2022, arXiv 2110.02802 (average precision); Suau et al. 2024, "Whispering Experts", ICML (AUROC,
the multipliers of AurA, Damp and Det-0); the detection side of Shaik et al. 2025, arXiv 2509.16660. Expert layers of the
last are in layer_experts.py, the ranking in separation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.find.experts_null import null_record, power_notes, shuffled_scores
from patchclamp.find.finding import Finding, finders, names_at
from patchclamp.find.ranking import discoveries, highest
from patchclamp.find.recordings import RecordingLike
from patchclamp.find.responses import Responses, inputs_of, responses
from patchclamp.find.separation import Separation, checked_labels, separate
from patchclamp.intervene.damping import multipliers

__all__ = ["experts", "multipliers"]

SCORES = ("auroc", "ap")
SIDES = ("top", "bottom", "both")
SHARES = (0.50, 0.51, 0.52, 0.55)  # of Table 1 of Shaik et al.
_ALTERNATIVES = {"top": "greater", "bottom": "less", "both": "two-sided"}


@finders.add("experts")
def experts(
    recording: RecordingLike,
    *,
    positive: str | Sequence[str] | None = None,
    negative: str | Sequence[str] | None = None,
    score: str = "auroc",
    pool: str = "max",
    sites: str | Sequence[str] | None = "mlp",
    side: str = "top",
    fdr: float = 0.05,
    top: int | None = None,
    share: float | None = None,
    level: float = 0.95,
    listed: int = 20,
    shuffles: int = 20,
    seed: int = 0,
) -> Finding:
    """Score every unit as a one-feature detector of a concept, and choose the units that detect it beyond chance.

    positive: label, or labels that together are the concept; by default each label against the rest. negative: labels to
    tell it from (default: all others). score: `auroc`, or `ap` (average precision, which depends on the prevalence).
    pool: a unit's response to a document is its `max`, `mean` or `last` activation over the tokens that count. sites:
    recorded sites. side: `top` (active on the concept), `bottom` (anti-experts, inactive on it) or `both`. fdr: the set
    holds units that pass this false-discovery rate over all labels and units; 1 lets all pass. top: of these the so many
    highest scores. share: or this share of all units. level: of the DeLong intervals. listed: how many units of each
    label are listed with their intervals. shuffles: how often labels are shuffled over documents for the null. seed: of
    the shuffling.

    Needs the statistic `pooled`. scores: AUROC or AP of the response (top), of its negative (bottom), the larger of both
    (both; `member` then tells experts from anti-experts: AUROC above 0.5). p_values: for AUROC the Mann-Whitney test,
    exact for few documents without ties; for AP shuffled labels pooled over units. With `top` the paper's form is
    fdr=1: its sets are all AUROC > 0.5 if top= and share= are missing, half of all units in noise.
    details: listed units with intervals, AUROC of document length (a confounder: with pool="max" longer text alone
    raises every response), share of units above thresholds.

    Differs from the papers: units of all recorded sites are ranked together; padding never counts; choosing is by false
    discovery rate, not AUROC > 0.5; the bottom side ranks by the score of the negated response (Kojima et al. 2024 take
    the lowest AP). Raises InputError for a single class, responses that are not finite, and values out of range.
    """
    if score not in SCORES:
        raise InputError(f"score={score!r}; choose {' or '.join(SCORES)}")
    check_choice(side, fdr, top, share, shuffles)
    read = responses(recording, sites, pool)
    names, positives, among = _concepts(read, positive, negative)
    truth, counted = checked_labels(read, positives, among)
    found = separate(read, truth, among=counted)
    scores = oriented(found, score, side)
    tally = shuffled_scores(read, truth, counted, score, side, shuffles, seed) if shuffles else None
    if score == "auroc":
        p_values = found.p(_ALTERNATIVES[side])
    elif tally is not None:
        p_values = tally.p_values(scores)
    else:
        raise InputError("shuffles=0 given, but average precision has no p-value without shuffled labels")
    chosen = chosen_units(scores, p_values, fdr, top, share, read.total)
    if fdr >= 1 and top is None and share is None:
        chosen = scores > _chance(found, score)
    coarse = power_notes(len(names), fdr, shuffles) if score == "ap" else []
    length = length_auroc(read, truth, counted, names, level)
    arguments = {
        "positive": positive, "negative": negative, "score": score, "pool": pool, "sites": [x.site for x in read.layouts],
        "side": side, "fdr": fdr, "top": top, "share": share, "level": level, "listed": listed, "shuffles": shuffles,
        "seed": seed,
    }  # fmt: skip
    details = {
        "documents": counts_of(names, found),
        "listed": listed_units(read, names, found, scores, p_values, level, listed),
        "units": _unit_table(names, found),
        "length": length,
    }
    return Finding(
        method="experts",
        labels=names,
        layouts=read.layouts,
        model=dict(recording.model),
        chosen=read.spread(chosen, False),
        scores=read.spread(scores, 0.0),
        member=read.spread(np.asarray(found.auroc) > 0.5, False),
        p_values=read.spread(p_values.astype(np.float32), 1.0),
        null=null_record(tally, names, scores, chosen, shuffles, seed),
        parameters=arguments,
        details=details,
        notes=(*coarse, *length_notes(length), *recorded_notes(read)),
        provenance=provenance("find.experts", arguments=arguments, inputs=inputs_of(recording), seed=seed),
    )


def oriented(found: Separation, score: str, side: str) -> NDArray[np.float64]:
    """The score of the asked side, (labels, m): larger always speaks more for the unit."""
    high = found.auroc if score == "auroc" else found.ap
    if high is None:
        raise InputError(f"{score} was not computed")
    if side == "top":
        return high
    low = 1 - high if score == "auroc" else found.ap_low
    if low is None:
        raise InputError("average precision of the negated responses was not computed")
    return low if side == "bottom" else np.maximum(high, low)


def chosen_units(
    scores: NDArray[np.float64],
    p_values: NDArray[np.float64],
    fdr: float,
    top: int | None,
    share: float | None,
    total: int,
) -> NDArray[np.bool_]:
    """Units that pass the false-discovery rate over the whole array, of these the highest scores; (labels, m) bool."""
    passing = np.ones(scores.shape, dtype=bool) if fdr >= 1 else discoveries(p_values, fdr)
    k = top if top is not None else None if share is None else max(1, round(share * total))
    if k is None:
        return passing
    if k > scores.shape[1]:
        raise InputError(f"the top {k} units asked for, but {scores.shape[1]} were recorded")
    taken = np.zeros(scores.shape, dtype=bool)
    for label, row in enumerate(scores):
        open_to = np.flatnonzero(passing[label])
        taken[label, open_to[highest(row[open_to], k)]] = True
    return taken


def counts_of(names: Sequence[str], found: Separation) -> dict[str, dict[str, int]]:
    """Label -> number of positive and negative documents."""
    pairs = zip(names, found.positives.tolist(), found.negatives.tolist(), strict=True)
    return {name: {"positive": ones, "negative": zeros} for name, ones, zeros in pairs}


def listed_units(
    read: Responses,
    names: Sequence[str],
    found: Separation,
    scores: NDArray[np.float64],
    p_values: NDArray[np.float64],
    level: float,
    k: int,
) -> dict[str, list[dict[str, Any]]]:
    """Label -> its k best units with AUROC, DeLong interval, average precision and p-value, best first."""
    low, high = found.interval(level)
    area, ap = np.asarray(found.auroc), np.asarray(found.ap)
    listed = {}
    for label, name in enumerate(names):
        best = highest(scores[label], k)
        best = best[np.argsort(-scores[label, best], kind="stable")]
        units = names_at(read.layouts, read.places[best])
        listed[name] = [
            {
                "unit": unit, "auroc": float(area[label, at]), "low": float(low[label, at]),
                "high": float(high[label, at]), "ap": float(ap[label, at]), "p": float(p_values[label, at]),
            }
            for unit, at in zip(units, best.tolist(), strict=True)
        ]  # fmt: skip
    return listed


def length_auroc(
    read: Responses, truth: NDArray[np.bool_], counted: NDArray[np.bool_], names: Sequence[str], level: float
) -> dict[str, Any]:
    """AUROC of the number of tokens alone for each label, with interval and p-value."""
    found = separate(read.tokens[:, None].astype(np.float64), truth, among=counted, what=("auroc", "se", "ties"))
    low, high = found.interval(level)
    area, p_values = np.asarray(found.auroc), found.p()
    return {
        name: {"auroc": float(a), "low": float(lo), "high": float(hi), "p": float(p)}
        for name, a, lo, hi, p in zip(names, area[:, 0], low[:, 0], high[:, 0], p_values[:, 0], strict=True)
    }


def length_notes(length: dict[str, Any]) -> list[str]:
    """A warning for each label that document length alone tells apart."""
    return [
        f"{name}: document length alone separates it with AUROC {row['auroc']:.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}]; match lengths before trusting its units"
        for name, row in length.items()
        if row["p"] < 0.01 and abs(row["auroc"] - 0.5) > 0.1
    ]


def _concepts(
    read: Responses, positive: str | Sequence[str] | None, negative: str | Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.bool_], NDArray[np.bool_]]:
    """Names, positives (labels, n) and what counts (labels, n)."""
    against = (negative,) if isinstance(negative, str) else negative
    others = None if against is None else read.of_labels(tuple(against))
    if positive is None:
        names = tuple(name for name in read.labels if against is None or name not in against)
        truth = np.stack([read.of_labels((name,)) for name in names]) if names else np.zeros((0, read.shape[0]), bool)
    else:
        chosen = (positive,) if isinstance(positive, str) else tuple(positive)
        names, truth = ("+".join(chosen),), read.of_labels(chosen)[None]
    if not names or (others is not None and (truth & others).any()):
        raise InputError(f"positive={positive} and negative={negative} share labels or leave none")
    return names, truth, truth | (np.ones_like(truth) if others is None else others)


def _unit_table(names: Sequence[str], found: Separation) -> dict[str, dict[str, float]]:
    """Label -> mean AUROC and AP over units, and the share of units whose AUROC exceeds the paper's thresholds."""
    area, ap = np.asarray(found.auroc), np.asarray(found.ap)
    return {
        name: {"mean_auroc": float(area[at].mean()), "mean_ap": float(ap[at].mean())}
        | {f"above_{bar:.2f}": float((area[at] > bar).mean()) for bar in SHARES}
        for at, name in enumerate(names)
    }


def _chance(found: Separation, score: str) -> NDArray[np.float64]:
    """(labels, 1): the score of a constant unit."""
    if score == "auroc":
        return np.full((len(found.positives), 1), 0.5)
    return np.asarray(found.positives / (found.positives + found.negatives))[:, None]


def recorded_notes(read: Responses) -> list[str]:
    """What was left out of the recording."""
    notes = []
    if read.skipped:
        notes.append(f"{read.skipped} documents without a token that counts were left out")
    if len(read.places) < read.total:
        notes.append(f"{read.total - len(read.places)} of {read.total} units were not recorded: score 0, p 1")
    return notes


def check_choice(side: str, fdr: float, top: int | None, share: float | None, shuffles: int) -> None:
    """InputError for values out of range."""
    if side not in SIDES:
        raise InputError(f"side={side!r}; choose {', '.join(SIDES)}")
    if not 0 < fdr <= 1:
        raise InputError(f"fdr={fdr}; it lies above 0, and 1 lets every unit pass")
    if top is not None and share is not None:
        raise InputError("top= and share= are both given; give one")
    if top is not None and top < 1:
        raise InputError(f"top={top}; it is at least 1")
    if share is not None and not 0 < share <= 1:
        raise InputError(f"share={share}; it lies above 0 and at most at 1")
    if shuffles < 0:
        raise InputError(f"shuffles={shuffles}; it is at least 0")


make_callable(__name__)

"""Skill units: whose activation lies elsewhere on the text of a skill than on all other text.

Li, Sun & Weng 2025, "Effective Skill Unlearning through Intervention and Abstention" (arXiv 2503.21730), the detection half of
Neuron Adjust: mean and spread of every neuron's pre-activation on the skill ("forget") and on the rest ("retain"), the units with
the largest difference over all layers together. Labels may be languages, topics, tones, anything that text can be sorted by.

The steps lie in files of their own: skill_cells (what is read from a recording), skill_distance (distances, p-values),
skill_null, skill_normality; skill_regions has the other half of the paper, regions of key space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.find.finding import Finding, finders
from patchclamp.find.ranking import highest
from patchclamp.find.recordings import RecordingLike
from patchclamp.find.skill_cells import Cells, gather
from patchclamp.find.skill_distance import DISTANCES, IMPORTANCE, Distance, importance, welch
from patchclamp.find.skill_normality import bucket_edges, normality
from patchclamp.find.skill_null import oriented, shuffled_cells
from patchclamp.record.statistics.shape import Distribution

RULES = ("exact", "paper")


@finders.add("skill")
def skill(
    recording: RecordingLike,
    *,
    forget: str | Sequence[str] | None = None,
    retain: Sequence[str] | None = None,
    site: str | None = None,
    distance: str = "mean difference",
    signed: bool = True,
    share: float = 0.015,
    rule: str = "exact",
    min_tokens: int = 100,
    shuffles: int = 20,
    seed: int = 0,
) -> Finding:
    """Find the units whose activation on a skill's text lies farthest from that on other text.

    forget: the label or labels of the skill (the paper's "forget" set); None takes every label in turn. retain: the labels it
    is compared with, pooled over their tokens; None means all others. site: where activations are compared; None takes `pre`,
    the input of the MLP's activation function as in the paper, if it was recorded, else gate, else mlp. distance:
    "mean difference" (the paper), "standardised" (in standard deviations), "hellinger" (between fitted normals, also sees a
    change of spread) or "importance" (mean |a| on the skill over mean |a| on the rest: selective pruning, usually at site mlp).
    signed: only units that are higher on the skill (the paper); False ranks by the size of the distance. share: share of all
    units of the site in a skill's set (0.005, 0.015 and 0.03 in the paper), ranked over all layers together. rule: "exact" takes
    round(share * units), of equal scores those that come first, and never a unit without a difference in the direction asked
    for; "paper" takes every unit at least as high as the one at position int(units * (1 - share)) of the rising order, as the
    reference code does, so that equal scores make the set larger. min_tokens: fewest tokens of a label. shuffles: how often
    labels are shuffled over the folds of documents to learn what chance puts above the bar (0: not at all). seed: of that.

    Record `shape` (and `histogram` for Kolmogorov distances): record(model, text, sites=("pre",), statistics=("shape",)). With
    `moments` alone there are distances but neither null nor p-values, because tokens of one document are not independent.
    p-values: Welch's test over folds of documents, one-sided if signed, so `select(fdr=0.05)` names what is significant; folds
    are few, so record with more (folds=16) where effects are small.

    Differs from the reference code: standard deviations are standard deviations (the code keeps variances under that name and
    overwrites one of them with a mean), sums do not cancel, and every label may be a skill. Raises InputError for unknown
    labels, a label on both sides, and values out of range.
    """
    measured = _distance(distance)
    if rule not in RULES:
        raise InputError(f"rule={rule!r} given; it is {' or '.join(RULES)}")
    if not 0 <= share <= 1:
        raise InputError(f"share={share} given; it lies between 0 and 1")
    cells = gather(recording, site, min_tokens=min_tokens)
    skills, retained = pairs(cells.labels, forget, retain)
    both = [_both(cells, at, rest) for at, rest in zip(skills, retained, strict=True)]
    scores = np.stack([oriented(measured(first, second), signed) for first, second in both])
    positive = scores > (1.0 if distance == IMPORTANCE else 0.0)  # what is not higher on the skill speaks against it
    chosen = np.stack([chosen_units(row, share, rule, mine) for row, mine in zip(scores, positive, strict=True)])
    null = shuffled_cells(
        cells, skills, retained, measured, scores, chosen, signed=signed, shuffles=shuffles, seed=seed
    )
    p_values = _p_values(cells, skills, retained, signed=signed, of_size=distance == IMPORTANCE)
    if p_values is None and "why" not in null:
        null["why"] = "a label's text lies in a single fold; give every label at least two documents"
    labels = tuple(cells.labels[at] for at in skills)
    arguments = {
        "forget": forget if forget is None or isinstance(forget, str) else list(forget),
        "retain": None if retain is None else list(retain), "site": site, "distance": distance, "signed": signed,
        "share": share, "rule": rule, "min_tokens": min_tokens, "shuffles": shuffles, "seed": seed,
    }  # fmt: skip
    lowest = scores.min(axis=1, initial=0.0)
    wide = cells.spread(scores, 0.0)
    wide[:, ~cells.recorded] = lowest[:, None]  # unrecorded units rank last
    details = _details(recording, cells, labels, skills, retained, both, chosen, share)
    return Finding(
        method=f"skill: {distance}",
        labels=labels,
        layout=cells.layout,
        model=dict(recording.model),
        chosen=cells.spread(chosen, False),
        scores=wide,
        p_values=None if p_values is None else cells.spread(p_values, 1.0),
        null=null,
        parameters={**arguments, "site": cells.layout.site},
        details=details,
        notes=_notes(cells, labels, chosen, distance, null),
        provenance=provenance("find.skill", arguments=arguments, inputs=_inputs(recording), seed=seed),
    )


def pairs(
    labels: Sequence[str], forget: str | Sequence[str] | None, retain: Sequence[str] | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which labels are skills, (rows,), and what each is compared with, (rows, labels) bool. InputError for unknown labels."""
    skills = list(labels) if forget is None else [forget] if isinstance(forget, str) else list(forget)
    others = list(labels) if retain is None else [retain] if isinstance(retain, str) else list(retain)
    for name in (*skills, *others):
        if name not in labels:
            raise InputError(f"the recording has no label {name!r}; it has {', '.join(labels)}")
    if not skills or len(set(skills)) < len(skills):
        raise InputError(f"forget={skills} given; name each skill once, at least one")
    if retain is not None and forget is not None and (shared := [name for name in skills if name in others]):
        raise InputError(f"label {shared[0]!r} is both forgotten and retained; a skill is compared with other text")
    numbers = {name: at for at, name in enumerate(labels)}
    retained = np.zeros((len(skills), len(labels)), dtype=bool)
    for row, name in enumerate(skills):
        rest = [numbers[other] for other in others if other != name]
        if not rest:
            raise InputError(f"nothing to compare {name!r} with; retain= names no other label")
        retained[row, rest] = True
    return np.array([numbers[name] for name in skills], dtype=np.int64), retained


def chosen_units(score: NDArray[np.float64], share: float, rule: str, positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The method's choice among all units of all layers, (units,) bool; see `rule` of `skill`. score: (units,)."""
    chosen = np.zeros(score.shape, dtype=bool)
    if rule == "paper":
        at = min(max(int(len(score) * (1 - share)), 0), len(score) - 1)
        return np.asarray(score >= np.sort(score)[at])
    chosen[highest(score, round(share * len(score)))] = True
    return np.asarray(chosen & positive)


def distributions(
    recording: RecordingLike, forget: str, *, retain: Sequence[str] | None = None, site: str | None = None
) -> tuple[Distribution, Distribution]:
    """The distributions of all recorded units on a skill and on the rest, as `skill` compares them: mean and std of both."""
    cells = gather(recording, site, min_tokens=2)
    skills, retained = pairs(cells.labels, forget, retain)
    return _both(cells, int(skills[0]), retained[0])


def _both(cells: Cells, label: int, rest: NDArray[np.bool_]) -> tuple[Distribution, Distribution]:
    mine = np.zeros(len(cells.labels), dtype=bool)
    mine[label] = True
    return cells.whole(mine), cells.whole(rest)


def _distance(name: str) -> Distance:
    if name not in DISTANCES:
        raise InputError(f"distance={name!r} given; there are {', '.join(DISTANCES)}")
    return DISTANCES[name]


def _p_values(
    cells: Cells, skills: NDArray[np.int64], retained: NDArray[np.bool_], *, signed: bool, of_size: bool
) -> NDArray[np.float32] | None:
    if not cells.folded:
        return None
    rows = []
    for label, rest in zip(skills, retained, strict=True):
        mine = np.arange(len(cells.labels)) == label
        p = welch(cells.of(mine), cells.of(rest), signed=signed, of_size=of_size)
        if p is None:
            return None
        rows.append(p)
    return np.stack(rows).astype(np.float32)


def _details(
    recording: RecordingLike,
    cells: Cells,
    labels: Sequence[str],
    skills: NDArray[np.int64],
    retained: NDArray[np.bool_],
    both: Sequence[tuple[Distribution, Distribution]],
    chosen: NDArray[np.bool_],
    share: float,
) -> dict[str, Any]:
    """How normal each set's units are on both sides, and how many of them selective pruning would also take."""
    shown: dict[str, Any] = {"compared_with": {}, "tokens": {}, "normality": {}, "shared_with_importance": {}}
    for row, label in enumerate(labels):
        first, second = both[row]
        units = np.flatnonzero(chosen[row])
        mine = np.arange(len(cells.labels)) == skills[row]
        shown["compared_with"][label] = [cells.labels[at] for at in np.flatnonzero(retained[row])]
        shown["tokens"][label] = {"skill": int(first.n), "rest": int(second.n)}
        shown["normality"][label] = {
            side: normality(found, units, **_histogram(recording, cells, which, units))
            for side, found, which in (("skill", first, mine), ("rest", second, retained[row]))
        }
        if first.size is not None and second.size is not None and len(units):
            pruned = highest(importance(first, second), round(share * len(chosen[row])))
            shown["shared_with_importance"][label] = len(np.intersect1d(units, pruned))
    return shown


def _histogram(
    recording: RecordingLike, cells: Cells, labels: NDArray[np.bool_], units: NDArray[np.int64]
) -> dict[str, Any]:
    """Bucket edges and counts of some units over some labels; nothing if no histogram was recorded."""
    if "histogram" not in recording.statistics:
        return {}
    where = np.flatnonzero(cells.recorded)[units]
    counts: NDArray[np.int64] | None = None
    edges = np.zeros(0)
    for label in np.flatnonzero(labels):
        found = recording.get("histogram", cells.labels[label], cells.layout.site)
        part, edges = found.counts[:, where], bucket_edges(found.edges)
        counts = part if counts is None else counts + part
    return {"edges": edges, "counts": counts}


def _notes(
    cells: Cells, labels: Sequence[str], chosen: NDArray[np.bool_], distance: str, null: dict[str, Any]
) -> tuple[str, ...]:
    found = []
    site = cells.layout.site
    if distance != IMPORTANCE and site != "pre":
        found.append(
            f"activations of site {site} are compared; the paper compares those that enter the activation function (pre)"
        )
    if distance == IMPORTANCE and site != "mlp":
        found.append(f"importance of site {site}; selective pruning reads what enters the down projection (mlp)")
    if not cells.recorded.all():
        found.append(f"{int(cells.recorded.sum())} of {cells.layout.total} units were recorded; the others rank last")
    empty = [label for label, mine in zip(labels, chosen, strict=True) if not mine.any()]
    if empty:
        found.append(f"no unit is higher on {', '.join(empty)} than on the rest")
    by_chance = [
        label
        for label, entry in null.get("labels", {}).items()
        if entry["observed"] and entry["mean"] >= entry["observed"] / 2
    ]
    if by_chance:
        found.append(f"at least half of the units of {', '.join(by_chance)} would pass the bar with shuffled labels")
    return tuple(found)


def _inputs(recording: RecordingLike) -> dict[str, Any]:
    folder = recording.folder
    path = None if folder is None else str(folder.absolute())
    return {"recording": {"fingerprint": recording.fingerprint, "path": path, "corpus": dict(recording.corpus)}}


make_callable(__name__)

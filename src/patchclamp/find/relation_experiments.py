"""What masking relation neurons does, measured: cumulativity, versatility, interference (Liu et al. 2025, arXiv 2502.17355).

drops(effects)                                   # which relation suffers, or improves, under which mask
cumulativity(model, rankings, task, ks=...)      # do the units of a ranking act together or one by one
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.find.ranking import highest
from patchclamp.find.relation_prompts import label_of
from patchclamp.intervene.clamp import clamp
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.completion import completion
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.data.tasks import Task
    from patchclamp.find.finding import Finding
    from patchclamp.measure.effect_table import Effects
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording

Bools = NDArray[np.bool_]


def drops(effects: Effects, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Relative drop of accuracy for every masked set and relation: (plain - masked) / plain.

    effects: of `effect(model, sets, on=task.by("relation"), how="completion")`, or of any accuracy. low, high: paired
    bootstrap interval over items. kind: "own" where set and relation have one name, else "versatility" (the drop's
    interval lies above 0), "interference" (below 0: masking helps) or "none". random: drop under the matched-random sets.
    A relation without a right answer to begin with has no drop (None). Keys: masked, relation, plain, accuracy, drop,
    low, high, random, kind, p_holm, n.
    """
    rows = []
    for row in effects.rows:
        values = effects.documents[row["text"]]
        plain, after = (np.asarray(x, dtype=np.float64) for x in (values["plain"], values["clamped"][row["set"]]))
        drop, low, high, random = None, None, None, None
        if plain.sum() > 0:
            drop = float((plain - after).sum() / plain.sum())
            random = None if row["control_mean"] is None else -row["control_mean"] / row["plain"]
            sums = resampled_sums(np.stack([plain, after], 1), resamples=resamples, seed=seed)
            sums = sums[sums[:, 0] > 0]
            low, high = percentile_interval((sums[:, 0] - sums[:, 1]) / sums[:, 0], level=level)
        rows.append(
            {
                "masked": row["set"], "relation": row["text"], "plain": row["plain"], "accuracy": row["clamped"],
                "drop": drop, "low": low, "high": high, "random": random,
                "kind": _kind(row["set"] == row["text"], low, high), "p_holm": row["p_holm"], "n": len(plain),
            }
        )  # fmt: skip
    return rows


def ranking(finding: Finding, label: str, k: int) -> list[str]:
    """Names of the k highest-scoring units of a label, best first; of equal scores the earlier unit goes first."""
    if finding.scores is None:
        raise InputError("this finding was loaded without the scores of all units, so it has no ranking")
    if not 1 <= k <= finding.total:
        raise InputError(f"the {k} best of {finding.total} units asked for")
    row = finding.scores[finding.labels.index(label)]
    best = highest(row, k)
    return finding.names(best[np.argsort(-row[best], kind="stable")])


@dataclass(frozen=True, eq=False)
class Cumulativity:
    """What masking ever longer parts of a ranking does.

    curve: one row per relation and k (0: nothing masked) with own (accuracy on the relation), others (on the other ones,
    mean of their accuracies), random (own accuracy under as many random units per layer) and n. steps: one row per
    relation and pair k1 < k2: total (prompts right with the first k1 masked, wrong with k2), affected (those that are
    also wrong when only ranks k1 + 1 to k2 are masked), index (1 - affected / total, None without such prompts). An
    index of 1 says that the units matter only together. macro, micro: (k1, k2) -> mean over relations, and pooled.
    right: (relation, what was masked) -> (n,) bool, whether each prompt of the relation was completed right.
    """

    curve: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    right: dict[tuple[str, str], Bools]

    def macro(self) -> dict[tuple[int, int], float | None]:
        return {pair: _mean([row["index"] for row in rows]) for pair, rows in self._pairs()}

    def micro(self) -> dict[tuple[int, int], float | None]:
        found: dict[tuple[int, int], float | None] = {}
        for pair, rows in self._pairs():
            total = sum(row["total"] for row in rows)
            found[pair] = 1 - sum(row["affected"] for row in rows) / total if total else None
        return found

    def _pairs(self) -> Iterator[tuple[tuple[int, int], list[dict[str, Any]]]]:
        for pair in dict.fromkeys((row["k1"], row["k2"]) for row in self.steps):
            yield pair, [row for row in self.steps if (row["k1"], row["k2"]) == pair]


def cumulativity(
    model: LanguageModel,
    rankings: Mapping[str, Sequence[str]],
    task: Task,
    *,
    ks: Sequence[int],
    by: str = "relation",
    tokens: int | None = 2,
    to: float | str = 0.0,
    recording: Recording | None = None,
    controls: int = 3,
    batch_tokens: int = 4096,
    seed: int = 0,
    quiet: bool = False,
) -> Cumulativity:
    """Mask the first k units of each relation's ranking for ever larger k, and the parts between two ks.

    rankings: relation -> unit names, best first (see `ranking`). task: prompts to evaluate on, labelled `by` relation.
    ks: numbers of units, ascending. tokens: a prompt is right if greedy decoding writes so many tokens of the answer. to:
    the value that masked units get, or "mean" of a recording. controls: random sets per k for `random`.
    Raises InputError for ks that don't ascend or exceed a ranking, and relations without prompts.
    """
    counts = [int(k) for k in ks]
    longest = min(map(len, rankings.values()), default=0)
    if not counts or counts[0] < 1 or any(a >= b for a, b in itertools.pairwise(counts)) or counts[-1] > longest:
        raise InputError(f"ks={counts}; give ascending numbers of units from 1 to {longest}, the shortest ranking")
    labels = np.array([label_of(item, by) for item in task])
    if lacking := [name for name in rankings if name not in labels]:
        raise InputError(f"no prompt of {task.name!r} has {by}={lacking[0]!r}, which a ranking is for")

    def right(units: UnitSet | None) -> Bools:
        if units is None:
            return completion(model, task, tokens=tokens, batch_tokens=batch_tokens, quiet=True).totals > 0.5
        with clamp(model, units, to=to, recording=recording):
            return completion(model, task, tokens=tokens, batch_tokens=batch_tokens, quiet=True).totals > 0.5

    plain = right(None)
    curve: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    kept: dict[tuple[str, str], Bools] = {}
    with progress("masking ever more units", len(rankings) * len(counts), unit="masks", quiet=quiet) as advance:
        for relation, names in rankings.items():
            mine = labels == relation
            kept[relation, "none"] = plain[mine]
            curve.append(_point(relation, 0, plain, labels, []))
            before = plain
            for k1, k2 in itertools.pairwise([0, *counts]):
                masked = UnitSet.of(model, names[:k2])
                after = right(masked)
                randoms = [right(masked.matched_random(seed + i)) for i in range(controls)]
                curve.append(_point(relation, k2, after, labels, randoms))
                kept[relation, f"1-{k2}"] = after[mine]
                if k1:
                    part = right(UnitSet.of(model, names[k1:k2]))
                    kept[relation, f"{k1 + 1}-{k2}"] = part[mine]
                    steps.append({"relation": relation, "k1": k1, "k2": k2} | _index(before, after, part, mine))
                before = after
                advance(1)
    return Cumulativity(curve, steps, kept)


def _index(before: Bools, after: Bools, part: Bools, mine: Bools) -> dict[str, Any]:
    lost = before & ~after & mine
    total, affected = int(lost.sum()), int((lost & ~part).sum())
    return {"total": total, "affected": affected, "index": 1 - affected / total if total else None}


def _point(relation: str, k: int, right: Bools, labels: NDArray[Any], randoms: list[Bools]) -> dict[str, Any]:
    mine = labels == relation
    others = [float(right[labels == name].mean()) for name in dict.fromkeys(labels.tolist()) if name != relation]
    return {
        "relation": relation,
        "k": k,
        "own": float(right[mine].mean()),
        "others": _mean(others),
        "random": _mean([float(found[mine].mean()) for found in randoms]),
        "n": int(mine.sum()),
    }


def _kind(own: bool, low: float | None, high: float | None) -> str:
    if own:
        return "own"
    if low is not None and high is not None:
        if low > 0:
            return "versatility"
        if high < 0:
            return "interference"
    return "none"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None

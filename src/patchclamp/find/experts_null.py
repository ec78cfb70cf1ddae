"""What shuffled labels give: scores of all units when labels are dealt anew over the documents, and what that means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.progress import progress
from patchclamp.find.separation import blocks
from patchclamp.find.separation_null import ShuffledScores, shuffled_truth

SHUFFLED = "labels are dealt anew over the same documents, as many positives as before; all units are scored again"


def shuffled_scores(
    values: Any,
    truth: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    score: str,
    side: str,
    shuffles: int,
    seed: int,
) -> ShuffledScores:
    """Scores of all units under shuffled labels, in one pass over the responses; one sort per unit serves them all."""
    n = truth.shape[1]
    dealt = shuffled_truth(truth, counted, shuffles, seed).reshape(-1, n)
    among = np.repeat(counted, shuffles, axis=0)
    tally = ShuffledScores(len(truth), shuffles)
    what = ("auroc",) if score == "auroc" else ("ap",) if side == "top" else ("ap", "ap_low")
    with progress("shuffling labels", values.shape[1], unit="units") as advance:
        for span, found in blocks(values, dealt, among, what):
            high = found[what[0]]
            low = 1 - high if score == "auroc" else found.get("ap_low", high)
            one = high if side == "top" else low if side == "bottom" else np.maximum(high, low)
            tally.add(one.reshape(len(truth), shuffles, -1))
            advance(span.stop - span.start)
    return tally


def power_notes(labels: int, fdr: float, shuffles: int) -> list[str]:
    """A note where pooled p-values are too coarse for a unit that stands alone to pass."""
    needed = math.ceil(labels / fdr - 1e-9)
    if fdr >= 1 or shuffles >= needed:
        return []
    return [
        f"with {shuffles} shuffles a unit passes fdr={fdr:g} only among {math.ceil(needed / shuffles)} or more; "
        f"shuffles={needed} let a single one pass"
    ]


def null_record(
    tally: ShuffledScores | None,
    names: Sequence[str],
    scores: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    shuffles: int,
    seed: int,
) -> dict[str, Any]:
    """What chance names, beside what was found.

    labels: per label `mean`: units that reach the lowest chosen score under a shuffle, on average; `best`: the highest
    score found, the mean and the largest best score of a shuffle, and p of the best; `kth`: the same for the lowest
    chosen score, rank k.
    """
    record: dict[str, Any] = {"shuffles": shuffles, "seed": seed, "what": SHUFFLED}
    if tally is None:
        return record | {"available": False, "why": "shuffles=0 was asked for"}
    labels, said = {}, []
    for at, name in enumerate(names):
        k = int(chosen[at].sum())
        best = tally.kth(at, 1)
        entry: dict[str, Any] = {
            "mean": tally.reaching(at, float(scores[at, chosen[at]].min())) if k else 0.0,
            "observed": k,
            "best": _beside(float(scores[at].max()), best),
        }
        text = f"{name}: best {entry['best']['observed']:.3f} (shuffled {entry['best']['mean']:.3f})"
        if k:
            entry["kth"] = {"k": k} | _beside(float(scores[at, chosen[at]].min()), tally.kth(at, k))
            text += f", number {k} {entry['kth']['observed']:.3f} (shuffled {entry['kth']['mean']:.3f})"
        labels[name] = entry
        said.append(text)
    return record | {"available": True, "labels": labels, "said": "; ".join(said)}


def _beside(observed: float, shuffled: NDArray[np.float64]) -> dict[str, float]:
    return {
        "observed": observed,
        "mean": float(shuffled.mean()),
        "max": float(shuffled.max()),
        "p": float((1 + (shuffled >= observed).sum()) / (1 + len(shuffled))),
    }

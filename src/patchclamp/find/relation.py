"""Relation neurons: units that tell prompts of one relation from prompts of others, whoever the subject (RelSpec).

Liu, Chen, Hirlimann et al. 2025, "On Relation-Specific Neurons in Large Language Models", arXiv 2502.17355, with the
expert selection of Suau et al. 2022 (arXiv 2110.02802) and Kojima et al. 2024 (arXiv 2404.02431). Prompts, their filter
and the check for leaked subjects are in relation_prompts.py, what masking the found units does in relation_experiments.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.find.experts import (
    check_choice,
    chosen_units,
    counts_of,
    length_auroc,
    length_notes,
    listed_units,
    oriented,
    recorded_notes,
)
from patchclamp.find.experts_null import null_record, power_notes, shuffled_scores
from patchclamp.find.finding import Finding, finders
from patchclamp.find.recordings import RecordingLike
from patchclamp.find.responses import Responses, inputs_of, responses
from patchclamp.find.separation import checked_labels, separate

__all__ = ["relation"]

PAPER_SHARE = 3000 / 835_584  # of the FFN units of Llama-2-7B


@finders.add("relation")
def relation(
    recording: RecordingLike,
    *,
    pool: str = "mean",
    negatives: int = 4,
    sites: str | Sequence[str] | None = None,
    side: str = "top",
    share: float | None = None,
    top: int | None = None,
    fdr: float = 0.05,
    level: float = 0.95,
    listed: int = 20,
    shuffles: int = 20,
    seed: int = 0,
) -> Finding:
    """Rank units by the average precision with which their response tells prompts of a relation from other prompts.

    The recording holds prompts (no answers) labelled by relation, with the statistic `pooled`.

    pool: a unit's response to a prompt is its `mean`, `max` or `last` activation over the prompt's tokens. negatives: so
    many prompts of other relations per prompt of the relation, drawn without replacement; 0 takes all. sites: recorded
    sites, by default all of them. side: `top`, `bottom` (inactive on the relation, ranked by the average precision of the
    negated response) or `both`. share: of all units that a set holds at most, by default the paper's 3,000 of 835,584.
    top: or so many units. fdr: units must also pass this false-discovery rate over all relations and units; 1 lets all
    pass, which is the paper's form. level: of the DeLong intervals of the listed units. listed: how many units of each
    relation are listed. shuffles: how often labels are shuffled over the prompts for the null; with relations / fdr of
    them a single unit can pass. seed: of drawing and shuffling.

    scores: average precision, sum (R_i - R_(i-1)) P_i over distinct thresholds; a constant unit scores the prevalence.
    p_values: how often shuffled labels reach a score, pooled over units and shuffles. null: what the k-th unit of a set
    scores beside the k-th under shuffled labels. details: listed units with the responses to force them to (off_mean over
    negatives, on_p50 and on_p90 over positives), units that sets share, AUROC of prompt length.

    Differs from the paper: units are the recorded ones (the paper's are the outputs of gate, up and down projections:
    record gate, up and mlp_out); special tokens count only if they were recorded; a set is a share of all units that
    also passes a false-discovery rate, not 3,000 in any model. Ties go to the earlier site, layer and index.
    Raises InputError for fewer than two relations, responses that are not finite, and more units asked for than exist.
    """
    if negatives < 0:
        raise InputError(f"negatives={negatives}; give how many per positive, 0 for all")
    check_choice(side, fdr, top, share, shuffles)
    if not shuffles:
        raise InputError("shuffles=0 given, but average precision has no p-value without shuffled labels")
    read = responses(recording, sites, pool)
    positives = np.stack([read.of_labels((name,)) for name in read.labels])
    among, short = _sampled(positives, negatives, seed)
    truth, counted = checked_labels(read, positives, among)
    found = separate(read, truth, among=counted)
    scores = oriented(found, "ap", side)
    tally = shuffled_scores(read, truth, counted, "ap", side, shuffles, seed)
    p_values = tally.p_values(scores)
    least = PAPER_SHARE if top is None and share is None else share
    chosen = chosen_units(scores, p_values, fdr, top, least, len(read.places))
    length = length_auroc(read, truth, counted, read.labels, level)
    rows = listed_units(read, read.labels, found, scores, p_values, level, listed)
    for label, name in enumerate(read.labels):
        _add_levels(read, truth[label], counted[label], rows[name])
    arguments = {
        "pool": pool, "negatives": negatives, "sites": [layout.site for layout in read.layouts], "side": side,
        "share": least, "top": top, "fdr": fdr, "level": level, "listed": listed, "shuffles": shuffles, "seed": seed,
    }  # fmt: skip
    notes = [f"{read.labels[at]}: fewer than {negatives} negatives per positive exist; all are used" for at in short]
    return Finding(
        method="relation",
        labels=read.labels,
        layouts=read.layouts,
        model=dict(recording.model),
        chosen=read.spread(chosen, False),
        scores=read.spread(scores, 0.0),
        member=read.spread(np.asarray(found.auroc) > 0.5, False),
        p_values=read.spread(p_values.astype(np.float32), 1.0),
        null=null_record(tally, read.labels, scores, chosen, shuffles, seed),
        parameters=arguments,
        details={
            "documents": counts_of(read.labels, found),
            "listed": rows,
            "overlap": (chosen.astype(np.int64) @ chosen.T).tolist(),
            "length": length,
        },
        notes=(*notes, *power_notes(len(read.labels), fdr, shuffles), *length_notes(length), *recorded_notes(read)),
        provenance=provenance("find.relation", arguments=arguments, inputs=inputs_of(recording), seed=seed),
    )


def _sampled(positives: NDArray[np.bool_], negatives: int, seed: int) -> tuple[NDArray[np.bool_], list[int]]:
    """Which prompts count for each relation, (relations, n) bool; and the relations with too few others."""
    among = np.ones_like(positives)
    short: list[int] = []
    if not negatives:
        return among, short
    rng = np.random.default_rng(seed)
    for label, ones in enumerate(positives):
        others, wanted = np.flatnonzero(~ones), negatives * int(ones.sum())
        if wanted > len(others):
            short.append(label)
        among[label] = ones
        among[label, rng.permutation(others)[:wanted]] = True
    return among, short


def _add_levels(
    read: Responses, ones: NDArray[np.bool_], counted: NDArray[np.bool_], rows: list[dict[str, Any]]
) -> None:
    """Give each listed unit its mean response to negatives and quantiles of its responses to positives."""
    for row, values in zip(rows, _values(read, [row["unit"] for row in rows]), strict=True):
        p50, p90 = np.quantile(values[ones], (0.5, 0.9))
        row |= {"off_mean": float(values[counted & ~ones].mean()), "on_p50": float(p50), "on_p90": float(p90)}


def _values(read: Responses, names: Sequence[str]) -> list[NDArray[np.float32]]:
    """Responses of some units to all documents."""
    return [read.columns(at, at + 1)[0] for at in (read.place_of(name) for name in names)]


make_callable(__name__)

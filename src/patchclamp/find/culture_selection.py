"""From summed contributions to sets: the general and specific scores, z over groups, shares per kind of unit, removal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.culture_sums import Contributions
from patchclamp.find.finding import spans
from patchclamp.find.ranking import highest
from patchclamp.models.units import Layout

MLP_SITES = ("pre", "gate", "up", "mlp")
ATTENTION_SITES = ("q", "k", "v", "attn", "head")
Flat = NDArray[np.float64]
Taken = NDArray[np.bool_]


def group_scores(main: Contributions, control: Contributions | None, *, own_means: bool) -> Flat:
    """Score of every unit for every group, (groups, total): what the question adds (step 9).

    own_means: divide by the group's own prompts; False: by all prompts of the task, as in the paper's code.
    """
    score = _mean(main, own_means)
    return score if control is None else score - _mean(control, own_means)


def general_score(groups: Flat, *, own_means: bool) -> Flat:
    """(total,): the mean over groups of means, or the sum of scores that were divided by all prompts (step 6)."""
    return np.asarray(groups.mean(axis=0) if own_means else groups.sum(axis=0))


def z_scores(groups: Flat) -> Flat:
    """How far each group stands out for each unit, (groups, total): (score - mean) / population sd over groups; 0 at sd 0.

    Where m of G groups share one positive score and the others have 0, z = sqrt((G - m) / m).
    """
    spread = groups.std(axis=0)
    gap = groups - groups.mean(axis=0)
    flat = spread <= 1e-12 * np.abs(groups).max(axis=0, initial=0.0)  # equal scores, up to rounding
    return np.where(flat, 0.0, gap / np.where(flat, 1.0, spread))


def general_units(
    score: Flat, name_score: Flat | None, layouts: Sequence[Layout], *, mlp: float, attention: float, remove: float
) -> Taken:
    """Steps 7 and 8: the best share of MLP units and of attention units, without the best `remove` of name units."""
    taken = np.zeros(len(score), dtype=bool)
    for where, share in zip(pools(layouts), (mlp, attention), strict=True):
        taken[_best(score, where, share)] = True
        if name_score is not None:
            taken[_best(name_score, where, remove)] = False
    return taken


def specific_units(
    score: Flat, name_score: Flat | None, z: Flat, *, share: float, remove: float, least: float
) -> Taken:
    """Step 9 for one group: the best share of all units, without the best name units of the group, where z >= least."""
    everywhere, taken = np.arange(len(score)), np.zeros(len(score), dtype=bool)
    taken[_best(score, everywhere, share)] = True
    if name_score is not None:
        taken[_best(name_score, everywhere, remove)] = False
    return taken & (z >= least)


def pools(layouts: Sequence[Layout]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat positions of the MLP units and of the attention units; InputError for a site that is neither."""
    found: dict[bool, list[NDArray[np.int64]]] = {True: [], False: []}
    for site, span in spans(layouts).items():
        if site not in (*MLP_SITES, *ATTENTION_SITES):
            raise InputError(
                f"site {site} is neither of the MLP nor of attention; give some of {', '.join((*MLP_SITES, *ATTENTION_SITES))}"
            )
        found[site in MLP_SITES].append(np.arange(span.start, span.stop))
    none = np.zeros(0, dtype=np.int64)
    return np.concatenate([none, *found[True]]), np.concatenate([none, *found[False]])


def _mean(sums: Contributions, own_means: bool) -> Flat:
    return np.asarray(sums.totals / (sums.group_rows[:, None] if own_means else sums.n))


def _best(score: Flat, where: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """The int(share * count) highest of some units; never one whose score is 0 or less, which speaks for nothing."""
    best = where[highest(score[where], int(share * len(where)))]
    return best[score[best] > 0]

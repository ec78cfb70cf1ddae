"""Damping the units that detect a concept: AurA, Damp and Det-0, the baselines of EigenShift, from AUROC scores.

Suau et al. 2024, "Whispering Experts", ICML (AurA; Damp and Det-0 go back to Suau et al. 2022, arXiv 2110.02802). Each
expert's output is multiplied at all positions: by 1 - 2 (AUROC - 0.5) (AurA, no setting), by alpha (Damp), by 0 (Det-0).
The authors place them at the outputs of all linear maps of the MLP: sites `pre`, `up` and `mlp_out` here.

Without a number of experts Damp and Det-0 hit every unit above 0.5, half of all units also in noise, which is how the
published perplexities of 43,000 came about: a fair comparison sweeps n_experts.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.intervene.fits import fits
from patchclamp.intervene.interventions import Intervention
from patchclamp.intervene.kinds import Interventions
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

METHODS = ("aura", "damp", "det0")
SITES = ("pre", "up", "mlp_out")  # outputs of the linear maps of an MLP, as the hooks know them


def multipliers(
    areas: ArrayLike, *, method: str = "aura", alpha: float = 0.5, n_experts: int | None = None
) -> NDArray[np.float64]:
    """What each unit's output is multiplied by to weaken a concept, float64 in [0, 1], from its AUROC.

    aura: 1 - 2 (AUROC - 0.5) above 0.5, else 1. damp: alpha for experts, else 1. det0: 0 for experts, else 1. Experts of
    damp and det0 lie above the (n_experts)-th entry, counted from 0, of all AUROCs in descending order (so fewer than
    n_experts where that entry is tied); without n_experts above 0.5, which is about half of all units.
    """
    area = np.asarray(areas, dtype=np.float64)
    if not ((area >= 0) & (area <= 1)).all():
        raise InputError("AUROCs lie between 0 and 1")
    if method == "aura":
        return np.where(area > 0.5, 1 - 2 * (area - 0.5), 1.0)
    if method not in METHODS:
        raise InputError(f"method={method!r}; choose {', '.join(METHODS[:-1])} or {METHODS[-1]}")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha={alpha}; it lies between 0 and 1")
    if n_experts is not None and not 0 <= n_experts < area.size:
        raise InputError(f"n_experts={n_experts} of {area.size} units asked for")
    bar = 0.5 if n_experts is None else float(np.sort(area, axis=None)[::-1][n_experts])
    return np.where(area > bar, 0.0 if method == "det0" else alpha, 1.0)


def damping(
    units: UnitSet, *, method: str = "aura", alpha: float = 0.5, n_experts: int | None = None, scope: str = "all"
) -> Interventions:
    """The multipliers of a set's AUROC scores as one intervention "scale" on the units that they change.

    units: with their AUROCs as scores, as `find.experts` gives them (all units, or those above 0.5: the others are
    multiplied by 1). method, alpha: see `multipliers`. n_experts: only the so many units of highest score, of those above
    0.5; among equals the first, where the authors' threshold would leave all of them out. The list may be empty: then
    nothing changes. InputError for units without scores. `edit` writes it where a linear map makes or reads the units.
    """
    if units.scores is None:
        raise InputError("the units have no scores; give the sets of `find experts`, whose scores are AUROCs")
    every = [np.asarray(units.scores[site], dtype=np.float64) for site in units.positions]
    area = np.concatenate(every) if every else np.zeros(0)
    factors = multipliers(area, method=method, alpha=alpha) if area.size else area
    if n_experts is not None:
        if not 1 <= n_experts <= area.size:
            raise InputError(f"n_experts={n_experts} of {area.size} units asked for")
        factors[np.argsort(-area, kind="stable")[n_experts:]] = 1.0
    starts = np.cumsum([0, *map(len, every)])
    of_site = {
        site: factors[start:stop] for site, start, stop in zip(units.positions, starts, starts[1:], strict=False)
    }
    parts = [UnitSet.at(units.model, site, units.positions[site][mine != 1]) for site, mine in of_site.items()]
    target = functools.reduce(operator.or_, parts, UnitSet.of(units.model, []))
    if not len(target):
        return Interventions([])
    values = np.concatenate([of_site[site][of_site[site] != 1] for site in target.positions])
    note = method if n_experts is None else f"{method}, {n_experts} experts"
    return Interventions([Intervention(target, "scale", values, scope, note=note)])


@fits.add("aura")
def aura(model: LanguageModel, units: UnitSet, *, scope: str = "all") -> Interventions:
    """Damp every unit by how well it detects a concept: its output times 1 - 2 (AUROC - 0.5) (AurA).

    units: with AUROCs as scores, sets of `patchclamp find experts ... --fdr 1`. scope: prompt, generated or all positions.
    Example: `patchclamp fit aura demo --units experts.sets.json:rude --out aura.json`.
    """
    return _fitted(model, units, scope, method="aura")


@fits.add("damp")
def damp(
    model: LanguageModel, units: UnitSet, *, alpha: float = 0.5, n_experts: int | None = None, scope: str = "all"
) -> Interventions:
    """Multiply the units that detect a concept by a constant (Damp).

    units: with AUROCs as scores, sets of `patchclamp find experts ... --fdr 1`. alpha: the constant, from 0 to 1.
    n_experts: how many units of highest AUROC; without it all above 0.5, which breaks most models. scope: prompt,
    generated or all positions.
    Example: `patchclamp fit damp demo --units experts.sets.json:rude --n-experts 100 --out damp.json`.
    """
    return _fitted(model, units, scope, method="damp", alpha=alpha, n_experts=n_experts)


@fits.add("det0")
def det0(model: LanguageModel, units: UnitSet, *, n_experts: int | None = None, scope: str = "all") -> Interventions:
    """Set the units that detect a concept to 0 (Det-0).

    units: with AUROCs as scores, sets of `patchclamp find experts ... --fdr 1`. n_experts: how many units of highest
    AUROC; without it all above 0.5, which breaks most models. scope: prompt, generated or all positions.
    Example: `patchclamp fit det0 demo --units experts.sets.json:rude --n-experts 100 --out det0.json`.
    """
    return _fitted(model, units, scope, method="det0", n_experts=n_experts)


def _fitted(model: LanguageModel, units: UnitSet, scope: str, **how: Any) -> Interventions:
    units.check_model(model)
    found = damping(units, scope=scope, **how)
    if not found:
        raise InputError(f"none of the {len(units)} units is an expert by its score; there is nothing to damp")
    return found

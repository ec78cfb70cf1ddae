"""Fitting Neuron Adjust: which units are higher on a skill than on other text, and how they are distributed on both.

Li, Sun & Weng 2025 (arXiv 2503.21730), steps 1 and 2. Means and spreads come from a recording's streaming moments over all
tokens; units are chosen here by the paper's rule, or taken from any finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import Corpus
from patchclamp.intervene.fits import fits
from patchclamp.intervene.skills import Component, NeuronAdjust, check_how
from patchclamp.models.units import UnitSet
from patchclamp.record.recorder import record
from patchclamp.record.recording import Recording
from patchclamp.record.statistics.shape import Distribution

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

Floats = NDArray[np.float64]
SITES = ("pre", "gate", "mlp")
FLOOR = 1e-6  # of the median spread: below it a spread is rounding
POOL = 10  # other units kept for random controls, for each unit of a skill


@fits.add("neuron-adjust")
def neuron_adjust(
    recording: Recording,
    *,
    forget: str | Sequence[str],
    retain: Sequence[str] | None = None,
    units: UnitSet | Mapping[str, UnitSet] | None = None,
    site: str | None = None,
    share: float = 0.015,
    signed: bool = True,
    mode: str = "sampled",
    scope: str = "all",
    min_tokens: int = 100,
    seed: int = 0,
) -> NeuronAdjust:
    """Move a skill's units from their values on the skill to their values on other text, while the model runs.

    forget: the label or labels to be forgotten, each a skill of its own. retain: the labels whose values they are moved to,
    pooled over tokens; None means all others. units: the units to adjust, a set for all skills or (in Python) one per skill, as
    a finding of `find skill` has them; None chooses by the paper's rule. site: where units are chosen; None takes pre, the input
    of the MLP's activation function as in the paper, if it was recorded, else gate, else mlp. share: share of the site's units
    per skill, those of largest mean on the skill minus mean on the rest over all layers together (0.005, 0.015 and 0.03 in the
    paper). signed: only units that are higher on the skill (the paper); otherwise by the size of the difference. mode: sampled
    (the paper) or expected (no random numbers). scope: prompt, generated or all positions. min_tokens: fewest tokens of either
    side. seed: of the random numbers, and of the other units that are kept for random controls.

    Record with sites=("pre",) and statistics=("shape",) or ("moments",). Spreads below a millionth of the median are raised to
    it. Raises InputError for labels that aren't there or stand on both sides, nothing to retain, too few tokens, and units
    without statistics.

    Example: `patchclamp fit neuron-adjust rec/ --forget arithmetic --out arithmetic.interventions.json`
    """
    check_how(mode, scope, seed)
    skills, others = _sides(recording, forget, retain)
    if not 0 <= share <= 1:
        raise InputError(f"share={share} given; it lies between 0 and 1")
    where = _site(recording, units, site)
    rest = _pooled(recording, others, where, min_tokens)
    parts, told = [], {}
    for name in skills:
        mine = _pooled(recording, (name,), where, min_tokens)
        gap = np.where(_alike(mine, rest), 0.0, mine.mean - rest.mean)
        chosen = _chosen(recording, units, name, where, gap if signed else np.abs(gap), share)
        parts.append(_component(name, chosen, where, mine, rest, seed))
        told[name] = {
            "units": len(chosen),
            "tokens": int(mine.n),
            "shape": {"skill": _shape(mine, chosen.positions[where]), "rest": _shape(rest, chosen.positions[where])},
        }
    fitted = {"retain": list(others), "site": where, "share": share, "signed": signed, "skills": told}
    return NeuronAdjust(tuple(parts), mode, scope, seed, fitted | {"rest_tokens": int(rest.n)})


def neuron_adjust_from_text(
    model: LanguageModel,
    text: Corpus,
    *,
    site: str = "pre",
    batch_tokens: int | None = None,
    quiet: bool = False,
    **how: Any,
) -> NeuronAdjust:
    """`neuron_adjust` on labelled text, which is recorded first. how: its keywords, such as forget="arithmetic"."""
    statistics = ("shape",)
    recording = record(model, text, sites=(site,), statistics=statistics, batch_tokens=batch_tokens, quiet=quiet)
    return neuron_adjust(recording, site=site, **how)


def _sides(
    recording: Recording, forget: str | Sequence[str], retain: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels to forget and labels to retain; InputError unless both are there and apart."""
    skills = (forget,) if isinstance(forget, str) else tuple(forget)
    if not skills or len(set(skills)) < len(skills):
        raise InputError(f"forget={list(skills)} given; name each skill once, at least one")
    others = tuple(label for label in recording.labels if label not in skills) if retain is None else tuple(retain)
    for name in (*skills, *others):
        if name not in recording.labels:
            raise InputError(f"the recording has no label {name!r}; it has {', '.join(recording.labels)}")
    if both := [name for name in others if name in skills]:
        raise InputError(f"label {both[0]!r} is both forgotten and retained; values move from one to the other")
    if not others:
        raise InputError(
            f"nothing is left to retain beside {', '.join(skills)}; Neuron Adjust moves values to those on other text, so "
            "record at least one more label"
        )
    return skills, others


def _site(recording: Recording, units: Any, site: str | None) -> str:
    """The site of the units given, or the one to choose from; InputError if it was not recorded."""
    sets = [units] if isinstance(units, UnitSet) else list((units or {}).values())
    for one in sets:
        one.check_model(recording.model)
        if len(one.sites) != 1 or site not in (None, one.sites[0]):
            raise InputError(f"units of {', '.join(one.sites) or 'no site'} given; give units of one site")
        site = one.sites[0]
    if site is None:
        site = next((name for name in (*SITES, *recording.sites) if name in recording.sites), "pre")
    if site not in recording.sites:
        raise InputError(
            f"site {site!r} was not recorded; this recording has {', '.join(recording.sites)}. Skills lie where the MLP's "
            "activation function begins: record with sites=('pre',)"
        )
    return site


def _pooled(recording: Recording, labels: Sequence[str], site: str, min_tokens: int) -> Distribution:
    """Distribution of every unit over the tokens of some labels, (layout.total,); NaN for units that weren't recorded."""
    found: Distribution | None = None
    for label in labels:
        if "shape" in recording.statistics:
            one = recording.get("shape", label, site).whole
        elif "moments" in recording.statistics:
            kept = recording.get("moments", label, site)
            one = Distribution(*(np.asarray(each, dtype=np.float64) for each in (kept.n, kept.mean, kept.m2)))
        else:
            raise InputError(
                f"the recording holds {', '.join(recording.statistics)}; Neuron Adjust needs the statistic shape or moments"
            )
        found = one if found is None else found.merge(one)
    if found is None or found.n < max(min_tokens, 2):
        raise InputError(
            f"{', '.join(labels)}: {0 if found is None else int(found.n)} tokens; at least {max(min_tokens, 2)} are needed "
            "(min_tokens), so give more text"
        )
    return found


def _alike(mine: Distribution, rest: Distribution) -> NDArray[np.bool_]:
    """Where two means differ by rounding only: float sums of the same constant do."""
    return np.asarray(np.abs(mine.mean - rest.mean) <= 1e-9 * (np.abs(mine.mean) + np.abs(rest.mean)))


def _chosen(recording: Recording, units: Any, name: str, site: str, score: Floats, share: float) -> UnitSet:
    """The units given for a skill, or those of highest score; of equal scores the first ones, and none at or below 0."""
    if isinstance(units, UnitSet):
        return units
    if units is not None:
        if name not in units:
            raise InputError(f"no units were given for {name!r}; there are some for {', '.join(units)}")
        found: UnitSet = units[name]
        return found
    recorded = np.isfinite(score)
    ranked = np.argsort(-np.where(recorded, score, -np.inf), kind="stable")[: round(share * int(recorded.sum()))]
    return UnitSet.at(recording.model, site, ranked[score[ranked] > 0])


def _component(
    name: str, units: UnitSet, site: str, mine: Distribution, rest: Distribution, seed: int, *, pool: bool = True
) -> Component:
    """The numbers of some units, spreads floored, and those of others that random controls are drawn from."""
    where = units.positions.get(site, np.zeros(0, dtype=np.int64))
    numbers = np.stack([mine.mean[where], mine.std[where], rest.mean[where], rest.std[where]])
    if not np.isfinite(numbers).all():
        raise InputError(f"some units of {name!r} were not recorded; record their layers too, or leave them out")
    for side in (1, 3):
        every = (mine if side == 1 else rest).std
        some = every[np.isfinite(every) & (every > 0)]
        numbers[side] = np.maximum(numbers[side], FLOOR * (float(np.median(some)) if len(some) else 1.0))
    others = _others(units, site, np.isfinite(mine.mean), seed) if pool and len(units) else None
    kept = None if others is None else _component(name, others, site, mine, rest, seed, pool=False)
    return Component(name, units, numbers, kept)


def _others(units: UnitSet, site: str, recorded: NDArray[np.bool_], seed: int) -> UnitSet:
    """Up to POOL random others per unit in every layer, at least as many as there are units (so some of the units if need be)."""
    layout, rng, drawn = units.layouts[site], np.random.default_rng(seed), []
    mine = units.positions[site]
    for layer in range(layout.n_layers):
        span = np.arange(layout.total)[layout.slice(layer)]
        wanted = int(np.isin(mine, span).sum())
        free = rng.permutation(np.setdiff1d(span[recorded[span]], mine))[: POOL * wanted]
        own = rng.permutation(np.intersect1d(span, mine))[: max(0, wanted - len(free))]
        drawn += [free, own]
    return UnitSet.at(units.model, site, np.concatenate(drawn))


def _shape(of: Distribution, where: NDArray[np.int64]) -> dict[str, float] | None:
    """Median size of skew and excess kurtosis of the units, 0 for normals; None where they weren't recorded."""
    if of.skew is None or of.kurtosis is None or not len(where):
        return None
    return {"skew": float(np.median(np.abs(of.skew[where]))), "kurtosis": float(np.median(np.abs(of.kurtosis[where])))}

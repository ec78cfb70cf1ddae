"""What a syntax finding reports beside its sets: counts, profiles, the false-positive floor, and remarks in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.find.syntax_select import KINDS, two_periodic
from patchclamp.find.syntax_spectra import spectrum
from patchclamp.models.units import Layout

if TYPE_CHECKING:
    from patchclamp.find.syntax_tagged import Tagged

WHAT = (
    "the whole procedure on a second, independent set of control streams in place of the experiment: what it names there "
    "is tagged by nothing"
)


RULES = {"reference": ("reference", "words"), "fdr over groups": ("fdr", "groups"), "fdr over words": ("fdr", "words")}


def counts_of(found: Tagged, *, q: float, bar: float) -> dict[str, dict[str, int]]:
    """Rule of choosing -> kind -> units that it names."""
    named = {}
    for name, (method, over) in RULES.items():
        sizes = found.choose(method, over=over, q=q, bar=bar).sum(axis=1).tolist()
        named[name] = dict(zip(KINDS, sizes, strict=True))
    return named


def details_of(found: Tagged, chosen: NDArray[np.bool_], layout: Layout, *, q: float, bar: float) -> dict[str, Any]:
    """Plain data of one label. chosen: (3, n) sentence only, phrase only, shared."""
    layers = layout.split(chosen)
    sets = {}
    for at, kind in enumerate(KINDS):
        sets[kind] = {
            "units": int(chosen[at].sum()),
            "share_of_layer": [float(layer[at].mean()) if layer.shape[1] else 0.0 for layer in layers],
            **_shape(found, chosen[at]),
        }
    return {
        "sentences": len(found.sentences),
        "units_per_sentence": found.sentences.n_units,
        "word_forms": len(np.unique(found.sentences.words)),
        "rates_hz": [rate.hz for rate in found.rates],
        "off_the_sentence": [rate.hz for rate in found.rates if rate.harmonic is None],
        "tokens_in_several_units": found.overlapping,
        "passed_over_time": {kind: float(row.mean()) for kind, row in zip(KINDS, found.passed, strict=False)},
        "smallest_p": {kind: float(row.min()) for kind, row in zip(KINDS, found.p(), strict=False)},
        "named_by": counts_of(found, q=q, bar=bar),
        "sets": sets,
    }


def _shape(found: Tagged, taken: NDArray[np.bool_]) -> dict[str, Any]:
    """Mean profile (each unit in its own standard deviations), median 2-periodic share, mean spectrum of a set's units."""
    if not taken.any():
        return {"profile": None, "two_periodic": None, "spectrum": None}
    profile = found.profile[0][:, taken]
    spread = profile.std(axis=0)
    scaled = (profile - profile.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    share = two_periodic(profile)
    spectra = {}
    for name, series in zip(("experiment", "control"), found.series[:, :, taken], strict=True):
        hz, amplitude = spectrum(series)
        noise = series.std(axis=0) * np.sqrt(len(series))
        spectra[name] = (amplitude / np.where(noise > 0, noise, 1.0)).mean(axis=1).round(4).tolist()
    return {
        "profile": scaled.mean(axis=1).tolist(),
        "two_periodic": None if np.isnan(share).all() else float(np.nanmedian(share)),
        "spectrum": {"hz": hz.tolist(), **spectra},
    }


def floor_of(
    labels: Sequence[str], chosen: NDArray[np.bool_], chance: Mapping[str, Any], rule: str, seed: int
) -> dict[str, Any]:
    """The null's record: per set, units observed and units that the same rule names in a second control; then every rule's.

    chance: label of the text -> `counts_of` the second control.
    """
    record: dict[str, Any] = {"what": WHAT, "seed": seed, "replicates": 1 if chance else 0, "rule": rule}
    if not chance:
        return record | {"available": False, "why": "floor=False was asked for"}
    by_chance = [chance[name][rule][kind] for name in chance for kind in KINDS]
    entries = {}
    for at, (label, found) in enumerate(zip(labels, by_chance, strict=True)):
        observed = int(chosen[at].sum())
        share = found / observed if observed else None
        entries[label] = {"observed": observed, "mean": float(found), "max": found, "share": share}
    return record | {"available": True, "labels": entries, "named_by": dict(chance)}


def notes_of(details: Mapping[str, Any], chance: Mapping[str, Any], rule: str) -> tuple[str, ...]:
    """What a reader should know before trusting the sets."""
    remarks = []
    if rule == "reference":
        remarks.append(
            "z > bar is relative to this model's own spread: about 3% of all units pass where nothing is tagged; see the "
            "floor, and method fdr for an absolute test"
        )
    elif rule == "fdr over groups":
        remarks.append(
            "the test over groups generalises over orders of these sentences only: units that tell a few words apart by chance "
            "pass, in random models too; over='words' asks for more"
        )
    for name, entry in details.items():
        if entry["off_the_sentence"]:
            shown = ", ".join(f"{hz:.3g}" for hz in entry["off_the_sentence"])
            remarks.append(
                f"{name}: rates of {shown} Hz are no multiples of the sentence rate: once the order of sentences is shuffled "
                "they can only show chance"
            )
        if entry["sets"]["shared"]["two_periodic"] is not None:
            remarks.append(
                f"{name}: a single burst per sentence has energy at the phrase rate too, so shared units include sharp sentence "
                f"units (2-periodic share of the profile, median: {entry['sets']['shared']['two_periodic']:.2f})"
            )
        if sum(chance.get(name, {}).get(rule, {}).values()):
            counts = ", ".join(f"{n} {kind}" for kind, n in chance[name][rule].items())
            remarks.append(f"{name}: on a second set of control streams the same procedure names {counts}")
    return tuple(remarks)

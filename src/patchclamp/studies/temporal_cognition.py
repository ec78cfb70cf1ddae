"""Temporal cognition end to end: how a model's scale of years is bent, which units prefer years, and what they do.

Method: Li et al. 2025 (arXiv 2507.15851); all of it lives in the floors below, this file only puts the parts in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus, corpus
from patchclamp.data.generate.years import CONDITIONS, CUES, pair_prompts, parse_values, stimuli
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.find import Finding
from patchclamp.find.cooccurrence import cooccurrence
from patchclamp.find.distance_fits import contrast, fit_laws, plain_rows
from patchclamp.find.probes import probe_laws
from patchclamp.find.reference import FEWEST, reference_point
from patchclamp.find.temporal import temporal
from patchclamp.measure import Effects, effect
from patchclamp.measure.judgements import cosines, judge
from patchclamp.record import Recording, record
from patchclamp.studies.study import Report, Run, studies
from patchclamp.studies.temporal_cognition_verdict import TemporalCognition

NAME = "temporal-cognition"
TAUGHT = ("next_year", "decade", "century", "first")  # what the demo model learned to answer about years
PAPER_REFERENCE = 2025
PAPER_SHARE = 0.012  # of units that prefer years, about the mean over the paper's models
SITES = ("mlp_out", "mlp")


@studies.add(NAME)
def temporal_cognition(
    run: Run,
    *,
    years: str = "1700-2020",
    language: str = "en",
    reference: float | None = None,
    task: Task | None = None,
    other: Task | None = None,
    text: Corpus | None = None,
    fitted: int = 81,
    judged: int = 9,
    probed: int = 33,
    controls: int = 10,
) -> Report:
    """A model's inner scale of years: distance laws, reference point, temporal units, probes, causal check (arXiv 2507.15851).

    years: the stimuli, as 1700-2020 (what the demo model was taught); the paper's are 1525-2524. language: of the stimuli and
    prompts. reference: the year that log coding is fitted around; by default the one found in the hidden states, else
    2025 if the stimuli reach beyond it, else the middle of the stimuli. task: questions that need years, by default the
    taught kinds of `generate:dates`, held out. other: questions that don't, by default taught facts. text: labelled text whose
    years' co-occurrence is compared; none by default. fitted: how many years the similarity matrices of hidden states hold.
    judged: how many the model is asked to compare in pairs. probed: how many the probes' pairs are made of. controls:
    matched-random sets to compare with.

    Clamped are the units that pass the paper's bars and, as these are few in a small model, the 1.2% of highest d ("top"),
    which is the share that passes in the paper's models. Every judged pair is asked in both orders. Rating strings are
    weighed by their probabilities, for small models don't answer such prompts; cosines of hidden states are reported
    beside them, and each is labelled.
    """
    values = parse_values(years)
    if len(values) < 2 * FEWEST or language not in CUES:
        raise InputError(
            f"{len(values)} years in {language!r} given; at least {2 * FEWEST} years in one of {', '.join(CUES)} are needed"
        )
    recording = _recorded(run, values, language)
    geometry = run.stage("geometry", lambda: _geometry(run, recording, values, fitted))
    centre, source = _reference(reference, geometry, values)
    rated = run.stage("judgements", lambda: _judgements(run, values, language, judged, centre))
    found = {
        site: run.finding(f"temporal-{site}", partial(_units, recording, site, years, centre, run.seed))
        for site in SITES
    }
    probes = run.stage("probes", lambda: _probes(run, values, language, probed, centre))
    effects = _effects(run, found, task, other, language, controls)
    counted = None if text is None else run.stage("text", lambda: _text(text, values, centre, run.seed))
    from patchclamp.studies import temporal_cognition_view as view

    return view.report(
        TemporalCognition(
            values=values,
            reference=centre,
            reference_from=source,
            geometry=geometry,
            judgements=rated,
            findings=found,
            probes=probes,
            effects=effects,
            text=counted,
            n_layers=run.model.anatomy.n_layers,
            model=dict(run.model.identity),
        )
    )


def _recorded(run: Run, values: list[int], language: str) -> Recording:
    """Last-token activations of `Year: y` and `Number: y`."""
    folder = run.folder("stimuli.recording")
    run.say(f"recording {2 * len(values)} stimuli")
    sites = [*SITES, "resid"]
    text = corpus(stimuli(values, language=language))
    return record(run.model, text, sites=sites, statistics=("pooled",), out=folder, resume=True, quiet=run.quiet)


def _geometry(run: Run, recording: Recording, values: list[int], fitted: int) -> dict[str, Any]:
    """Fits of the laws to the cosines of every layer's residual stream, and the search of a reference point."""
    chosen = thinned(values, fitted)
    at = [values.index(value) for value in chosen]
    rows, points, gaps = [], [], []
    for layer in range(run.model.anatomy.n_layers):
        kept = {}
        for condition in CONDITIONS:
            whole = cosines(recording, condition, values, layer=layer, centred=True).similarity
            kept[condition] = whole[np.ix_(at, at)]
            point = reference_point(kept[condition], chosen, resamples=100, seed=run.seed)
            centre = point.grid if np.isfinite(point.grid) else PAPER_REFERENCE
            fits = fit_laws(kept[condition], chosen, reference=centre, permutations=199, resamples=200, seed=run.seed)
            facts = {"layer": layer, "condition": condition}
            rows += [{**facts, **row, "reference": centre} for row in plain_rows(fits.rows)]
            found = {key: value for key, value in point.to_dict().items() if key != "curve"}
            points.append({**facts, **found})
        pair = (kept["year"], kept["number"])
        differences = contrast(*pair, chosen, reference=_middle(values), resamples=200, seed=run.seed)
        gaps += [{"layer": layer, **row} for row in plain_rows(differences)]
    return {"years": len(chosen), "fits": rows, "points": points, "contrast": gaps}


def _reference(given: float | None, geometry: dict[str, Any], values: list[int]) -> tuple[float, str]:
    """The year to fit around: given, found in the year condition, the paper's, or the middle; decided before any fit."""
    if given is not None:
        return float(given), "given"
    found = [point for point in geometry["points"] if point["condition"] == "year" and point["found"]]
    if found:
        best = max(found, key=lambda point: point["cv"])
        return float(best["grid"]), f"found in the hidden states of layer {best['layer']}"
    if min(values) < PAPER_REFERENCE < max(values):
        return float(PAPER_REFERENCE), "the paper's, for none was found"
    return _middle(values), "the middle of the stimuli, for none was found and the paper's 2025 lies beyond them"


def _judgements(run: Run, values: list[int], language: str, judged: int, centre: float) -> dict[str, Any]:
    """Ratings of pairs in both conditions, and the laws that they follow."""
    chosen = thinned(values, judged)
    found: dict[str, Any] = {"years": chosen, "fits": []}
    for condition in CONDITIONS:
        result = judge(run.model, chosen, condition=condition, language=language, quiet=run.quiet)
        fits = fit_laws(result.similarity, chosen, reference=centre, permutations=999, resamples=500, seed=run.seed)
        found["fits"] += [{"condition": condition, **row} for row in plain_rows(fits.rows)]
        found[condition] = {key: value for key, value in result.to_dict().items() if key != "provenance"}
    return found


def _units(recording: Recording, site: str, years: str, centre: float, seed: int) -> Finding:
    return temporal(recording, site=site, years=years, reference=centre, seed=seed)


def _probes(run: Run, values: list[int], language: str, probed: int, centre: float) -> list[dict[str, Any]]:
    """Held-out R^2 of every law in every layer, split by years and, as in the paper, by pairs."""
    chosen = thinned(values, probed)
    prompts = pair_prompts(chosen, language=language, order="upper")
    pairs = [(prompt.first, prompt.second) for prompt in prompts]
    text = corpus(year=[prompt.text for prompt in prompts])
    folder = run.folder("pairs.recording")
    recording = record(
        run.model, text, sites=("resid",), statistics=("pooled",), out=folder, resume=True, quiet=run.quiet
    )
    return [
        {"split": split, **fit.to_dict()}
        for split in ("years", "pairs")
        for fit in probe_laws(recording, "year", pairs, chosen, reference=centre, split=split, seed=run.seed)
    ]


def _effects(
    run: Run, found: dict[str, Finding], task: Task | None, other: Task | None, language: str, controls: int
) -> Effects:
    """What clamping units to 0 does to questions on years and others: those chosen, and ("top") as many as the paper's share."""
    sets = {}
    for site, finding in found.items():
        if len(units := finding.sets[CONDITIONS[0]]):
            sets[site] = units
        sets[f"{site} top"] = finding.select(share=PAPER_SHARE)[CONDITIONS[0]]
    tasks = {
        "years": task
        or generated("dates", split="heldout", languages=language, kinds=TAUGHT, count=200, seed=run.seed),
        "other": other or generated("facts", languages=language, count=100, seed=run.seed),
    }
    return run.effects(
        "clamped",
        lambda: effect(run.model, sets, on=tasks, how="loss", controls=controls, seed=run.seed, quiet=run.quiet),
    )


def _text(text: Corpus, values: list[int], centre: float, seed: int) -> dict[str, Any]:
    """The same fits for the co-occurrence of year strings in every label's text."""
    found: dict[str, Any] = {"fits": [], "counts": {}}
    for label in text.labels:
        counted = cooccurrence((document.text for document in text.documents(label)), values)
        fits = fit_laws(counted.similarity(), values, reference=centre, permutations=99, resamples=100, seed=seed)
        found["fits"] += [{"label": label, **row} for row in plain_rows(fits.rows)]
        found["counts"][label] = counted.to_dict()
    return found


def thinned(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, evenly spread, the first and the last among them."""
    if most >= len(values):
        return list(values)
    return [values[at] for at in np.unique(np.linspace(0, len(values) - 1, max(2, most)).round().astype(int))]


def _middle(values: Sequence[int]) -> float:
    return float(round((min(values) + max(values)) / 2))

"""Descriptions of language-model neurons end to end: exemplars, descriptions, their scores, an audit and an edit by description.

Method: Hernandez et al. 2022 (MILAN, arXiv 2201.11114), carried from images to text; all of it lives in the floors below, this
file only puts the parts in order. The same on an image network is the study `milan-vision`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus, demo_text
from patchclamp.measure import Effects, effect
from patchclamp.models import UnitSet
from patchclamp.read.describe import LAMBDA, describe_unit, describer_of
from patchclamp.read.description_scores import score_descriptions
from patchclamp.read.descriptions import Describer, Description, Descriptions
from patchclamp.read.exemplar_store import ExemplarStore
from patchclamp.read.exemplars import exemplars
from patchclamp.record import record
from patchclamp.studies import milan_view as view
from patchclamp.studies.study import Report, Run, studies

NAME = "milan"
KEPT = 60  # exemplars that are recorded of each unit and label, so that enough are left of held-out documents
FEWEST = 3  # parts of the probe that a description must fit before it is said to be about one label
LAMS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # likelihoods of marks outweigh base rates, so also large ones
DESCRIBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "words": ("words", {}),
    "dissect": ("dissect", {}),
    "labels": ("dissect", {"kinds": ("label",)}),
}


@studies.add(NAME)
def milan(
    run: Run,
    *,
    text: Corpus | None = None,
    measure: Corpus | None = None,
    units: int = 16,
    site: str = "mlp",
    k: int = 15,
    quantile: float = 0.99,
    window: int = 64,
    lam: float = LAMBDA,
    lams: Sequence[float] = LAMS,
    share: float = 0.8,
    controls: int = 10,
    random_sets: int = 5,
    documents: int = 12,
) -> Report:
    """Descriptions of neurons: what fires them, in words that beat shuffled ones; audit and edit by description (2201.11114).

    text: labelled text to describe units on; the demo's own by default. measure: text of the same labels to clamp on; needed
    with text. units: of each layer, drawn at random. site: of the units. k, quantile, window: exemplars of a unit, the bar above
    which a token fires, tokens of a passage. lam: weight of the prior; lams: others to compare with. share: of the parts of
    random passages that a description fits which must carry one label for the description to be about it. controls: other units'
    descriptions that each one is compared with. random_sets: matched-random sets under the clamp. documents: of each label
    to clamp on.

    Scores are on passages of documents that nothing else was made from. Three describers: words (combinations of words, word
    classes, scripts, languages), dissect (one concept of a fixed list, as network dissection does), labels (the text's label
    only). The edit clamps the units whose description is about one label, chosen by description alone.
    """
    if (text is None) != (measure is None):
        raise InputError("give both text= and measure= (--text and --measure), or neither for the demo's text")
    if units < 2 or not 0.5 < share <= 1:
        raise InputError(f"units={units}, share={share}; at least 2 of each layer, and above 0.5 up to 1")
    described_on = text or demo_text(split="find")
    recording = record(
        run.model, described_on, sites=(site,), statistics={"exemplars": {"k": KEPT}, "histogram": {}},
        out=run.folder("exemplars.recording"), resume=True, quiet=run.quiet,
    )  # fmt: skip
    store = _store(
        run,
        partial(
            exemplars, recording, units=_drawn(run, site, units), model=run.model, text=described_on, k=k,
            quantile=quantile, window=window, seed=run.seed,
        ),
    )  # fmt: skip
    makers = {name: describer_of(kind, store, options) for name, (kind, options) in DESCRIBERS.items()}
    described = run.stage("descriptions", lambda: _described(run, store, makers, lam, controls))
    sweep = run.stage("lambda", lambda: _sweep(run, store, makers["words"], sorted({*lams, lam}), controls))
    words = _loaded(store, described["words"]["descriptions"], lam)
    about = run.stage("audit", lambda: _audit(store, words, makers["words"], recording.labels, share))
    sets = {label: UnitSet.of(run.model, found["units"]) for label, found in about.items() if found["units"]}
    edited: Effects | None = None
    if sets:
        on = (measure or demo_text(split="measure")).subset(recording.labels).limited(max_documents=documents)
        edited = run.effects(
            "edit",
            partial(effect, run.model, sets, on=on, to=0.0, controls=random_sets, seed=run.seed, quiet=run.quiet),
        )
    return view.report(
        view.Milan(
            store=store,
            described=described,
            sweep=sweep,
            about=about,
            effects=edited,
            lam=lam,
            share=share,
            seed=run.seed,
            tokens=sum(recording.tokens(label) for label in recording.labels),
            model=dict(run.model.identity),
        )
    )


def _drawn(run: Run, site: str, units: int) -> list[str]:
    """So many random units of every layer, in order."""
    if site not in run.model.layouts:
        raise InputError(f"the model has no site {site!r}; it has {', '.join(run.model.layouts)}")
    layout, rng = run.model.layouts[site], np.random.default_rng(run.seed)
    chosen: list[str] = []
    for layer, width in enumerate(layout.widths):
        picked = np.sort(rng.permutation(width)[:units]) + layout.offsets[layer]
        chosen += layout.names(picked)
    return chosen


def _store(run: Run, make: Any) -> ExemplarStore:
    """The exemplars, made once and kept in exemplars.json."""
    path = run.file("exemplars.json")
    if not path.exists():
        run.say("exemplars ...")
        make().save(path)
    return ExemplarStore.load(path)


def _described(
    run: Run, store: ExemplarStore, makers: Mapping[str, Describer], lam: float, controls: int
) -> dict[str, dict[str, Any]]:
    """Descriptions of every unit by every describer, and their scores."""
    found = {}
    for name, maker in makers.items():
        made = Descriptions(tuple(describe_unit(maker, store[unit], lam=lam) for unit in store), name, lam)
        scores = score_descriptions(store, made, maker, controls=controls, seed=run.seed)
        found[name] = {"descriptions": [one.to_dict() for one in made.found], "scores": scores.to_dict()}
    return found


def _loaded(store: ExemplarStore, rows: Sequence[Mapping[str, Any]], lam: float) -> Descriptions:
    return Descriptions(tuple(Description.from_dict(row) for row in rows), "words", lam, store.medium, store.model)


def _sweep(
    run: Run, store: ExemplarStore, maker: Describer, lams: Sequence[float], controls: int
) -> list[dict[str, Any]]:
    """What other weights of the prior give: scores, how specific descriptions are, how many differ."""
    rows = []
    for lam in lams:
        made = Descriptions(tuple(describe_unit(maker, store[unit], lam=lam) for unit in store), "words", lam)
        scores = score_descriptions(store, made, maker, controls=controls, seed=run.seed)
        texts = [one.text for one in made.found]
        rows.append(
            {
                "lam": lam,
                **{name: scores.overall[name]["mean"] for name in ("part_auroc", "pearson", "auroc")},
                "gain": scores.overall["pearson"]["gain"],
                "specificity": _specificity(store, maker, texts),
                "distinct": len(set(texts)) / len(texts),
                "log_prior": float(np.mean([one.log_prior for one in made.found])),
                "by_unit": {row["unit"]: row["pearson"] for row in scores.rows},
            }
        )
    return rows


def _specificity(store: ExemplarStore, maker: Describer, texts: Sequence[str]) -> float:
    """Mean share of other units for which a unit's description is less likely than for itself."""
    likely = np.stack([maker.log_probability(texts, shown) for shown in store.values()])  # (units, texts)
    own = np.diag(likely)
    below = (likely < own[None]).sum(0) / max(1, len(texts) - 1)
    return float(below.mean())


def _audit(
    store: ExemplarStore, words: Descriptions, maker: Describer, labels: Sequence[str], share: float
) -> dict[str, dict[str, Any]]:
    """Label -> the units whose description is about it, and how many of them do fire most there on held-out passages.

    base: the share of all explained units that fire most there.
    """
    lengths = np.array([len(one.parts) for one in store.probe])
    where = np.repeat([one.label for one in store.probe], lengths)
    most = {unit: _firing_most(store, unit, labels) for unit in store}
    explained = [one for one in words.found if one.explains]
    found: dict[str, dict[str, Any]] = {label: {"units": [], "texts": [], "right": 0, "base": 0.0} for label in labels}
    for one in explained:
        fits = np.concatenate([maker.predict(one.text, passage) > 0.5 for passage in store.probe])
        carried = where[fits]
        for label in labels:
            if len(carried) >= FEWEST and (carried == label).mean() >= share:
                found[label]["units"].append(one.unit)
                found[label]["texts"].append(one.text)
                found[label]["right"] += int(most[one.unit] == label)
    for label in labels:
        found[label]["base"] = float(np.mean([most[one.unit] == label for one in explained])) if explained else 0.0
    return found


def _firing_most(store: ExemplarStore, unit: str, labels: Sequence[str]) -> str | None:
    """The label on whose held-out passages the unit's mean value is highest; None if they are of fewer than two labels."""
    means = {}
    for label in labels:
        values = [one.values for one in store[unit].held_out if one.label == label]
        if values:
            means[label] = float(np.concatenate(values).mean())
    return max(means, key=lambda label: means[label]) if len(means) > 1 else None

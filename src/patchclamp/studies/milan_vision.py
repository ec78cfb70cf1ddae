"""MILAN's three experiments end to end on an image network that is trained on the spot with a shortcut in its pictures.

Method: Hernandez et al. 2022 (arXiv 2201.11114); all of it lives in the floors below, this file only puts the parts in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import atomic_write
from patchclamp.data.drawn_pictures import SHAPES, concept_pictures, drawn_pictures
from patchclamp.data.pictures import Pictures
from patchclamp.read.describe import describe, describer_of
from patchclamp.read.description_scores import score_descriptions
from patchclamp.read.descriptions import Description, Descriptions
from patchclamp.read.vision import (
    KINDS,
    ConceptTagger,
    VisionModel,
    ablation_curves,
    accuracy,
    audit,
    concepts_by_layer,
    criteria,
    edit_by_keywords,
    image_exemplars,
    named_units,
    record_images,
    sensitivity,
)
from patchclamp.studies import milan_vision_view as view
from patchclamp.studies.study import Report, Run, studies
from patchclamp.train.image_classifier import small_cnn, train_classifier

NAME = "milan-vision"
LAYERS = ("relu1", "relu2", "relu3")
NETWORKS = {"shortcut": "own", "clean": "none"}  # network -> the words in its training pictures
WORD = "text"
CONTRAST, NOISE = 0.8, 0.1  # at which shapes can be learned, but words are easier
_SEEDS = {
    name: 1000 * number for number, name in enumerate(("train", "validation", "choosing", "test", "probe", "concepts"))
}


@studies.add(NAME)
def milan_vision(
    run: Run,
    *,
    pictures: int = 1200,
    epochs: int = 12,
    widths: Sequence[int] = (16, 24, 64),
    share: float = 0.5,
    evaluation: int = 600,
    probe: int = 600,
    k: int = 15,
    quantile: float = 0.99,
    lam: float = 0.2,
    terms: int = 2,
    max_units: int = 40,
    trials: int = 5,
    keywords: Sequence[str] = (WORD,),
) -> Report:
    """Image networks described, analysed, audited and mended: MILAN's three experiments (Hernandez et al. 2022, 2201.11114).

    Two small convolutional networks learn to tell six drawn shapes, one from pictures of which half carry the written word of
    their class, one from pictures without words; the language model that a study is given is not used. pictures, epochs:
    of the training. widths: channels of its three layers. share: of the pictures with a word. evaluation: pictures of the
    adversarial test, on which every picture carries the word of another class; half as many to validate on. probe: pictures
    that exemplars come from. k, quantile, lam: exemplars of a unit, threshold, weight of the prior; the paper's. terms: most
    attributes in a description. max_units: most units that the edit removes. trials: random sets. keywords: what the audit and
    the edit look for in descriptions.
    """
    if len(widths) != len(LAYERS):
        raise InputError(f"widths={list(widths)} given; the networks of this study have {len(LAYERS)} layers")
    drawn = _Drawn(run.seed, evaluation, share)
    probed = replace(
        drawn.pictures("probe", probe, "own", share), regions={}
    )  # describers must find the words themselves
    tagger = ConceptTagger.of(concept_pictures(40, seed=run.seed + _SEEDS["concepts"]), seed=run.seed)
    models: dict[str, VisionModel] = {}
    trained: dict[str, dict[str, Any]] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, marker in NETWORKS.items():
        training = drawn.pictures("train", pictures, marker, share)
        models[name], trained[name] = _network(run, name, training, epochs, widths, drawn)
        model = models[name]
        how: dict[str, Any] = {"k": k, "quantile": quantile, "lam": lam, "terms": terms}
        described[name] = run.stage(f"describe-{name}", partial(_described, run, model, probed, tagger, **how))
    told = {name: _descriptions(models[name], described[name], lam) for name in NETWORKS}
    kinds: dict[str, Sequence[str]] = {**KINDS, "shape": SHAPES, WORD: tuple(keywords)}
    model, words = models["shortcut"], told["shortcut"]
    return view.report(
        view.MilanVision(
            trained=trained,
            described=described,
            layers=concepts_by_layer(model, words, kinds),
            curves=run.stage(
                "analysis",
                lambda: ablation_curves(
                    model, drawn.validation, criteria(words, kinds), fractions=(0, 0.04, 0.08, 0.12, 0.16, 0.2),
                    trials=trials, seed=run.seed,
                ),
            ),
            audit=run.stage("audit", lambda: _audited(models, told, drawn, keywords, run.seed)),
            edit=run.stage("edit", lambda: _edited(model, words, drawn, keywords, max_units, trials, run.seed)),
            keywords=tuple(keywords),
            tagger={"accuracy": tagger.accuracy, "chance": tagger.share_of_largest},
            model=dict(run.model.identity),
        )
    )  # fmt: skip


class _Drawn:
    """The pictures of a run, each kind with its own seed."""

    def __init__(self, seed: int, evaluation: int, share: float) -> None:
        if evaluation < 2:
            raise InputError(f"evaluation={evaluation} pictures given; at least 2 are needed")
        self.seed = seed
        self.validation = self.pictures("validation", evaluation // 2, "own", share)
        self.choosing = self.pictures("choosing", evaluation // 2, "wrong")
        self.adversarial = self.pictures("test", evaluation, "wrong")
        self.without = self.pictures("test", evaluation, "none")
        self.words = self.pictures("test", evaluation, "own")

    def pictures(self, kind: str, n: int, marker: str, share: float = 1.0) -> Pictures:
        seed = self.seed + _SEEDS[kind]
        return drawn_pictures(
            n, marker=marker, share=share, contrast=CONTRAST, noise=NOISE, seed=seed, name=f"{kind}, {marker} words"
        )


def _network(
    run: Run, name: str, training: Pictures, epochs: int, widths: Sequence[int], drawn: _Drawn
) -> tuple[VisionModel, dict[str, Any]]:
    """A trained network, and its accuracies; the weights lie in NAME.safetensors of the run."""
    from safetensors.torch import load_file, save_file

    net = small_cnn(classes=len(SHAPES), widths=widths, seed=run.seed)
    path = run.file(f"{name}.safetensors")

    def read() -> VisionModel:
        return VisionModel(net, training, layers=LAYERS, name=name)

    def make() -> dict[str, Any]:
        losses = train_classifier(net, training, epochs=epochs, seed=run.seed, quiet=run.quiet)
        with atomic_write(path) as part:
            save_file({key: value.contiguous() for key, value in net.state_dict().items()}, part)
        model = read()
        return {
            "fingerprint": model.fingerprint, "losses": losses, "units": model.layout.total,
            "validation": accuracy(model, drawn.validation), "without": accuracy(model, drawn.without),
            "adversarial": accuracy(model, drawn.adversarial),
        }  # fmt: skip

    found = run.stage(f"train-{name}", make)
    if not path.is_file():
        raise DamagedError(
            f"{path} is missing from the run; remove {run.out / 'stages' / f'train-{name}.json'} and resume"
        )
    net.load_state_dict(load_file(path))
    model = read()
    if model.fingerprint != found["fingerprint"]:
        raise DamagedError(
            f"{path} holds other weights than the run has trained; give another folder with out= (--out)"
        )
    return model, found


def _described(
    run: Run,
    model: VisionModel,
    probed: Pictures,
    tagger: ConceptTagger,
    k: int,
    quantile: float,
    lam: float,
    terms: int,
) -> dict[str, Any]:
    """Descriptions of all units, and how well they tell held-out pictures."""
    recording = record_images(model, probed, k=k, quantile=quantile, quiet=run.quiet)
    store = image_exemplars(model, probed, recording, tags=tagger, probe=60, seed=run.seed)
    options = {"terms": terms, "beam": 20}
    made = describe(store, lam=lam, options=options, quiet=run.quiet)
    scores = score_descriptions(
        store, made, describer_of("words", store, options), controls=5, only_explained=True, seed=run.seed
    )
    return {
        "descriptions": [one.to_dict() for one in made.found],
        "dead": int(recording.dead.sum()),
        "scores": scores.overall,
    }


def _descriptions(model: VisionModel, described: dict[str, Any], lam: float) -> Descriptions:
    found = tuple(Description.from_dict(entry) for entry in described["descriptions"])
    return Descriptions(found, "words", lam, "image", model.identity)


def _audited(
    models: dict[str, VisionModel], told: dict[str, Descriptions], drawn: _Drawn, keywords: Sequence[str], seed: int
) -> dict[str, Any]:
    """Units of the keywords in both networks, and how well units tell pictures with a word from the same without."""
    rows = audit(told, keywords).rows()
    for row in rows:
        model = models[row["network"]]
        units = named_units(model, told[row["network"]], keywords)
        found = sensitivity(model, drawn.words, drawn.without)
        positions = next(iter(units.positions.values()), np.zeros(0, dtype=np.int64))
        others = [
            float(found[units.matched_random(seed + draw).positions["channel"]].mean()) for draw in range(200)
        ] if len(units) else []  # fmt: skip
        row["auroc"] = float(found[positions].mean()) if len(units) else None
        row["auroc_random"] = float(np.mean(others)) if others else None
        row["p"] = (1 + sum(value >= row["auroc"] for value in others)) / (1 + len(others)) if others else None
    return {"rows": rows}


def _edited(
    model: VisionModel,
    told: Descriptions,
    drawn: _Drawn,
    keywords: Sequence[str],
    max_units: int,
    trials: int,
    seed: int,
) -> dict[str, Any] | None:
    """The edit, with the number of units chosen on shifted pictures, and by what validation tolerates; None without units."""
    if not len(named_units(model, told, keywords)):
        return None
    how: dict[str, Any] = {"validate": drawn.validation, "test": drawn.adversarial, "max_units": max_units}
    made = edit_by_keywords(model, told, keywords, choose=drawn.choosing, trials=trials, seed=seed, **how)
    without = {}
    with torch.no_grad(), model.ablated(made.units):
        without["edited"] = accuracy(model, drawn.without)
    without["plain"] = accuracy(model, drawn.without)
    rows = {order: made.row(order) for order in made.chosen}
    tolerated = edit_by_keywords(model, told, keywords, trials=1, all_units=False, seed=seed, **how)
    return {
        **made.to_dict(), "rows": rows, "without": without,
        "gains": {order: made.gain(order) for order in made.chosen},
        "tolerated": {"units": tolerated.chosen["keywords"], "gain": tolerated.gain()},
    }  # fmt: skip

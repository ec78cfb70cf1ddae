"""Groups of neurons by matrix factorisation end to end: decompose a layer, detect taught concepts, steer with the features.

Method: Shafran, Geiger, Geva 2025 (arXiv 2506.10920). Sparse autoencoder, difference of means, principal components, single
neurons and random groups go through the same two tests; all methods live in the floors below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus, corpus
from patchclamp.intervene.strengths import PROMPT
from patchclamp.models.features import Dictionary, load_dictionary
from patchclamp.read.baselines import difference_of_means, pca, random_directions, single_neurons
from patchclamp.read.concept import Concept
from patchclamp.read.concepts import concept_scores
from patchclamp.read.sae import train_sae
from patchclamp.read.snmf import Factors, factorise
from patchclamp.read.snmf_contexts import contexts_of
from patchclamp.read.snmf_hierarchy import hierarchy
from patchclamp.record.activations import Activations
from patchclamp.studies import snmf_view as view
from patchclamp.studies.study import Report, Run, studies
from patchclamp.studies.taught_concepts import taught_concepts

NAME = "snmf"


@studies.add(NAME)
def snmf(
    run: Run,
    *,
    text: Corpus | None = None,
    concepts: Sequence[str] | None = None,
    texts: int = 24,
    site: str = "mlp",
    layer: int | None = None,
    k: int = 40,
    sparsity: float | None = None,
    tokens: int = 5000,
    levels: Sequence[int] | None = None,
    sae_steps: int = 400,
    sae_active: int = 8,
    prompt: str = PROMPT,
    targets: Sequence[float] = (0.05, 0.15, 0.5, 1.5),
    samples: int = 4,
    new_tokens: int = 24,
) -> Report:
    """Neuron groups: factorise a layer, compare detection and steering with SAE and baselines (arXiv 2506.10920).

    text: labelled text; each label is a concept, and the other labels' texts are neutral. By default concepts that the
    demo model was taught: languages, manners, years, colours, culture, code, arithmetic. concepts: some of these.
    texts: of each kind and half (features are chosen on one half and tested on the other). site: what is decomposed.
    layer: of which layer; by default the one at a third of the depth. k: features of the factorisation and of the
    autoencoder, components, and random groups. sparsity: share of neurons in a feature; 0.05 below 8,192 neurons and
    0.01 from there on. tokens: at most so many are decomposed, evenly taken. levels: features of the levels above; by
    default k / 2 and k / 4. sae_steps: training steps of the autoencoder. sae_active: its active features per token.
    prompt: that is steered on. targets: KL divergences that strengths are matched to. samples: per strength.
    new_tokens: of a sample.
    """
    seen, unseen = _of_text(text, texts) if text is not None else taught_concepts(concepts, texts=texts, seed=run.seed)
    place = (site, len(run.model.layouts["resid"].widths) // 3 if layer is None else layer)
    if len({one.name for one in seen}) < 2:
        raise InputError("a comparison needs at least two concepts")
    activations = _activations(run, seen, place, tokens)
    factors = _factors(run, activations, k, sparsity)
    made: dict[str, Callable[[], Dictionary]] = {
        "snmf": factors.dictionary,
        "sae": lambda: train_sae(
            activations, "topk", n_features=k, k=min(sae_active, k), steps=sae_steps, batch=512, seed=run.seed, quiet=True
        ),
        "diffmeans": lambda: _difference(run, seen, place),
        "pca": lambda: pca(activations, k),
        "neurons": lambda: single_neurons(activations),
        "random": lambda: random_directions(activations, k, keep=factors.parameters["keep"], seed=run.seed),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    sizes: dict[str, int] = {}
    for name, make in made.items():
        features = _kept(run, name, make)
        sizes[name] = features.n_features
        how: dict[str, Any] = {"prompt": prompt, "targets": targets, "samples": samples, "new_tokens": new_tokens}
        rows += run.stage(
            f"scores-{name}",
            lambda features=features, how=how: list(  # type: ignore[misc]
                concept_scores(run.model, [features], seen, unseen, seed=run.seed, **how).rows
            ),
        )
    words = run.stage(
        "words", lambda: contexts_of(factors, run.model, corpus({one.name: list(one.positives) for one in seen}), place, k=8)
    )  # fmt: skip
    return view.report(
        view.SNMF(
            rows=rows,
            sizes=sizes,
            words=words,
            record=factors.record,
            parameters=factors.parameters,
            neurons=[factors.neurons(number, 5) for number in range(factors.k)],
            levels=run.stage("levels", lambda: _levels(factors, [k // 2, k // 4] if levels is None else levels)),
            place=place,
            tokens=len(factors.strengths),
            samples=samples,
            model=dict(run.model.identity),
        )
    )


def _of_text(text: Corpus, count: int) -> tuple[list[Concept], list[Concept]]:
    """A concept per label, twice: of every second document each; neutral: documents of the other labels in turn."""
    documents = {label: [one.text for one in text.documents(label)][: 2 * count] for label in text.labels}
    for label, found in documents.items():
        if len(found) < 4:
            raise InputError(f"label {label!r} has {len(found)} documents; at least 4 are needed to choose and to test")
    parts: list[list[Concept]] = [[], []]
    for label, found in documents.items():
        others = [name for name in documents if name != label]
        if not others:
            raise InputError(f"{label!r} is the only label; neutral texts come from other labels")
        for at, part in enumerate(parts):
            neutral = [documents[others[n % len(others)]] for n in range(len(found))]
            turn = [texts[(at + 2 * n) % (len(texts) // 2 * 2)] for n, texts in enumerate(neutral)][: len(found) // 2]
            part.append(Concept(label, tuple(found[at::2]), tuple(dict.fromkeys(turn))))
    return parts[0], parts[1]


def _activations(run: Run, concepts: Sequence[Concept], place: tuple[str, int], tokens: int) -> Activations:
    """Activations of the concepts' texts, each text once, thinned evenly to at most so many tokens."""
    texts = list(dict.fromkeys(text for one in concepts for text in (*one.positives, *one.neutrals)))
    rows = Activations.live(run.model, corpus({"all": texts}), *place).all()
    if len(rows) > tokens:
        rows = rows[torch.from_numpy(np.linspace(0, len(rows) - 1, tokens).round().astype(np.int64))]
    return Activations.of_tensor(rows, site=place[0], layer=place[1], model=run.model.identity)


def _factors(run: Run, activations: Activations, k: int, sparsity: float | None) -> Factors:
    path = run.file("snmf.json")
    if not path.exists():
        run.say("factorising ...")
        made = factorise(
            activations, k, sparsity=sparsity, restarts=1, precision="float32", tolerance=1e-5, patience=5,
            device=str(run.model.device), seed=run.seed,
        )  # fmt: skip
        made.save(path)
    return Factors.load(path)


def _kept(run: Run, name: str, make: Callable[[], Dictionary]) -> Dictionary:
    """A dictionary made once and kept in the folder NAME.features."""
    path = run.folder(f"{name}.features")
    if not path.exists():
        run.say(f"{name} ...")
        make().save(path)
    return load_dictionary(path, device=run.model.device)


def _difference(run: Run, concepts: Sequence[Concept], place: tuple[str, int]) -> Dictionary:
    positives, neutrals = (
        {one.name: Activations.live(run.model, corpus({"texts": list(getattr(one, kind))}), *place) for one in concepts}
        for kind in ("positives", "neutrals")
    )
    return difference_of_means(positives, neutrals)


def _levels(factors: Factors, levels: Sequence[int]) -> dict[str, Any]:
    ranks = [rank for rank in levels if rank > 0]
    if not ranks:
        return {"rows": [], "trees": []}
    found = hierarchy(factors, ranks, restarts=1, tolerance=1e-5, patience=5, max_iterations=200)
    trees = [found.tree(feature).to_dict() for feature in range(found.levels[-1].k)]
    return {"rows": found.rows(), "trees": trees, "record": [asdict(one.record) for one in found.levels[1:]]}

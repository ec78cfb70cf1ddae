"""Monosemantic data selection end to end: choose samples by the features they share with a target, train on them, measure.

Method: Ma, Shang, Chen et al. 2025 (arXiv 2503.15573); all of it lives in the floors below, this file only puts the parts
in order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import Corpus, corpus
from patchclamp.data.demo import demo_text
from patchclamp.data.generate.items import rng_for
from patchclamp.data.generate.spellings import SPELLINGS, respelled
from patchclamp.measure import perplexity
from patchclamp.models.features import Dictionary, load_dictionary
from patchclamp.read.sae import train_sae
from patchclamp.record.activations import Activations
from patchclamp.studies import monosemantic_data_selection_view as view
from patchclamp.studies.study import Report, Run, studies
from patchclamp.train.finetune import finetune
from patchclamp.train.profiles import Profiler
from patchclamp.train.samples import Samples
from patchclamp.train.select import select
from patchclamp.train.selected import Selected
from patchclamp.train.selection_features import compared, overlaps, penultimate

NAME = "monosemantic-data-selection"
WAYS = ("features", "neurons", "embedding", "bm25")
PROSE = ("en", "de", "fr", "ru")  # languages of the built-in pool
EACH = 32  # documents of each of its classes
EXAMPLES = 10  # samples of a target
FEATURES, FARTHEST, RANDOM = "features", "farthest", "random"
MOST_TESTED = 32  # held-out documents of a target


@studies.add(NAME)
def monosemantic_data_selection(
    run: Run,
    *,
    pool: Corpus | None = None,
    target: Corpus | None = None,
    held_out: Corpus | None = None,
    targets: Sequence[str] = ("en upper", "de backwards", "fr vowelless"),
    dictionary: str | None = None,
    ways: Sequence[str] = WAYS,
    budget: float = 0.05,
    controls: int = 5,
    steps: int = 10,
    learning_rate: float = 4e-4,
    batch_tokens: int = 512,
    layer: int | None = None,
    expansion: int = 8,
    k: int = 16,
    sae_steps: int = 300,
) -> Report:
    """Monosemantic data selection: train on the samples whose features the target's samples share (arXiv 2503.15573).

    pool: what to choose from; by default prose of four languages in four spellings (plain, capitals, words in reverse
    order, without vowels). target: label -> a few samples of what is wanted; held_out: the same labels -> other samples to
    measure the loss on. targets: without these, which of the built-in classes are wanted. dictionary: folder of a sparse
    autoencoder; by default one is trained on the pool. ways: how samples are ranked, see `patchclamp list selection`.
    budget: share of the pool that is kept. controls: random selections of the same size. steps: of fine-tuning, the same
    for every selection. learning_rate: of AdamW. batch_tokens: tokens in a step. layer: of the autoencoder, last but one by
    default. expansion: its features per coordinate. k: active features per token. sae_steps: how long it is trained.
    """
    texts = _texts(pool, target, held_out, targets, run.seed)
    if controls < 1:
        raise InputError(
            f"controls={controls}; random selections are what the others are compared with: give at least 1"
        )
    depth = penultimate(run.model) if layer is None else layer
    trained = run.stage("autoencoder", partial(_autoencoder, run, texts, dictionary, depth, expansion, k, sae_steps))
    features = load_dictionary(Path(dictionary) if dictionary else run.folder("sae"))
    chosen = run.stage("selections", lambda: _selections(run, texts, features, ways, budget, controls))
    variants = run.stage("variants", lambda: _variants(run, texts, features, budget))
    why = run.stage("why", lambda: _why(run, texts, features, chosen))
    how: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "batch_tokens": batch_tokens}
    losses = {"base": run.stage("base", lambda: _measured(run, texts, None, [], how))}
    for name, entry in chosen.items():
        on = list(texts.target.labels) if entry["target"] is None else [entry["target"]]
        losses[name] = run.stage(f"tuned-{name}", partial(_measured, run, texts, entry["indices"], on, how))
    return view.report(
        view.DataSelection(
            chosen=chosen,
            losses=losses,
            variants=variants,
            why=why,
            autoencoder=trained,
            classes={label: texts.pool.count(label) for label in texts.pool.labels},
            examples={label: texts.target.count(label) for label in texts.target.labels},
            steps=steps,
            seed=run.seed,
            model=dict(run.model.identity),
        )
    )


@dataclass(frozen=True)
class Texts:
    """pool: class -> samples. target, held_out: label -> samples of what is wanted, to choose by and to measure on."""

    pool: Corpus
    target: Corpus
    held_out: Corpus


def _texts(
    pool: Corpus | None, target: Corpus | None, held_out: Corpus | None, targets: Sequence[str], seed: int
) -> Texts:
    if pool is None and target is None and held_out is None:
        return _built_in(targets, seed)
    if pool is None or target is None or held_out is None:
        raise InputError("pool=, target= and held_out= go together; give all three, or none for the built-in text")
    if missing := [label for label in target.labels if label not in held_out.labels]:
        raise InputError(f"the target {missing[0]!r} has no held_out text; its labels are {', '.join(held_out.labels)}")
    return Texts(pool, target, held_out)


def _built_in(targets: Sequence[str], seed: int) -> Texts:
    """Prose of four languages in four spellings; every document stands in one class only. What is wanted is a class."""
    known = [f"{language} {spelling}" for language in PROSE for spelling in SPELLINGS]
    if unknown := [name for name in targets if name not in known]:
        raise InputError(f"no built-in target is called {unknown[0]!r}; there are {', '.join(known)}")
    if not targets:
        raise InputError("no targets given; name at least one, such as 'en upper'")
    found, wanted, tested = {}, {}, {}
    prose, aside = demo_text(PROSE, split="find"), demo_text(PROSE, split="measure")
    for language in PROSE:
        documents = list(prose.documents(language))
        rng_for(NAME, seed, language).shuffle(documents)
        for number, spelling in enumerate(SPELLINGS):
            name = f"{language} {spelling}"
            mine = [respelled(document.text, spelling) for document in documents[number :: len(SPELLINGS)]]
            found[name] = mine[:EACH]
            wanted[name] = mine[EACH : EACH + EXAMPLES]
            tested[name] = [respelled(document.text, spelling) for document in aside.documents(language)]
    return Texts(
        corpus(found),
        corpus({name: wanted[name] for name in targets}),
        corpus({name: tested[name] for name in targets}),
    )


def _autoencoder(
    run: Run, texts: Texts, given: str | None, layer: int, expansion: int, k: int, steps: int
) -> dict[str, Any]:
    """Train a TopK autoencoder on the pool's residual stream into the run's folder, unless one was given."""
    if given is None and not (run.folder("sae") / "features.json").is_file():
        rows = Activations.live(run.model, texts.pool, "resid", layer)
        count = expansion * rows.width
        train_sae(rows, n_features=count, k=k, steps=steps, batch=512, seed=run.seed, quiet=run.quiet).save(
            run.folder("sae")
        )
    found = load_dictionary(Path(given) if given else run.folder("sae"))
    history = found.provenance.get("history") or [{}]
    return {
        "site": found.site, "layer": found.layer, "n_features": found.n_features, "d_in": found.d_in,
        "k": found.settings().get("k"), "own": given is None, "fingerprint": found.fingerprint, "last": history[-1],
    }  # fmt: skip


def _selections(
    run: Run, texts: Texts, features: Dictionary, ways: Sequence[str], budget: float, controls: int
) -> dict[str, Any]:
    """Name -> target, way, chosen numbers, classes and tokens of every selection; random ones serve all targets."""
    pool = Samples.of(texts.pool)
    labels = [label for label, _ in pool.labelled()]
    sizes = np.array([len(run.model.tokenize(document.text)) for document in pool])
    found = {}

    def keep(target: str | None, way: str, made: Selected, indices: NDArray[np.int64]) -> None:
        order = np.argsort(-made.scores, kind="stable")
        right = np.array([label == target for label in labels])
        classes = Counter(labels[number] for number in indices)
        found[way if target is None else _file(target, way)] = {
            "target": target,
            "way": RANDOM if target is None else way,
            "indices": indices.tolist(),
            "classes": dict(classes.most_common()),
            "tokens": int(sizes[indices].sum()),
            "scores": [float(made.scores[indices[0]]), float(made.scores[indices[-1]])],
            "median": float(np.median(made.scores)),
            "precision": float(right[indices].mean()) if right.any() else None,
            "r_precision": float(right[order[: int(right.sum())]].mean()) if right.any() else None,
        }

    shared: dict[str, Any] = {"quiet": run.quiet, "model": run.model, "budget": budget}
    for target in texts.target.labels:
        aim = Samples.of(texts.target.subset([target]))
        for way in ways:
            more: dict[str, Any] = {"dictionary": features} if way == FEATURES else {}
            made = select(pool, aim, way, **shared, **more)
            keep(target, way, made, made.indices)
            if way == FEATURES:
                keep(target, FARTHEST, made, np.argsort(made.scores, kind="stable")[: len(made)])
    for number in range(controls):
        made = select(pool, how=RANDOM, seed=run.seed + number, **shared)
        keep(None, f"{RANDOM}-{number}", made, made.indices)
    return found


def _file(target: str, way: str) -> str:
    """A selection's name, fit for a file."""
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', target)}-{way}"


def _variants(run: Run, texts: Texts, features: Dictionary, budget: float) -> list[dict[str, Any]]:
    """Precision of the selection for other metrics and for sums over tokens, and how long the chosen samples are."""
    pool = Samples.of(texts.pool)
    labels = np.array([label for label, _ in pool.labelled()])
    sizes = np.array([len(run.model.tokenize(document.text)) for document in pool])
    aims = {name: Samples.of(texts.target.subset([name])) for name in texts.target.labels}
    profiler = Profiler(run.model, features.site, features.layer, features, clip=True, quiet=run.quiet)
    rows = []
    for (name, metric, pooling), scores in compared(profiler, pool, aims).items():
        order = np.argsort(-scores, kind="stable")
        right = labels == name
        share = float(right[order[: int(right.sum())]].mean()) if right.any() else None
        length = float(sizes[order[: max(1, int(np.ceil(budget * len(order))))]].mean())
        rows.append({"target": name, "metric": metric, "pooling": pooling, "r_precision": share, "length": length})
    return rows


def _why(run: Run, texts: Texts, features: Dictionary, chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The features that the chosen samples share most with each target."""
    profiler = Profiler(run.model, features.site, features.layer, features, clip=True, quiet=run.quiet)
    rows = []
    for name in texts.target.labels:
        entry = chosen.get(_file(name, FEATURES))
        if entry is None:
            continue
        taken = [document for _, document in Samples.of(texts.pool).taken(entry["indices"])]
        aim = Samples.of(texts.target.subset([name]))
        rows += [
            {
                "target": name,
                "unit": row["unit"],
                "share": row["share"],
                "chosen": row["samples"],
                "wanted": row["target"],
            }
            for row in overlaps(profiler, Samples.of(taken), aim, k=5)
        ]
    return rows


def _measured(
    run: Run, texts: Texts, indices: list[int] | None, on: Sequence[str], how: Mapping[str, Any]
) -> dict[str, Any]:
    """Loss of every held-out document (summed nats and tokens) after training on the chosen samples; None: as it is."""
    model, training = run.model, None
    if indices is not None:
        taken = [document.text for _, document in Samples.of(texts.pool).taken(indices)]
        tuned = finetune(run.model, taken, seed=run.seed, quiet=run.quiet, **how)
        model, training = tuned, {"losses": tuned.training.losses, "epochs": tuned.training.epochs}
    tested = texts.held_out.subset(on or texts.target.labels).limited(max_documents=MOST_TESTED)
    measured = perplexity(model, tested, quiet=run.quiet)
    return {
        "training": training,
        "on": {
            label: {"totals": one.totals.tolist(), "tokens": one.weights.tolist()} for label, one in measured.items()
        },
    }

"""Core neurons end to end: how stable and how specific they are, and what a model loses that generates with them alone.

Method: Wang et al. 2024, "CoreInfer" (arXiv 2410.18311); all of it lives in `find/core` and `generate/`, this file puts the parts
in order. Speed is measured by benchmarks/core_sparse.py: on a small model it says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus, corpus, demo_text
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.find.core import core
from patchclamp.generate import (
    Clusters,
    Predictor,
    core_quality,
    core_sparse,
    fit_clusters,
    fit_predictor,
    hot_neurons,
)
from patchclamp.measure import generation
from patchclamp.record import record
from patchclamp.studies import coreinfer_view as view
from patchclamp.studies.study import Report, Run, studies

NAME = "coreinfer"
TAUGHT = ("arithmetic", "facts", "code")  # whose answers the demo model writes, several tokens each
TOGETHER = 3  # of the demo's short documents make one text


@studies.add(NAME)
def coreinfer(
    run: Run,
    *,
    text: Corpus | None = None,
    measure: Corpus | None = None,
    tasks: Mapping[str, Task] | None = None,
    shares: Sequence[float] = (0.1, 0.2, 0.4, 0.8),
    token_share: float = 0.4,
    token_shares: Sequence[float] = (0.2, 0.4, 0.8),
    length: int = 192,
    documents: int = 8,
    fitted_on: int = 60,
    items: int = 30,
    shots: int = 4,
    refresh: int = 16,
    epochs: int = 2,
) -> Report:
    """Core neurons: stability, similarity by kind of text, and quality when decoding with them alone (arXiv 2410.18311).

    text: labelled text to fit clusters, frequent neurons and predictor on; by default the demo's. measure: text of the same
    labels that these don't see; needed with text. tasks: whose answers are written; by default what the demo model was taught.
    shares: of the neurons kept. token_share: of a token's positive neurons in its core. token_shares: how much of each token's
    own core is kept where every token keeps its own. length: tokens of a measured text, half of them read as a prompt.
    documents: of a label to measure on. fitted_on: of a label to fit on. items: of a task, at most. shots: solved items before
    a prompt; every task is also asked without. refresh: after so many tokens cores are chosen anew where the label changes.
    epochs: of the predictor.

    Compared at equal numbers of neurons: the prompt's core, clusters by label and by k-means, frequent neurons of all text,
    random ones, a predictor per token, and the strongest neurons of every token, which need the whole MLP and bound what any
    choice can reach.
    """
    if (text is None) != (measure is None):
        raise InputError("give both text= and measure= (--text and --measure), or neither for the demo's text")
    find_on = (text or demo_text(split="find")).limited(max_documents=fitted_on)
    given = measure or demo_text(split="measure")
    measure_on = given.limited(max_documents=documents) if measure is not None else _joined(given, documents)
    recording = record(
        run.model, find_on, statistics={"core": {"alpha": token_share, "beta": 0.2, "prefixes": [8, 16, 32, 64]}},
        out=run.folder("texts.recording"), resume=True, quiet=run.quiet,
    )  # fmt: skip
    found = run.finding("cores", lambda: core(recording, seed=run.seed, min_tokens=20))
    how: dict[str, Any] = {"token_share": token_share, "quiet": run.quiet}
    fit = {**how, "seed": run.seed}
    labels = _kept(run, "labels.clusters.json", Clusters, lambda: fit_clusters(run.model, find_on, **fit))
    means = _kept(
        run, "k-means.clusters.json", Clusters, lambda: fit_clusters(run.model, find_on, by_label=False, **fit)
    )
    hot = _kept(run, "frequent.clusters.json", Clusters, lambda: hot_neurons(run.model, find_on, **how))
    predictor = _kept(
        run, "predictor.json", Predictor,
        lambda: fit_predictor(run.model, find_on, epochs=epochs, seed=run.seed, quiet=run.quiet),
    )  # fmt: skip
    groups = run.stage("groups", lambda: _groups(labels, means))
    guides = {"oracle": "oracle", "predictor": predictor, "prompt": "prompt", "labels": labels, "k-means": means, "frequent": hot,
              "random": "random"}  # fmt: skip
    asked: dict[str, Any] = {"length": length, "token_share": token_share, "seed": run.seed, "quiet": run.quiet}
    quality = partial(core_quality, run.model)
    curve = run.stage("quality", lambda: quality(measure_on, shares=shares, guides=guides, **asked).rows)
    sizes = {"prompt, by size": "prompt"}
    by_size = run.stage("by-size", lambda: quality(measure_on, shares=shares, guides=sizes, **asked, by="abs").rows)
    own = run.stage("own-cores", lambda: _own_cores(quality, measure_on, token_shares, asked))
    switched = run.stage("switched", lambda: _switched(run, quality, given, documents, refresh, asked))
    answers = run.stage(
        "answers", lambda: _answers(run, _tasks(tasks, items, run.seed), guides, shares, shots, token_share)
    )
    return view.report(
        view.CoreInfer(
            cores=found,
            groups=groups,
            curve=[*curve, *by_size],
            own=own,
            switched=switched,
            answers=answers,
            shares=tuple(shares),
            token_share=token_share,
            predictor={"bytes": predictor.bytes, "recall": dict(predictor.recall), "share": predictor.share},
            model=dict(run.model.identity),
            length=length,
            shots=shots,
            bundled=text is None,
        )
    )


def _joined(text: Corpus, most: int) -> Corpus:
    """Longer texts of several short documents each; at most so many per label."""
    joined = {}
    for label in text.labels:
        lines = [document.text for document in text.documents(label)]
        joined[label] = [" ".join(lines[at : at + TOGETHER]) for at in range(0, len(lines) - TOGETHER + 1, TOGETHER)][
            :most
        ]
    return corpus(joined)


def _kept(run: Run, name: str, kind: Any, make: Callable[[], Any]) -> Any:
    """A guide made once and kept in the run's folder."""
    path = run.file(name)
    if not path.exists():
        run.say(f"{name} ...")
        make().save(path)
    return kind.load(path)


def _groups(labels: Clusters, means: Clusters) -> dict[str, Any]:
    """How far groups found without labels are the labels: adjusted Rand index, and how many texts of each label are in each."""
    from sklearn.metrics import adjusted_rand_score

    table = np.zeros((len(labels.names), len(means.names)), dtype=int)
    np.add.at(table, (np.array(labels.members), np.array(means.members)), 1)
    return {
        "rand": float(adjusted_rand_score(labels.members, means.members)), "labels": list(labels.names), "layer": means.layer,
        "groups": list(means.names), "table": table.tolist(),
    }  # fmt: skip


def _own_cores(quality: Any, text: Corpus, shares: Sequence[float], asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every token keeps its own core (Eq. 1), by positive activations as in the paper and by size."""
    rows = []
    for by in ("positive", "abs"):
        for share in shares:
            options = {**asked, "token_share": share, "by": by}
            (row,) = quality(text, shares=(1.0,), guides=("token core",), **options).rows
            rows.append({**row, "by": by, "token_share": share})
    return rows


def _switched(
    run: Run, quality: Any, text: Corpus, most: int, refresh: int, asked: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Texts that change their label about where scoring begins: with the core of the beginning, and with cores chosen anew."""
    names = text.labels
    if len(names) < 2:
        return []
    lines = {name: [d.text for _, d in zip(range(2 * most), text.documents(name), strict=False)] for name in names}
    pairs: dict[str, list[str]] = {"same": [], "other": []}
    for at, name in enumerate(names):
        mine, theirs = lines[name], lines[names[(at + 1) % len(names)]]
        for number, first in enumerate(mine[:most]):
            pairs["same"].append(f"{first} {mine[(number + most) % len(mine)]}")
            pairs["other"].append(f"{first} {theirs[(number + most) % len(theirs)]}")
    first_parts = [len(run.model.tokenize(line)) for name in names for line in lines[name][:most]]
    length = min(2 * int(np.median(first_parts)), run.model.max_length)
    rows = []
    for kind, joined in pairs.items():
        for every in (None, refresh):
            options = {**asked, "length": length, "chunk": 4, "refresh": every}
            (row,) = quality(corpus({kind: joined}), shares=(0.2,), guides=("prompt",), **options).rows
            rows.append({**row, "text": kind, "refresh": every})
    return rows


def _tasks(tasks: Mapping[str, Task] | None, items: int, seed: int) -> dict[str, Task]:
    if tasks is not None:
        return {name: task.limited(items, seed=seed) for name, task in tasks.items()}
    splits = {"facts": "train"}  # facts have no held-out half
    return {name: generated(name, split=splits.get(name, "heldout"), seed=seed, count=items) for name in TAUGHT}


def _answers(
    run: Run,
    tasks: Mapping[str, Task],
    guides: Mapping[str, Any],
    shares: Sequence[float],
    shots: int,
    token_share: float,
) -> list[dict[str, Any]]:
    """Checked accuracy of written answers, without and with solved items before the prompt, per guide and share."""
    rows = []
    every = [(name, guide, "positive") for name, guide in guides.items()] + [("prompt, by size", "prompt", "abs")]
    chosen = [share for share in shares if share in (0.2, 0.4)] or list(shares[:1])
    for name, task in tasks.items():
        for many in (0, shots) if shots else (0,):
            asked = task.with_shots(many, seed=run.seed) if many else task
            row = {"task": name, "shots": many, "items": len(asked), "whole": _right(run, asked)}
            for guide, who, by in every:
                for share in chosen:
                    how: dict[str, Any] = {"guide": who, "token_share": token_share, "by": by, "seed": run.seed}
                    with core_sparse(run.model, share=share, min_tokens=0, **how):
                        rows.append({**row, "guide": guide, "share": share, "sparse": _right(run, asked)})
    return rows


def _right(run: Run, task: Task) -> float:
    return float(generation(run.model, task, max_new_tokens=12, quiet=True).value)

"""Core neurons: the small part of every layer that a kind of text mostly uses, and how stable and how specific it is.

Wang et al. 2024, "CoreInfer" (arXiv 2410.18311), its definition of core neurons. The core of a token (Eq. 1) are the strongest
positive units of a layer; the core of a text (Eqs. 2-3) are the units most often in the core of its tokens. Both are counted
while recording, by the statistic `core`; here cores of labels are chosen, compared with each other, with random sets and with
shuffled labels, and documents are compared with each other and with their own beginnings (core_similarity).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.find.core_similarity import between_labels, documents_alike, stability
from patchclamp.find.finding import Finding, finders
from patchclamp.find.recordings import RecordingLike
from patchclamp.find.skill_distance import welch
from patchclamp.models.units import Layout, layouts_of
from patchclamp.record.statistics.core import Core, check_share, core_size, sentence_core
from patchclamp.record.statistics.shape import Distribution

CLASSES = ("specific", "shared", "general", "rest")
SPECIFIC, SHARED, GENERAL, REST = range(len(CLASSES))


@finders.add("core")
def core(
    recording: RecordingLike,
    *,
    beta: float = 0.2,
    site: str = "mlp",
    min_tokens: int = 100,
    max_documents: int = 200,
    shuffles: int = 200,
    seed: int = 0,
) -> Finding:
    """Find each label's core neurons: in every layer the share `beta` of units that are most often in the core of a token.

    beta: share of each layer (0.2 in the paper, 0.4 for translation); floor(beta * width) units, none that is in no token's core;
    equal frequencies by summed activation, then by position. site: where `core` was recorded; the paper's is the input of the
    down projection, mlp. min_tokens: fewest tokens of a label. max_documents: at most so many documents of a label are compared
    with each other. shuffles: how often labels are shuffled, over folds for the labels' cores and over documents for the
    documents' (0: not at all). seed: of the shuffling.

    Record with statistics={"core": {"alpha": 0.4, "beta": 0.2, "prefixes": [8, 16, 32, 64]}}: alpha is the share of a token's
    positive units, its beta that of the documents' own cores, prefixes ask for stability. Scores are frequencies, the share of a
    label's tokens whose core holds the unit, in [0, 1]. Classes: specific (core for one label), shared (several), general (all of
    at least two), rest. p-values: whether a unit is in token cores more often on this label than on the others (Welch over folds
    of documents). `null` says how alike the labels' cores are, beside shuffled labels and random sets; `details` hold similarity
    of labels and documents and the stability of beginnings.

    Differs from the reference code: every token has its own core size (the code shares one), ties are defined, one site is used
    throughout, and defaults are the paper's (the code exchanges alpha and beta). Raises InputError where `core` was not recorded
    and for too few tokens.
    """
    share = check_share("beta", beta)
    found = _statistics(recording, site, min_tokens)
    labels, layout = tuple(found), layouts_of(recording.model)[site]
    first = next(iter(found.values()))
    chosen = np.stack([label_core(each.counts.sum(0), each.mass, layout, share) for each in found.values()])
    frequency = np.stack([np.nan_to_num(each.frequency) for each in found.values()])
    null, p_values = _null(found, labels, layout, share, shuffles=shuffles, seed=seed)
    alike = documents_alike(found, max_documents=max_documents, shuffles=shuffles, seed=seed)
    growth = [
        entry.to_dict()
        for label, each in found.items()
        for entry in stability(label, each, max_documents=max_documents, seed=seed)
    ]
    details = {
        "tokens": {label: int(each.n.sum()) for label, each in found.items()},
        "labels": between_labels(chosen, layout, first.recorded),
        "documents": [vars(entry) for entry in alike],
        "stability": growth,
    }
    arguments = {
        "beta": beta, "site": site, "min_tokens": min_tokens, "max_documents": max_documents, "shuffles": shuffles, "seed": seed,
    }  # fmt: skip
    return Finding(
        method="core",
        labels=labels,
        layout=layout,
        model=dict(recording.model),
        chosen=chosen,
        scores=frequency,
        member=chosen,
        classes=classes_of(chosen),
        class_names=CLASSES,
        set_classes=CLASSES[:3],
        p_values=p_values,
        null=null,
        parameters={**arguments, "alpha": first.alpha, "document_beta": first.beta, "by": first.by},
        details=details,
        notes=_notes(found, chosen, layout),
        provenance=provenance("find.core", arguments=arguments, inputs=_inputs(recording), seed=seed),
    )


def label_core(counts: NDArray[Any], mass: NDArray[Any], layout: Layout, beta: float) -> NDArray[np.bool_]:
    """The core of a text in all layers, (..., total) bool. counts: in how many token cores; mass: summed activation there."""
    chosen = np.zeros(counts.shape, dtype=bool)
    for layer, width in enumerate(layout.widths):
        where = layout.slice(layer)
        chosen[..., where] = sentence_core(counts[..., where], mass[..., where], core_size(beta, width))
    return chosen


def classes_of(chosen: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Class of every unit, (total,) int8, from the labels' cores (labels, total); with one label its core is specific."""
    served = chosen.sum(axis=0)
    classes = np.full(chosen.shape[1], REST, dtype=np.int8)
    classes[served == 1] = SPECIFIC
    classes[(served > 1) & (served < len(chosen))] = SHARED
    classes[(served == len(chosen)) & (served > 1)] = GENERAL
    return classes


def _statistics(recording: RecordingLike, site: str, min_tokens: int) -> dict[str, Core]:
    if "core" not in recording.statistics:
        raise InputError(
            f"the recording holds {', '.join(recording.statistics)}; core neurons need the statistic core: "
            "record(model, text, statistics=('core',))"
        )
    if site not in recording.sites:
        raise InputError(f"site {site!r} was not recorded; this recording has {', '.join(recording.sites)}")
    found = {label: recording.get("core", label, site) for label in recording.labels}
    for label, each in found.items():
        if each.n.sum() < min_tokens:
            raise InputError(
                f"label {label!r} has {int(each.n.sum())} tokens; at least {min_tokens} are needed (min_tokens), so give "
                "it more text"
            )
    return found


def _null(
    found: Mapping[str, Core], labels: tuple[str, ...], layout: Layout, beta: float, *, shuffles: int, seed: int
) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """How alike the labels' cores are when documents' labels are shuffled, and p-values of every unit and label.

    alike: mean Jaccard similarity of two labels' cores; p: share of shuffles in which cores are no more alike than observed.
    only_here: how many units are in the core of that label alone.
    """
    cells = np.stack([each.counts for each in found.values()])  # (labels, folds, total)
    tokens = np.stack([each.n for each in found.values()])
    if shuffles < 0:
        raise InputError(f"shuffles={shuffles} given; it is at least 0 (0: no null)")
    record: dict[str, Any] = {"shuffles": shuffles, "seed": seed}
    if len(labels) < 2:
        return record | {"available": False, "why": "one label was recorded; cores are compared between labels"}, None
    p_values = _p_values(cells, tokens)
    filled = np.argwhere(tokens > 0)
    if shuffles == 0 or len(filled) <= len(labels):
        why = "shuffles=0 was asked for" if shuffles == 0 else "every label has its documents in a single fold"
        return record | {"available": False, "why": why}, p_values
    recorded = next(iter(found.values())).recorded
    flat = cells[tuple(filled.T)]
    observed = _likeness(flat, filled[:, 0], labels, layout, beta, recorded)
    rng, null = np.random.default_rng(seed), []
    with progress("shuffling labels", shuffles) as advance:
        for _ in range(shuffles):
            null.append(_likeness(flat, rng.permutation(filled[:, 0]), labels, layout, beta, recorded))
            advance(1)
    alike = np.array([mean for mean, _ in null])
    only = np.array([counts for _, counts in null])
    record |= {
        "available": True,
        "alike": {
            "observed": observed[0], "mean": float(alike.mean()), "lowest": float(alike.min()),
            "p": float((1 + (alike <= observed[0]).sum()) / (1 + shuffles)),
        },
        "only_here": {
            label: {"observed": observed[1][at], "mean": float(only[:, at].mean()), "max": int(only[:, at].max())}
            for at, label in enumerate(labels)
        },
    }  # fmt: skip
    return record, p_values


def _likeness(
    cells: NDArray[np.int64],
    given: NDArray[np.int64],
    labels: tuple[str, ...],
    layout: Layout,
    beta: float,
    recorded: NDArray[np.bool_],
) -> tuple[float, list[int]]:
    """Mean similarity of the labels' cores, and how many units are in the core of one label only, for cells so labelled."""
    counts = np.stack([cells[given == label].sum(axis=0) for label in range(len(labels))])
    cores = label_core(counts, np.zeros(counts.shape), layout, beta)
    alone = cores & (cores.sum(axis=0) == 1)
    mean = between_labels(cores, layout, recorded)["mean"]
    return float(mean if mean is not None else 1.0), alone.sum(axis=1).tolist()


def _p_values(cells: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.float32] | None:
    rows = []
    for label in range(len(cells)):
        rest = np.arange(len(cells)) != label
        p = welch(_clusters(cells[label], tokens[label]), _clusters(cells[rest], tokens[rest]), signed=True)
        if p is None:
            return None
        rows.append(p)
    return np.stack(rows).astype(np.float32)


def _clusters(counts: NDArray[np.int64], tokens: NDArray[np.int64]) -> Distribution:
    """Frequencies in cells of documents, (cells, total), from counts (..., folds, total)."""
    n = tokens.reshape(-1).astype(np.float64)
    frequency = counts.reshape(len(n), -1) / np.maximum(n, 1)[:, None]
    return Distribution(n, frequency, np.zeros_like(frequency))


def _notes(found: Mapping[str, Core], chosen: NDArray[np.bool_], layout: Layout) -> tuple[str, ...]:
    notes = []
    first = next(iter(found.values()))
    silent = [
        f"{label}, layer {layer}"
        for at, label in enumerate(found)
        for layer in first.layers
        if not chosen[at, layout.slice(layer)].any()
    ]
    if silent:
        notes.append(f"no unit was ever in a token's core: {'; '.join(silent[:5])}")
    if tuple(first.layers) != tuple(layer for layer in range(layout.n_layers) if layout.widths[layer]):
        notes.append(f"only the layers {', '.join(map(str, first.layers))} were recorded; cores lie in these")
    return tuple(notes)


def _inputs(recording: RecordingLike) -> dict[str, Any]:
    folder = recording.folder
    path = None if folder is None else str(folder.absolute())
    return {"recording": {"fingerprint": recording.fingerprint, "path": path, "corpus": dict(recording.corpus)}}


make_callable(__name__)

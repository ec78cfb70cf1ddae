"""Language neurons: which units serve one language, several, or all (LAPE and the ternary split).

Main paper: Zhang et al. 2025, arXiv 2505.21505 (`method="ternary"`); baseline: Tang et al. 2024, arXiv 2402.16438
(`method="lape"`). Labels need not be languages: any labelled texts can be compared.

The steps lie in files of their own: language_counts (what is read from a recording), language_selection (scores and
classes), language_lambda, language_null, language_stages, language_compare (two checkpoints).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.find.finding import Finding, finders
from patchclamp.find.language_compare import Comparison, Overlap, compare, overlap
from patchclamp.find.language_counts import Counts, gather
from patchclamp.find.language_notes import notes
from patchclamp.find.language_null import shuffled_labels
from patchclamp.find.language_selection import (
    CLASSES,
    Split,
    code_lambda,
    label_scores,
    lape,
    near_bar,
    paper_lambda,
    probabilities,
    profile,
    ternary,
)
from patchclamp.find.language_stages import divide
from patchclamp.find.recordings import RecordingLike

__all__ = ["Comparison", "Overlap", "compare", "language", "overlap"]

METHODS = ("ternary", "lape")
FORMS = ("code", "paper")


@finders.add("language")
def language(
    recording: RecordingLike,
    *,
    method: str = "ternary",
    rate: float = 0.01,
    bar: float = 0.95,
    lam: float | None = None,
    lam_form: str = "code",
    site: str = "mlp",
    min_tokens: int = 100,
    shuffles: int = 20,
    seed: int = 0,
) -> Finding:
    """Find the units that serve one label (specific), several (related) or all (general).

    method: `ternary` (Zhang et al. 2025) or `lape` (Tang et al. 2024). rate: share of units to select. bar: share of
    all firing probabilities that lie below the activity bar tau; a unit serves the labels with p > tau. lam: lambda
    of the ternary score; by default the largest one is searched for which no selected unit serves all labels.
    lam_form: `code` (H / ln K - lam / m_K * max p) or `paper` (Eq. 5, H in nats - lam * max p). site: any recorded
    site whose firing was counted. min_tokens: fewest tokens a label must have. shuffles: how often labels are
    shuffled over documents to learn what chance names (0: not at all). seed: seed of the shuffling.

    The classes partition all units. specific, related: selected, above tau for one, or several but not all, labels.
    general: above tau for all, selected or not. dead: never fired. unassigned: the rest, that is selected units above
    tau for none, and units not selected. Layers that were not recorded take no part (a sixth class, unrecorded).
    `sets` holds each label's specific and related units (lape: all selected units above tau for the label). Scores per
    label: `language_selection.label_scores`, larger is more.

    As in the papers, a neuron of a gated MLP fires where its gate is open (the `firing` statistic sees to that; record it
    with signal "value" for the sign of the product with `up`). Differs from the papers: probabilities are float64.
    Ties go to the smaller unit. Binomial standard errors, the null and the rule for the layer stages are ours.

    458,752 units and 10 labels take about 1.5 s, and 0.4 s more per shuffle, on one core; memory beside the recording:
    its counts once more (labels * folds * units * 8 bytes, 294 MB with 8 folds) and about ten times labels * units * 8
    bytes (0.4 GB); with shuffles=0 about 0.25 GB in all.
    Raises InputError for a single label, a label with too few tokens, an unknown site, and values out of range.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} given; there are {' and '.join(METHODS)}")
    if lam_form not in FORMS:
        raise InputError(f"lam_form {lam_form!r} given; lambda has the forms {' and '.join(FORMS)}")
    if method == "lape" and lam is not None:
        raise InputError(f"lam={lam} given, but lape has no lambda; leave it out or use method='ternary'")
    counts = gather(recording, site, min_tokens=min_tokens, keep_folds=shuffles > 0)
    n_labels, tokens = len(counts.labels), counts.tokens.sum(axis=1)
    code = lam if lam is None or lam_form == "code" else code_lambda(lam, n_labels)

    def select(p: NDArray[np.float64], exact: bool = False) -> Split:
        return (
            lape(p, rate=rate, bar=bar) if method == "lape" else ternary(p, rate=rate, bar=bar, lam=code, exact=exact)
        )

    p = probabilities(counts.total, tokens)
    split = select(p, exact=True)
    scores = label_scores(p, profile(p), split.weight)
    null, p_values = shuffled_labels(
        counts.cells, counts.tokens, counts.labels, split, scores, select, shuffles=shuffles, seed=seed
    )
    whole = counts.recorded.all()
    classes = counts.spread(split.classes, len(CLASSES))
    details = _details(counts, p, tokens, split, classes)
    arguments = {
        "method": method, "rate": rate, "bar": bar, "lam": lam, "lam_form": lam_form, "site": site,
        "min_tokens": min_tokens, "shuffles": shuffles, "seed": seed,
    }  # fmt: skip
    return Finding(
        method=method,
        labels=counts.labels,
        layout=counts.layout,
        model=dict(recording.model),
        chosen=counts.spread(split.chosen, False),
        scores=counts.spread(scores, 0.0),
        unit_score=counts.spread(np.asarray(split.unit_score, dtype=np.float64), np.nan),
        member=counts.spread(split.member, False),
        classes=classes,
        class_names=CLASSES if whole else (*CLASSES, "unrecorded"),
        set_classes=("specific", "related"),
        p_values=None if p_values is None else counts.spread(p_values, 1.0),
        null=null,
        parameters=_parameters(arguments, split, code, n_labels, counts.threshold),
        details=details,
        notes=notes(recording, counts, split, details),
        provenance=provenance("find.language", arguments=arguments, inputs=_inputs(recording), seed=seed),
    )


def _parameters(
    arguments: dict[str, Any], split: Split, code: float | None, n_labels: int, threshold: float
) -> dict[str, Any]:
    """The arguments, with the lambda that was used in both forms, and the recording's firing threshold."""
    shown = {key: value for key, value in arguments.items() if key not in ("method", "lam", "lam_form")}
    used = split.search.lam if split.search is not None else code
    if used is not None:
        shown |= {
            "lambda": used,
            "lambda_paper": paper_lambda(used, n_labels),
            "lambda_searched": split.search is not None,
        }
    return shown | {"threshold": threshold}


def _inputs(recording: RecordingLike) -> dict[str, Any]:
    folder = recording.folder
    return {
        "recording": {
            "fingerprint": recording.fingerprint,
            "path": None if folder is None else str(folder.absolute()),
            "corpus": dict(recording.corpus),
        }
    }


def _details(
    counts: Counts,
    p: NDArray[np.float64],
    tokens: NDArray[np.int64],
    split: Split,
    classes: NDArray[np.int8],
) -> dict[str, Any]:
    """What the method reports beside the classes, as plain data."""
    close = near_bar(p, tokens, split.tau)[:, split.selected]
    served = {
        label: {name: int((split.member[at] & (split.classes == kind)).sum()) for kind, name in enumerate(CLASSES[:3])}
        for at, label in enumerate(counts.labels)
    }
    return {
        "tau": split.tau,
        "selected": int(split.selected.sum()),
        "tokens": dict(zip(counts.labels, tokens.tolist(), strict=True)),
        "served": {"selected": split.appear(selected=True), "all": split.appear(selected=False)},
        "by_label": served,
        "near_bar": {
            "what": "selected units whose p lies within 2 binomial standard errors of tau",
            "labels": dict(zip(counts.labels, close.sum(axis=1).tolist(), strict=True)),
            "units": int(close.any(axis=0).sum()),
        },
        "lambda_search": None if split.search is None else split.search.to_dict(),
        "stages": _stages(counts, classes),
    }


def _stages(counts: Counts, classes: NDArray[np.int8]) -> dict[str, Any] | None:
    """The layer stages; None where some layers were not recorded and would look empty."""
    if not counts.recorded.all():
        return None
    layers = counts.layout.split(classes)
    return divide(*([int((layer == kind).sum()) for layer in layers] for kind in range(3))).to_dict()


make_callable(__name__)

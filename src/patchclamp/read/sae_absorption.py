"""Feature absorption: tokens of a concept at which the concept's own features stay silent and another one stands in.

Chanin et al. 2024, "A is for Absorption", arXiv 2409.14507, on any labelled concept ("begins with s", "is a noun"), with
projections in place of their ablations (as SAEBench does), so that no further passes through the model are needed:
1. a logistic probe for the concept is trained on the activations;
2. the concept's main features are chosen by sparse probing: one feature after the other, as long as F1 rises by `split`;
3. on held-out tokens of the concept that the probe gets right and at which no main feature fires, a feature absorbs the
   concept if its direction agrees with the probe's (cosine at least `cosine`) and what it adds along the probe is the
   largest part and at least `share` of what all features add.
The absorption rate is the share of such tokens among those that the probe gets right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import Corpus
from patchclamp.measure.likelihood import Reading
from patchclamp.read.sae_evaluation import in_pieces, tapped
from patchclamp.read.sae_kinds import SAE

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

MOST_MAIN = 10


@dataclass(frozen=True)
class Absorption:
    """rate: share of the concept's tokens (those that the probe gets right) at which another feature stands in. missed: share
    at which no main feature fires. main: the concept's features; f1: of these on held-out tokens, probe_f1: of the probe.
    absorbing: feature -> at how many tokens it stands in, most first. n: tokens that the rate is over."""

    rate: float
    missed: float
    main: tuple[int, ...]
    f1: float
    probe_f1: float
    absorbing: dict[int, int]
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def absorption(
    sae: SAE,
    x: Tensor,
    concept: Sequence[bool] | NDArray[np.bool_] | Tensor,
    *,
    split: float = 0.03,
    cosine: float = 0.025,
    share: float = 0.4,
    seed: int = 0,
) -> Absorption:
    """Measure absorption of a concept on rows x, (n, d_in), of which those with `concept` true, (n,), have it.

    Half of the rows train probe and choice of features, the other half is measured. Raises InputError if either half has
    fewer than 10 rows with or without the concept.
    """
    is_concept = np.asarray(torch.as_tensor(concept).cpu(), dtype=bool)
    if is_concept.shape != (len(x),):
        raise InputError(
            f"concept has shape {is_concept.shape}; one truth value for each of the {len(x)} rows is needed"
        )
    fit, test = _halves(is_concept, seed)
    rows = x.detach().cpu().float().numpy()
    weights, told = _probe(rows, is_concept, fit)
    right = test[is_concept[test] & told[test]]
    features = _encoded(sae, x)
    main = _main(features[fit] > 0, is_concept[fit], split)
    fires = np.asarray((features[:, list(main)] > 0).sum(1)).ravel() > 0
    f1 = _f1(fires[test], is_concept[test])
    probe_f1 = _f1(told[test], is_concept[test])
    if not len(right):
        return Absorption(float("nan"), float("nan"), main, f1, probe_f1, {}, 0)
    missed = ~fires[right]
    taken = _standing_in(sae, features[right[missed]], weights, main, cosine, share)
    numbers, counts = np.unique(taken[taken >= 0], return_counts=True)
    absorbing = {int(numbers[at]): int(counts[at]) for at in np.argsort(-counts, kind="stable")}
    return Absorption(
        float((taken >= 0).sum() / len(right)), float(missed.mean()), main, f1, probe_f1, absorbing, len(right)
    )


def absorption_of(
    sae: SAE,
    model: LanguageModel,
    text: Corpus,
    concept: str | Callable[[str], bool],
    *,
    max_tokens: int = 20_000,
    batch_tokens: int = 4096,
    **arguments: Any,
) -> Absorption:
    """`absorption` on the tokens of a text.

    concept: a function of a token's text (without the space before it), or "starts=s", or the name of a span that documents
    have ("upos=NOUN"). max_tokens: how many tokens are read at most, labels in turn. arguments: those of `absorption`.
    """
    rows: list[Tensor] = []
    truth: list[Tensor] = []
    each = max(1, max_tokens // max(1, len(text.labels)))
    for label in text.labels:
        size = 0
        for x, is_concept in _labelled(sae, model, text, label, concept, batch_tokens):
            rows.append(x.cpu())
            truth.append(is_concept.cpu())
            size += len(x)
            if size >= each:
                break
    if not rows:
        raise InputError("no token of the text counts; choose other text")
    return absorption(sae, torch.cat(rows), torch.cat(truth), **arguments)


def _labelled(
    sae: SAE, model: LanguageModel, text: Corpus, label: str, concept: str | Callable[[str], bool], batch_tokens: int
) -> Any:
    """(rows, whether each has the concept) of batch after batch."""
    every = Reading(batch_tokens).batches(model, text, label)
    if isinstance(concept, str) and not concept.startswith("starts="):
        inside = Reading(batch_tokens, select=Selection(inside=concept)).batches(model, text, label)
        for batch, chosen in zip(every, inside, strict=True):
            yield tapped(model, sae, batch), chosen.keep[batch.keep]
        return
    known: dict[int, bool] = {}
    test = concept if callable(concept) else _begins(concept.removeprefix("starts="))
    for batch in every:
        ids = batch.input_ids[batch.keep].tolist()
        for token in set(ids) - set(known):
            known[token] = bool(test(model.tokenizer.decode([token]).strip()))
        yield tapped(model, sae, batch), torch.tensor([known[token] for token in ids], dtype=torch.bool)


def _begins(letters: str) -> Callable[[str], bool]:
    if not letters:
        raise InputError("starts= needs letters, as in starts=s")
    return lambda token: token.lower().startswith(letters.lower())


def _halves(is_concept: NDArray[np.bool_], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(is_concept == value)) for value in (True, False)]
    if min(len(part) // 2 for part in parts) < 10:
        raise InputError(
            f"{int(is_concept.sum())} rows have the concept, {int((~is_concept).sum())} don't; at least 20 of each are needed"
        )
    halves = ([part[: len(part) // 2] for part in parts], [part[len(part) // 2 :] for part in parts])
    fit, test = (np.sort(np.concatenate(half)) for half in halves)
    return fit, test


def _probe(
    rows: NDArray[Any], is_concept: NDArray[np.bool_], fit: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The probe's direction in the space of x, (d_in,), and which rows it says have the concept."""
    from sklearn.linear_model import LogisticRegression

    centre, spread = rows[fit].mean(0), rows[fit].std(0) + 1e-6
    scaled = (rows - centre) / spread
    probe = LogisticRegression(max_iter=1000, class_weight="balanced").fit(scaled[fit], is_concept[fit])
    return (probe.coef_[0] / spread).astype(np.float64), probe.predict(scaled).astype(bool)


def _encoded(sae: SAE, x: Tensor) -> sparse.csr_matrix:
    """(n, n_features) features, as a sparse matrix: few of them fire."""
    with torch.no_grad():
        parts = [sae.encode(rows.to(sae.device, sae.dtype)).cpu().float().numpy() for rows in in_pieces(sae, x)]
    return sparse.vstack([sparse.csr_matrix(part) for part in parts]).tocsr()


def _main(on: sparse.csr_matrix, is_concept: NDArray[np.bool_], split: float) -> tuple[int, ...]:
    """The features whose firing tells the concept best: the best by F1, then more while F1 rises by `split`."""
    hits = is_concept.astype(np.float64)
    weights = on.astype(np.float64)
    main: list[int] = []
    base, best = np.zeros(len(hits), dtype=bool), 0.0
    while len(main) < MOST_MAIN:
        true = (hits * ~base) @ weights + (hits * base).sum()  # of the features so far together with each further one
        size = (~base).astype(np.float64) @ weights + base.sum()
        found = 2 * true / np.maximum(size + hits.sum(), 1)
        at = int(found.argmax())
        if main and found[at] < best + split:
            break
        main.append(at)
        base, best = base | (on[:, [at]].toarray()[:, 0] > 0), float(found[at])
    return tuple(main)


def _standing_in(
    sae: SAE,
    features: sparse.csr_matrix,
    weights: NDArray[np.float64],
    main: tuple[int, ...],
    cosine: float,
    share: float,
) -> NDArray[np.int64]:
    """For each row the feature that stands in for the main ones, or -1."""
    if not features.shape[0]:
        return np.zeros(0, dtype=np.int64)
    directions = sae.directions.detach().cpu().double()
    along = (directions @ torch.from_numpy(weights)).numpy() / np.linalg.norm(weights)
    angle = along / np.maximum(torch.linalg.vector_norm(directions, dim=1).numpy(), 1e-12)
    others = along.copy()
    others[list(main)] = 0
    parts = features.multiply(np.maximum(others, 0)[None, :]).tocsr()
    best = np.asarray(parts.argmax(1)).ravel()
    largest, gained = parts.max(1).toarray().ravel(), np.asarray(parts.sum(1)).ravel()
    stands = (largest > 0) & (angle[best] >= cosine) & (largest >= share * gained)
    return np.where(stands, best, -1)


def _f1(told: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(2 * (told & truth).sum() / max(1, told.sum() + truth.sum()))

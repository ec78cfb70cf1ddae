"""Directions of the output matrix that are active when a model is about to produce a concept (EigenShift, detection part).

Shaik, Mazhar, Srivastava, Akhtar 2025, arXiv 2509.16660, steps 9 and 10: with W = U S V^T the output matrix, and h the
state that enters it, delta_i = mean over Phi of v_i.h - mean over Psi of v_i.h. Phi: states that are about to produce the
concept, Psi: states that are not. Only the difference of the two means matters: delta = V^T (mean Phi - mean Psi).

The sign of a singular vector is arbitrary, so the score is |delta|; the paper's largest signed delta is kept beside it.
The authors' code multiplies by V where V^T is meant, which gives other directions unless V is symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.batches import Tokens, batches
from patchclamp.measure.continuations import prompt_ids

if TYPE_CHECKING:
    from patchclamp.data.tasks import Task
    from patchclamp.models.load import LanguageModel

FEWEST = 10
RELIABLE = 1e-7  # singular values below this share of the largest are rounding (the Gram matrix squares the condition)


@dataclass(frozen=True, eq=False)
class OutputDirections:
    """Directions v_i, by falling singular value, and how they tell states that are about to produce a concept.

    vectors: (d, d) float64, row i is v_i, turned so that its mean over all states is at least 0. sigma: (d,). delta:
    (d,), mean of v_i.h over Phi minus Psi, in that orientation: above 0 is stronger along the usual direction. p: (d,)
    two-sided, shuffled labels, corrected over all directions (Westfall and Young's maximum of the standardised
    difference). reliable: (d,) bool. n_phi, n_psi: states.
    """

    vectors: NDArray[np.float64]
    sigma: NDArray[np.float64]
    delta: NDArray[np.float64]
    p: NDArray[np.float64]
    reliable: NDArray[np.bool_]
    n_phi: int
    n_psi: int

    def top(self, k: int, *, signed: bool = False) -> NDArray[np.int64]:
        """The k directions of largest |delta| (signed: of largest delta, which depends on the orientation), best first."""
        if not 1 <= k <= len(self.delta):
            raise InputError(f"the {k} best of {len(self.delta)} directions asked for")
        score = np.where(self.reliable, self.delta if signed else np.abs(self.delta), -np.inf)
        return np.argsort(-score, kind="stable")[:k]


def output_directions(
    weight: ArrayLike, phi: ArrayLike, psi: ArrayLike, *, shuffles: int = 999, seed: int = 0
) -> OutputDirections:
    """Score every direction of an output matrix W (vocabulary, d) from states phi (n, d) and psi (m, d).

    Directions and singular values come from the eigen-decomposition of W^T W in float64, never from a vocabulary-sized
    factor. InputError for fewer than 10 states of a kind, shapes that don't match and states that are not finite.
    """
    w = np.asarray(weight, dtype=np.float64)
    one, zero = np.asarray(phi, dtype=np.float64), np.asarray(psi, dtype=np.float64)
    if w.ndim != 2 or one.ndim != 2 or zero.ndim != 2 or not w.shape[1] == one.shape[1] == zero.shape[1]:
        raise InputError(f"W (vocabulary, d) and states (n, d) are needed, not {w.shape}, {one.shape}, {zero.shape}")
    if min(len(one), len(zero)) < FEWEST:
        raise InputError(f"{len(one)} and {len(zero)} states given; at least {FEWEST} of each are needed")
    if not (np.isfinite(one).all() and np.isfinite(zero).all() and np.isfinite(w).all()):
        raise InputError("states or weights hold values that are not finite")
    values, vectors = np.linalg.eigh(w.T @ w)
    sigma = np.sqrt(np.maximum(values[::-1], 0))
    v = vectors[:, ::-1].T  # row i is the i-th right singular vector
    states = np.concatenate([one, zero])
    v = v * np.where(states.mean(0) @ v.T < 0, -1.0, 1.0)[:, None]
    active = states @ v.T  # (n + m, d)
    return OutputDirections(
        vectors=v,
        sigma=sigma,
        delta=active[: len(one)].mean(0) - active[len(one) :].mean(0),
        p=_max_p(active, len(one), shuffles, seed),
        reliable=sigma > RELIABLE * sigma[0],
        n_phi=len(one),
        n_psi=len(zero),
    )


def last_states(model: LanguageModel, task: Task, *, batch_tokens: int = 4096) -> NDArray[np.float64]:
    """What enters the output matrix at the last token of each prompt, (items, d) float64: the states before an answer."""
    ids = prompt_ids(model.tokenizer, [item.prompt for item in task])
    rows = [Tokens(list(row), [True] * len(row), number, 0) for number, row in enumerate(ids)]
    found = np.zeros((len(rows), model.anatomy.d_model))
    for batch in batches(rows, token_budget=batch_tokens, pad_id=model.pad_id):
        placed = batch.to(model.device)
        hidden = model.trunk(placed.input_ids, placed.attention_mask)
        last = placed.attention_mask.shape[1] - 1 - placed.attention_mask.flip(1).argmax(1)  # the last real token
        chosen = hidden[torch.arange(len(last), device=hidden.device), last].double().cpu().numpy()
        found[placed.document.cpu().numpy()] = chosen
    return found


def output_matrix(model: LanguageModel) -> NDArray[np.float64]:
    """The output matrix (vocabulary, d) float64, tied or not."""
    return model.hf.get_output_embeddings().weight.detach().double().cpu().numpy()


def promoted(
    model: LanguageModel, found: OutputDirections, direction: int, k: int = 8
) -> dict[str, list[dict[str, Any]]]:
    """Tokens whose logit a direction raises and lowers most: {"up": [{"token", "logit"}], "down": [...]}, per unit of v."""
    logits = output_matrix(model) @ found.vectors[direction]
    order = np.argsort(-logits, kind="stable")
    picked = {"up": order[:k], "down": order[::-1][:k]}
    return {
        side: [{"token": model.tokenizer.decode([int(at)]), "logit": float(logits[at])} for at in where]
        for side, where in picked.items()
    }


def _max_p(active: NDArray[np.float64], n_phi: int, shuffles: int, seed: int) -> NDArray[np.float64]:
    """Corrected p-values from the largest standardised difference of all directions under shuffled labels."""
    spread = active.std(axis=0)
    scaled = np.divide(active - active.mean(0), spread, out=np.zeros_like(active), where=spread > 1e-12)
    rng = np.random.default_rng(seed)
    n = len(active)
    weights = np.full((shuffles + 1, n), -1 / (n - n_phi))  # rows: the labels, then shuffled ones
    weights[0, :n_phi] = 1 / n_phi
    for row in weights[1:]:
        row[rng.permutation(n)[:n_phi]] = 1 / n_phi
    off = np.abs(weights @ scaled)  # (shuffles + 1, d)
    largest = np.sort(off[1:].max(axis=1))
    reached = shuffles - np.searchsorted(largest, off[0] - 1e-12)
    return np.asarray((1 + reached) / (1 + shuffles), dtype=np.float64)

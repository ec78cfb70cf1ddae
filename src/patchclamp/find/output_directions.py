"""Directions of the output matrix that are active when a model is about to produce a concept (EigenShift, detection part).

Shaik, Mazhar, Srivastava, Akhtar 2025, arXiv 2509.16660, steps 9 and 10: with W = U S V^T the output matrix, and h the
state that enters it, delta_i = mean over Phi of v_i.h - mean over Psi of v_i.h. Phi: states that are about to produce the
concept, Psi: states that are not. Only the difference of the two means matters: delta = V^T (mean Phi - mean Psi).

The sign of a singular vector is arbitrary, so the score is |delta|; the paper's largest signed delta is kept beside it.
The authors' code multiplies by V where V^T is meant, which gives other directions unless V is symmetric.
`OutputDirections.shift` makes the intervention that damps them (intervene/eigenshift.py), and its controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.intervene.eigenshift import (
    EigenShift,
    checked_states,
    how_many,
    oriented,
    ranked_directions,
    warn_of_signs,
)
from patchclamp.intervene.output_head import RELIABLE, end_states, output_weight, spectrum

if TYPE_CHECKING:
    from patchclamp.data.tasks import Task
    from patchclamp.models.load import LanguageModel

CONTROLS = ("random", "smallest")
SHIFT, RANDOM, SMALLEST = "EigenShift", "random directions", "smallest |delta|"


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
        return ranked_directions(self.delta, self.sigma, rank="signed" if signed else "delta")[:k]

    def chosen(self, k: int, *, rank: str = "delta", control: str | None = None, seed: int = 0) -> NDArray[np.int64]:
        """Numbers of k reliable directions: the first by rank (delta, logit or signed), or a control of as many.

        control: "random", drawn among all of them, or "smallest", those of smallest |delta|.
        """
        order = ranked_directions(self.delta, self.sigma, rank=rank)
        if not 1 <= k <= len(order):
            raise InputError(f"{k} directions asked for; {len(order)} of {len(self.delta)} are reliable")
        if control is None:
            return order[:k]
        if control not in CONTROLS:
            raise InputError(f"control={control!r}; choose {' or '.join(CONTROLS)}, or leave it out")
        if control == "random":
            return np.sort(np.random.default_rng([seed, 1]).permutation(order)[:k])
        return ranked_directions(self.delta, self.sigma)[::-1][:k]

    def shift(
        self,
        model: Any,
        *,
        k: int | None = None,
        share: float = 0.25,
        alpha: float = 0.0,
        rank: str = "delta",
        control: str | None = None,
        seed: int = 0,
        scope: str = "all",
    ) -> EigenShift:
        """The intervention that scales the chosen directions by alpha; see `chosen` and `fit eigenshift`.

        model: LanguageModel or identity. k: how many, or share of all directions (paper: 1 - percentile, rounded up).
        """
        picked = self.chosen(how_many(len(self.delta), k, share), rank=rank, control=control, seed=seed)
        if rank == "signed" and control is None:
            warn_of_signs()
        note = {None: "", "random": f"random, seed {seed}", "smallest": "smallest |delta|"}[control]
        numbers = tuple(picked.tolist())
        return EigenShift.of(model, self.vectors[picked], alpha, directions=numbers, scope=scope, note=note)

    def sweep(
        self,
        model: Any,
        *,
        ks: Sequence[int],
        alphas: Sequence[float] = (0.0,),
        rank: str = "delta",
        controls: int = 1,
        seed: int = 0,
    ) -> dict[str, EigenShift]:
        """Shifts of several sizes and strengths with their controls by name, as `measure.tradeoff` takes them.

        Names: "EigenShift/k", "random directions/k#draw" (controls draws) and "smallest |delta|/k", with "alpha a" after k
        unless it is 0. ks: numbers of directions. rank: of the directions; the controls don't depend on it.
        """
        found = {}
        for k in ks:
            for alpha in alphas:
                name = f"{k}" if alpha == 0 else f"{k} alpha {alpha:g}"
                found[f"{SHIFT}/{name}"] = self.shift(model, k=k, alpha=alpha, rank=rank)
                for draw in range(controls):
                    random = self.shift(model, k=k, alpha=alpha, control="random", seed=seed + draw)
                    found[f"{RANDOM}/{name}#{draw}"] = random
                if controls:
                    found[f"{SMALLEST}/{name}"] = self.shift(model, k=k, alpha=alpha, control="smallest")
        return found


def output_directions(
    weight: ArrayLike, phi: ArrayLike, psi: ArrayLike, *, shuffles: int = 999, seed: int = 0
) -> OutputDirections:
    """Score every direction of an output matrix W (vocabulary, d) from states phi (n, d) and psi (m, d).

    Directions and singular values come from the eigen-decomposition of W^T W in float64, never from a vocabulary-sized
    factor. InputError for fewer than 10 states of a kind, shapes that don't match and states that are not finite.
    """
    w = np.asarray(weight)
    if w.ndim != 2:
        raise InputError(f"W (vocabulary, d) and states (n, d) are needed, not a W of shape {w.shape}")
    one, zero = checked_states(phi, psi, w.shape[1])
    sigma, vectors = spectrum(w)
    states = np.concatenate([one, zero])
    v = oriented(vectors, states)
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
    return end_states(model, [item.prompt for item in task], batch_tokens=batch_tokens)


def output_matrix(model: LanguageModel) -> NDArray[np.float64]:
    """The output matrix (vocabulary, d) float64, tied or not."""
    return output_weight(model).detach().double().cpu().numpy()


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

"""EigenShift: damp directions of the output matrix that are active when a model is about to produce a concept.

Shaik, Mazhar, Srivastava, Akhtar 2025, arXiv 2509.16660. The paper scales singular values of W = U S V^T: sigma_i becomes
alpha sigma_i for the chosen i. That is exactly W (I - (1 - alpha) V_T V_T^T), so the same change can be made to the state
that enters W, h <- h - (1 - alpha) V_T V_T^T h, at 2 d k multiplications a token and without touching tied embeddings;
`write` makes it in the weights. A projection does not depend on the signs of the vectors.

Which directions: the largest |delta|, delta_i = mean of v_i.h over states about to produce the concept minus over others.
The paper takes the largest signed delta, which the arbitrary sign of a singular vector decides; the authors' code besides
multiplies by V where V^T is meant. Both are left behind.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from patchclamp.core.arrays import packed, unpacked
from patchclamp.core.errors import InputError, MismatchError, ModelError
from patchclamp.data.tasks import Task
from patchclamp.intervene.fits import fits
from patchclamp.intervene.kinds import Change, Interventions, kinds
from patchclamp.intervene.output_head import RELIABLE, end_states, output_spectrum, output_weight, untie
from patchclamp.models.hooks import SCOPES
from patchclamp.models.units import describe, layouts_of

if TYPE_CHECKING:
    from patchclamp.models.hooks import Seen, Tap
    from patchclamp.models.load import LanguageModel

FEWEST = 10  # states of a kind
LOWEST, HIGHEST = -2.0, 1.0  # alpha
RANKS = ("delta", "logit", "signed")


@kinds.add("eigenshift")
@dataclass(frozen=True, eq=False, repr=False)
class EigenShift(Change):
    """Damping of directions of the state that enters the LM head: h <- h - (1 - alpha) V^T V h.

    identity: of the model. vectors: (k, d) float64, orthonormal rows. alpha: from -2 to 1; 1 changes nothing, 0 removes
    the directions, below 0 turns them round. directions: numbers of the singular vectors, for people to read.
    scope: "prompt", "generated" or "all" positions; the weight form knows only "all". note: free text.
    """

    identity: Mapping[str, Any]
    vectors: NDArray[np.float64]
    alpha: float = 0.0
    directions: tuple[int, ...] = ()
    scope: str = "all"
    note: str = ""

    def __post_init__(self) -> None:
        vectors = np.ascontiguousarray(self.vectors, dtype=np.float64)  # in the order that a saved copy has
        if vectors.ndim != 2 or not 1 <= len(vectors) <= vectors.shape[1]:
            raise InputError(f"directions of shape {vectors.shape} given; (k, d) with k from 1 to d is needed")
        if not np.isfinite(vectors).all() or np.abs(vectors @ vectors.T - np.eye(len(vectors))).max() > 1e-6:
            raise InputError("directions must be finite, of length 1 and at right angles to each other")
        if not (LOWEST <= self.alpha <= HIGHEST):
            raise InputError(f"alpha={self.alpha}; it lies between {LOWEST:g} and {HIGHEST:g} (1 changes nothing)")
        if self.scope not in SCOPES:
            raise InputError(f"scope={self.scope!r}; it is one of {', '.join(SCOPES)}")
        if self.directions and len(self.directions) != len(vectors):
            raise InputError(f"{len(self.directions)} numbers of directions given for {len(vectors)} vectors")
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "directions", tuple(int(number) for number in self.directions))

    @classmethod
    def of(cls, model: Any, vectors: ArrayLike, alpha: float = 0.0, **more: Any) -> EigenShift:
        """Damp given orthonormal directions (k, d). model: LanguageModel or identity. more: directions, scope, note."""
        identity = model if isinstance(model, Mapping) else model.identity
        return cls(identity, np.asarray(vectors, dtype=np.float64), alpha, **more)

    @property
    def model(self) -> Mapping[str, Any]:
        return self.identity

    @property
    def n_units(self) -> int:
        """How many directions are damped."""
        return len(self.vectors)

    def check_model(self, model: Any) -> None:
        """Raise MismatchError unless `model` (a LanguageModel or identity) is the model of the directions."""
        theirs = model if isinstance(model, Mapping) else model.identity
        if self.identity.get("fingerprint") != theirs.get("fingerprint"):
            raise MismatchError(
                f"these directions belong to model {describe(self.identity)}, but {describe(theirs)} was given"
            )

    def lowest_block(self) -> int | None:
        """The last block: whatever comes before the LM head stays as it is."""
        return self._last_layer()

    def compiled(self, model: LanguageModel) -> list[tuple[Tap, Callable[[Seen], Tensor]]]:
        """One function, at what enters the LM head."""
        width = model.anatomy.d_model
        if self.vectors.shape[1] != width:
            raise InputError(f"directions of {self.vectors.shape[1]} numbers, but this model's states have {width}")
        return [(("final", self._last_layer()), _Damped(self.vectors, self.alpha, self.scope))]

    def _last_layer(self) -> int:
        return next(iter(layouts_of(self.identity).values())).n_layers - 1

    def matched_random(self, seed: int) -> EigenShift:
        """As many orthonormal directions, drawn uniformly.

        Singular directions drawn at random, and those of smallest |delta|, are the paper's setting's closer controls:
        `OutputDirections.shift(control=)`.
        """
        drawn = np.random.default_rng([seed, 1]).normal(size=self.vectors.shape[::-1])
        return replace(self, vectors=np.linalg.qr(drawn)[0].T, directions=())

    def undone(self) -> EigenShift:
        """What takes the change back: 1 / alpha along the same directions; InputError where that is out of reach."""
        if self.alpha == 0 or not LOWEST <= 1 / self.alpha <= HIGHEST:
            raise InputError(
                f"alpha={self.alpha:g} can't be undone by another alpha between {LOWEST:g} and {HIGHEST:g}"
            )
        return replace(self, alpha=1 / self.alpha)

    def write(self, edited: LanguageModel) -> dict[str, Any]:
        """Write W (I - (1 - alpha) V^T V) as the output matrix, untied from the embedding if it was tied.

        Returns the config attributes that changed. ModelError for a quantised or offloaded matrix, for an architecture that
        can't be untied, and for a scope other than "all".
        """
        if self.scope != "all":
            raise ModelError(
                f"an output matrix serves all positions; it can't hold a change of {self.scope!r} positions"
            )
        output_weight(edited)
        changes = untie(edited.hf)
        if changes:
            edited.anatomy.tied = False
        weight = output_weight(edited)
        with torch.no_grad():
            weight.copy_(shifted_weight(weight, self.vectors, self.alpha))
        return changes

    def describe(self) -> str:
        """One line: how many directions, alpha, where."""
        shown = ", ".join(map(str, self.directions[:5])) + (", ..." if len(self.directions) > 5 else "")
        numbers = f" ({shown})" if self.directions else ""
        positions = "" if self.scope == "all" else f", scope {self.scope}"
        return (
            f"{self.n_units} directions{numbers} of what enters the LM head scaled by {self.alpha:g}{positions}"
            f"{f' ({self.note})' if self.note else ''}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "vectors": packed(self.vectors), "alpha": self.alpha, "directions": list(self.directions),
            "scope": self.scope, "note": self.note,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> EigenShift:
        return cls.of(
            model,
            unpacked(data["vectors"]),
            data["alpha"],
            directions=tuple(data["directions"]),
            scope=data["scope"],
            note=data["note"],
        )


@fits.add("eigenshift")
def eigenshift(
    model: LanguageModel,
    task: Task,
    *,
    label: str,
    positive: str,
    k: int | None = None,
    share: float = 0.25,
    alpha: float = 0.0,
    rank: str = "delta",
    scope: str = "all",
) -> Interventions:
    """Damp the directions of the output matrix that are most active before a concept is written (EigenShift).

    task: prompts, each labelled by what the model goes on to write; states are taken at their last token. label: the key
    of that label. positive: its value for the concept; every other value is the contrast. k: how many directions. share:
    or this share of all directions, the paper's percentile p is share 1 - p. alpha: what they are scaled by, from -2 to
    1; 0 as in the paper's main results, 0.9 is its safe setting. rank: `delta` (largest |delta|), `logit` (largest
    sigma |delta|), or `signed` (the paper's, which depends on arbitrary signs). scope: prompt, generated or all positions.

    InputError for fewer than 10 prompts of a kind. Example: `patchclamp fit eigenshift demo --task generate:manners
    --label tone --positive rude --share 0.1 --out shift.json`.
    """
    values = [item.labels.get(label) for item in task]
    if positive not in values:
        known = ", ".join(task.values(label))
        raise InputError(f"no prompt of {task.name!r} has {label}={positive}; {label} is one of {known}")
    states = end_states(model, [item.prompt for item in task])
    truth = np.array([value == positive for value in values])
    counted = truth | np.array([value is not None for value in values])
    return Interventions(
        [
            shift_between(
                model,
                states[truth],
                states[counted & ~truth],
                k=k,
                share=share,
                alpha=alpha,
                rank=rank,
                scope=scope,
                note=f"{label}={positive}",
            )
        ]
    )


def shift_between(
    model: LanguageModel,
    phi: ArrayLike,
    psi: ArrayLike,
    *,
    k: int | None = None,
    share: float = 0.25,
    alpha: float = 0.0,
    rank: str = "delta",
    scope: str = "all",
    note: str = "",
) -> EigenShift:
    """The EigenShift of two sets of states, (n, d) and (m, d): about to produce the concept, and not.

    k, share, alpha, rank: see `eigenshift`. InputError for fewer than 10 states of a kind, and for values out of range.
    """
    one, zero = checked_states(phi, psi, model.anatomy.d_model)
    sigma, vectors = output_spectrum(model)
    vectors = oriented(vectors, np.concatenate([one, zero]))
    delta = vectors @ (one.mean(0) - zero.mean(0))
    number = how_many(len(sigma), k, share)
    chosen = ranked_directions(delta, sigma, rank=rank)[:number]
    if rank == "signed":
        warn_of_signs()
    return EigenShift.of(model, vectors[chosen], alpha, directions=tuple(chosen.tolist()), scope=scope, note=note)


def shifted_weight(weight: Tensor, vectors: ArrayLike, alpha: float) -> Tensor:
    """W (I - (1 - alpha) V^T V) of a matrix (vocabulary, d) and orthonormal rows V (k, d), in W's dtype.

    Worked out in float64, some rows at a time.
    """
    v = torch.as_tensor(np.asarray(vectors, dtype=np.float64), device=weight.device)
    found = torch.empty_like(weight)
    for part, into in zip(weight.detach().split(4096), found.split(4096), strict=True):
        wide = part.double()
        into.copy_(wide - (1 - alpha) * (wide @ v.T) @ v)
    return found


def ranked_directions(delta: ArrayLike, sigma: ArrayLike, *, rank: str = "delta") -> NDArray[np.int64]:
    """Numbers of the reliable directions, best first: by |delta|, by sigma |delta| ("logit"), or by delta ("signed")."""
    if rank not in RANKS:
        raise InputError(f"rank={rank!r}; choose {', '.join(RANKS)}")
    d, s = np.asarray(delta, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    score = {"delta": np.abs(d), "logit": s * np.abs(d), "signed": d}[rank]
    order = np.argsort(-score, kind="stable")
    return order[(s > RELIABLE * s.max())[order]]


def how_many(d: int, k: int | None, share: float) -> int:
    """k, or the share of d directions rounded up (the paper's ceil(d (1 - percentile))); InputError out of range."""
    if k is None:
        if not 0 < share <= 1:
            raise InputError(f"share={share}; it lies above 0 and at most at 1")
        k = math.ceil(round(d * share, 9))  # 0.1 * 410 is a little more than 41
    if not 1 <= k <= d:
        raise InputError(f"{k} of {d} directions asked for")
    return k


def oriented(vectors: NDArray[np.float64], states: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vectors (d, d), each turned so that its mean over all states is at least 0."""
    return vectors * np.where(states.mean(0) @ vectors.T < 0, -1.0, 1.0)[:, None]


def checked_states(phi: ArrayLike, psi: ArrayLike, d: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sets of states as float64 (n, d); InputError for other shapes, too few states and values that aren't finite."""
    one, zero = np.asarray(phi, dtype=np.float64), np.asarray(psi, dtype=np.float64)
    if one.ndim != 2 or zero.ndim != 2 or not one.shape[1] == zero.shape[1] == d:
        raise InputError(f"states (n, {d}) are needed, not {one.shape} and {zero.shape}")
    if min(len(one), len(zero)) < FEWEST:
        raise InputError(f"{len(one)} and {len(zero)} states given; at least {FEWEST} of each are needed")
    if not (np.isfinite(one).all() and np.isfinite(zero).all()):
        raise InputError("states hold values that are not finite")
    return one, zero


def warn_of_signs() -> None:
    """Say that a choice by signed delta depends on how the vectors are turned."""
    warnings.warn(
        "directions are chosen by signed delta, but the sign of a singular vector is arbitrary (here: its mean over all "
        "states is at least 0); rank='delta' does not depend on it",
        stacklevel=3,
    )


class _Damped:
    """h - (1 - alpha) V^T V h, worked out in float32 at least."""

    def __init__(self, vectors: NDArray[np.float64], alpha: float, scope: str) -> None:
        self.vectors, self.alpha, self.scope = vectors, alpha, scope
        self._ready: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, seen: Seen) -> Tensor:
        if self.alpha == 1:
            return seen.values
        values, step = seen.values, seen.step
        dtype = torch.promote_types(values.dtype, torch.float32)
        key = (values.device, dtype)
        if key not in self._ready:
            self._ready[key] = torch.from_numpy(self.vectors).to(*key)
        v = self._ready[key]
        wide = values.to(dtype)
        new = torch.addmm(wide, wide @ v.T, v, alpha=self.alpha - 1).to(values.dtype)
        if self.scope == "all":
            return new
        rows = step.scope(self.scope, values.device)
        return torch.where((rows if seen.rows is None else rows[seen.rows])[:, None], new, values)

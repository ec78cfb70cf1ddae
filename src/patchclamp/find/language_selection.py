"""From firing probabilities to classes: LAPE and the ternary split, as pure functions on arrays.

Every function takes plain arrays of shape (labels, total), units of all layers in one flat axis, and keeps the order
of the labels out of the arithmetic: permuting labels permutes results, to the last bit.

- `probabilities` counts -> p
- `profile`       p -> entropy and maximum per unit
- `activity_bar`  p -> tau
- `ternary`, `lape`  p -> `Split`: score, selection, membership and class of every unit

Zhang et al. 2025 (arXiv 2505.21505) and Tang et al. 2024 (arXiv 2402.16438).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.language_lambda import LambdaSearch, search_lambda
from patchclamp.find.ranking import lowest

CLASSES = ("specific", "related", "general", "unassigned", "dead")
SPECIFIC, RELATED, GENERAL, UNASSIGNED, DEAD = range(5)

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Profile:
    """What the scores are made of, one value per unit, each (total,) float.

    entropy: of q = p / total, in nats; ln K where p is all zero (q counts as uniform). top: largest p of any label.
    total: sum of p over labels.
    """

    entropy: Floats
    top: Floats
    total: Floats
    n_labels: int

    @property
    def silent(self) -> NDArray[np.bool_]:
        """Never fired for any label."""
        return self.total == 0

    @property
    def evenness(self) -> Floats:
        """Entropy over ln K, in [0, 1]: 0 serves one label, 1 serves all alike."""
        return np.minimum(self.entropy / math.log(self.n_labels), 1.0)


@dataclass(frozen=True, eq=False)
class Split:
    """What a selection says of every unit.

    tau: the activity bar. unit_score: (total,), the smaller the more selective. selected: (total,) bool.
    member: (labels, total) bool, p > tau. n_served: (total,) int, labels above tau (N in the paper).
    classes: (total,) int8, positions in CLASSES; they partition all units. chosen: (labels, total) bool, the method's
    own set of each label. weight: lambda_code / m_K, 0 for LAPE. search: how lambda was found, None if it was given.
    """

    tau: float
    unit_score: Floats
    selected: NDArray[np.bool_]
    member: NDArray[np.bool_]
    n_served: NDArray[np.int64]
    classes: NDArray[np.int8]
    chosen: NDArray[np.bool_]
    weight: float
    search: LambdaSearch | None

    @property
    def counts(self) -> dict[str, int]:
        """Units in each class."""
        return dict(zip(CLASSES, np.bincount(self.classes, minlength=len(CLASSES)).tolist(), strict=True))

    def appear(self, *, selected: bool) -> list[int]:
        """Units that serve 0, 1, ..., K labels; among the selected ones, or among all."""
        served = self.n_served[self.selected] if selected else self.n_served
        return [int(n) for n in np.bincount(served, minlength=len(self.member) + 1)]


def probabilities(counts: NDArray[Any], tokens: NDArray[Any] | Sequence[int]) -> NDArray[np.float64]:
    """Share of tokens at which each unit fired, (labels, total) float64 in [0, 1].

    counts: (labels, total) integers, tokens with activation > threshold. tokens: (labels,), all tokens, at least 1.
    Raises InputError for a single label, for no tokens, and for counts below 0 or above the tokens.
    """
    counts, tokens = np.asarray(counts), np.asarray(tokens)
    if counts.ndim != 2 or tokens.shape != counts.shape[:1]:
        raise InputError(
            f"counts (labels, units) and tokens (labels,) are needed, not {counts.shape} and {tokens.shape}"
        )
    if len(counts) < 2:
        raise InputError("one label given; language neurons are found by comparison, so give at least two")
    if (tokens < 1).any():
        raise InputError(f"label number {int(np.argmin(tokens))} has {int(tokens.min())} tokens; each needs some")
    for number, (row, n) in enumerate(zip(counts, tokens.tolist(), strict=True)):
        if row.size and (row.min() < 0 or row.max() > n):
            worst = int(np.argmax(np.maximum(-row, row - n)))
            raise InputError(
                f"label number {number}, unit {worst}: fired at {row[worst]} of {n} tokens; counts lie in 0-{n}"
            )
    return counts / tokens[:, None].astype(np.float64)


def profile(p: Floats) -> Profile:
    """Entropy and maximum of every unit. p: (labels, total), any float type, labels >= 2."""
    ordered = np.sort(np.ascontiguousarray(p.T), axis=1)  # (total, labels); sums then don't depend on the labels' order
    total = ordered.sum(axis=1)
    silent = total == 0
    q = ordered / np.where(silent, 1, total)[:, None].astype(p.dtype)
    logs = np.log(q, out=np.zeros_like(q), where=q > 0)  # 0 ln 0 = 0
    entropy = -(q * logs).sum(axis=1)
    entropy[silent] = math.log(len(p))
    return Profile(np.abs(entropy), ordered[:, -1].copy(), total, len(p))


def activity_bar(p: Floats, bar: float) -> float:
    """Tau: the k-th smallest of all probabilities, k = round(bar * p.size), no interpolation; serving needs p > tau."""
    if not 0 < bar < 1:
        raise InputError(f"bar={bar} given; it is the share of probabilities below the activity bar, between 0 and 1")
    k = min(max(round(bar * p.size), 1), p.size)
    return float(np.partition(p, k - 1, axis=None)[k - 1])


def n_selected(rate: float, total: int) -> int:
    """How many units a rate selects: round(rate * total). InputError outside (0, 1] or if that is none."""
    if not 0 < rate <= 1:
        raise InputError(f"rate={rate} given; it is the share of units to select, above 0 and at most 1")
    r = round(rate * total)
    if r < 1:
        raise InputError(f"rate={rate} of {total} units selects none; give a rate of at least {1 / max(total, 1):.2g}")
    return r


def effectiveness_norm(n_labels: int) -> float:
    """m_K = (1/K) sum 1/i for i = 1..K; 0.2928968 for K = 10. The code form of lambda is divided by it."""
    return sum(1 / i for i in range(1, n_labels + 1)) / n_labels


def paper_lambda(code: float, n_labels: int) -> float:
    """Lambda of Eq. 5 (H in nats - lambda max p) that ranks as the code form does: code * ln K / m_K."""
    return code * math.log(n_labels) / effectiveness_norm(n_labels)


def code_lambda(paper: float, n_labels: int) -> float:
    """Inverse of `paper_lambda`."""
    return paper * effectiveness_norm(n_labels) / math.log(n_labels)


def paper_score(found: Profile, lam: float) -> Floats:
    """Eq. 5: H(q) - lambda max_k p_k, H in nats, lambda in paper form."""
    return found.entropy - lam * found.top


def code_score(found: Profile, lam: float) -> Floats:
    """H / ln K - (lambda / m_K) max_k p_k, lambda in code form; ranks as `paper_score` of the converted lambda."""
    return found.evenness - (lam / effectiveness_norm(found.n_labels)) * found.top


def label_scores(p: Floats, found: Profile, weight: float) -> NDArray[np.float64]:
    """How strongly each unit speaks for each label, (labels, total) float64, at least 0, larger is more.

    q_k * (1 - s): the label's share of the unit's firing times the unit's selectivity, with s the code score at
    weight = lambda_code / m_K. The papers score units only; this share says for which label. 0 for a silent unit.
    """
    strength = (1 - (found.evenness - weight * found.top)) / np.where(found.silent, 1, found.total)
    return np.asarray(p * strength, dtype=np.float64)


def ternary(p: Floats, *, rate: float = 0.01, bar: float = 0.95, lam: float | None = None, exact: bool = True) -> Split:
    """Specific, related, general, unassigned or dead for every unit (Zhang et al. 2025, steps 9-13).

    Selected are the round(rate * total) units of lowest code score (smaller flat index first on ties). A selected unit
    above tau for one label is specific, for several but not all related. A unit above tau for all labels is general,
    selected or not. Dead never fires. The rest is unassigned: selected units above tau for none, and units that were
    not selected and don't serve all labels. lam: in code form; None searches the largest one for which no selected
    unit is general (see `search_lambda`). exact: also compute where the first failure lies.
    """
    r = n_selected(rate, p.shape[1])
    found, tau, norm = profile(p), activity_bar(p, bar), effectiveness_norm(len(p))
    member = p > tau
    served = member.sum(axis=0)
    search = None
    if lam is None:
        general, idle = served == len(p), served == 0
        search = search_lambda(found.evenness, found.top, general, r, norm=norm, idle=idle, exact=exact)
        lam = search.lam
    elif not (math.isfinite(lam) and lam >= 0):
        raise InputError(f"lam={lam} given; it is a number of at least 0, or None to search it")
    score = code_score(found, lam)
    selected = np.zeros(p.shape[1], dtype=bool)
    selected[lowest(score, r)] = True
    classes = _classes(selected, served, found.silent, len(p))
    chosen = member & ((classes == SPECIFIC) | (classes == RELATED))
    return Split(tau, score, selected, member, served, classes, chosen, lam / norm, search)


def lape(p: Floats, *, rate: float = 0.01, bar: float = 0.95) -> Split:
    """Language activation probability entropy (Tang et al. 2024, steps 4-8).

    Selected are the round(rate * total) units of lowest entropy (nats) among those above tau for at least one label;
    the others score +inf. Fewer are selected if fewer qualify. Every label above tau has the selected unit in its
    set, however many they are. Classes are those of the ternary split for this selection.
    """
    r = n_selected(rate, p.shape[1])
    found, tau = profile(p), activity_bar(p, bar)
    member = p > tau
    served = member.sum(axis=0)
    score = np.where(served > 0, found.entropy, np.inf)
    selected = np.zeros(p.shape[1], dtype=bool)
    selected[lowest(score, min(r, int((served > 0).sum())))] = True
    classes = _classes(selected, served, found.silent, len(p))
    return Split(tau, score, selected, member, served, classes, member & selected, 0.0, None)


def near_bar(p: Floats, tokens: NDArray[Any] | Sequence[int], tau: float, *, errors: float = 2.0) -> NDArray[np.bool_]:
    """Where p lies within `errors` binomial standard errors, sqrt(p (1 - p) / n), of tau; (labels, total) bool.

    There another sample of text could change whether the unit serves the label. Tokens of one document depend on each
    other, so the true error is larger and this list is, if anything, too short.
    """
    n = np.asarray(tokens, dtype=np.float64)[:, None]
    return np.asarray((p - tau) ** 2 <= errors**2 * p * (1 - p) / n)


def _classes(
    selected: NDArray[np.bool_], served: NDArray[np.int64], silent: NDArray[np.bool_], n_labels: int
) -> NDArray[np.int8]:
    classes = np.full(len(served), UNASSIGNED, dtype=np.int8)
    classes[selected & (served == 1)] = SPECIFIC
    classes[selected & (served > 1)] = RELATED
    classes[served == n_labels] = GENERAL
    classes[silent] = DEAD
    return classes

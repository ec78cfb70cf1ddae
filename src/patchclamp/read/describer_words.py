"""A describer that needs no language model: the predicate of tokens (or tagged patches) that best tells what fires.

MILAN's formula with an executable description. log p(d | E) is the likelihood of the marks in the top exemplars if every part
that fits the description fires and no other does, but for noise (a Bernoulli error rate); log p(d) is how often the
description fits in random passages, times 2 per term. (The original's describer is a neural captioner of images.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from patchclamp.core.errors import InputError
from patchclamp.read.descriptions import describers
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
from patchclamp.read.predicates import NOTHING, Atom, Predicate, PredicateIndex, holds, parse, worded

_PARTNERS = 200  # atoms that others are joined with


@describers.add("words")
class Words:
    """Words, n-grams, word classes, scripts, languages and tags; joined with "or" and "and" where the marks ask for it."""

    def __init__(self, store: ExemplarStore, *, noise: float = 0.05, beam: int = 50, terms: int = 3) -> None:
        """noise: chance that a part's mark is against the description. terms: atoms in a description, at most."""
        if not 0 < noise < 0.5:
            raise InputError(f"noise={noise}; it lies between 0 and 0.5")
        if beam < 1 or terms < 1:
            raise InputError(f"beam={beam}, terms={terms}; both are at least 1")
        self.noise, self.beam, self.terms = noise, beam, terms
        self._probe = PredicateIndex(store.probe)
        self._searched: WeakKeyDictionary[Exemplars, _Search] = WeakKeyDictionary()

    def candidates(self, exemplars: Exemplars) -> list[str]:
        return [worded(predicate) for predicate in self._search(exemplars).best]

    def log_probability(self, descriptions: Sequence[str], exemplars: Exemplars) -> NDArray[np.float64]:
        """Normalised over everything that the search of these exemplars looked at, "nothing in particular" included."""
        return self._likelihoods(descriptions, exemplars) - self._search(exemplars).normaliser

    def log_prior(self, descriptions: Sequence[str]) -> NDArray[np.float64]:
        predicates = [predicate_of(text) for text in descriptions]
        hits = self._probe.fits(predicates).sum(1)
        rates = np.where([bool(one) for one in predicates], (hits + 0.5) / (self._probe.n_parts + 1), 1.0)
        n_terms = np.array([max(1, sum(map(len, one))) for one in predicates], dtype=np.int64)
        return np.asarray(np.log(rates) - (n_terms - 1) * np.log(2))

    def predict(self, description: str, exemplar: Exemplar) -> NDArray[np.float64]:
        return holds(predicate_of(description), exemplar).astype(np.float64)

    def margin(self, description: str, exemplars: Exemplars) -> float:
        """Log-likelihood ratio to "nothing in particular", less log(atoms that were tried) per term."""
        ratio, null = self._likelihoods([description, NOTHING], exemplars)
        n_terms = max(1, sum(len(every) for every in predicate_of(description)))
        return float(ratio - null - n_terms * np.log(max(2, self._search(exemplars).tried)))

    def _likelihoods(self, descriptions: Sequence[str], exemplars: Exemplars) -> NDArray[np.float64]:
        marks = marks_of(exemplars)
        wrong = (self._search(exemplars).index.fits([predicate_of(text) for text in descriptions]) != marks).sum(1)
        return likelihood(wrong, len(marks), self.noise)

    def _search(self, exemplars: Exemplars) -> _Search:
        if exemplars not in self._searched:
            self._searched[exemplars] = search(exemplars, noise=self.noise, beam=self.beam, terms=self.terms)
        return self._searched[exemplars]


@dataclass(frozen=True)
class _Search:
    """best: predicates, likeliest first. normaliser: log of the summed likelihoods. tried: atoms looked at. index: of the top
    exemplars."""

    best: tuple[Predicate, ...]
    normaliser: float
    tried: int
    index: PredicateIndex


def search(exemplars: Exemplars, *, noise: float, beam: int, terms: int) -> _Search:
    """Beam search over predicates by the likelihood of the marks.

    A term is added only if it raises the log-likelihood by more than log(atoms tried), the price of choosing it, and if no
    shorter predicate holds of the same parts.
    """
    marks, index = marks_of(exemplars), PredicateIndex(exemplars.top)
    n, null = len(marks), float(likelihood(marks.sum(keepdims=True), len(marks), noise)[0])
    fits = index.fits([((atom,),) for atom in index.atoms])
    marked = np.flatnonzero(fits[:, marks].sum(1))
    atoms, fits = [index.atoms[at] for at in marked.tolist()], fits[marked]
    if not atoms:
        return _Search((), null, 0, index)
    scores = likelihood((fits != marks).sum(1), n, noise)
    order = np.argsort(-scores, kind="stable")  # equal likelihood: by name, so that runs agree
    price = np.log(max(2, len(atoms)))
    known: dict[Predicate, float] = {((atoms[at],),): float(scores[at]) for at in order.tolist()}
    partners, columns = [atoms[at] for at in order[:_PARTNERS].tolist()], fits[order[:_PARTNERS]]
    frontier = list(known)[:beam]
    seen = {row.tobytes() for row in fits}
    for _ in range(terms - 1):
        grown: dict[Predicate, float] = {}
        either, both = _wrong(index.fits(frontier), columns, marks)
        for row, predicate in enumerate(frontier):
            bar = max(known[predicate] + price, null)  # both at once may hold nowhere, which is the null
            for wrong, join in ((either, _or), (both, _and)):
                value = likelihood(wrong[row], n, noise)
                for at in np.flatnonzero(value > bar).tolist():
                    joined = join(predicate, partners[at])
                    if joined is not None:
                        grown.setdefault(joined, float(value[at]))
        frontier = _new(grown, index, seen, beam)
        if not frontier:
            break
        known |= {predicate: grown[predicate] for predicate in frontier}
    best = sorted(known, key=lambda one: -known[one])[:beam]
    return _Search(tuple(best), float(logsumexp([*known.values(), null])), len(atoms), index)


def _new(grown: Mapping[Predicate, float], index: PredicateIndex, seen: set[bytes], beam: int) -> list[Predicate]:
    """The likeliest `beam` predicates that hold elsewhere than all before them: what fewer terms can say is said with fewer."""
    found = []
    for predicate in sorted(grown, key=lambda one: -grown[one]):
        mark = index.fits([predicate])[0].tobytes()
        if mark not in seen:
            seen.add(mark)
            found.append(predicate)
        if len(found) == beam:
            break
    return found


def likelihood(wrong: NDArray[Any], n_parts: int, noise: float) -> NDArray[np.float64]:
    """(n,) log-likelihood of the marks of n_parts parts, so many of which a description gets wrong."""
    return np.asarray(wrong * np.log(noise) + (n_parts - wrong) * np.log1p(-noise), dtype=np.float64)


def marks_of(exemplars: Exemplars) -> NDArray[np.bool_]:
    """(n_parts of all top exemplars,) bool: which fire."""
    return np.concatenate([np.zeros(0, dtype=bool), *exemplars.masks()])


def predicate_of(text: str) -> Predicate:
    """The predicate of a text; InputError for free text."""
    found = parse(text)
    if found is None:
        raise InputError(
            f'{text!r} can\'t be checked by machine; write texts such as the word "river" or words ending in "ing", '
            'joined with " or " and " and "'
        )
    return found


def _wrong(
    own: NDArray[np.bool_], columns: NDArray[np.bool_], marks: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(n_own, n_columns) how many marks own-or-column and own-and-column get wrong.

    A fit on a marked part takes one error away, a fit elsewhere adds one; so the counts are sums of weights, and those of
    the overlap are one matrix product.
    """
    weight = np.where(marks, -1.0, 1.0).astype(np.float32)
    left, right = own.astype(np.float32), columns.astype(np.float32)
    both = (left * weight) @ right.T
    either = (left @ weight)[:, None] + (right @ weight)[None] - both
    n_marks = np.float32(marks.sum())
    return n_marks + either, n_marks + both


def _or(predicate: Predicate, atom: Atom) -> Predicate | None:
    return None if (atom,) in predicate else tuple(sorted({*predicate, (atom,)}))


def _and(predicate: Predicate, atom: Atom) -> Predicate | None:
    """Only a predicate of one alternative is narrowed down."""
    if len(predicate) > 1 or atom in predicate[0]:
        return None
    return (tuple(sorted({*predicate[0], atom})),)

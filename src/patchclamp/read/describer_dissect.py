"""A describer for tagged text (or segmented images): the concept whose labels go best with a unit's values.

The analogue of CLIP-Dissect (Oikarinen & Weng 2023, arXiv 2204.10965): there CLIP says how well each concept fits each image;
here tags, word classes, scripts, languages and frequent words of the text say which parts carry it. Each concept is a
vector of labels over the probe, each unit a vector of values over the same parts, matched by soft weighted pointwise mutual
information: log p(d | E) = sum over the unit's highest parts x_j of log(1 + p_j (p(d | x_j) - 1)), where the weight p_j falls
with rank, minus lambda times the log-mean of the same over all units and random ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from patchclamp.core.errors import InputError
from patchclamp.read.describer_words import predicate_of
from patchclamp.read.descriptions import describers
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
from patchclamp.read.predicates import Atom, PredicateIndex, atom_text, holds

_FIRST, _LAST = 0.998, 0.97  # weights p_j of the highest part and of the last one that counts: the paper's
_KINDS = ("tag", "class", "script", "language", "label", "word")
_UNITS = 500  # units that the prior is averaged over, at most


@describers.add("dissect")
class Dissect:
    """Concepts of tagged text matched with activation vectors; names concepts, never combinations."""

    def __init__(
        self,
        store: ExemplarStore,
        *,
        parts: int = 100,
        noise: float = 0.05,
        least: int = 3,
        kinds: Sequence[str] = _KINDS,
        random: int = 50,
        beam: int = 50,
        seed: int = 0,
    ) -> None:
        """parts: of the probe, a unit's highest, that are matched. noise: p(d | x) of a part without the concept, and 1 - noise
        with it. least: parts that must carry a concept. kinds: of concepts. random: random units in the prior."""
        if unknown := [kind for kind in kinds if kind not in _KINDS]:
            raise InputError(f"concepts of the kind {unknown[0]!r} asked for; there are {', '.join(_KINDS)}")
        if parts < 1 or not 0 < noise < 0.5:
            raise InputError(f"parts={parts}, noise={noise}; at least 1, and between 0 and 0.5")
        self._index, self.noise, self.beam = PredicateIndex(store.probe), noise, beam
        self.concepts: list[Atom] = [
            atom
            for atom in self._index.atoms
            if atom[0] in kinds and least <= self._index.count(atom) < self._index.n_parts
        ]
        if not self.concepts:
            raise InputError(f"the probe has no concept that {least} parts carry; give more text or tag it")
        self.parts = min(parts, max(1, self._index.n_parts // 2))
        rng = np.random.default_rng(seed)
        units = list(store)
        chosen = [units[at] for at in np.sort(rng.permutation(len(units))[:_UNITS]).tolist()]
        rows = [self._highest(store[unit].probe) for unit in chosen]
        rows += [rng.permutation(self._index.n_parts)[: self.parts] for _ in range(random)]
        self._others = np.stack(rows)  # (units, parts)

    def candidates(self, exemplars: Exemplars) -> list[str]:
        texts = [atom_text(atom) for atom in self.concepts]
        score = self.log_probability(texts, exemplars)
        return [texts[at] for at in np.argsort(-score, kind="stable")[: self.beam].tolist()]

    def log_probability(self, descriptions: Sequence[str], exemplars: Exemplars) -> NDArray[np.float64]:
        return self._soft(descriptions, self._highest(exemplars.probe)[None])[:, 0]

    def log_prior(self, descriptions: Sequence[str]) -> NDArray[np.float64]:
        found = self._soft(descriptions, self._others)
        return np.asarray(logsumexp(found, axis=1) - np.log(found.shape[1]))

    def predict(self, description: str, exemplar: Exemplar) -> NDArray[np.float64]:
        return holds(predicate_of(description), exemplar).astype(np.float64)

    def margin(self, description: str, exemplars: Exemplars) -> float:
        """How much likelier than for a part set drawn at random (the base rate of the concept), less log(concepts tried)."""
        fits = self._index.fits([predicate_of(description)])[0]
        base = np.full(self.parts, self.noise + (1 - 2 * self.noise) * fits.mean())
        own = float(self.log_probability([description], exemplars)[0])
        return own - float(np.log1p(self._weights() * (base - 1)).sum()) - float(np.log(max(2, len(self.concepts))))

    def _soft(self, descriptions: Sequence[str], highest: NDArray[np.int64]) -> NDArray[np.float64]:
        """(descriptions, units) log p(d | E) from the highest parts of each unit, (units, parts)."""
        fits = self._index.fits([predicate_of(text) for text in descriptions])
        weights = self._weights()
        carried, absent = (np.log1p(weights * (value - 1)) for value in (1 - self.noise, self.noise))
        found = np.empty((len(descriptions), len(highest)))
        for row, own in enumerate(fits):
            found[row] = np.where(own[highest], carried, absent).sum(1)
        return found

    def _weights(self) -> NDArray[np.float64]:
        return np.linspace(_FIRST, _LAST, self.parts)

    def _highest(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.argsort(-values, kind="stable")[: self.parts]

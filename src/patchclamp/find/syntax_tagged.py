"""What every unit did on the streams of one language: amplitudes, effect sizes, p-values, profiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchclamp.find import syntax_select as choose
from patchclamp.find.syntax_spectra import Chance, Rate
from patchclamp.find.syntax_streams import Sentences


@dataclass(frozen=True)
class Tagged:
    """What every unit of a model did on the streams of one language; arrays over n units in the flat order of the site.

    rates: the sentence rate, then the phrase rates. amplitude: (2, rates, groups, n), experiment and control. effect: (2, n):
    SI and PI, mean amplitude of the experiment's groups less the control's (PI: largest over phrase rates, at least 0).
    chance: step A over time, (rates, n). p_groups: (2, n) paired test over groups. p_words: (2, n) shuffling word forms over
    places. profile: (2, U, n) mean at each place in the sentence. series: (2, T, n) mean over streams.
    """

    sentences: Sentences
    rates: tuple[Rate, ...]
    amplitude: NDArray[np.float64]
    effect: NDArray[np.float64]
    chance: Chance
    p_groups: NDArray[np.float64]
    p_words: NDArray[np.float64]
    profile: NDArray[np.float64]
    series: NDArray[np.float32]
    overlapping: float

    @property
    def si(self) -> NDArray[np.float64]:
        """(n,) effect size at the sentence rate."""
        return np.asarray(self.effect[0])

    @property
    def pi(self) -> NDArray[np.float64]:
        """(n,) effect size at the phrase rate."""
        return np.asarray(self.effect[1])

    @property
    def passed(self) -> NDArray[np.bool_]:
        """(2, n) step A: above the 95th percentile of chance at the sentence rate; at any phrase rate."""
        return np.stack([self.chance.passed[0], self.chance.passed[1:].any(axis=0)])

    def p(self, over: str = "words") -> NDArray[np.float64]:
        """(2, n) p-values of the absolute test; "words" asks for more than "groups": both must hold."""
        return np.maximum(self.p_groups, self.p_words) if over == "words" else self.p_groups

    def choose(
        self, method: str = "fdr", *, over: str = "words", q: float = 0.05, bar: float = 2.0
    ) -> NDArray[np.bool_]:
        """(3, n): sentence only, phrase only, shared."""
        if method == "reference":
            return choose.disjoint(choose.relative(self.effect, self.passed, bar))
        return choose.disjoint(choose.absolute(self.effect, self.p(over), q))

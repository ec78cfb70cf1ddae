"""The numbers behind the rows of effects: one text or task, its items' sums plain, under every set, under every control."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.effect_runs import PLAIN, run_key
from patchclamp.measure.likelihood import Documents
from patchclamp.measure.measurement import metric_value
from patchclamp.measure.permutation import rank_p, sign_flip
from patchclamp.measure.task_scores import TaskScores


@dataclass(frozen=True, eq=False)
class EffectSums:
    """Totals per item; a metric's value is a function of the sum of totals over the sum of weights.

    items: (n,) int64, numbers of the documents or items. tokens: (n,) scored tokens. weights: (n,) what totals are divided
    by: the tokens of a document, 1 for an item of a task. plain: (n,) float64; sets: name -> (n,); controls: name ->
    (n_controls, n).
    """

    metric: str
    items: NDArray[np.int64]
    tokens: NDArray[np.int64]
    weights: NDArray[np.int64]
    plain: NDArray[np.float64]
    sets: dict[str, NDArray[np.float64]]
    controls: dict[str, NDArray[np.float64]]

    @classmethod
    def of_text(cls, scored: Documents, controls: Mapping[str, int]) -> EffectSums:
        """Documents with a scored token, of one label. controls: set -> how many controls were run."""
        kept = np.flatnonzero(scored.tokens)
        totals = {key: sums[kept] for key, sums in scored.totals.items()}
        tokens = scored.tokens[kept]
        return cls("perplexity", kept, tokens, tokens, *_by_set(totals, controls))

    @classmethod
    def of_task(cls, metric: str, scored: TaskScores, controls: Mapping[str, int]) -> EffectSums:
        """All items of a task."""
        n = len(scored.tokens)
        ones = np.ones(n, dtype=np.int64)
        return cls(metric, np.arange(n), scored.tokens, ones, *_by_set(scored.values, controls))

    @property
    def n(self) -> int:
        return len(self.items)

    def row(self, name: str, permutations: int, resamples: int, seed: int) -> dict[str, Any]:
        """The numbers of one set; None where something can't be known."""
        clamped, others = self.sets[name], self.controls[name]
        plain_value, value = self._value(self.plain), self._value(clamped)
        low, high = self._interval(clamped, resamples, seed)
        effects = self.control_effects(name)
        expected = (others - self.plain).mean(0) if len(others) else np.zeros(self.n)
        return {
            "metric": self.metric,
            "plain": plain_value,
            "clamped": value,
            "effect": value - plain_value,
            "low": low,
            "high": high,
            "control_mean": float(effects.mean()) if len(effects) else None,
            "control_sd": float(effects.std(ddof=1)) if len(effects) > 1 else None,
            "p": sign_flip(clamped - self.plain - expected, permutations=permutations, seed=seed),
            "p_holm": None,
            "p_controls": rank_p(value - plain_value, effects),
            "n_documents": self.n,
            "n_tokens": int(self.tokens.sum()),
        }

    def control_effects(self, name: str) -> NDArray[np.float64]:
        """Effect of each control, (n_controls,)."""
        return np.array([self._value(sums) - self._value(self.plain) for sums in self.controls[name]])

    def to_dict(self) -> dict[str, Any]:
        """Per-item sums and the effects of all controls, as plain data."""
        return {
            "documents": self.items.tolist(),
            "tokens": self.tokens.tolist(),
            PLAIN: self.plain.tolist(),
            "clamped": {name: sums.tolist() for name, sums in self.sets.items()},
            "control_effects": {name: self.control_effects(name).tolist() for name in self.controls},
        }

    def _value(self, sums: NDArray[np.float64]) -> float:
        mean = float(sums.sum() / self.weights.sum())
        if self.metric != "perplexity":
            return mean
        return math.exp(mean) if mean < 709 else math.inf  # exp of more overflows a float64

    def _interval(self, clamped: NDArray[np.float64], resamples: int, seed: int) -> tuple[float | None, float | None]:
        if self.n < 2:
            return None, None
        sums = resampled_sums(np.stack([clamped, self.plain, self.weights], 1), resamples=resamples, seed=seed)
        after, before = sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]
        low, high = percentile_interval(metric_value(self.metric, after) - metric_value(self.metric, before))
        return low, high


def _by_set(
    totals: Mapping[str, NDArray[np.float64]], controls: Mapping[str, int]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Plain totals, set -> totals, set -> totals of its controls; a set that was not run (an empty one) did nothing."""
    plain = totals[PLAIN]
    sets, others = {}, {}
    for name, number in controls.items():
        sets[name] = totals.get(run_key(name, 0), plain)
        kept = [totals[run_key(name, i)] for i in range(1, number + 1)]
        others[name] = np.stack(kept) if kept else np.zeros((0, len(plain)))
    return plain, sets, others

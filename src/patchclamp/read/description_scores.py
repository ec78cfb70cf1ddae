"""How good descriptions are on passages that they were not made from: detection, simulation, and the same when shuffled.

Detection: does the description tell which held-out passages, and which of their parts, fire (balanced accuracy, AUROC)?
Simulation: do the values that it predicts for the parts go up and down with the real ones (Pearson and Spearman correlation;
Bills et al. 2023)? Controls: the descriptions of other units on the same passages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from patchclamp.core.errors import InputError
from patchclamp.core.files import write_json
from patchclamp.read.descriptions import Describer, Descriptions
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore

METRICS = ("balanced_accuracy", "auroc", "part_balanced_accuracy", "part_auroc", "pearson", "spearman")
CHANCE = {"balanced_accuracy": 0.5, "auroc": 0.5, "part_balanced_accuracy": 0.5, "part_auroc": 0.5, "pearson": 0.0,
          "spearman": 0.0}  # fmt: skip


@dataclass(frozen=True, eq=False)
class DescriptionScores:
    """Scores of descriptions on held-out exemplars, and of other units' descriptions in their place.

    rows: one per unit: the metrics, "control_METRIC" (mean over the shuffled descriptions) and "p_METRIC" (rank of the own one
    among them; its smallest value is 1 / (controls + 1)). overall: metric -> {"mean", "control", "gain", "p", "n", "low",
    "high"}: mean over units that have both, the gain with its 95 % bootstrap interval, and a sign-flip p-value of the gain.
    """

    rows: list[dict[str, Any]]
    overall: dict[str, dict[str, float | None]]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "overall": self.overall, "parameters": dict(self.parameters)}

    def save(self, path: Any) -> Any:
        """Write plain JSON."""
        return write_json(path, self.to_dict())

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name} {entry['mean']:.2f} (shuffled {entry['control']:.2f})"
            for name, entry in self.overall.items()
            if entry["mean"] is not None and entry["control"] is not None
        )
        return f"DescriptionScores({len(self.rows)} units: {shown or 'nothing could be scored'})"


def score_descriptions(
    store: ExemplarStore,
    descriptions: Descriptions | Mapping[str, str],
    describer: Describer,
    *,
    controls: int = 20,
    permutations: int = 9999,
    only_explained: bool = False,
    seed: int = 0,
) -> DescriptionScores:
    """Score descriptions on the held-out exemplars of their units, against descriptions of other units.

    descriptions: of units of the store; of a mapping unit -> any text that the describer can predict with. controls: so many
    other descriptions (never the same text) are tried on each unit. only_explained: leave out those that tell no more than
    nothing does. permutations: sign flips for the p-value over units.
    """
    if controls < 0 or permutations < 1:
        raise InputError(f"controls={controls}, permutations={permutations}; at least 0 and 1")
    texts = texts_of(descriptions, only_explained=only_explained)
    if absent := [unit for unit in texts if unit not in store]:
        raise InputError(f"{absent[0]} is described but has no exemplars in the store")
    rng = np.random.default_rng(seed)
    rows = []
    for unit, text in texts.items():
        shown = store[unit]
        others = [other for name, other in texts.items() if name != unit and other != text]
        drawn = [others[at] for at in rng.permutation(len(others))[:controls].tolist()]
        own = score_description(describer, text, shown)
        shuffled = [score_description(describer, other, shown) for other in drawn]
        rows.append({"unit": unit, "description": text, **own, **_against(own, shuffled)})
    parameters = {"controls": controls, "permutations": permutations, "only_explained": only_explained, "seed": seed}
    return DescriptionScores(rows, _overall(rows, permutations, rng), parameters)


def score_description(describer: Describer, text: str, shown: Exemplars) -> dict[str, float | None]:
    """All metrics of one text on one unit's held-out exemplars; None where a metric is undefined.

    A passage fires if a part is above the bar; it is called firing if a part's prediction is above one half, and ranked by its
    mean prediction. Undefined: all passages (parts) fire or none does; for correlations also constant values. A constant
    prediction has balanced accuracy and AUROC 0.5 and correlations 0.
    """
    passages = shown.held_out
    predicted = [np.asarray(describer.predict(text, one), dtype=np.float64) for one in passages]
    return metrics_of(predicted, passages, shown.bar)


def metrics_of(
    predicted: Sequence[NDArray[np.float64]], passages: Sequence[Exemplar], bar: float
) -> dict[str, float | None]:
    """The same from predictions, (n_parts,) for every passage."""
    if not passages:
        return dict.fromkeys(METRICS)
    for guess, one in zip(predicted, passages, strict=True):
        if guess.shape != one.values.shape or not np.isfinite(guess).all():
            raise InputError(
                f"a prediction of shape {guess.shape} for {one.values.shape} parts; finite numbers are needed"
            )
    fires = np.array([bool(one.mask(bar).any()) for one in passages])
    high = np.array([guess.max() > 0.5 for guess in predicted])
    mean = np.array([guess.mean() for guess in predicted])
    parts = np.concatenate([one.mask(bar) for one in passages])
    guess, values = np.concatenate(predicted), np.concatenate([one.values for one in passages]).astype(np.float64)
    return {
        "balanced_accuracy": balanced_accuracy(high, fires),
        "auroc": auroc(mean, fires),
        "part_balanced_accuracy": balanced_accuracy(guess > 0.5, parts),
        "part_auroc": auroc(guess, parts),
        "pearson": correlation(guess, values),
        "spearman": correlation(rankdata(guess), rankdata(values)),
    }


def balanced_accuracy(guess: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float | None:
    """Mean of the shares of positives and of negatives that are told right; None without one of either."""
    if truth.all() or not truth.any():
        return None
    return float((guess[truth].mean() + (~guess[~truth]).mean()) / 2)


def auroc(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """Probability that a positive scores above a negative, ties counting half; None without one of either."""
    n_positive, n = int(truth.sum()), len(truth)
    if n_positive in (0, n):
        return None
    ranks = rankdata(score)
    return float((ranks[truth].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * (n - n_positive)))


def correlation(guess: NDArray[np.float64], values: NDArray[np.float64]) -> float | None:
    """Pearson's correlation; 0 for a constant guess, None for constant values."""
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    if np.ptp(guess) == 0:
        return 0.0
    return float(np.corrcoef(guess, values)[0, 1])


def texts_of(descriptions: Descriptions | Mapping[str, Any], *, only_explained: bool = False) -> dict[str, str]:
    """Unit -> text."""
    found = {}
    for unit in descriptions:
        one = descriptions[unit]
        if isinstance(one, str):
            found[str(unit)] = one
        elif one.explains or not only_explained:
            found[str(unit)] = one.text
    return found


def _against(
    own: Mapping[str, float | None], shuffled: Sequence[Mapping[str, float | None]]
) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in METRICS:
        others = [value for each in shuffled if (value := each[name]) is not None]
        mine = own[name]
        known = mine is not None and bool(others)
        found[f"control_{name}"] = float(np.mean(others)) if known else None
        beaten = sum(other >= mine for other in others) if mine is not None else 0
        found[f"p_{name}"] = (1 + beaten) / (1 + len(others)) if known else None
    return found


def _overall(
    rows: Sequence[Mapping[str, Any]], permutations: int, rng: np.random.Generator
) -> dict[str, dict[str, float | None]]:
    found = {}
    for name in METRICS:
        pairs = [(row[name], row[f"control_{name}"]) for row in rows if row[f"control_{name}"] is not None]
        if not pairs:
            found[name] = dict.fromkeys(("mean", "control", "gain", "p", "low", "high")) | {"n": 0}
            continue
        own, control = np.array(pairs, dtype=np.float64).T
        gain = own - control
        drawn = gain[rng.integers(0, len(gain), (1000, len(gain)))].mean(1)
        found[name] = {
            "mean": float(own.mean()), "control": float(control.mean()), "gain": float(gain.mean()),
            "p": sign_flip(gain, permutations, rng), "low": float(np.quantile(drawn, 0.025)),
            "high": float(np.quantile(drawn, 0.975)), "n": len(gain),
        }  # fmt: skip
    return found


def sign_flip(gains: NDArray[np.float64], permutations: int, rng: np.random.Generator) -> float:
    """One-sided p-value of a mean gain above 0: share of random sign flips whose mean is at least as high, (k + 1) / (n + 1)."""
    mean = gains.mean()
    reached = 0
    for start in range(0, permutations, 1024):
        signs = rng.choice([-1.0, 1.0], (min(1024, permutations - start), len(gains)))
        reached += int(((signs * gains).mean(1) >= mean - 1e-12).sum())
    return (reached + 1) / (permutations + 1)

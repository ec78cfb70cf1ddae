"""Measurements: per-item results with value, interval and n; two of the same items subtract into a difference.

A measurement keeps a total and a weight per item (for perplexity: summed negative log-likelihood and number of scored
tokens of each document). Its value is a function of the weighted mean: exp for perplexity, the mean itself otherwise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.core.files import read_json, write_json
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.permutation import sign_flip
from patchclamp.measure.tables import html_table, rich_table, text_table

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "patchclamp.measurements/1"
COLUMNS = ("text", "metric", "value", "low", "high", "chance", "n_documents", "n_tokens")


def metric_value(metric: str, mean: Any) -> Any:
    """A metric from the weighted mean of its items (number or array): exp for perplexity, the mean otherwise."""
    with np.errstate(over="ignore"):
        return np.exp(mean) if metric == "perplexity" else mean


@dataclass(frozen=True, eq=False)
class Measurement:
    """Results of one metric on the items of one label: documents of a text, or items of a task.

    totals: (n_items,) float64, summed over the item's tokens. weights: (n_items,) int64, scored tokens (0: not scored);
    1 for every item of a task. text: fingerprint of the corpus or task, so that only measurements of the same items
    subtract. scored: (n_items,) int64 scored tokens where they are not the weights. items: what happened to each item
    (prompt, labels, value, what the model chose or wrote), as plain data.
    """

    metric: str
    label: str
    totals: NDArray[np.float64]
    weights: NDArray[np.int64]
    text: str = ""
    scored: NDArray[np.int64] | None = None
    items: tuple[dict[str, Any], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Items with at least one scored token."""
        return int(np.count_nonzero(self.weights))

    @property
    def n_tokens(self) -> int:
        """Scored tokens of all items."""
        return int((self.weights if self.scored is None else self.scored).sum())

    @property
    def value(self) -> float:
        """Weighted value over all items; NaN if nothing was scored."""
        weight = self.weights.sum()
        return float(metric_value(self.metric, self.totals.sum() / weight)) if weight else math.nan

    @property
    def chance(self) -> float | None:
        """What guessing among the choices reaches; None for metrics without choices."""
        known = [item["chance"] for item in self.items if "chance" in item]
        return float(np.mean(known)) if known else None

    def by(self, key: str) -> Measurements:
        """The same results by the value of an item label; items without it are left out.

        InputError for a label that no item has, and for measurements of text.
        """
        values = sorted({item["labels"][key] for item in self.items if key in item.get("labels", {})})
        if not values:
            known = dict.fromkeys(name for item in self.items for name in item.get("labels", {}))
            raise InputError(
                f"no item of {self.label!r} has the label {key!r}; labels are {', '.join(known) or 'none'}"
            )
        found = {}
        for value in values:
            kept = np.array([number for number, item in enumerate(self.items) if item["labels"].get(key) == value])
            found[value] = replace(
                self,
                label=value,
                totals=self.totals[kept],
                weights=self.weights[kept],
                scored=None if self.scored is None else self.scored[kept],
                items=tuple(self.items[number] for number in kept),
            )
        return Measurements(found, self.provenance)

    def interval(self, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval over documents; (nan, nan) with fewer than 2 documents."""
        kept = self.weights > 0
        if self.n < 2:
            return math.nan, math.nan
        sums = resampled_sums(np.stack([self.totals[kept], self.weights[kept]], 1), resamples=resamples, seed=seed)
        return percentile_interval(metric_value(self.metric, sums[:, 0] / sums[:, 1]), level=level)

    def __sub__(self, other: Measurement) -> Difference:
        return Difference(self, other)

    def to_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "text": self.label,
            "value": self.value,
            "n_documents": self.n,
            "n_tokens": self.n_tokens,
            "totals": self.totals.tolist(),
            "tokens": self.weights.tolist(),
            "fingerprint": self.text,
            **({} if self.scored is None else {"scored": self.scored.tolist()}),
            **({"items": list(self.items)} if self.items else {}),
        }

    def __repr__(self) -> str:
        things = "items" if self.items else "documents"
        return f"Measurement({self.label}: {self.metric} {self.value:.4g}, {self.n} {things}, {self.n_tokens} tokens)"


@dataclass(frozen=True, eq=False)
class Difference:
    """`after - before` of the same items: value, paired bootstrap interval, sign-flip p-value of the item totals."""

    after: Measurement
    before: Measurement

    def __post_init__(self) -> None:
        a, b = self.after, self.before
        if (a.metric, a.text) != (b.metric, b.text) or not np.array_equal(a.weights, b.weights):
            raise MismatchError(
                f"{a!r} and {b!r} are not of the same items; measure both with the same metric, text and selection"
            )

    @property
    def value(self) -> float:
        return self.after.value - self.before.value

    def interval(self, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Paired bootstrap over documents; (nan, nan) with fewer than 2 documents."""
        weights, metric = self.after.weights, self.after.metric
        kept = weights > 0
        if self.after.n < 2:
            return math.nan, math.nan
        columns = np.stack([self.after.totals, self.before.totals, weights], 1)[kept]
        sums = resampled_sums(columns, resamples=resamples, seed=seed)
        values = metric_value(metric, sums[:, 0] / sums[:, 2]) - metric_value(metric, sums[:, 1] / sums[:, 2])
        return percentile_interval(values, level=level)

    def p(self, *, permutations: int = 9999, seed: int = 0) -> float:
        """Two-sided sign-flip p-value that the change of the totals is symmetric about 0."""
        return sign_flip(self.after.totals - self.before.totals, permutations=permutations, seed=seed)

    def __repr__(self) -> str:
        low, high = self.interval()
        return f"Difference({self.after.label}: {self.after.metric} {self.value:+.4g} [{low:.4g}, {high:.4g}])"


@dataclass(frozen=True, eq=False)
class Measurements(Mapping[str, Measurement]):
    """Measurements by label, with the provenance of the call that made them."""

    items_by_label: dict[str, Measurement]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, label: str) -> Measurement:
        if label not in self.items_by_label:
            raise InputError(f"no measurement of {label!r}; there are {', '.join(self.items_by_label)}")
        return self.items_by_label[label]

    def __contains__(self, label: object) -> bool:
        return label in self.items_by_label

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_by_label)

    def __len__(self) -> int:
        return len(self.items_by_label)

    def __sub__(self, other: Mapping[str, Measurement]) -> dict[str, Difference]:
        """Differences of the labels that both have."""
        return {label: item - other[label] for label, item in self.items_by_label.items() if label in other}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per label: text, metric, value, low, high (None with fewer than 2 items), chance if known, counts."""
        found = []
        for label, item in self.items_by_label.items():
            low, high = (None if math.isnan(end) else end for end in item.interval())
            row = {"text": label, "metric": item.metric, "value": item.value, "low": low, "high": high}
            chance = {} if item.chance is None else {"chance": item.chance}
            found.append({**row, **chance, "n_documents": item.n, "n_tokens": item.n_tokens})
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything, per-document totals included."""
        items = [item.to_dict() for item in self.items_by_label.values()]
        return {"format": FORMAT, "rows": self.rows, "measurements": items, "provenance": self.provenance}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.measurements/1` JSON, whole or not at all."""
        return write_json(path, self.to_dict(), indent=None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measurements:
        """Read what `save` wrote; DamagedError for anything else."""
        data = read_json(path, format=FORMAT)
        try:
            items = {
                entry["text"]: Measurement(
                    entry["metric"],
                    entry["text"],
                    np.asarray(entry["totals"], dtype=np.float64),
                    np.asarray(entry["tokens"], dtype=np.int64),
                    entry["fingerprint"],
                    np.asarray(entry["scored"], dtype=np.int64) if "scored" in entry else None,
                    tuple(entry.get("items", ())),
                )
                for entry in data["measurements"]
            }
            return cls(items, data["provenance"])
        except (KeyError, TypeError, ValueError) as problem:
            raise DamagedError(f"{path} is not a complete {FORMAT} file: {problem!r}") from problem

    def __rich__(self) -> Table:
        return rich_table("Measurements", self.rows, self._columns())

    def __repr__(self) -> str:
        return text_table("Measurements", self.rows, self._columns())

    def _repr_html_(self) -> str:
        return html_table("Measurements", self.rows, self._columns())

    def _columns(self) -> tuple[str, ...]:
        """The columns of the tables; the chance level only where it means something."""
        known = any(item.chance is not None for item in self.items_by_label.values())
        return tuple(name for name in COLUMNS if known or name != "chance")

"""A recording made of given counts, for tests that need no model."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


class Firing:
    """Counts that were not counted: what a `firing` statistic offers to finders."""

    threshold = 0.0

    def __init__(self, counts: Any, n: Any, recorded: Any = None, signal: str = "gate") -> None:
        self.signal = signal
        self.recorded = np.ones(np.shape(counts)[-1], dtype=bool) if recorded is None else np.asarray(recorded)
        self._state = {"counts": np.asarray(counts, dtype=np.int64), "n": np.asarray(n, dtype=np.int64)}

    def state(self) -> dict[str, Any]:
        return self._state


class CountedRecording:
    """labels -> (counts (folds, total), tokens (folds,)); widths: units per layer."""

    def __init__(
        self,
        cells: dict[str, tuple[Any, Any]],
        widths: tuple[int, ...],
        *,
        site: str = "mlp",
        name: str = "counted",
        corpus: str = "c0",
        forms: tuple[str, ...] = ("plain",),
        recorded: Any = None,
        signal: str = "gate",
    ) -> None:
        self._firing = {label: Firing(counts, n, recorded, signal) for label, (counts, n) in cells.items()}
        self.labels = tuple(cells)
        self.sites = (site,)
        entry = {"widths": list(widths), "experts": [0] * len(widths)}
        self.model = {
            "name": name,
            "type": "none",
            "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
            "source": None,
            "dtype": "float32",
            "forms": list(forms),
            "sites": {site: entry},
        }
        self.corpus = {"fingerprint": corpus, "labels": {label: {} for label in cells}}
        self.fingerprint = "f0"
        self.folder = None

    def get(self, statistic: str, label: str, site: str = "mlp") -> Firing:
        assert statistic == "firing"
        assert site in self.sites
        return self._firing[label]


def recording_of(
    p: Any, *, tokens: int = 800, folds: int = 8, labels: Any = None, widths: Any = None, **options: Any
) -> Any:
    """A recording whose probabilities are exactly p (labels, total) in every fold; tokens * p / folds must be whole."""
    p = np.asarray(p, dtype=float)
    labels = labels or [f"l{number}" for number in range(len(p))]
    counts = np.rint(p * tokens / folds)
    np.testing.assert_allclose(counts, p * tokens / folds, atol=1e-6)
    cells = {
        label: (np.repeat(row[None], folds, axis=0), np.full(folds, tokens // folds))
        for label, row in zip(labels, counts, strict=True)
    }
    return CountedRecording(cells, widths or (p.shape[1],), **options)

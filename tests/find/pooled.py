"""A recording of pooled responses made of arrays, for finders that read nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from patchclamp.record.statistics.pooled import Rows


class ArrayRecording:
    """values: label -> (documents, units) responses, or label -> site -> such; layers of `width` units each."""

    folder: Path | None = None
    corpus: Mapping[str, Any] = {"labels": {}}
    fingerprint = "recorded"
    statistics: Sequence[str] = ("pooled",)

    def __init__(self, values: Mapping[str, Any], *, width: int, tokens: Mapping[str, Any] | None = None) -> None:
        self.values = {label: v if isinstance(v, dict) else {"mlp": v} for label, v in values.items()}
        self.labels = tuple(values)
        first = next(iter(self.values.values()))
        self.sites = tuple(first)
        self.tokens = tokens or {label: np.full(len(next(iter(v.values()))), 5) for label, v in self.values.items()}
        layers = {site: array.shape[1] // width for site, array in first.items()}
        sites = {site: {"widths": [width] * n, "experts": [0] * n} for site, n in layers.items()}
        self.model = {"name": "arrays", "fingerprint": "a" * 64, "sites": sites}

    def get(self, statistic: str, label: str, site: str = "mlp") -> Any:
        array = np.asarray(self.values[label][site], dtype=np.float32)
        half = len(array) // 2
        rows = Rows([array[:half], array[half:]])
        units = np.arange(array.shape[1])
        recorded = ~np.isnan(array).all(axis=0)
        n = np.asarray(self.tokens[label])
        return SimpleNamespace(mean=rows, max=rows, last=rows, n=n, units=units, recorded=recorded)

"""Effects of edges: per sender and receiver the mean movement of the answer, as percent of the flip; the best as a circuit."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.arrays import packed, unpacked
from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import read_json, write_json
from patchclamp.intervene.circuits import Circuit
from patchclamp.intervene.patching_result import NO_FLIP
from patchclamp.models.units import describe

FORMAT = "patchclamp.edges/1"
Floats = NDArray[np.float64]
ARRAYS = ("valid", "effects", "errors", "base", "source")


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Effects of edges from senders to receivers.

    valid: (n_senders, n_receivers) bool, which edges there are. effects: (n_senders, n_receivers) mean over pairs of how far the
    edge lowers the logit difference, in logits; errors: standard errors of these means. base, source: (n,) logit differences of
    the run that is patched into and of the other.
    """

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    valid: NDArray[np.bool_]
    effects: Floats
    errors: Floats
    base: Floats
    source: Floats
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (len(self.senders), len(self.receivers))
        for name in ARRAYS[:3]:
            if getattr(self, name).shape != wanted:
                raise InputError(
                    f"{name} has shape {getattr(self, name).shape}; {wanted} (senders, receivers) is needed"
                )

    @property
    def gap(self) -> float:
        """Mean logit difference between the two plain runs, base - source."""
        return float((self.base - self.source).mean())

    @property
    def scores(self) -> Floats:
        """(n_senders, n_receivers) percent of the flip; NaN where there is no edge; all NaN, with a warning, if nothing flips."""
        size = max(float(np.abs(self.base).mean()), float(np.abs(self.source).mean()), 1e-12)
        if not math.isfinite(self.gap) or abs(self.gap) <= NO_FLIP * size:
            warnings.warn(
                "the clean and the corrupted prompts have the same logit difference, so scores are NaN (0/0)",
                stacklevel=2,
            )
            return np.full(self.valid.shape, np.nan)
        return np.where(self.valid, 100 * self.effects / self.gap, np.nan)

    def score(self, sender: str, receiver: str) -> float:
        """The score of one edge; InputError for an edge that there isn't."""
        if sender not in self.senders or receiver not in self.receivers:
            raise InputError(f"there is no edge {sender}->{receiver} among these")
        found = float(self.scores[self.senders.index(sender), self.receivers.index(receiver)])
        if not self.valid[self.senders.index(sender), self.receivers.index(receiver)]:
            raise InputError(f"there is no edge from {sender} to {receiver}: it doesn't lie above")
        return found

    def rows(self, top: int | None = None) -> list[dict[str, Any]]:
        """One row per edge, highest |score| first: sender, receiver, score, low, high (95%, normal), effect in logits."""
        scores = self.scores
        listed = []
        for s, r in self._order()[:top]:
            half = 1.96 * 100 * self.errors[s, r] / abs(self.gap) if self.gap else math.nan
            listed.append(
                {
                    "sender": self.senders[s], "receiver": self.receivers[r], "score": float(scores[s, r]),
                    "low": float(scores[s, r] - half), "high": float(scores[s, r] + half),
                    "effect": float(self.effects[s, r]),
                }
            )  # fmt: skip
        return listed

    def top(self, share: float | None = None, *, k: int | None = None, name: str = "circuit") -> Circuit:
        """The edges with the highest |effect| as a circuit whose scores are percent of the flip: a share (rounded up), or k."""
        if (share is None) == (k is None):
            raise InputError("give share= (such as 0.02) or k=, one of the two")
        total = int(self.valid.sum())
        count = k if k is not None else math.ceil(round(float(share or 0) * total, 9))
        if not 0 < count <= total:
            raise InputError(f"{count} of {total} edges asked for; at least 1 and at most all")
        scores = self.scores
        chosen = {f"{self.senders[s]}->{self.receivers[r]}": float(scores[s, r]) for s, r in self._order()[:count]}
        return Circuit.of_edges(chosen, model=self.model, name=name, total=total)

    def nodes(self) -> dict[str, float]:
        """Sender -> sum of |score| over its edges: a ranking of heads and MLPs."""
        sums = np.nansum(np.abs(self.scores), axis=1)
        return dict(sorted(zip(self.senders, sums.tolist(), strict=True), key=lambda pair: -pair[1]))

    def table(self, top: int = 20) -> Any:
        """A rich table of the edges with the highest |score|."""
        from rich.table import Table

        drawn = Table(title=repr(self), header_style="bold", title_justify="left")
        for name in ("sender", "receiver", "% of the flip", "95% interval", "logits"):
            drawn.add_column(name, justify="left" if name in ("sender", "receiver") else "right")
        for row in self.rows(top):
            drawn.add_row(
                row["sender"], row["receiver"], f"{row['score']:+.1f}", f"{row['low']:+.1f} to {row['high']:+.1f}",
                f"{row['effect']:+.3f}",
            )  # fmt: skip
        return drawn

    def _order(self) -> list[tuple[int, int]]:
        sizes = np.where(self.valid, np.abs(self.effects), -1.0).ravel()
        order = np.argsort(-sizes, kind="stable")[: int(self.valid.sum())]
        return [divmod(cell, len(self.receivers)) for cell in order.tolist()]

    def __repr__(self) -> str:
        how = f"{self.settings.get('method', '')}, {self.settings.get('way', 'noise')}, steps {self.settings.get('steps', 1)}"
        whose = describe(self.model) if self.model else "a model"
        return f"EdgeScores({whose}: {int(self.valid.sum())} edges, {len(self.base)} pairs, {how})"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one JSON file, whole or not at all; `load` gives the same numbers back."""
        return write_json(
            path,
            {
                "format": FORMAT, "model": dict(self.model), "task": dict(self.task), "settings": dict(self.settings),
                "senders": list(self.senders), "receivers": list(self.receivers), "provenance": dict(self.provenance),
                **{name: packed(getattr(self, name)) for name in ARRAYS},
            },
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EdgeScores:
        """Read what `save` wrote; DamagedError for anything else."""
        data = read_json(path, format=FORMAT)
        try:
            arrays = {name: unpacked(data[name]) for name in ARRAYS}
            return cls(
                tuple(data["senders"]), tuple(data["receivers"]), **arrays, settings=data["settings"], task=data["task"],
                model=data["model"], provenance=data["provenance"],
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, InputError) as problem:
            raise DamagedError(f"{path} is no complete {FORMAT} file: {problem}") from problem

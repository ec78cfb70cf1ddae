"""What patching found: per part, position and pair the logit difference; as percent of the flip, with intervals over pairs."""

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
from patchclamp.models.units import UnitSet, describe

FORMAT = "patchclamp.patching/1"
NO_FLIP = 1e-6  # a mean gap below this share of the logit differences is none
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Patching:
    """Effects of patched parts.

    parts, positions: names. patched: (n_parts, n_positions, n) logit differences, NaN where a pair lacks the position.
    base: (n,) logit difference of the run that is patched into, source: of the other one. settings: what was patched, which
    way ("noise", "denoise") and by which method ("patching", or "attribution": a first-order estimate). task, model: identities.
    provenance: the call, its arguments, versions and time.
    """

    parts: tuple[str, ...]
    positions: tuple[str, ...]
    patched: Floats
    base: Floats
    source: Floats
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("patched", "base", "source"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        for name in ("parts", "positions"):
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        wanted = (len(self.parts), len(self.positions), len(self.base))
        if self.patched.shape != wanted or self.source.shape != self.base.shape or not len(self.base):
            raise InputError(f"patched has shape {self.patched.shape}; {wanted} (parts, positions, pairs) is needed")

    @property
    def n(self) -> int:
        """Pairs."""
        return len(self.base)

    @property
    def effects(self) -> Floats:
        """(n_parts, n_positions, n) how far each answer moved, in logits: base - patched; 0 where a part does nothing."""
        return self.base - self.patched

    @property
    def gap(self) -> float:
        """Mean logit difference between the two plain runs, base - source: what a patch of everything moves."""
        return float((self.base - self.source).mean())

    @property
    def scores(self) -> Floats:
        """(n_parts, n_positions) percent of the flip: 100 * mean(base - patched) / mean(base - source), over pairs that count.

        The same for both ways: of "noise" base is the clean run, of "denoise" the corrupted one, so that 100 is all the way.
        NaN, with a warning, where the runs have the same logit difference: there is no flip to explain.
        """
        if not self.flips:
            warnings.warn(
                "the clean and the corrupted prompts have the same logit difference, so scores are NaN (0/0); look at "
                "`effects`, or choose a corruption that changes the answer",
                stacklevel=2,
            )
            return np.full(self.patched.shape[:2], np.nan)
        counts = ~np.isnan(self.patched)
        gaps = np.where(counts, self.base - self.source, 0.0).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = 100 * np.nansum(self.effects, axis=-1) / gaps
        return np.where(np.isfinite(found), found, np.nan)

    @property
    def flips(self) -> bool:
        """Whether the two plain runs differ in their answers at all."""
        size = max(float(np.abs(self.base).mean()), float(np.abs(self.source).mean()), 1e-12)
        return math.isfinite(self.gap) and abs(self.gap) > NO_FLIP * size

    def intervals(self, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Floats:
        """(n_parts, n_positions, 2) percentile bootstrap interval of the scores: pairs drawn again, gap and effect together."""
        if not 0 < level < 1 or resamples < 1:
            raise InputError(
                f"level={level}, resamples={resamples}; a level in (0, 1) and at least 1 resample are needed"
            )
        shape = (*self.patched.shape[:2], 2)
        if not self.flips:
            return np.full(shape, np.nan)
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(self.n, np.full(self.n, 1 / self.n), size=resamples).astype(np.float64)
        found = np.empty(shape)
        edges = [(1 - level) / 2, (1 + level) / 2]
        for part, effects in enumerate(self.effects):  # one part at a time: (positions, n)
            counts = ~np.isnan(effects)
            with np.errstate(divide="ignore", invalid="ignore"):
                gaps = draws @ np.where(counts, self.base - self.source, 0.0).T
                drawn = 100 * (draws @ np.where(counts, effects, 0.0).T) / gaps
            drawn[~np.isfinite(drawn)] = np.nan
            empty = np.isnan(drawn).all(0)
            found[part, empty] = np.nan
            found[part, ~empty] = np.nanquantile(drawn[:, ~empty], edges, axis=0).T
        return found

    def score(self, part: str, position: str | None = None) -> float:
        """The score of one part (at the only position, or at a named one). InputError for what was not asked."""
        position = self.positions[0] if position is None and len(self.positions) == 1 else position
        if part not in self.parts or position not in self.positions:
            raise InputError(
                f"{part!r} at {position!r} was not asked; positions are {', '.join(self.positions)}, parts "
                f"{', '.join(self.parts[:3])}, ..."
            )
        return float(self.scores[self.parts.index(part), self.positions.index(position)])

    def rows(self, top: int | None = None, **interval: Any) -> list[dict[str, Any]]:
        """One row per part and position, highest |score| first: part, position, score, low, high, effect, n.

        effect: mean movement in logits. Cells that no pair has are left out.
        """
        scores = self.scores.ravel()
        bounds = self.intervals(**interval).reshape(-1, 2)
        counts = (~np.isnan(self.patched)).sum(-1).ravel()
        order = np.argsort(-np.nan_to_num(np.abs(scores), nan=-1.0), kind="stable")
        effects = np.nansum(self.effects, axis=-1).ravel() / np.maximum(counts, 1)
        listed = []
        for cell in order.tolist():
            if not counts[cell]:
                continue
            part, position = divmod(cell, len(self.positions))
            listed.append(
                {
                    "part": self.parts[part], "position": self.positions[position], "score": float(scores[cell]),
                    "low": float(bounds[cell, 0]), "high": float(bounds[cell, 1]), "effect": float(effects[cell]),
                    "n": int(counts[cell]),
                }
            )  # fmt: skip
        return listed[:top]

    def top(self, share: float | None = None, *, k: int | None = None) -> list[str]:
        """Names of the parts with the highest |score| at any position: a share of them (rounded up), or k.

        By absolute value, so that parts which work against the answer are found too; ties go to the part that comes first.
        """
        if (share is None) == (k is None):
            raise InputError("give share= (such as 0.02) or k=, one of the two")
        count = k if k is not None else math.ceil(round(float(share or 0) * len(self.parts), 9))
        if not 0 < count <= len(self.parts):
            raise InputError(f"{count} of {len(self.parts)} parts asked for; at least 1 and at most all")
        best = np.nan_to_num(np.abs(self.scores), nan=-1.0).max(1)
        return [self.parts[i] for i in np.argsort(-best, kind="stable")[:count].tolist()]

    def units(self, names: list[str]) -> UnitSet:
        """Parts as a unit set, |score| as scores; InputError for parts that are whole vectors, not units."""
        best = dict(zip(self.parts, np.nan_to_num(np.abs(self.scores), nan=-1.0).max(1).tolist(), strict=True))
        return UnitSet.of(self.model, names, [best[name] for name in names])

    # --- looking at it -------------------------------------------------------------------------------------------

    def table(self, top: int = 20) -> Any:
        """A rich table of the cells with the highest |score|."""
        from rich.table import Table

        drawn = Table(title=repr(self), header_style="bold", title_justify="left")
        for name in ("part", "position", "% of the flip", "95% interval", "logits", "pairs"):
            drawn.add_column(name, justify="left" if name in ("part", "position") else "right")
        for row in self.rows(top):
            drawn.add_row(
                row["part"], row["position"], f"{row['score']:+.1f}", f"{row['low']:+.1f} to {row['high']:+.1f}",
                f"{row['effect']:+.3f}", str(row["n"]),
            )  # fmt: skip
        return drawn

    def chart(self) -> Any:
        """Altair heat map of the scores: layers by heads for heads at one position, else parts by positions."""
        import altair as alt

        values, x, y, order = self._cells()
        most = max((abs(cell["score"]) for cell in values if math.isfinite(cell["score"])), default=1.0) or 1.0
        scale = alt.Scale(domain=[-most, 0, most], range=["#1d4ed8", "#ffffff", "#c2410c"])
        return (
            alt.Chart(alt.Data(values=values))
            .mark_rect()
            .encode(
                x=alt.X(f"{x}:O", sort=order[0], axis=alt.Axis(labelAngle=0)),
                y=alt.Y(f"{y}:O", sort=order[1]),
                color=alt.Color("score:Q", scale=scale, title="% of the flip"),
                tooltip=["part:N", "position:N", "score:Q"],
            )
            .properties(title=repr(self), width={"step": 24}, height={"step": 16})
        )

    def _cells(self) -> tuple[list[dict[str, Any]], str, str, tuple[list[Any], list[Any]]]:
        scores = self.scores
        cells = [
            {"part": part, "position": position, "score": float(scores[p, q])}
            for p, part in enumerate(self.parts)
            for q, position in enumerate(self.positions)
        ]
        named = [part.split(".") for part in self.parts]
        if len(self.positions) == 1 and all(name[0] == "head" and len(name) > 2 for name in named):
            for cell, name in zip(cells, named, strict=True):
                cell |= {"layer": int(name[1]), "head": int(name[2])}
            return cells, "head", "layer", (sorted({c["head"] for c in cells}), sorted({c["layer"] for c in cells}))
        return cells, "position", "part", (list(self.positions), list(self.parts))

    def __repr__(self) -> str:
        what = f"{len(self.parts)} parts x {len(self.positions)} positions, {self.n} pairs"
        how = f"{self.settings.get('method', 'patching')}, {self.settings.get('way', 'noise')}"
        return f"Patching({describe(self.model) if self.model else 'a model'}: {what}, {how})"

    def _repr_html_(self) -> str:
        import html

        body = "".join(
            f"<tr><td>{html.escape(row['part'])}</td><td>{html.escape(row['position'])}</td><td>{row['score']:+.1f}</td>"
            f"<td>{row['low']:+.1f} to {row['high']:+.1f}</td><td>{row['n']}</td></tr>"
            for row in self.rows(20)
        )
        head = "".join(f"<th>{name}</th>" for name in ("part", "position", "% of the flip", "95% interval", "pairs"))
        return f"<p>{html.escape(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    # --- files ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        arrays = {name: packed(getattr(self, name)) for name in ("patched", "base", "source")}
        return {
            "format": FORMAT, "model": dict(self.model), "task": dict(self.task), "settings": dict(self.settings),
            "parts": list(self.parts), "positions": list(self.positions), **arrays, "provenance": dict(self.provenance),
        }  # fmt: skip

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one JSON file, whole or not at all; `load` gives the same numbers back."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Patching:
        """Read what `save` wrote; DamagedError for anything else."""
        data = read_json(path, format=FORMAT)
        try:
            arrays = {name: unpacked(data[name]) for name in ("patched", "base", "source")}
            return cls(
                tuple(data["parts"]), tuple(data["positions"]), **arrays, settings=data["settings"], task=data["task"],
                model=data["model"], provenance=data["provenance"],
            )  # fmt: skip
        except (KeyError, TypeError, InputError) as problem:
            raise DamagedError(f"{path} is no complete {FORMAT} file: {problem}") from problem

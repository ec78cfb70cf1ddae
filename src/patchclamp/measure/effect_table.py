"""`Effects`: the table of what each intervention does to each text; matrix, diagonal dominance, files, frames, HTML."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import read_json, write_json
from patchclamp.measure.harm import harm
from patchclamp.measure.tables import (
    aligned,
    html_matrix,
    html_table,
    p_value,
    pandas_frame,
    polars_frame,
    rich_table,
    signed,
    text_table,
)

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "patchclamp.effects/1"
ROW = (
    "set", "text", "metric", "plain", "clamped", "effect", "low", "high", "control_mean", "control_sd",
    "p", "p_holm", "p_controls", "n_documents", "n_tokens", "n_units",
)  # fmt: skip


BRIEF = ("set", "text", "plain", "clamped", "effect [95%]", "random", "p (Holm)")


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of all sets (or other interventions) on all texts or tasks (which are called texts here, as in the rows).

    rows: one dict per set and text with the keys ROW; None where something can't be known (no interval with fewer than
    2 documents, no control figures without controls). documents: text -> per-document sums ("documents", "tokens",
    "plain", "clamped" by set, "control_effects" by set). warnings: what was odd.
    """

    rows: list[dict[str, Any]]
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets, in order."""
        return tuple(dict.fromkeys(row["set"] for row in self.rows))

    @property
    def texts(self) -> tuple[str, ...]:
        """Labels of the texts, in order."""
        return tuple(dict.fromkeys(row["text"] for row in self.rows))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, in order."""
        return tuple(dict.fromkeys(row["metric"] for row in self.rows))

    def row(self, set: str, text: str) -> dict[str, Any]:
        """The row of one set and text; InputError if there is none."""
        for row in self.rows:
            if (row["set"], row["text"]) == (set, text):
                return row
        raise InputError(
            f"no effect of {set!r} on {text!r}; sets {', '.join(self.sets)}; texts {', '.join(self.texts)}"
        )

    def matrix(self, value: str = "effect") -> NDArray[np.float64]:
        """(sets, texts) float64 of any number of the rows; NaN where it isn't known.

        Also "log_ratio": log(clamped / plain), the change of log-loss per token, comparable between texts whose plain
        perplexities differ; "excess": effect minus the mean effect of the controls; "harm": how much worse the clamped
        model does: log_ratio of a perplexity, the effect on a loss, minus the effect on an accuracy.
        """
        return np.array([[_number(self.row(name, text), value) for text in self.texts] for name in self.sets])

    def dominance(self, value: str | None = None) -> dict[str, Any]:
        """How far each set works on its own text: over the names that are both a set and a text.

        value: what is compared, by default log_ratio where everything is a perplexity and harm elsewhere. Returns
        {"labels", "value", "by_set": {label: own text is hit hardest of all}, "by_text": {label: own set hits it hardest
        of all}, "share": part of all 2 x labels that hold, "dominant": all hold, "diagonal", "off_diagonal": means}. Ties
        don't count as dominance. InputError unless two names or more are both a set and a text.
        """
        value = value or ("log_ratio" if self.metrics == ("perplexity",) else "harm")
        labels = [name for name in self.sets if name in self.texts]
        if len(labels) < 2:
            raise InputError(
                f"dominance needs 2 names that are both set and text; sets {self.sets}, texts {self.texts}"
            )
        table = np.array([[_number(self.row(name, text), value) for text in labels] for name in labels])
        own, other = np.diag(table), ~np.eye(len(labels), dtype=bool)
        rest = np.where(other, table, -np.inf)
        by_set, by_text = own > rest.max(axis=1), own > rest.max(axis=0)
        return {
            "labels": labels,
            "value": value,
            "by_set": dict(zip(labels, by_set.tolist(), strict=True)),
            "by_text": dict(zip(labels, by_text.tolist(), strict=True)),
            "share": float(np.mean([by_set, by_text])),
            "dominant": bool(by_set.all() and by_text.all()),
            "diagonal": float(own.mean()),
            "off_diagonal": float(table[other].mean()),
        }

    def to_dict(self) -> dict[str, Any]:
        body = {"rows": self.rows, "documents": self.documents, "warnings": self.warnings}
        return {"format": FORMAT, **body, "provenance": self.provenance}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.effects/1` JSON, whole or not at all."""
        return write_json(path, self.to_dict(), indent=None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Effects:
        """Read what `save` wrote; DamagedError for anything else."""
        data = read_json(path, format=FORMAT)
        try:
            found = cls(data["rows"], data["documents"], data["warnings"], data["provenance"])
            if any(set(row) != set(ROW) for row in found.rows):
                raise KeyError("rows with other columns")
        except (KeyError, TypeError) as problem:
            raise DamagedError(f"{path} is not a complete {FORMAT} file: {problem!r}") from problem
        return found

    def polars(self) -> Any:
        """The rows as a polars DataFrame."""
        return polars_frame(self.rows)

    def pandas(self) -> Any:
        """The rows as a pandas DataFrame."""
        return pandas_frame(self.rows)

    def __rich__(self) -> Table:
        return rich_table(self._title(), [_brief(row) for row in self.rows], BRIEF)

    def __repr__(self) -> str:
        return text_table(self._title(), [_brief(row) for row in self.rows], BRIEF)

    def _repr_html_(self) -> str:
        matrix = ""
        if len(self.sets) > 1 or len(self.texts) > 1:
            matrix = html_matrix(self._matrix_title(), self.sets, self.texts, self.matrix("harm"))
        return matrix + html_table(self._title(), self.rows, ROW)

    def _title(self) -> str:
        done = self.provenance.get("arguments", {})
        how = ", ".join(f"{key} {done[key]}" for key in ("to", "scale", "add") if done.get(key) is not None)
        what = ", ".join(self.metrics) or "nothing"
        subject = f"clamping ({how})" if how else "interventions"
        return f"Effect of {subject} on {what}, beside {done.get('controls', 0)} random sets"

    def _matrix_title(self) -> str:
        if self.metrics == ("perplexity",):
            return "Change of log-loss per token, nats (rows: clamped set; columns: text)"
        return f"Harm: {', '.join(self.metrics)} lost, or loss gained (rows: clamped set; columns: task)"


def _brief(row: dict[str, Any]) -> dict[str, str]:
    """The row as a terminal of 80 columns has room for it; everything else is in `rows`."""
    interval = "" if row["low"] is None else f" [{signed(row['low'])}, {signed(row['high'])}]"
    effect, random = signed(row["effect"]), signed(row["control_mean"])
    values = (row["set"], row["text"], aligned(row["plain"]), aligned(row["clamped"]), effect + interval, random)
    return dict(zip(BRIEF, (*values, p_value(row["p_holm"])), strict=True))


def _number(row: dict[str, Any], value: str) -> float:
    if value in ("log_ratio", "harm"):
        metric = "perplexity" if value == "log_ratio" else row["metric"]
        return harm(metric, _float(row["plain"]), _float(row["clamped"]))
    if value == "excess":
        return _float(row["effect"]) - _float(row["control_mean"])
    if value not in row or isinstance(row[value], str):
        numbers = [key for key in ROW if not isinstance(row.get(key), str)]
        raise InputError(
            f"{value!r} is no number of an effect; choose from {', '.join(numbers)}, log_ratio, excess, harm"
        )
    return _float(row[value])


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)

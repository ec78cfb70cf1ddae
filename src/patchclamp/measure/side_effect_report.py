"""`SideEffects`: what an intervention or an edit does to its target and beside it; files, frames, terminal, notebook, page."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import read_json, write_json
from patchclamp.core.page import Page
from patchclamp.measure.effect_table import ROW, Effects
from patchclamp.measure.side_effect_page import page
from patchclamp.measure.side_effect_verdict import verdict
from patchclamp.measure.tables import (
    aligned,
    html_table,
    p_value,
    pandas_frame,
    polars_frame,
    rich_table,
    signed,
    text_table,
)

FORMAT = "patchclamp.side-effects/1"
OWN = ("role", "harm", "harm_low", "harm_high", "p_change", "p_change_holm", "said")  # keys beside those of an effect
BRIEF = ("text", "plain", "changed", "change [95%]", "random", "p (Holm)")
SAMPLE = ("prompt", "plain", "changed", "control")


@dataclass(frozen=True, eq=False)
class SideEffects:
    """A report on one change of a model.

    rows: one dict per task and label of text, the target's first: the keys of an effects row; role ("target" or "beside");
    harm, harm_low, harm_high (above 0: worse; nats per token, nats, or accuracy lost); p_change (two-sided sign flip of the
    change itself; p compares it with the controls) and p_change_holm (corrected over the report); said. None where
    something can't be known. samples: prompt, and how the plain, the changed and a randomly changed model (None without
    controls) go on. affected: the items that changed most, per row. documents: per-item sums, as in `Effects`. what: the change
    in words. warnings: what was odd.
    """

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    affected: list[dict[str, Any]]
    documents: dict[str, dict[str, Any]]
    what: str
    warnings: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> list[str]:
        """Sentences computed from the numbers, the short verdict first."""
        return verdict(self.rows, self.samples)

    @property
    def effects(self) -> Effects:
        """The rows as an effects table, for an atlas, a matrix or the card of a checkpoint."""
        rows = [{key: row[key] for key in ROW} for row in self.rows]
        return Effects(rows, self.documents, self.warnings, self.provenance)

    def row(self, name: str) -> dict[str, Any]:
        """The row of a task or label; InputError if there is none."""
        for row in self.rows:
            if row["text"] == name:
                return row
        raise InputError(
            f"nothing called {name!r} was measured; there are {', '.join(row['text'] for row in self.rows)}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "what": self.what,
            "verdict": self.verdict,
            "rows": self.rows,
            "samples": self.samples,
            "affected": self.affected,
            "documents": self.documents,
            "warnings": self.warnings,
            "provenance": self.provenance,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.side-effects/1` JSON, or the page for a name that ends in `.html`; whole or not at all."""
        if str(path).endswith((".html", ".htm")):
            return self.page().save(Path(path))
        return write_json(path, self.to_dict(), indent=None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SideEffects:
        """Read what `save` wrote as JSON; DamagedError for anything else."""
        data = read_json(path, format=FORMAT)
        names = ("rows", "samples", "affected", "documents", "what", "warnings", "provenance")
        try:
            found = cls(**{name: data[name] for name in names})
            if any(set(row) != {*ROW, *OWN} for row in found.rows):
                raise KeyError("rows with other columns")
        except (KeyError, TypeError) as problem:
            raise DamagedError(f"{path} is not a complete {FORMAT} file: {problem!r}") from problem
        return found

    def page(self) -> Page:
        """The report as a page."""
        return page(self)

    def html(self) -> str:
        """One self-contained HTML document: no script, no font, no network."""
        return str(self.page().html())

    def polars(self) -> Any:
        """The rows as a polars DataFrame."""
        return polars_frame(self.rows)

    def pandas(self) -> Any:
        """The rows as a pandas DataFrame."""
        return pandas_frame(self.rows)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        first, *others = self.verdict
        yield Text(first, style="bold")
        yield Text("\n".join(["", *others, ""]))
        yield rich_table(self._title(), [_brief(row) for row in self.rows], BRIEF)

    def __repr__(self) -> str:
        return "\n".join([*self.verdict, "", text_table(self._title(), [_brief(row) for row in self.rows], BRIEF)])

    def _repr_html_(self) -> str:
        first, *others = self.verdict
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in others)
        rows = html_table(self._title(), [_brief(row) for row in self.rows], BRIEF)
        samples = html_table("Samples", self.samples, SAMPLE) if self.samples else ""
        return f"<p><b>{html.escape(first)}</b></p>{lines}{rows}{samples}"

    def _title(self) -> str:
        targeted = any(row["role"] == "target" for row in self.rows)
        return f"{self.what}{' (*: the target)' if targeted else ''}"


def _brief(row: dict[str, Any]) -> dict[str, str]:
    """The row as a terminal of 80 columns has room for it."""
    interval = "" if row["low"] is None else f" [{signed(row['low'])}, {signed(row['high'])}]"
    name = f"{row['text']} *" if row["role"] == "target" else row["text"]
    values = (name, aligned(row["plain"]), aligned(row["clamped"]), signed(row["effect"]) + interval)
    return dict(zip(BRIEF, (*values, signed(row["control_mean"]), p_value(row["p_change_holm"])), strict=True))

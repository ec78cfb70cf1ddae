"""How a recording is shown: a table of labels for terminals and notebooks."""

from __future__ import annotations

from html import escape
from typing import Any, Protocol

import numpy as np

from patchclamp.models.units import Layout


class Recorded(Protocol):
    """A `Recording`, as far as it is shown."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def sites(self) -> tuple[str, ...]: ...
    @property
    def statistics(self) -> tuple[str, ...]: ...
    @property
    def layouts(self) -> dict[str, Layout]: ...
    def layers(self, site: str = "mlp") -> tuple[int, ...]: ...
    def tokens(self, label: str) -> int: ...
    def documents(self, label: str) -> int: ...
    def get(self, statistic: str, label: str, site: str = "mlp") -> Any: ...


COLUMNS = ("label", "documents", "tokens", "site", "units", "firing rate", "never fire")


def summary_rows(recording: Recorded) -> list[tuple[str, ...]]:
    """One row per label and site: documents, tokens, units, mean firing rate and the share of units that never fire."""
    rows: list[tuple[str, ...]] = []
    for label in recording.labels:
        for site in recording.sites:
            layout = recording.layouts[site]
            units = sum(layout.widths[layer] for layer in recording.layers(site))
            rate, silent = "", ""
            if "firing" in recording.statistics:
                rates = recording.get("firing", label, site).rate
                rates = rates[np.isfinite(rates)]
                if len(rates):
                    rate, silent = f"{rates.mean():.1%}", f"{(rates == 0).mean():.1%}"
            counts = (f"{recording.documents(label):,}", f"{recording.tokens(label):,}")
            rows.append((label, *counts, site, f"{units:,}", rate, silent))
    return rows


def as_table(title: str, rows: list[tuple[str, ...]]) -> Any:
    """A rich table."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number in (0, 3) else "right")
    for row in rows:
        table.add_row(*row)
    return table


def as_html(title: str, rows: list[tuple[str, ...]]) -> str:
    """An HTML table, texts escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

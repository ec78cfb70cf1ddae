"""Rows of results as a terminal table, an HTML table (self-contained, escaped), or a polars or pandas frame."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Rows = Sequence[Mapping[str, Any]]
NAMES = ("set", "text", "metric")


def shown(value: Any) -> str:
    """A cell: numbers to four digits, p-values and other small numbers not as 0, nothing known as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | int | str):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"


def aligned(value: float | None) -> str:
    """A number for a narrow column: four digits, zeros at the end kept, at most eight characters."""
    if value is None or math.isnan(value):
        return "–"
    size = abs(value)
    if 1e-3 <= size < 1e3:
        return f"{value:#.4g}"
    return f"{value:,.0f}" if not size or 1e3 <= size < 1e6 else f"{value:.2g}"


def signed(value: float | None) -> str:
    """A change: as `aligned`, with its sign."""
    return f"+{aligned(value)}" if value is not None and value > 0 else aligned(value)


def p_value(p: float | None) -> str:
    """A p-value as people write it."""
    return "–" if p is None else f"{p:.2g}" if p >= 1e-4 else "<0.0001"


def rich_table(title: str, rows: Rows, columns: Sequence[str]) -> Table:
    """A rich table without vertical rules. Names (set, text, metric) may be folded, numbers are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        name = column in NAMES
        table.add_column(
            column, justify="left" if name else "right", no_wrap=not name, overflow="fold" if name else "ellipsis"
        )
    for row in rows:
        table.add_row(*(Text(shown(row.get(column))) for column in columns))  # Text: labels are no markup
    return table


def text_table(title: str, rows: Rows, columns: Sequence[str]) -> str:
    """The same table as plain text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(rich_table(title, rows, columns))
    written: str = console.file.getvalue().rstrip()  # type: ignore[attr-defined]
    return written


def html_table(title: str, rows: Rows, columns: Sequence[str]) -> str:
    """The same table as HTML."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(_html_row(shown(row.get(column)) for column in columns) for row in rows)
    return f"<p><b>{html.escape(title)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_matrix(title: str, row_names: Sequence[str], column_names: Sequence[str], values: Any) -> str:
    """A matrix with cells coloured from white (0) to red (largest) and blue (most negative)."""
    finite = [abs(float(v)) for line in values for v in line if math.isfinite(v)]
    top = max(finite, default=0.0) or 1.0
    head = "".join(f"<th>{html.escape(name)}</th>" for name in column_names)
    lines = []
    for name, line in zip(row_names, values, strict=True):
        cells = "".join(_coloured(float(value), top) for value in line)
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    body = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<p><b>{html.escape(title)}</b></p><table>{body}</table>"


def polars_frame(rows: Rows) -> Any:
    """A polars DataFrame; polars is imported now and not before."""
    import polars

    return polars.DataFrame([dict(row) for row in rows], infer_schema_length=None)


def pandas_frame(rows: Rows) -> Any:
    """A pandas DataFrame; pandas is imported now and not before."""
    import pandas

    return pandas.DataFrame([dict(row) for row in rows])


def _html_row(cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _coloured(value: float, top: float) -> str:
    if not math.isfinite(value):
        return "<td>–</td>"
    depth = round(255 * (1 - 0.75 * abs(value) / top))
    colour = f"rgb(255,{depth},{depth})" if value >= 0 else f"rgb({depth},{depth},255)"
    return f'<td style="background:{colour};color:#111">{shown(value)}</td>'

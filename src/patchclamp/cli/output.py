"""How commands print: JSON on stdout when asked for, else a table for people; notes go to stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from patchclamp.core.files import to_json


def emit(data: Any, *, as_json: bool, shown: Any = None) -> None:
    """Print `data` as JSON, or `shown` (any rich renderable or text) for people."""
    if as_json:
        sys.stdout.write(to_json(data) + "\n")
        return
    from rich.console import Console

    Console(soft_wrap=isinstance(shown, str)).print(data if shown is None else shown, highlight=False)


def note(message: str) -> None:
    """Say something that is not the result, on stderr."""
    print(message, file=sys.stderr)


def table(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Any:
    """A rich table of some columns of `rows`; columns: key -> heading. Numbers are right-aligned, None shows as a dash."""
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for key, heading in columns.items():
        numeric = all(isinstance(row.get(key), int | float | type(None)) for row in rows)
        drawn.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        drawn.add_row(*[_cell(row.get(key)) for key in columns])
    return drawn


def _cell(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value))

"""A self-contained HTML page of results: paragraphs, tables and charts in one file that opens anywhere.

Charts are drawn to SVG when the page is made, so that the page needs no script, no font and no network.
Text from models and data is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchclamp.core.files import atomic_write
from patchclamp.core.provenance import versions


@dataclass(frozen=True)
class Table:
    """Rows of plain values; columns: key -> heading. `strong` names a key of each row that is true for rows to stress."""

    rows: Sequence[Mapping[str, Any]]
    columns: Mapping[str, str]
    note: str = ""
    strong: str | None = None


@dataclass(frozen=True)
class Section:
    """One part of a page: heading, paragraphs, then charts (altair), tables and command lines in that order."""

    heading: str
    text: Sequence[str] = ()
    charts: Sequence[Any] = ()
    tables: Sequence[Table] = ()
    commands: Sequence[str] = ()
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A titled list of sections with the facts that identify the run."""

    title: str
    lead: str
    sections: Sequence[Section] = field(default_factory=list)
    facts: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """The whole page as one HTML document."""
        from jinja2 import Environment, PackageLoader
        from markupsafe import Markup

        environment = Environment(
            loader=PackageLoader("patchclamp.core"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["cell"] = cell
        environment.filters["svg"] = lambda chart: Markup(chart_svg(chart))
        return environment.get_template("page.html").render(page=self, version=versions()["patchclamp"])

    def save(self, path: Path) -> Path:
        """Write the page, whole or not at all."""
        html = self.html()
        with atomic_write(path) as part:
            part.write_text(html, encoding="utf-8")
        return path


def chart_svg(chart: Any) -> str:
    """SVG text of an altair chart."""
    import vl_convert

    return vl_convert.vegalite_to_svg(chart.to_dict())


def cell(value: Any) -> str:
    """How a value is written in a table: four significant digits, thousands separated, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value != value:
            return "–"
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)

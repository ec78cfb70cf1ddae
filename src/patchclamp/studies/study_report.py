"""What a study reports: tables, charts, a verdict and the paper's numbers, as a terminal, JSON and a page show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.files import write_json

if TYPE_CHECKING:
    from patchclamp.find import Finding
    from patchclamp.measure import Effects

FORMAT = "patchclamp.study/1"


@dataclass(frozen=True)
class Table:
    """Rows of plain values under headings. columns: keys to show, or key -> heading; the first row's keys by default.

    strong: a key of the rows that is true for rows to stress.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[str] | Mapping[str, str] | None = None
    note: str = ""
    strong: str | None = None

    @property
    def headings(self) -> dict[str, str]:
        """Key -> heading of the columns to show."""
        if isinstance(self.columns, Mapping):
            return dict(self.columns)
        keys = self.columns if self.columns is not None else next(iter(self.rows), {})
        return {key: str(key).replace("_", " ") for key in keys}

    def to_dict(self) -> dict[str, Any]:
        """Plain data: every value of every row, and the columns shown."""
        rows = [dict(row) for row in self.rows]
        return {"title": self.title, "columns": self.headings, "rows": rows, "note": self.note}

    def __rich__(self) -> Any:
        return self.drawn()

    def drawn(self) -> Any:
        """The table for a terminal, between its title and its note (which may be wider than the table)."""
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        from patchclamp.core.page import cell

        drawn = RichTable()
        for key, heading in self.headings.items():
            numeric = all(isinstance(row.get(key), int | float | type(None)) for row in self.rows)
            drawn.add_column(heading, justify="right" if numeric else "left")
        for row in self.rows:
            style = "bold" if self.strong and row.get(self.strong) else ""
            drawn.add_row(*[Text(cell(row.get(key))) for key in self.headings], style=style)
        note = [Text(self.note, style="dim")] if self.note else []
        return Group(Text(self.title, style="bold"), drawn, *note)


def judged(claim: str, holds: bool | None, numbers: str = "") -> str:
    """A sentence of a verdict: the claim, whether it holds on this model (None: can't be told), and the numbers behind it."""
    answer = {True: "holds", False: "does NOT hold", None: "can't be told"}[holds]
    return f"{claim}: {answer}" + (f" ({numbers})" if numbers else "")


@dataclass(frozen=True, eq=False)
class Report:
    """What a study found.

    tables, charts: shown in this order; a chart (title, altair chart) whose title is a table's stands above that table.
    verdict: sentences computed from the numbers (`judged`). beside: the paper's numbers beside ours. differs: what is
    different from the paper (model, data, ...). findings, effects: name -> object, saved with the report unless the run
    has kept them already. folded: titles of tables that the page shows closed. commands: what to try next.
    """

    tables: Sequence[Table]
    charts: Sequence[tuple[str, Any]] = ()
    verdict: Sequence[str] = ()
    beside: Table | None = None
    differs: Sequence[str] = ()
    findings: Mapping[str, Finding] | Sequence[Finding] = ()
    effects: Mapping[str, Effects] | Sequence[Effects] = ()
    folded: Sequence[str] = ()
    commands: Sequence[str] = ()

    def named(self, kind: str) -> dict[str, Any]:
        """Name -> object of the findings or effects; those given without names are called after their method or kind."""
        given = self.findings if kind == "findings" else self.effects
        if isinstance(given, Mapping):
            return dict(given)
        named: dict[str, Any] = {}
        for item in given:
            name = getattr(item, "method", "effects")
            taken = sum(other == name or other.startswith(f"{name}-") for other in named)
            named[f"{name}-{taken + 1}" if taken else name] = item
        return named

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the charts: they are drawn from the tables' numbers."""
        return {
            "verdict": list(self.verdict),
            "beside": None if self.beside is None else self.beside.to_dict(),
            "differs": list(self.differs),
            "tables": [table.to_dict() for table in self.tables],
        }


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished study: its report, where its files lie and what made it. rich shows it in a terminal.

    name: of the study. title: one sentence on what it does. out: folder with report.json, report.html and the parts.
    """

    name: str
    title: str
    report: Report
    provenance: Mapping[str, Any]
    out: Path
    seconds: float
    files: dict[str, Path] = field(default_factory=dict)

    def save(self) -> None:
        """Write findings and effects that the run has not kept already, then report.json; `study_page.page` draws report.html."""
        self.files.update({"report": self.out / "report.json", "page": self.out / "report.html"})
        for kind, suffix in (("findings", ".sets.json"), ("effects", ".effects.json")):
            for name, item in self.report.named(kind).items():
                path = self.out / f"{name}{suffix}"
                if not path.exists():
                    item.save(path)
                self.files[f"{name}{suffix}"] = path
        write_json(self.files["report"], {"format": FORMAT, **self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what report.json holds."""
        return {
            "study": self.name,
            "title": self.title,
            **self.report.to_dict(),
            "files": {name: path.name for name, path in self.files.items()},
            "seconds": self.seconds,
            "provenance": dict(self.provenance),
        }

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        yield Text(f"{self.name}: {self.title}\n", style="bold")
        for table in self.report.tables:
            if table.title not in self.report.folded:
                yield table.drawn()
                yield Text()
        if self.report.beside is not None:
            yield self.report.beside.drawn()
        for line in self.report.differs:
            yield Text(f"  differs: {line}", style="dim")
        yield Text("\n".join(["", *self.report.verdict]), style="bold")
        yield Text(f"\n{self.seconds:.0f} s. Look at {self.files.get('page', self.out)}")
        for command in self.report.commands:
            yield Text(f"  {command}", style="cyan")

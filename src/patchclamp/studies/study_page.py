"""The HTML page of any study: verdict, the paper's numbers beside ours, charts with their tables, what made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchclamp.core import page as pages

if TYPE_CHECKING:
    from patchclamp.studies.study_report import Outcome, Table

LONG = 60  # a table of more rows is shown closed


def page(outcome: Outcome) -> pages.Page:
    """The page of a finished study."""
    report, source = outcome.report, outcome.provenance
    model = source["inputs"]["model"]
    sections = [pages.Section("What it says", list(report.verdict))] if report.verdict else []
    if report.beside is not None or report.differs:
        tables = [] if report.beside is None else [_table(report.beside)]
        heading = "Beside the paper" if report.beside is None else report.beside.title
        differs = ["What differs from the paper: " + "; ".join(report.differs) + "."] if report.differs else []
        sections.append(pages.Section(heading, differs, tables=tables))
    sections += _body(outcome)
    if report.commands:
        sections.append(pages.Section("Next", commands=list(report.commands)))
    return pages.Page(
        title=f"{outcome.name} of {model['name']}", lead=outcome.title, sections=sections, facts=_facts(outcome)
    )


def _body(outcome: Outcome) -> list[pages.Section]:
    """A section for every table and every chart; those with the same title share one, in the order of the tables."""
    report = outcome.report
    charts: dict[str, list[Any]] = {}
    for title, chart in report.charts:
        charts.setdefault(title, []).append(chart)
    titles = {table.title for table in report.tables}
    sections = [pages.Section(title, charts=found) for title, found in charts.items() if title not in titles]
    for table in report.tables:
        found = charts.pop(table.title, [])
        folded = table.title in report.folded or (not found and len(table.rows) > LONG)
        sections.append(pages.Section(table.title, charts=found, tables=[_table(table)], folded=folded))
    return sections


def _table(table: Table) -> pages.Table:
    keys = [*table.headings, *([table.strong] if table.strong else [])]
    rows = [{key: row.get(key) for key in keys} for row in table.rows]
    return pages.Table(rows, table.headings, note=table.note, strong=table.strong)


def _facts(outcome: Outcome) -> dict[str, str]:
    """What identifies this run."""
    source = outcome.provenance
    model = source["inputs"]["model"]
    arguments = {name: value for name, value in source["arguments"].items() if name != "seed"}
    return {
        "model": f"{model['name']}, {model['type']}, fingerprint {model['fingerprint'][:16]}, {model['dtype']}",
        **{name: _fact(value) for name, value in arguments.items() if value is not None},
        "seed": str(source["seed"]),
        "versions": ", ".join(f"{name} {version}" for name, version in source["versions"].items()),
        "made": str(source["created"]),
        "files": ", ".join(path.name for path in outcome.files.values()),
    }


def _fact(value: Any) -> str:
    """An argument in a few words: a task or text by its name and fingerprint."""
    if isinstance(value, dict):
        if "fingerprint" in value:
            return " ".join([str(value.get("name", "")), f"fingerprint {value['fingerprint'][:16]}"]).strip()
        return ", ".join(_fact(item) if len(value) == 1 else f"{key}: {_fact(item)}" for key, item in value.items())
    return ", ".join(map(_fact, value)) if isinstance(value, list) else str(value)

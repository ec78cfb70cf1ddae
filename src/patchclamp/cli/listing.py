"""`patchclamp list`: everything that can be named on the command line or plugged in."""

from __future__ import annotations

import importlib
import inspect
from typing import Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit, table

TABLES = {
    "finder": "find:finders",
    "reading": "read:readings",
    "statistic": "record.statistics:statistics",
    "metric": "measure:metrics",
    "selection": "train.selections:selections",
    "fit": "intervene.fits:fits",
    "intervention": "intervene.kinds:kinds",
    "study": "studies.study:studies",
    "generator": "data.generate:TASK_GENERATORS",
}
EXAMPLE = """Example:

  patchclamp list finder
"""


def register(app: typer.Typer) -> None:
    app.command("list", epilog=EXAMPLE)(list_entries)


def list_entries(
    kind: Annotated[str | None, typer.Argument(help=f"Only entries of one kind: {', '.join(TABLES)}.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """List what is built in or installed: finders, readings, statistics, metrics, fits, kinds of interventions, studies, ..."""
    from patchclamp.core.errors import InputError
    from patchclamp.core.registry import Entry

    if kind is not None and kind not in TABLES:
        raise InputError(f"no kind {kind!r}; kinds are {', '.join(TABLES)}")
    rows: list[dict[str, Any]] = []
    for place in [TABLES[kind]] if kind else TABLES.values():
        room, _, name = place.partition(":")
        entries = getattr(importlib.import_module(f"patchclamp.{room}"), name)
        if isinstance(entries, dict):
            entries = [Entry(key, "generator", target) for key, target in sorted(entries.items())]
        rows.extend(entry.to_dict() for entry in entries)
    for row in rows:
        row["parameters"] = {k: None if inspect.isclass(v) else v for k, v in row["parameters"].items()}
    emit(
        {"entries": rows},
        as_json=as_json,
        shown=table("", rows, {"kind": "kind", "name": "name", "summary": "what it does"}),
    )

"""`patchclamp models check`: which model types of the installed transformers are read correctly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit, note, table

EXAMPLE = """Examples:

  patchclamp models check
  patchclamp models check llama mixtral --json
"""


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Model types of the installed transformers.")
    group.command("check", epilog=EXAMPLE)(check)

    @group.callback()
    def models() -> None:
        """Model types of the installed transformers."""

    app.add_typer(group, name="models")


def check(
    types: Annotated[list[str] | None, typer.Argument(metavar="[TYPE]...", help="Model types; all by default.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write the table as a Markdown page.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Build a tiny random model of each causal-LM type and check recording and clamping on it against its own weights."""
    from patchclamp.models.coverage import check_types, write_table

    results = check_types(types or None)
    rows = [result.to_dict() for result in results]
    counts = Counter(row["status"] for row in rows)
    if markdown is not None:
        note(f"wrote {write_table(results, markdown)}")
    shown = table("Model types", rows, {"type": "type", "status": "status", "form": "form", "reason": "reason"})
    emit({"counts": dict(counts), "rows": rows}, as_json=as_json, shown=shown)
    note(", ".join(f"{count} {status}" for status, count in counts.most_common()))
    if counts.get("fail"):
        raise typer.Exit(1)

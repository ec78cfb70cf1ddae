"""`patchclamp replay`: run a result again and compare the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit

EXAMPLE = """Example:

  patchclamp replay effects.json
"""


def register(app: typer.Typer) -> None:
    app.command("replay", epilog=EXAMPLE)(replay)


def replay(
    result: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT",
            help="A file of sets, effects, side effects, a reading, interventions, patching, edges, a trade-off, a sweep of "
            "steering or a selection, a study's report.json, or a recording's folder.",
        ),
    ],
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Relative difference that still agrees.")
    ] = 1e-6,
    as_json: o.AsJson = False,
) -> None:
    """Run again what made RESULT, from the arguments and inputs it names, and say whether the numbers agree."""
    from patchclamp.replay import replay as run

    report = run(result, tolerance=tolerance)
    emit(report.to_dict(), as_json=as_json, shown=report)
    if not report.agrees:
        raise typer.Exit(1)

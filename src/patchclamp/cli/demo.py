"""`patchclamp demo`: the whole path on the model and the text that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit, note

EXAMPLE = """Example:

  patchclamp demo --out demo/
"""


def register(app: typer.Typer) -> None:
    app.command("demo", epilog=EXAMPLE)(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for demo.html, demo.atlas.duckdb and the rest.")] = Path(
        "."
    ),
    controls: Annotated[int, typer.Option("--controls", min=0, help="Matched-random sets to compare with.")] = 10,
    documents: Annotated[
        int, typer.Option("--documents", min=2, max=40, help="Documents per language to measure effects on.")
    ] = 24,
    rate: Annotated[float, typer.Option("--rate", help="Share of neurons to select.")] = 0.1,
    seed: o.Seed = 0,
    as_json: o.AsJson = False,
) -> None:
    """Record, find language neurons, clamp them, measure, and keep it all: on the bundled model, without network.

    A rate of 0.1 is the default of the method's reference code; the paper's 0.01 would be 38 of this small model's
    3,840 neurons.
    """
    from patchclamp.data import demo_text
    from patchclamp.models import load
    from patchclamp.studies.language_neurons import language_neurons

    study = language_neurons(
        load("demo"),
        find_on=demo_text(split="find"),
        measure_on=demo_text(split="measure").limited(max_documents=documents),
        out=out,
        name="demo",
        rate=rate,
        controls=controls,
        seed=seed,
        overwrite=True,
        say=note,
    )
    emit(study.to_dict(), as_json=as_json, shown=study)

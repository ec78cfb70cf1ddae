"""`patchclamp record`: stream labelled text through a model and keep statistics of every unit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit

EXAMPLE = """Example:

  patchclamp record demo --text en=english.txt --text fr=french.txt --out rec/
"""


def register(app: typer.Typer) -> None:
    app.command("record", epilog=EXAMPLE)(record)


def record(
    model: o.ModelName,
    text: o.Texts,
    out: Annotated[Path, typer.Option("--out", help="Folder for the recording; must not exist yet, unless --resume.")],
    sites: Annotated[str, typer.Option("--sites", help="Comma-separated sites, such as mlp,attn,resid.")] = "mlp",
    statistics: Annotated[
        str, typer.Option("--statistics", help="Comma-separated statistics; `patchclamp list` names them.")
    ] = "firing,moments",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers to record, such as 0-3,7; all by default.")
    ] = None,
    threshold: Annotated[float, typer.Option("--threshold", help="A unit fires where its value is above this.")] = 0.0,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            "--argument",
            metavar="STATISTIC.NAME=VALUE",
            help="Argument of a statistic, repeatable: exemplars.k=20, cofiring.units=@neurons.json, firing.signal=value.",
        ),
    ] = None,
    select: o.Select = None,
    special: Annotated[bool, typer.Option("--special", help="Count special tokens too.")] = False,
    skip_first: Annotated[
        int, typer.Option("--skip-first", min=0, help="Leave out the first K tokens of a document.")
    ] = 0,
    unit: o.DocumentUnit = "line",
    column: o.TextColumns = None,
    max_documents: o.MaxDocuments = None,
    max_tokens: o.MaxTokens = None,
    batch_tokens: o.FittingBatch = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted recording in --out.")] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="local, processes, or ray (extra `ray`) to spread over a cluster.")
    ] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Workers of the engines processes and ray.")] = 1,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    features: o.Features = None,
    as_json: o.AsJson = False,
) -> None:
    """Record statistics of every unit of MODEL over labelled text."""
    from patchclamp.data import Selection
    from patchclamp.record import record as run

    texts = o.open_texts(text, unit=unit, column=column, max_documents=max_documents, max_tokens=max_tokens)
    opened = o.open_model(model, device, dtype, revision, trust_remote_code, features)
    recording = run(
        opened,
        texts,
        sites=tuple(o.names(sites)),
        statistics=o.statistics_of(statistics, threshold, argument or []),
        layers=o.layer_numbers(layers),
        select=Selection(special=special, skip_first=skip_first, inside=select),
        out=out,
        resume=resume,
        batch_tokens=batch_tokens,
        engine=engine,
        workers=workers,
    )
    emit(recording.summary(), as_json=as_json, shown=recording)

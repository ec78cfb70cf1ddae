"""`patchclamp atlas build|query|export`: one DuckDB file about one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit, note
from patchclamp.core.errors import InputError

BUILD = """Examples:

  patchclamp atlas build demo.atlas.duckdb --recording rec/ --sets neurons.json --effects effects.json
  patchclamp atlas build demo.atlas.duckdb --recording rec/ --model demo --text demo:find
"""
QUERY = """Examples:

  patchclamp atlas query demo.atlas.duckdb --unit mlp.3.17
  patchclamp atlas query demo.atlas.duckdb "SELECT * FROM labels"
"""
EXPORT = """Example:

  patchclamp atlas export demo.atlas.duckdb --out tables/
"""
AtlasFile = Annotated[Path, typer.Argument(metavar="ATLAS", help="An atlas file.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Build, query and export an atlas of a model.")
    group.command("build", epilog=BUILD)(build)
    group.command("query", epilog=QUERY)(query)
    group.command("export", epilog=EXPORT)(export)

    @group.callback()
    def atlas() -> None:
        """Build, query and export an atlas of a model."""

    app.add_typer(group, name="atlas")


def build(
    out: Annotated[Path, typer.Argument(metavar="ATLAS", help="The file to write.")],
    recording: Annotated[list[Path] | None, typer.Option("--recording", help="Recording folder, repeatable.")] = None,
    sets: Annotated[list[Path] | None, typer.Option("--sets", help="Sets file, repeatable.")] = None,
    effects: Annotated[list[Path] | None, typer.Option("--effects", help="Effects file, repeatable.")] = None,
    tokens: Annotated[
        list[Path] | None, typer.Option("--tokens", help="File of `patchclamp read tokens --out`, repeatable.")
    ] = None,
    descriptions: Annotated[
        list[Path] | None, typer.Option("--descriptions", help="File of `patchclamp read describe --out`, repeatable.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The recorded model; marks the exemplars' tokens in their text.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="LABEL=FILE", help="The recorded text, for the exemplars.")
    ] = None,
    features: o.Features = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing atlas.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add to an existing atlas of the same model.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Build an atlas from recordings, sets, effects, token maps and descriptions of one model."""
    from patchclamp.atlas import build as run

    if features and model is None:
        raise InputError("--features are those of a model; give --model too")
    texts = o.open_texts(text, unit="line", column=None, max_documents=None, max_tokens=None) if text else None
    atlas = run(
        out,
        recordings=recording or (),
        findings=sets or (),
        effects=effects or (),
        tokens=tokens or (),
        descriptions=descriptions or (),
        model=None if model is None else o.open_model(model, None, None, None, False, features),
        corpus=texts,
        overwrite=overwrite,
        append=append,
    )
    emit(atlas.summary(), as_json=as_json, shown=atlas)


def query(
    atlas: AtlasFile,
    sql: Annotated[str | None, typer.Argument(metavar="[SQL]", help="A SELECT over the atlas's tables.")] = None,
    unit: Annotated[
        str | None, typer.Option("--unit", help="Show everything about one unit, such as mlp.3.17.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Ask an atlas: a unit's page, the rows of a query, or (with neither) what the atlas holds."""
    from patchclamp.atlas import Atlas

    if sql is not None and unit is not None:
        raise InputError("give either a query or --unit, not both")
    with Atlas.open(atlas) as opened:
        if unit is not None:
            page = opened.unit(unit)
            emit(page.to_dict(), as_json=as_json, shown=page)
        elif sql is not None:
            result = opened.sql(sql)
            emit(result.to_dict(), as_json=as_json, shown=result)
        else:
            emit(opened.summary(), as_json=as_json, shown=opened)


def export(
    atlas: AtlasFile,
    out: Annotated[Path, typer.Option("--out", help="Folder for the Parquet files; must not exist yet.")],
    as_json: o.AsJson = False,
) -> None:
    """Write every table of an atlas as a Parquet file."""
    from patchclamp.atlas import Atlas

    with Atlas.open(atlas) as opened:
        files = opened.export(out)
    note(f"wrote {len(files)} tables to {out}")
    emit({"files": files}, as_json=as_json, shown="\n".join(str(file) for file in files))

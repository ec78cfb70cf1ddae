"""`patchclamp perplexity`: how well a model predicts each text."""

from __future__ import annotations

from typing import Annotated

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit, table

EXAMPLE = """Example:

  patchclamp perplexity demo --text en=english.txt --text fr=french.txt
"""


def register(app: typer.Typer) -> None:
    app.command("perplexity", epilog=EXAMPLE)(perplexity)


def perplexity(
    model: o.ModelName,
    text: o.Texts,
    unit: o.DocumentUnit = "line",
    column: o.TextColumns = None,
    select: o.Select = None,
    max_documents: o.MaxDocuments = None,
    max_tokens: o.MaxTokens = None,
    batch_tokens: o.BatchTokens = 4096,
    per_document: Annotated[
        bool, typer.Option("--per-document", help="Add every document's value to the JSON.")
    ] = False,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    features: o.Features = None,
    as_json: o.AsJson = False,
) -> None:
    """Token-weighted perplexity of MODEL on each text, with a 95% interval over documents."""
    from patchclamp.data import Selection
    from patchclamp.measure import perplexity as run

    texts = o.open_texts(text, unit=unit, column=column, max_documents=max_documents, max_tokens=max_tokens)
    opened = o.open_model(model, device, dtype, revision, trust_remote_code, features)
    measured = run(opened, texts, batch_tokens=batch_tokens, select=Selection(inside=select))
    rows = []
    for measurement in measured.values():
        low, high = measurement.interval()
        row = {**measurement.to_dict(), "low": low, "high": high}
        rows.append(
            row if per_document else {key: value for key, value in row.items() if key not in ("totals", "tokens")}
        )
    headings = {"text": "text", "value": "perplexity", "low": "low", "high": "high", "n_tokens": "tokens"}
    shown = table(f"Perplexity of {opened.name}", rows, {**headings, "n_documents": "documents"})
    emit({"metric": "perplexity", "rows": rows, "provenance": measured.provenance}, as_json=as_json, shown=shown)

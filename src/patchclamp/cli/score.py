"""`patchclamp score`: how well a model does a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchclamp.cli import options as o
from patchclamp.cli import task_options as t
from patchclamp.cli.output import emit, note

EXAMPLE = """Example:

  patchclamp score demo --task generate:facts,split=heldout,language=en --how choice
"""


def register(app: typer.Typer) -> None:
    app.command("score", epilog=EXAMPLE)(score)


def score(
    model: o.ModelName,
    task: t.Tasks,
    how: t.How = None,
    by: t.By = None,
    where: t.Where = None,
    max_items: t.MaxItems = None,
    shots: t.Shots = None,
    chat: t.Chat = False,
    normalise: t.Normalise = None,
    tokens: t.AnswerTokens = None,
    checker: t.CheckerName = None,
    max_new_tokens: t.MaxNewTokens = None,
    alternatives: t.Alternatives = False,
    out: Annotated[Path | None, typer.Option("--out", help="Also save the results of all items (JSON).")] = None,
    per_item: Annotated[bool, typer.Option("--per-item", help="Add every item's result to the JSON.")] = False,
    seed: o.Seed = 0,
    batch_tokens: o.BatchTokens = 4096,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    features: o.Features = None,
    as_json: o.AsJson = False,
) -> None:
    """Score MODEL on tasks: by the likelihood of choices or answers, or by what it writes. With 95% intervals over items."""
    from patchclamp.measure import score_all

    o.check_target(out)
    request = t.Request.of(
        task,
        how,
        chat,
        {"by": by, "where": where, "max_items": max_items, "shots": shots, "seed": seed},
        {
            "normalise": normalise,
            "tokens": tokens,
            "checker": checker,
            "max_new_tokens": max_new_tokens,
            "alternatives": alternatives,
        },
    )
    opened = o.open_model(model, device, dtype, revision, trust_remote_code, features)
    measured = score_all(opened, request.open(opened), request.how, batch_tokens=batch_tokens, **request.options)
    data = measured.to_dict()
    if not per_item:
        del data["measurements"]
    emit(data, as_json=as_json, shown=measured)
    if out is not None:
        note(f"wrote {measured.save(out)}")

"""`patchclamp effect`: what clamping each set does to each text, against matched-random sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.cli import task_options as t
from patchclamp.cli.output import emit, note
from patchclamp.core.errors import InputError

EXAMPLE = """Example:

  patchclamp effect demo neurons.json --text en=english.txt --text fr=french.txt --controls 10
  patchclamp effect demo neurons.json --task generate:facts,split=transfer --by language --how loss
"""


def register(app: typer.Typer) -> None:
    app.command("effect", epilog=EXAMPLE)(effect)


def effect(
    model: o.ModelName,
    sets: Annotated[Path, typer.Argument(metavar="SETS", help="Sets that `patchclamp find` wrote.")],
    text: o.OptionalTexts = None,
    task: t.OptionalTasks = None,
    how: t.How = None,
    only: Annotated[str | None, typer.Option("--set", help="Comma-separated sets to clamp; all by default.")] = None,
    to: Annotated[str, typer.Option("--to", help="Value to clamp to: a number, or mean (needs --recording).")] = "0",
    scale: Annotated[float | None, typer.Option("--scale", help="Multiply the units instead of clamping them.")] = None,
    add: Annotated[float | None, typer.Option("--add", help="Add to the units instead of clamping them.")] = None,
    scope: Annotated[
        str, typer.Option("--scope", help="Positions to change: prompt, generated (on text they need --select) or all.")
    ] = "all",
    recording: Annotated[Path | None, typer.Option("--recording", help="Recording that gives the means.")] = None,
    controls: Annotated[int, typer.Option("--controls", min=0, help="Matched-random sets to compare with.")] = 10,
    permutations: Annotated[
        int, typer.Option("--permutations", min=1, help="Permutations behind each p-value.")
    ] = 9999,
    resamples: Annotated[
        int, typer.Option("--resamples", min=1, help="Bootstrap resamples behind each interval.")
    ] = 1000,
    out: Annotated[Path | None, typer.Option("--out", help="Also save the effects (JSON).")] = None,
    seed: o.Seed = 0,
    unit: o.DocumentUnit = "line",
    column: o.TextColumns = None,
    select: o.Select = None,
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
    max_documents: o.MaxDocuments = None,
    max_tokens: o.MaxTokens = None,
    batch_tokens: o.BatchTokens = 4096,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    features: o.Features = None,
    as_json: o.AsJson = False,
) -> None:
    """Clamp each set of SETS in MODEL; measure every text's perplexity, or every task, with controls and p-values."""
    from patchclamp.data import Selection
    from patchclamp.measure import effect as run
    from patchclamp.models.units import load_sets
    from patchclamp.record import Recording

    o.check_target(out)
    found = load_sets(sets)
    wanted = o.names(only) if only else list(found)
    if unknown := [name for name in wanted if name not in found]:
        raise InputError(f"{sets} holds no set {unknown[0]!r}; it holds {', '.join(found)}")
    options: dict[str, Any] = {
        "normalise": normalise,
        "tokens": tokens,
        "checker": checker,
        "max_new_tokens": max_new_tokens,
    }
    options["alternatives"] = alternatives or None
    chosen = {"by": by, "where": where, "max_items": max_items, "shots": shots}
    of_text = {"select": select, "column": column, "max_documents": max_documents, "max_tokens": max_tokens}
    _check_on(text, task, of_text, {"how": how, "chat": chat or None, **options, **chosen})
    what: dict[str, Any]
    if text:
        texts = o.open_texts(text, unit=unit, column=column, max_documents=max_documents, max_tokens=max_tokens)
        opened = o.open_model(model, device, dtype, revision, trust_remote_code, features)
        what = {"on": texts, "select": Selection(inside=select)}
    else:
        request = t.Request.of(task or [], how, chat, {**chosen, "seed": seed}, options)
        opened = o.open_model(model, device, dtype, revision, trust_remote_code, features)
        what = {"on": request.open(opened), "how": request.how, "options": request.options}
    effects = run(
        opened,
        {name: found[name] for name in wanted},
        **what,
        to=None if scale is not None or add is not None else o.clamp_value(to),
        scale=scale,
        add=add,
        scope=scope,
        controls=controls,
        permutations=permutations,
        resamples=resamples,
        seed=seed,
        recording=None if recording is None else Recording.open(recording),
        batch_tokens=batch_tokens,
    )
    emit(effects.to_dict(), as_json=as_json, shown=effects)  # first: a full disk should not lose what was measured
    if out is not None:
        note(f"wrote {effects.save(out)}")


def _check_on(
    text: list[str] | None, task: list[str] | None, of_text: Mapping[str, Any], of_tasks: Mapping[str, Any]
) -> None:
    """InputError unless there is either text or tasks, with no options of the other."""
    if bool(text) == bool(task):
        raise InputError("give either --text LABEL=FILE or --task NAME=FILE, to say what the effect is measured on")
    for name, value in (of_tasks if text else of_text).items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} has no meaning for {'--text' if text else '--task'}")

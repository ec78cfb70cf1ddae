"""`patchclamp effect`: what each set or intervention does to each text or task, against matched random ones; with a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from patchclamp.cli import change_options as c
from patchclamp.cli import options as o
from patchclamp.cli import task_options as t
from patchclamp.cli.output import emit, note
from patchclamp.core.errors import InputError

EXAMPLE = """Example:

  patchclamp effect demo neurons.json --text en=english.txt --text fr=french.txt --controls 10
  patchclamp effect demo neurons.json --task generate:facts,split=transfer --by language --how loss
  patchclamp effect demo interventions.json --text demo:measure
  patchclamp effect demo neurons.json --set fr --target fr --report french.html
"""


def register(app: typer.Typer) -> None:
    app.command("effect", epilog=EXAMPLE)(effect)


def effect(
    model: o.ModelName,
    sets: c.Changes,
    text: o.OptionalTexts = None,
    task: t.OptionalTasks = None,
    how: t.How = None,
    only: Annotated[str | None, typer.Option("--set", help="Comma-separated sets to clamp; all by default.")] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Value to clamp sets to: a number (0 by default), or mean (needs --recording)."),
    ] = None,
    scale: Annotated[float | None, typer.Option("--scale", help="Multiply the units instead of clamping them.")] = None,
    add: Annotated[float | None, typer.Option("--add", help="Add to the units instead of clamping them.")] = None,
    scope: Annotated[
        str, typer.Option("--scope", help="Positions to change: prompt, generated (on text they need --select) or all.")
    ] = "all",
    recording: Annotated[Path | None, typer.Option("--recording", help="Recording that gives the means.")] = None,
    controls: Annotated[
        int, typer.Option("--controls", min=0, help="Matched random sets or changes to compare with.")
    ] = 10,
    permutations: Annotated[
        int, typer.Option("--permutations", min=1, help="Permutations behind each p-value.")
    ] = 9999,
    resamples: Annotated[
        int, typer.Option("--resamples", min=1, help="Bootstrap resamples behind each interval.")
    ] = 1000,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also save the effects, or what the page shows (JSON).")
    ] = None,
    report: c.Report = None,
    target: c.Target = None,
    prompts: c.Prompts = None,
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
    """Change MODEL by each set or intervention; measure every text's perplexity, or every task, with controls and p-values."""
    from patchclamp.data import Selection
    from patchclamp.measure import effect as run
    from patchclamp.record import Recording

    o.check_target(out)
    c.check_report(report, target, prompts)
    found = c.open_changes(sets, only)
    if report is not None and len(found) != 1:
        raise InputError(f"a report is on one change, but {sets} holds {', '.join(found)}; choose one with --set")
    options: dict[str, Any] = {
        "normalise": normalise,
        "tokens": tokens,
        "checker": checker,
        "max_new_tokens": max_new_tokens,
    }
    options["alternatives"] = alternatives or None
    chosen = {"by": by, "where": where, "max_items": max_items, "shots": shots}
    of_text = {"select": select, "column": column, "max_documents": max_documents, "max_tokens": max_tokens}
    _check_on(text, task, of_text, {"how": how, "chat": chat or None, **options, **chosen}, both=report is not None)
    texts = None
    if text:
        texts = o.open_texts(text, unit=unit, column=column, max_documents=max_documents, max_tokens=max_tokens)
    request = t.Request.of(task, how, chat, {**chosen, "seed": seed}, options) if task else None
    opened = o.open_model(model, device, dtype, revision, trust_remote_code, features)
    keywords: dict[str, Any] = {
        "to": None if to is None else o.clamp_value(to),
        "scale": scale,
        "add": add,
        "scope": scope,
        "controls": controls,
        "permutations": permutations,
        "resamples": resamples,
        "seed": seed,
        "recording": None if recording is None else Recording.open(recording),
        "batch_tokens": batch_tokens,
    }
    if texts is not None:
        keywords["select"] = Selection(inside=select)
    if report is not None:
        asked = {**c.measured_on(texts, request, opened), "how": how} if task else c.measured_on(texts, request, opened)
        _report(
            opened, next(iter(found.values())), {**asked, **keywords}, target, prompts, report, out, as_json=as_json
        )
        return
    what = (
        {"on": texts}
        if request is None
        else {"on": request.open(opened), "how": request.how, "options": request.options}
    )
    effects = run(opened, found, **what, **keywords)
    emit(effects.to_dict(), as_json=as_json, shown=effects)  # first: a full disk should not lose what was measured
    if out is not None:
        note(f"wrote {effects.save(out)}")


def _report(
    model: Any,
    change: Any,
    keywords: Mapping[str, Any],
    target: str | None,
    prompts: list[str] | None,
    report: Path,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Measure one change on everything at once, and write the page."""
    from patchclamp.measure import side_effects

    found = side_effects(model, change, target=o.names(target) if target else None, prompts=prompts, **keywords)
    emit(found.to_dict(), as_json=as_json, shown=found)
    for path in (report, out):
        if path is not None:
            note(f"wrote {found.save(path)}")


def _check_on(
    text: list[str] | None,
    task: list[str] | None,
    of_text: Mapping[str, Any],
    of_tasks: Mapping[str, Any],
    *,
    both: bool,
) -> None:
    """InputError for options of what isn't measured. both: whether text and tasks may be measured together, or neither."""
    if bool(text) == bool(task) and not both:
        raise InputError("give either --text LABEL=FILE or --task NAME=FILE, to say what the effect is measured on")
    for given, options, other in ((text, of_text, "--task"), (task, of_tasks, "--text")):
        for name, value in options.items():
            if value is not None and not given:
                raise InputError(
                    f"--{name.replace('_', '-')} has no meaning {f'for {other}' if both is False else 'here'}"
                )

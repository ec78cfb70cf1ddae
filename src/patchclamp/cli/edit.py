"""`patchclamp edit`: change weights for good and save an ordinary checkpoint, with what the edit does in its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from patchclamp.cli import change_options as c
from patchclamp.cli import options as o
from patchclamp.cli import task_options as t
from patchclamp.cli.output import emit, note
from patchclamp.core.errors import InputError

EXAMPLE = """Example:

  patchclamp edit demo neurons.json --set fr --mode ablate --out edited/
  patchclamp edit demo interventions.json --out edited/
  patchclamp edit demo neurons.json --set fr --out edited/ --target fr --report french.html
"""


def register(app: typer.Typer) -> None:
    app.command("edit", epilog=EXAMPLE)(edit)


def edit(
    model: o.ModelName,
    sets: c.Changes,
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoint; must not exist yet.")],
    name: Annotated[
        str | None, typer.Option("--set", help="Which set to edit; needed where SETS holds several.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="Of sets: ablate (to zero; the default), mean (to the recorded mean) or scale."),
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", help="With --mode scale: multiply the units by this.")
    ] = None,
    recording: Annotated[Path | None, typer.Option("--recording", help="Recording that gives the means.")] = None,
    why: Annotated[str, typer.Option("--why", help="Kept in the checkpoint's card.")] = "",
    report: c.Report = None,
    target: c.Target = None,
    prompts: c.Prompts = None,
    text: o.OptionalTexts = None,
    task: t.OptionalTasks = None,
    controls: Annotated[
        int, typer.Option("--controls", min=0, help="With --report: matched random changes to compare with.")
    ] = 10,
    permutations: Annotated[
        int, typer.Option("--permutations", min=1, help="With --report: permutations behind each p-value.")
    ] = 9999,
    max_documents: o.MaxDocuments = None,
    max_items: t.MaxItems = None,
    seed: o.Seed = 0,
    batch_tokens: o.BatchTokens = 4096,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    features: o.Features = None,
    as_json: o.AsJson = False,
) -> None:
    """Write one set or the interventions of a file into MODEL's weights; the result loads in plain transformers.

    With --report, the edited model is compared with the original: what was measured is kept in the checkpoint's card.
    """
    from patchclamp.intervene import Interventions
    from patchclamp.intervene import edit as run
    from patchclamp.models.units import UnitSet
    from patchclamp.record import Recording

    c.check_report(report, target, prompts)
    if report is None and (text or task):
        raise InputError("--text and --task say what a report is measured on; give --report FILE.html too")
    if report is not None and out.exists():
        raise InputError(f"{out} exists already; choose another folder or remove it first")
    change: Any
    given: dict[str, Any]
    if c.of_interventions(sets):
        if name or mode or scale is not None or recording is not None:
            raise InputError(
                f"{sets} holds interventions, which say themselves what is done; leave out --set, --mode, ..."
            )
        change, given = Interventions.load(sets), {}
    else:
        change = UnitSet.load(sets, name)
        given = {"mode": mode, "scale": scale, "recording": None if recording is None else Recording.open(recording)}
    texts = None
    if text:
        texts = o.open_texts(text, unit="line", column=None, max_documents=max_documents, max_tokens=None)
    request = t.Request.of(task, None, False, {"max_items": max_items, "seed": seed}, {}) if task else None
    opened = o.open_model(model, device, dtype, revision, trust_remote_code, features)
    edited = run(opened, change, why=why, **given)
    found = None
    if report is not None:
        from patchclamp.measure import side_effects

        found = side_effects(
            opened,
            edited=edited,
            target=o.names(target) if target else None,
            prompts=prompts,
            controls=controls,
            permutations=permutations,
            seed=seed,
            batch_tokens=batch_tokens,
            **c.measured_on(texts, request, opened),
        )
        found.save(report)
    edited.save(out, effects=found, report=report)
    emit(edited.card(found), as_json=as_json, shown=_shown(out, edited, found))
    if report is not None:
        note(f"wrote {report}")


def _shown(out: Path, edited: Any, found: Any) -> Any:
    """What was written, and below it what was measured."""
    from rich.console import Group
    from rich.text import Text

    line = Text(f"wrote {out}: {edited.interventions.describe()} ({edited.mode})")
    return line if found is None else Group(line, Text(), found)

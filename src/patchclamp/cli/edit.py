"""`patchclamp edit`: change weights for good and save an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit

EXAMPLE = """Example:

  patchclamp edit demo neurons.json --set fr --mode ablate --out edited/
"""


def register(app: typer.Typer) -> None:
    app.command("edit", epilog=EXAMPLE)(edit)


def edit(
    model: o.ModelName,
    sets: Annotated[Path, typer.Argument(metavar="SETS", help="Sets that `patchclamp find` wrote.")],
    name: Annotated[str, typer.Option("--set", help="Which set to edit.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoint; must not exist yet.")],
    mode: Annotated[str, typer.Option("--mode", help="ablate (to zero) or mean (to the recorded mean).")] = "ablate",
    recording: Annotated[Path | None, typer.Option("--recording", help="Recording that gives the means.")] = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    features: o.Features = None,
    as_json: o.AsJson = False,
) -> None:
    """Edit the units of one set of SETS in MODEL's weights; the result loads in plain transformers."""
    from patchclamp.intervene import edit as run
    from patchclamp.models.units import UnitSet
    from patchclamp.record import Recording

    units = UnitSet.load(sets, name)
    opened = o.open_model(model, device, dtype, revision, trust_remote_code, features)
    edited = run(opened, units, mode=mode, recording=None if recording is None else Recording.open(recording))
    edited.save(out)
    emit(edited.card(), as_json=as_json, shown=f"wrote {out}: {len(units)} units of set {name} edited ({mode})")

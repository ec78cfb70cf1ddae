"""`patchclamp check`: can this model's units be trusted?"""

from __future__ import annotations

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit, table

EXAMPLE = """Example:

  patchclamp check demo
"""


def register(app: typer.Typer) -> None:
    app.command("check", epilog=EXAMPLE)(check)


def check(
    model: o.ModelName,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Check that observing MODEL changes nothing, and that padding and batching don't change what is recorded."""
    from patchclamp.models import check_model

    report = check_model(o.open_model(model, device, dtype, revision, trust_remote_code, check=False))
    rows = report.to_dict()["checks"]
    shown = table(f"Checks of {report.model}", rows, {"status": "status", "name": "check", "said": "what was seen"})
    emit(report.to_dict(), as_json=as_json, shown=shown)
    if not report.passed:
        raise typer.Exit(1)

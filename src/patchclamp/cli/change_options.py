"""Changes of a model on the command line (sets or interventions in a file), and options of the report on one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.core.errors import InputError

if TYPE_CHECKING:
    from patchclamp.cli.task_options import Request
    from patchclamp.intervene import Interventions
    from patchclamp.models import LanguageModel, UnitSet

CHANGES_HELP = "Sets that `patchclamp find` wrote, or interventions that `patchclamp fit` wrote."
Changes = Annotated[Path, typer.Argument(metavar="SETS|INTERVENTIONS", help=CHANGES_HELP)]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Also write a page on this one change: target, side effects on all --text and --task, samples, controls. The "
        "demo model brings text and tasks of its own.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target", help="With --report: comma-separated tasks or labels of text that the change is meant for."
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", help="With --report: write samples after this text; repeatable. By default one of everything."
    ),
]


def open_changes(path: Path, only: str | None = None) -> dict[str, UnitSet | Interventions]:
    """Name -> set of a sets file, or the interventions of a file, called like it. only: comma-separated sets to keep.

    InputError for a set that the file doesn't hold, and for sets asked of interventions.
    """
    from patchclamp.intervene import Interventions
    from patchclamp.models.units import load_sets

    if of_interventions(path):
        if only:
            raise InputError(f"{path} holds interventions, which are used as they are; leave out --set")
        return {path.stem: Interventions.load(path)}
    found = load_sets(path)
    wanted = o.names(only) if only else list(found)
    if unknown := [name for name in wanted if name not in found]:
        raise InputError(f"{path} holds no set {unknown[0]!r}; it holds {', '.join(found)}")
    return {name: found[name] for name in wanted}


def of_interventions(path: Path) -> bool:
    """Whether a file holds interventions; DamagedError or InputError if it can't be read."""
    from patchclamp.core.files import read_json
    from patchclamp.intervene.kinds import FORMAT

    data = read_json(path)
    return isinstance(data, dict) and data.get("format") == FORMAT


def check_report(report: Path | None, target: str | None, prompts: list[str] | None) -> None:
    """InputError, before the work, for a page that can't be written and for options of a page that isn't asked for."""
    if report is None:
        for option, value in (("--target", target), ("--prompt", prompts)):
            if value:
                raise InputError(f"{option} has a meaning with --report FILE.html only")
        return
    if report.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--report {report} is no page; give a name that ends in .html")
    o.check_target(report)


def measured_on(text: Any, request: Request | None, model: LanguageModel) -> Mapping[str, Any]:
    """Keywords of `side_effects` for what the options of text and tasks asked for. text: Corpus or None."""
    found: dict[str, Any] = {} if text is None else {"text": text}
    if request is not None:
        found["tasks"] = request.open(model)
        if request.options:
            found["options"] = {request.how: request.options}
    return found

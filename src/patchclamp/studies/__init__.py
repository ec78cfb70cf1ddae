"""Floor 8: published methods run end to end on a model of the user's choice, composed of the floors below.

patchclamp.study("relation-neurons", "demo", out="relations")     # tables, report.json, report.html
[entry.name for entry in patchclamp.studies.studies]              # what there is
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchclamp.studies.study import Outcome, Report, Run, Table, judged, studies

__all__ = ["Outcome", "Report", "Run", "Table", "judged", "studies"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: this module is imported by every file of the room."""
    if name != "study" and name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.study")
    return home if name == "study" else getattr(home, name)  # the file is called like its function, and is callable

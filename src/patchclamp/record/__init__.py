"""Floor 2: recordings. `record(model, text)` keeps statistics of every unit over labelled text; `Recording.open(folder)` reads
them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from patchclamp.core.callable_room import make_callable

if TYPE_CHECKING:
    from patchclamp.record.activations import Activations
    from patchclamp.record.recorder import Interrupted, record
    from patchclamp.record.recording import Recording
    from patchclamp.record.statistics import Statistic, Where

_HOMES = {
    "Activations": "activations",
    "Interrupted": "recorder",
    "record": "recorder",
    "Recording": "recording",
    "Statistic": "statistics",
    "Where": "statistics",
}

make_callable(__name__)

__all__ = ["Activations", "Interrupted", "Recording", "Statistic", "Where", "record"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

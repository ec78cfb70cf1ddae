"""Floor 6: training: the demo model's own command, fine-tuning of all or some weights, choosing what to train on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchclamp.train.finetune import Finetuned, finetune
    from patchclamp.train.select import select
    from patchclamp.train.selected import Selected
    from patchclamp.train.selections import selections

_HOMES = {
    "Finetuned": "finetune",
    "Selected": "selected",
    "finetune": "finetune",
    "select": "select",
    "selections": "selections",
}

__all__ = ["Finetuned", "Selected", "finetune", "select", "selections"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the demo's command needs neither."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    return module if name in ("finetune", "select") else getattr(module, name)  # these files are callable

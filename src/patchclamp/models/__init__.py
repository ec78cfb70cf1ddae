"""Floor 1: loading a causal language model, its anatomy, its units, and the hooks that watch and change them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchclamp.models.anatomy import Anatomy
    from patchclamp.models.features import Dictionary, LinearDictionary, load_dictionary
    from patchclamp.models.hooks import change, observe, prompt_scope, run
    from patchclamp.models.load import LanguageModel, load
    from patchclamp.models.selfcheck import check_model
    from patchclamp.models.units import Layout, Unit, UnitSet, load_sets, save_sets

_HOMES = {
    "Anatomy": "anatomy",
    "Dictionary": "features",
    "LanguageModel": "load",
    "Layout": "units",
    "LinearDictionary": "features",
    "Unit": "units",
    "UnitSet": "units",
    "change": "hooks",
    "check_model": "selfcheck",
    "load_dictionary": "features",
    "load_sets": "units",
    "observe": "hooks",
    "prompt_scope": "hooks",
    "run": "hooks",
    "save_sets": "units",
}

__all__ = [
    "Anatomy",
    "Dictionary",
    "LanguageModel",
    "Layout",
    "LinearDictionary",
    "Unit",
    "UnitSet",
    "change",
    "check_model",
    "load",
    "load_dictionary",
    "load_sets",
    "observe",
    "prompt_scope",
    "run",
    "save_sets",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: unit sets can be read without torch."""
    if name == "load":
        return importlib.import_module(f"{__name__}.load")  # the file is callable like its function
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

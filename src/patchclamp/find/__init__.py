"""Floor 5: which units carry something. Every finder is a file of this room with one function of the same name.

found = patchclamp.find.language(recording)
found.sets["fr"]                            # the method's own choice
found.select(top=20)["fr"]                  # another one, from the same scores
patchclamp.find.compare(before, after)      # two checkpoints
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from patchclamp.find.finding import Finding, finders

if TYPE_CHECKING:
    from patchclamp.find.language import compare, language, overlap

__all__ = ["Finding", "compare", "finders", "language", "overlap"]


def __getattr__(name: str) -> Any:
    if name in ("compare", "overlap"):
        return getattr(importlib.import_module("patchclamp.find.language_compare"), name)
    if not name.startswith("_") and name in finders:
        return sys.modules.get(f"{__name__}.{name}", finders[name])  # the file itself is callable; see callable_room
    raise AttributeError(f"module 'patchclamp.find' has no attribute {name!r}")

"""Units on the command line: names, or the sets of a file."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.cli import options as o
from patchclamp.core.errors import InputError

if TYPE_CHECKING:
    from patchclamp.models import UnitSet

UNITS_HELP = "Unit names such as mlp.3.17, comma-separated or repeated, or FILE[:SET] with sets of `patchclamp find`."


def open_units(typed: Sequence[str], model: Any) -> UnitSet:
    """The units that a repeated option names. model: a LanguageModel, or the identity that their names are about."""
    from patchclamp.models import UnitSet

    found = [_of_file(entry, model) if _file_of(entry) else UnitSet.of(model, o.names(entry)) for entry in typed]
    return functools.reduce(operator.or_, found)


def _file_of(entry: str) -> tuple[Path, str] | None:
    """(file, name of a set or "") where the entry is FILE or FILE:SET."""
    whole, (path, _, name) = Path(entry), entry.rpartition(":")
    if whole.is_file() or entry.endswith((".json", ".parquet")):
        return whole, ""
    return (Path(path), name) if path.endswith((".json", ".parquet")) else None


def _of_file(entry: str, model: Any) -> UnitSet:
    from patchclamp.models import UnitSet, load_sets

    path, name = _file_of(entry) or (Path(entry), "")
    if path.suffix == ".parquet":
        return UnitSet.load(path, model=model)
    sets = load_sets(path)
    if name and name not in sets:
        raise InputError(f"{path} holds no set {name!r}; it holds {', '.join(sets)}")
    chosen = [sets[name]] if name else list(sets.values())
    for units in chosen:
        units.check_model(model)
    return functools.reduce(operator.or_, chosen)

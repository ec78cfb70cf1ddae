"""Fits: functions that make interventions from data, by name. `@fits.add("steer")` makes `patchclamp fit steer`.

The name of a fit's first parameter says what it works on: `model` or `recording`; text, tasks and units among the others
are asked for as `patchclamp find` and `patchclamp read` ask for them. A fit returns `Interventions`, or one change alone;
`fit(name, ...)` calls it and keeps how the result was made, so that the saved file can be run again.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from patchclamp.core.arrays import packed, unpacked
from patchclamp.core.errors import InputError
from patchclamp.core.files import write_json
from patchclamp.core.provenance import provenance
from patchclamp.core.registry import Registry
from patchclamp.data.corpora import Corpus
from patchclamp.data.tasks import Task
from patchclamp.intervene.kinds import Change, Interventions
from patchclamp.models.features import Dictionary
from patchclamp.models.load import LanguageModel
from patchclamp.models.units import UnitSet
from patchclamp.record.recording import Recording

fits: Registry[Callable[..., Any]] = Registry("fit", room="patchclamp.intervene")
SUBJECTS = ("model", "recording")
_UNSAID = ("quiet",)  # arguments that no number depends on


@dataclass(frozen=True, eq=False, repr=False)
class Fitted(Interventions):
    """Interventions that know how they were made. provenance: written by `save`, read by `patchclamp replay`."""

    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __init__(self, items: Iterable[Change], provenance: Mapping[str, Any]) -> None:
        super().__init__(items)
        object.__setattr__(self, "provenance", provenance)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.interventions/1` JSON with the call that made it, whole or not at all."""
        return write_json(path, {**self.to_dict(), "provenance": dict(self.provenance)})


def fit(name: str, subject: LanguageModel | Recording, **arguments: Any) -> Fitted:
    """Interventions that the fit called `name` makes from data, with the call kept.

    subject: the model or recording that the fit works on. arguments: the fit's own (`patchclamp fit NAME --help`).
    Raises InputError for an unknown fit, and what the fit raises.
    """
    function = fits[name]
    made = function(subject, **arguments)
    if not isinstance(made, Change | Interventions):
        raise InputError(f"the fit {name} gave a {type(made).__name__}; it must give Interventions or one change")
    given = inspect.signature(function).bind(subject, **arguments)
    given.apply_defaults()
    (first, _), *rest = given.arguments.items()
    kept = {key: described(value) for key, value in rest if key not in _UNSAID}
    source = provenance(f"fit.{name}", arguments=kept, inputs=described(subject), seed=kept.get("seed"))
    if first not in source["inputs"]:
        raise InputError(f"the fit {name} works on a {first}; a {type(subject).__name__} was given")
    return Fitted(Interventions.of(made).items, source)


def described(value: Any) -> Any:
    """An argument as plain data: numbers and text as they are, {kind: identity} for what can be opened again.

    Units keep their scores. What no file can hold (a function, a live object) is {"live": its type}.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"array": packed(value)}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, os.PathLike):
        return str(Path(value).absolute())
    return _identified(value)


def units_described(units: UnitSet) -> dict[str, Any]:
    """Site -> positions and scores of a set, compact: a set may hold every unit of a model."""
    scores = units.scores or {}
    return {
        site: {"positions": packed(where), "scores": packed(scores[site]) if site in scores else None}
        for site, where in units.positions.items()
    }


def units_of(data: Mapping[str, Any], model: Any) -> UnitSet:
    """The set that `units_described` described. model: LanguageModel or identity."""
    found = UnitSet.of(model, [])
    for site, entry in data.items():
        scores = None if entry["scores"] is None else unpacked(entry["scores"])
        found = found | UnitSet.at(model, site, unpacked(entry["positions"]), scores)
    return found


def _identified(value: Any) -> dict[str, Any]:
    if isinstance(value, LanguageModel):
        return {"model": dict(value.identity)}
    if isinstance(value, Recording):
        folder = None if value.folder is None else str(value.folder.absolute())
        return {"recording": {"fingerprint": value.fingerprint, "path": folder, "labels": list(value.labels)}}
    if isinstance(value, Corpus):
        return {"corpus": value.identity}
    if isinstance(value, Task):
        return {"task": value.identity}
    if isinstance(value, UnitSet):
        return {"units": units_described(value)}
    if isinstance(value, Dictionary):
        folder = None if value.folder is None else str(value.folder)
        return {"dictionary": {"name": value.name, "fingerprint": value.fingerprint, "folder": folder}}
    return {"live": type(value).__name__}

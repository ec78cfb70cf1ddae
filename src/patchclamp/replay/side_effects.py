"""Reports on side effects run again: every row, sample and item."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.intervene import edit
from patchclamp.measure import SideEffects, side_effects
from patchclamp.measure.effect_subjects import given_again
from patchclamp.models import LanguageModel
from patchclamp.models.load import load
from patchclamp.replay.results import Result, plain
from patchclamp.replay.sources import Sources, selection_of, source_of

SHOWN = ("rows", "samples", "affected", "documents", "what")


def side_effects_again(path: Path, sources: Sources) -> Result:
    """All that a report holds, its verdict aside, which is made of the rest."""
    stored = SideEffects.load(path)
    source = source_of(path, stored.provenance)
    inputs, arguments = source["inputs"], selection_of(source["arguments"])
    model = sources.model_of(inputs["model"])
    if inputs.get("recording"):
        arguments["recording"] = sources.recording_of(inputs["recording"])
    if "target_text" in inputs:
        arguments["target"] = Sources(path).text_of(inputs["target_text"])
    if "text" in inputs:
        arguments["text"] = sources.text_of(inputs["text"])
    if "tasks" in inputs:
        arguments["tasks"] = sources.tasks_of(inputs["tasks"], model)
    changed = next(iter(inputs["sets"].values()))
    if "edited" in changed:
        arguments["edited"] = _edited(path, changed, model)
    else:
        arguments["change"] = given_again(changed, model)
    again = side_effects(model, quiet=True, **arguments)
    return source, _measured(stored), _measured(again)


def _measured(report: SideEffects) -> dict[str, Any]:
    return {key: plain(getattr(report, key)) for key in SHOWN}


def _edited(path: Path, changed: Mapping[str, Any], model: LanguageModel) -> Any:
    """The edited model of a report: edited again where its interventions are known, else loaded from its folder."""
    named = changed["edited"]
    if "interventions" in changed:
        found: Any = edit(model, given_again(changed, model))
        fingerprint = found.model.fingerprint
    elif named["source"] is None:
        raise InputError(
            f"{path} compares with {named['name']!r}, a live model; it can't be replayed from the file alone"
        )
    else:
        found = load(named["source"], dtype=named["dtype"], device=model.device)
        fingerprint = found.fingerprint
    if fingerprint != named["fingerprint"]:
        raise MismatchError(f"the edited model of {path} has other weights now than when the report was made")
    return found

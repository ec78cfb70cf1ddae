"""Patched parts, paths and edges run again: every logit difference and effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from patchclamp.core.arrays import unpacked
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.paired import PairedTask, Pairs
from patchclamp.data.paired_sources import open_paired
from patchclamp.intervene.edge_attribution import attribute_edges, attribute_parts
from patchclamp.intervene.edge_scores import ARRAYS, EdgeScores
from patchclamp.intervene.patching import patch
from patchclamp.intervene.patching_result import Patching
from patchclamp.intervene.path_patching import identity_of, path_patch
from patchclamp.models import LanguageModel, UnitSet
from patchclamp.replay.results import Result
from patchclamp.replay.sources import Sources, source_of

PATCHINGS: dict[str, Callable[..., Patching]] = {
    "intervene.patch": patch,
    "intervene.attribute_parts": attribute_parts,
    "intervene.path_patch": path_patch,
}
EDGES: dict[str, Callable[..., EdgeScores]] = {"intervene.attribute_edges": attribute_edges}


def patching_again(path: Path, sources: Sources) -> Result:
    """Names of parts and positions, and the logit difference of every part, position and pair."""
    stored = Patching.load(path)
    source = source_of(path, stored.provenance)
    return source, _patched(stored), _patched(_again(path, source, sources, PATCHINGS))


def edges_again(path: Path, sources: Sources) -> Result:
    """Names of senders and receivers, and the effect of every edge with its error."""
    stored = EdgeScores.load(path)
    source = source_of(path, stored.provenance)
    return source, _edges(stored), _edges(_again(path, source, sources, EDGES))


def _again(path: Path, source: Mapping[str, Any], sources: Sources, calls: Mapping[str, Callable[..., Any]]) -> Any:
    """What the call of a provenance gives now. InputError for a call that no file can repeat."""
    if source["call"] not in calls:
        raise InputError(f"{path} was made by {source['call']}, which can't be replayed; {', '.join(calls)} can")
    model = sources.model_of(source["inputs"]["model"])
    pairs = _pairs(path, source["inputs"]["task"], sources, model)
    arguments = {name: _argument(value, model) for name, value in source["arguments"].items()}
    return calls[source["call"]](model, pairs, **arguments)


def _pairs(path: Path, identity: Mapping[str, Any], sources: Sources, model: LanguageModel) -> PairedTask | Pairs:
    """The pairs that were run: those given, or opened from where they came from."""
    given = sources.pairs
    if given is not None:
        if identity_of(given)["fingerprint"] != identity.get("fingerprint"):
            raise MismatchError(f"the pairs given are not the ones that {path} was made from")
        return given
    if "origin" not in identity:
        raise InputError(f"{path} was made from token ids that were in memory; give them as pairs=")
    try:
        return open_paired(identity, model.tokenizer)
    except MismatchError:
        raise
    except InputError as problem:
        said = str(problem).removesuffix("; give the task")
        raise InputError(f"{said}; give the pairs of {path} as pairs=") from problem


def _argument(value: Any, model: LanguageModel) -> Any:
    """An argument from plain data: units of {"units": names}, a tensor of {"array": ...}, also within a list."""
    if isinstance(value, list):
        return [_argument(item, model) for item in value]
    if isinstance(value, Mapping):
        return UnitSet.of(model, value["units"]) if "units" in value else torch.from_numpy(unpacked(value["array"]))
    return value


def _patched(found: Patching) -> dict[str, Any]:
    names = {"parts": list(found.parts), "positions": list(found.positions)}
    return {**names, "patched": found.patched, "base": found.base, "source": found.source}


def _edges(found: EdgeScores) -> dict[str, Any]:
    names = {"senders": list(found.senders), "receivers": list(found.receivers)}
    return {**names, **{name: getattr(found, name) for name in ARRAYS}}

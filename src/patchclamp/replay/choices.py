"""Fitted interventions and selections of samples run again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchclamp.core.arrays import unpacked
from patchclamp.core.errors import InputError
from patchclamp.core.files import read_json
from patchclamp.data import Corpus, Task
from patchclamp.intervene.fits import SUBJECTS, fit
from patchclamp.intervene.kinds import Interventions
from patchclamp.models import LanguageModel
from patchclamp.replay.results import Result, plain
from patchclamp.replay.sources import Sources, dictionary_of, source_of
from patchclamp.train.select import select
from patchclamp.train.selected import Selected


def interventions_again(path: Path, sources: Sources) -> Result:
    """Every number of every change that a fit made."""
    stored = Interventions.load(path)
    source = source_of(path, read_json(path).get("provenance"))
    room, _, name = source["call"].partition(".")
    first = next((key for key in SUBJECTS if key in source["inputs"]), None)
    if room != "fit" or first is None:
        raise InputError(f"{path} holds interventions that were put together by hand; no fit made them")
    model = sources.model_of(source["inputs"]["model"]) if first == "model" else None
    subject = model or sources.recording_of(source["inputs"]["recording"])
    identity = subject.identity if isinstance(subject, LanguageModel) else subject.model
    arguments = {key: sources.argument(value, model, identity) for key, value in source["arguments"].items()}
    again = fit(name, subject, **arguments)
    return source, numbers(stored), numbers(again)


def selection_again(path: Path, sources: Sources) -> Result:
    """Scores of the whole pool, and the samples chosen with their ranks."""
    stored = Selected.load(path)
    source = source_of(path, stored.provenance)
    inputs, arguments = source["inputs"], dict(source["arguments"])
    if isinstance(arguments.get("dictionary"), Mapping):
        arguments["dictionary"] = dictionary_of(arguments["dictionary"])
    model = sources.model_of(inputs["model"]) if "model" in inputs else None
    pool, target = (None if inputs[key] is None else _samples(inputs[key], sources) for key in ("pool", "target"))
    if pool is None:
        raise InputError(f"{path} does not say what was chosen from")
    again = select(pool, target, model=model, seed=source["seed"], quiet=True, **arguments)
    return source, _chosen(stored), _chosen(again)


def numbers(changes: Interventions) -> Any:
    """The data of interventions with their packed arrays opened, so that they are compared number by number."""
    return _opened(plain(changes.to_dict()["interventions"]))


def _opened(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"dtype", "shape", "base64"}:
            return unpacked(value)
        return {key: _opened(item) for key, item in value.items()}
    return [_opened(item) for item in value] if isinstance(value, list) else value


def _samples(identity: Mapping[str, Any], sources: Sources) -> Corpus | Task:
    """What samples came from; of the objects given, the one that has the same content stands for it."""
    if "origin" not in identity:
        return sources.further_text_of(identity)
    several = sources.task.values() if isinstance(sources.task, Mapping) else [sources.task]
    for given in several:
        if given is not None and given.fingerprint == identity["fingerprint"]:
            return given
    return Sources(sources.path).tasks_of({identity["name"]: identity}, None)[identity["name"]]


def _chosen(found: Selected) -> dict[str, Any]:
    return {"rows": plain(found.rows), "scores": found.scores, "details": plain(found.details)}

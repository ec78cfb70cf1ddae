"""Trade-offs of a concept and fluency, and sweeps over strengths of steering, run again: every row, value and text.

What was applied comes back as it was stored, so what it was made from (the text that says how long vectors are, say) is not
needed. Of judges only `measure.Words` can be kept in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.data import Corpus, Task, open_task
from patchclamp.intervene.kinds import Interventions
from patchclamp.measure.concepts import Words
from patchclamp.measure.effect_subjects import given_again
from patchclamp.measure.steering import SteeringSweep, steering_sweep
from patchclamp.measure.tradeoff import Tradeoff, tradeoff
from patchclamp.models import LanguageModel
from patchclamp.replay.results import Result, plain
from patchclamp.replay.sources import Sources, source_of

Opened = TypeVar("Opened")


def tradeoff_again(path: Path, sources: Sources) -> Result:
    """Rows, rates per prompt, losses per document and the texts that were kept."""
    stored = Tradeoff.load(path)
    source = _source(path, stored.provenance, "measure.tradeoff")
    inputs, arguments = source["inputs"], dict(source["arguments"])
    judge = _judge(path, arguments.pop("judge"))
    model = sources.model_of(inputs["model"])
    runs = {name: _changes(path, data, model) for name, data in inputs["interventions"].items()}
    prompts = _prompts(path, inputs["prompts"], sources, model)
    again = tradeoff(model, runs, prompts, judge, _text(path, inputs["text"], sources), quiet=True, **arguments)
    return (
        source,
        _shown(stored, "rows", "rates", "losses", "written"),
        _shown(again, "rows", "rates", "losses", "written"),
    )


def steering_again(path: Path, sources: Sources) -> Result:
    """Rows, and the texts that were kept."""
    stored = SteeringSweep.load(path)
    source = _source(path, stored.provenance, "measure.steering_sweep")
    inputs, arguments = source["inputs"], dict(source["arguments"])
    judge = _judge(path, arguments.pop("judge"))
    for name in ("strength_in", "scope"):  # the stored directions are already that long, and say where they are added
        arguments.pop(name)
    model = sources.model_of(inputs["model"])
    if "text" in inputs:
        arguments["on"] = _text(path, inputs["text"], sources)
    if "tasks" in inputs:
        arguments["on"] = {name: _task(path, one, sources, model) for name, one in inputs["tasks"].items()}
    if judge is not None:
        arguments |= {"prompts": _prompts(path, inputs["prompts"], sources, model), "judge": judge}
    again = steering_sweep(
        model, _changes(path, inputs["steering"], model), quiet=True, seed=source["seed"], **arguments
    )
    return source, _shown(stored, "rows", "written"), _shown(again, "rows", "written")


def _source(path: Path, found: Mapping[str, Any], call: str) -> Mapping[str, Any]:
    source = source_of(path, found)
    if source["call"] != call:
        raise InputError(f"{path} was made by {source['call']}, which can't be replayed; {call} can")
    return source


def _judge(path: Path, named: Any) -> Any:
    """The judge of a result; InputError for a function or a classifier, which no file can hold."""
    if named is None:
        return None
    if isinstance(named, Mapping) and "words" in named:
        return Words(named["words"])
    raise InputError(
        f"the texts of {path} were judged by {named}, which no file can hold, so it can't be replayed; measure again by hand "
        "(of judges only measure.Words is kept)"
    )


def _changes(path: Path, data: Any, model: LanguageModel) -> Interventions:
    if not isinstance(data, Mapping) or "interventions" not in data:
        raise InputError(f"{path} only names what was applied ({data!r:.60}); `save` of the result keeps it as data")
    found = given_again(data, model)
    if not isinstance(found, Interventions):
        raise DamagedError(f"{path} does not say which interventions were applied")
    return found


def _prompts(path: Path, named: Mapping[str, Any], sources: Sources, model: LanguageModel) -> Task | list[str]:
    return list(named["texts"]) if "texts" in named else _task(path, named["task"], sources, model)


def _task(path: Path, identity: Mapping[str, Any], sources: Sources, model: LanguageModel) -> Task:
    """A task; of those given, the one of the same content stands for it."""
    several = sources.task.values() if isinstance(sources.task, Mapping) else [sources.task]
    for given in several:
        if given is not None and given.fingerprint == identity["fingerprint"]:
            return given
    return _asking("task", path, lambda: open_task(identity, tokenizer=model.tokenizer))


def _text(path: Path, identity: Mapping[str, Any], sources: Sources) -> Corpus:
    return _asking("text", path, lambda: sources.text_of(identity))


def _asking(keyword: str, path: Path, opening: Callable[[], Opened]) -> Opened:
    """What could be opened; an InputError of what could not says by which keyword it is given."""
    try:
        return opening()
    except MismatchError:
        raise
    except InputError as problem:
        said = str(problem).removesuffix("; give it").removesuffix("; give the task")
        raise InputError(f"{said}; give the {keyword} of {path} as {keyword}=") from problem


def _shown(found: Tradeoff | SteeringSweep, *names: str) -> dict[str, Any]:
    return {name: plain(getattr(found, name)) for name in names}

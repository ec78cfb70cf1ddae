"""Run a result again from what it says of itself, and compare the numbers: `patchclamp.replay("effects.json")`.

A result can be run again if its inputs can be opened again: models from a hub, a folder or the package, text from files
or the package, recordings from their folder. A result made from live objects says which of them to give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.files import read_json
from patchclamp.data import Corpus, Task
from patchclamp.data.paired import PairedTask, Pairs
from patchclamp.models import LanguageModel
from patchclamp.record import Recording
from patchclamp.replay.choices import interventions_again, selection_again
from patchclamp.replay.comparison import Replay, compared
from patchclamp.replay.patching import edges_again, patching_again
from patchclamp.replay.readings import reading_again
from patchclamp.replay.results import (
    Result,
    effects_again,
    recording_again,
    sets_again,
    study_again,
)
from patchclamp.replay.side_effects import side_effects_again
from patchclamp.replay.sources import Sources
from patchclamp.replay.steered import steering_again, tradeoff_again

__all__ = ["Replay", "replay"]

FORMATS: dict[str, Callable[[Path, Sources], Result]] = {
    "patchclamp.sets": sets_again,
    "patchclamp.effects": effects_again,
    "patchclamp.edges": edges_again,
    "patchclamp.interventions": interventions_again,
    "patchclamp.patching": patching_again,
    "patchclamp.reading": reading_again,
    "patchclamp.selection": selection_again,
    "patchclamp.side-effects": side_effects_again,
    "patchclamp.steering": steering_again,
    "patchclamp.study": study_again,
    "patchclamp.tradeoff": tradeoff_again,
}


def replay(
    result: str | Path,
    *,
    model: LanguageModel | None = None,
    text: Corpus | None = None,
    task: Task | Mapping[str, Task] | None = None,
    recording: Recording | None = None,
    pairs: PairedTask | Pairs | None = None,
    tolerance: float = 1e-6,
) -> Replay:
    """Run again what made a result and compare every number.

    result: a file of sets, effects, side effects, a reading, fitted interventions, patched parts or paths, edges, a trade-off,
    a sweep over strengths or a selection, a study's report.json, or a recording's folder. model, text, task, recording, pairs:
    inputs that the result can't name a place for, because they were live objects; pairs are what was patched. tolerance:
    relative difference that still agrees.
    Raises InputError if an input is missing, MismatchError if it is not the one that the result was made from.
    """
    path = Path(result)
    source, then, now = _kind(path)(path, Sources(path, model, text, task, recording, pairs))
    return compared(source, then, now, tolerance)


def _kind(path: Path) -> Callable[[Path, Sources], Result]:
    """What runs a result again, by its format."""
    if path.is_dir():
        return recording_again
    found = read_json(path)
    name = str(found.get("format", "")).partition("/")[0] if isinstance(found, dict) else ""
    if name == "patchclamp.sets" and "reading" in found:
        return reading_again
    if name not in FORMATS:
        raise InputError(
            f"{path} is no result that can be replayed; give a file of sets, effects, side effects, a reading, interventions, "
            "patching, edges, a trade-off, a sweep of steering or a selection, a study's report.json, or a recording's folder"
        )
    return FORMATS[name]


make_callable(__name__)

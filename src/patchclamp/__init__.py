"""patchclamp: record, find, read, clamp and measure the units of language models.

    import patchclamp as pc

    model = pc.load("demo")
    text = pc.demo_text()
    recording = pc.record(model, text)
    found = pc.find.language(recording)
    with pc.clamp(model, found.sets["fr"], to=0.0):
        pc.measure.perplexity(model, text)

Importing this package is cheap and has no effects: every name below is looked up when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import (
    CheckError,
    DamagedError,
    Error,
    InputError,
    MismatchError,
    ModelError,
)

if TYPE_CHECKING:
    from patchclamp import atlas, find, generate, intervene, measure, read, studies, train
    from patchclamp.atlas import Atlas
    from patchclamp.data import Corpus, Document, Selection, Task, TaskItem, corpus, demo_text, task
    from patchclamp.find import Finding
    from patchclamp.intervene import Intervention, Interventions, clamp, edit, steer
    from patchclamp.measure import Effects, effect, side_effects
    from patchclamp.models import Anatomy, LanguageModel, Layout, Unit, UnitSet, check_model, load
    from patchclamp.record import Recording, record
    from patchclamp.replay import replay
    from patchclamp.studies.study import study

_HOME = {
    "load": "models",
    "LanguageModel": "models",
    "Anatomy": "models",
    "Layout": "models",
    "Unit": "models",
    "UnitSet": "models",
    "check_model": "models",
    "corpus": "data",
    "demo_text": "data",
    "Corpus": "data",
    "Document": "data",
    "Selection": "data",
    "Task": "data",
    "TaskItem": "data",
    "task": "data",
    "record": "record",
    "Recording": "record",
    "clamp": "intervene",
    "edit": "intervene",
    "steer": "intervene",
    "Intervention": "intervene",
    "Interventions": "intervene",
    "effect": "measure",
    "Effects": "measure",
    "side_effects": "measure",
    "Finding": "find",
    "Atlas": "atlas",
    "replay": "replay",
    "study": "studies.study",
}
_ROOMS = ("atlas", "find", "generate", "intervene", "measure", "read", "studies", "train")

__version__ = "0.1.0"
__all__ = [
    "Anatomy",
    "Atlas",
    "CheckError",
    "Corpus",
    "DamagedError",
    "Document",
    "Effects",
    "Error",
    "Finding",
    "InputError",
    "Intervention",
    "Interventions",
    "LanguageModel",
    "Layout",
    "MismatchError",
    "ModelError",
    "Recording",
    "Selection",
    "Task",
    "TaskItem",
    "Unit",
    "UnitSet",
    "atlas",
    "check_model",
    "clamp",
    "corpus",
    "demo_text",
    "edit",
    "effect",
    "find",
    "generate",
    "intervene",
    "load",
    "measure",
    "read",
    "record",
    "replay",
    "side_effects",
    "steer",
    "studies",
    "study",
    "task",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        home = importlib.import_module(f"patchclamp.{_HOME[name]}")
        # the record room and the replay module are called like the function that they offer, and are callable themselves
        return home if home.__name__ == f"patchclamp.{name}" else getattr(home, name)
    if name in _ROOMS:
        return importlib.import_module(f"patchclamp.{name}")
    raise AttributeError(f"module 'patchclamp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

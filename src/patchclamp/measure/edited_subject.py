"""An edited model as something whose effect is measured: its runs, and random changes of the same size as controls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import Error, InputError, MismatchError
from patchclamp.intervene.edits import Edited
from patchclamp.intervene.kinds import Interventions
from patchclamp.measure.effect_runs import runs_of
from patchclamp.measure.effect_subjects import Subject, kept_as_data, random_controls, scope_of
from patchclamp.measure.task_scores import tokenizer_of
from patchclamp.measure.weight_change import WeightChange
from patchclamp.models.hooks import in_use
from patchclamp.models.load import LanguageModel, load
from patchclamp.models.units import describe

if TYPE_CHECKING:
    from collections.abc import Callable


def edited_subject(
    model: LanguageModel,
    edited: Edited | LanguageModel | str | os.PathLike[str],
    name: str,
    *,
    controls: int,
    seed: int,
    notes: list[str],
) -> tuple[Subject, str]:
    """The subject and what it is in words. notes: what was odd is added to it.

    Controls: of an `Edited` those of its interventions, applied to the original while it runs; of any other model its weight
    differences dealt out at random. Raises MismatchError for an edit of another model, and for another vocabulary.
    """
    if controls < 0:
        raise InputError(f"controls={controls}; it is a number of random controls, at least 0")
    if in_use(model):
        raise InputError("the model is observed or changed now; leave every block to compare it with an edited one")
    other, change = _opened(model, edited)
    if tokenizer_of(model).get_vocab() != tokenizer_of(other).get_vocab():
        raise MismatchError(f"{other.name} has another vocabulary than {model.name}; their numbers can't be compared")
    folder = edited.folder if isinstance(edited, Edited) else other.source
    data = {
        "edited": {
            "name": other.name,
            "fingerprint": other.fingerprint,
            "source": None if folder is None else str(folder),
            "dtype": str(other.dtype).removeprefix("torch."),
        }
    }
    if change is not None:
        several = random_controls(change, name, controls, seed, notes)
        runs = runs_of(model, name, several, first=1)
        data |= kept_as_data(change)
        subject = Subject(name, change.n_units, scope_of(change), runs, len(several), data, lambda: iter([(0, other)]))
        return subject, f"edited weights: {change.describe()}"
    models, n_controls, words = _by_weights(model, other, name, controls, seed, notes)
    return Subject(name, None, "all", [], n_controls, data, models), f"{describe(other.identity)}: {words}"


def _opened(model: LanguageModel, edited: Any) -> tuple[LanguageModel, Interventions | None]:
    """The edited model, and the interventions that it was made from where they are known."""
    if isinstance(edited, Edited):
        if edited.original.fingerprint != model.fingerprint:
            raise MismatchError(
                f"this is an edit of model {describe(edited.original.identity)}, but {describe(model.identity)} was given"
            )
        return edited.model, edited.interventions
    if isinstance(edited, LanguageModel):
        return edited, None
    if isinstance(edited, str | os.PathLike):
        return load(Path(edited), dtype=model.dtype, device=model.device), None
    raise InputError(f"edited= is a {type(edited).__name__}; an Edited, a LanguageModel or a model's folder is needed")


def _by_weights(
    model: LanguageModel, other: LanguageModel, name: str, controls: int, seed: int, notes: list[str]
) -> tuple[Callable[[], Iterator[tuple[int, LanguageModel]]], int, str]:
    """(models, number of controls, words) of a model that is known by its weights alone."""
    try:
        change = WeightChange(model, other)
    except Error as problem:
        notes.append(f"{name!r} has no random controls ({problem}): p compares the change with none at all")
        return lambda: iter([(0, other)]), 0, "a model of another shape"
    if not change.differing:
        notes.append("the two models have the same weights")
        return lambda: iter([(0, other)]), 0, "the same weights"

    def models() -> Iterator[tuple[int, LanguageModel]]:
        yield 0, other
        for number in range(controls):
            yield number + 1, change.shuffled(seed + number)

    return models, controls, change.describe()

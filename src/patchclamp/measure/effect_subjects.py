"""What effects are measured of: unit sets, changes of any kind, lists of them; each with its matched random controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.intervene.clamp import intervention
from patchclamp.intervene.interventions import Intervention
from patchclamp.intervene.kinds import Change, Interventions
from patchclamp.measure.effect_runs import Run, runs_of
from patchclamp.models.hooks import SCOPES
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

Changed = UnitSet | Change | Interventions
VALUES = ("to", "scale", "add")


@dataclass(frozen=True, eq=False)
class Subject:
    """One thing whose effect is measured, made ready for a model.

    scope: "all", or the scope of what is not for all positions. runs: of the change, then of its controls; none if nothing is
    changed. n_controls: how many controls there are. data: plain data that `given_again` reads. models: what is run in
    other models than the one measured: an iterator of (number, model), 0 for the change (an edited model), 1, 2, ... for
    controls, where each is good until the next one is asked for.
    """

    name: str
    n_units: int | None
    scope: str
    runs: list[Run]
    n_controls: int
    data: dict[str, Any] = field(default_factory=dict)
    models: Callable[[], Iterator[tuple[int, LanguageModel]]] | None = None


def subjects_of(
    model: LanguageModel,
    given: Mapping[str, Changed],
    how: Mapping[str, Any],
    *,
    controls: int,
    seed: int,
    notes: list[str],
) -> list[Subject]:
    """The subjects of a call. how: keywords of `intervention` for unit sets. notes: what was odd is added to it.

    Raises InputError for what can't be applied, and MismatchError for units of another model.
    """
    return [_subject(model, name, one, how, controls, seed, notes) for name, one in given.items()]


def check_subjects(
    model: LanguageModel, given: Mapping[str, Any], values: Mapping[str, Any], scope: str, controls: int
) -> None:
    """InputError unless these can be measured with these keywords. values: to, scale and add as they were given."""
    if not given:
        raise InputError("no unit set and no intervention was given")
    for name, one in given.items():
        if not isinstance(one, UnitSet | Change | Interventions):
            raise InputError(f"{name!r} is a {type(one).__name__}; {_what_to_give(one)}")
        one.check_model(model)
        if not isinstance(one, UnitSet):
            _check_rows(name, one)
    of_sets = any(isinstance(one, UnitSet) for one in given.values())
    chosen = [name for name in VALUES if values[name] is not None]
    if not of_sets and (chosen or scope != "all"):
        word = f"{chosen[0]}=" if chosen else "scope="
        raise InputError(f"{word} says what is done to unit sets; the interventions given say it themselves")
    if of_sets and len(chosen) != 1:
        raise InputError(f"give one of to=, scale=, add=; {', '.join(chosen)} given")
    if chosen and not isinstance(values[chosen[0]], int | float | str):
        raise InputError(f"{chosen[0]}= takes one number here, for controls have other units than the set")
    if controls < 0:
        raise InputError(f"controls={controls}; it is a number of random controls, at least 0")
    if scope not in SCOPES:
        raise InputError(f"scope={scope!r}; it is one of {', '.join(SCOPES)}")


def given_again(data: Mapping[str, Any], model: Any) -> Changed:
    """A set or interventions from the data of a subject. model: LanguageModel or identity.

    Raises InputError for interventions that could not be kept as data.
    """
    if "interventions" not in data:
        return UnitSet.from_dict(data, model)
    if data["interventions"] is None:
        raise InputError(f"this intervention could not be kept as data ({data['described']}); measure it again by hand")
    return Interventions.from_dict(data, model)


def random_controls(
    change: Interventions, name: str, controls: int, seed: int, notes: list[str]
) -> list[Interventions]:
    """The matched random controls of interventions; none, and a note, where a kind has none."""
    try:
        found = [change.matched_random(seed + number) for number in range(controls)]
    except InputError as problem:
        notes.append(f"{name!r} has no random controls ({problem}): p compares the change with none at all")
        return []
    units = _units(change)
    if any(_share_units(units, _units(other)) for other in found):
        notes.append(_shares(name))
    return found


def _subject(
    model: LanguageModel,
    name: str,
    given: Changed,
    how: Mapping[str, Any],
    controls: int,
    seed: int,
    notes: list[str],
) -> Subject:
    if isinstance(given, UnitSet):
        sets = [given, *(given.matched_random(seed + number) for number in range(controls))] if len(given) else []
        if any(len(other & given) for other in sets[1:]):
            notes.append(_shares(name))
        several = [Interventions([intervention(model, units, **how)]) for units in sets]
        n_controls, n_units, scope, data = max(0, len(sets) - 1), len(given), how["scope"], {"units": given.names()}
    else:
        change = Interventions.of(given)
        empty = change.lowest_block() is None
        others = [] if empty else random_controls(change, name, controls, seed, notes)
        several = [] if empty else [change, *others]
        n_controls, n_units, scope, data = len(others), change.n_units, scope_of(change), kept_as_data(change)
        if any(isinstance(item, Intervention) and item.operation == "shuffle" for item in change):
            notes.append(f"{name!r} shuffles positions of a batch: its numbers depend on batch_tokens")
    return Subject(name, n_units, scope, runs_of(model, name, several), n_controls, data)


def scope_of(change: Interventions) -> str:
    """The first scope in a list that is not "all"; "all" if there is none."""
    return next((item.scope for item in change if item.scope != "all"), "all")


def kept_as_data(change: Interventions) -> dict[str, Any]:
    """What a result keeps of interventions: their data, or their description where they have no data."""
    try:
        return {"interventions": change.to_dict()["interventions"]}
    except InputError:  # a mask that is a function
        return {"interventions": None, "described": change.describe()}


def _units(change: Interventions) -> list[UnitSet]:
    """The unit sets that a list acts on, item by item."""
    return [item.target for item in change if isinstance(item, Intervention) and isinstance(item.target, UnitSet)]


def _share_units(mine: Sequence[UnitSet], theirs: Sequence[UnitSet]) -> bool:
    return any(len(a & b) for a, b in zip(mine, theirs, strict=False))


def _shares(name: str) -> str:
    return f"the set {name!r} holds more than half of a layer: its controls share units with it"


def _check_rows(name: str, one: Change | Interventions) -> None:
    """InputError for a change with a row for each of several prompts: what is measured meets it in batches of its own order."""
    for item in Interventions.of(one):
        if item.n_rows is not None:
            raise InputError(
                f"{name!r} holds a change with a row for each of {item.n_rows} prompts ({item.describe()}); effects are "
                "measured over other texts, in batches of their own: give a change that is the same for every prompt"
            )


def _what_to_give(one: Any) -> str:
    if hasattr(one, "hf") or hasattr(one, "original"):
        return "an edited model is compared by measure.side_effects(model, edited=...)"
    return "a UnitSet is needed (UnitSet.of(model, names)), or an intervention"

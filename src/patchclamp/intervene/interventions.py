"""Interventions as data: which units (or direction), which operation, which value, where; saved, composed, applied.

An `Intervention` says one thing to do to units or a direction; `Interventions` is a list of them and of other kinds of
change (`kinds.py`), done in order. All are plain data about one model (tied to its fingerprint) until
`with item.applied(model):` puts them to work; leaving the block undoes them.
"""

from __future__ import annotations

import functools
import html
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import read_json, write_json
from patchclamp.core.provenance import provenance
from patchclamp.intervene.kinds import Change, kind_name, kinds
from patchclamp.intervene.targets import Direction, dealt_within_layers, lowest_block, n_coordinates
from patchclamp.models.units import UnitSet, describe, joint_identity

if TYPE_CHECKING:
    from patchclamp.intervene.changes import Function
    from patchclamp.models.hooks import Tap
    from patchclamp.models.load import LanguageModel

FORMAT = "patchclamp.interventions/1"
OPERATIONS = {
    "set": "replace by the value",
    "mean": "replace by the recorded mean (kept in `value`)",
    "scale": "multiply by the value",
    "add": "add the value",
    "shuffle": "permute across positions (seed), never padding",
    "project": "remove the component along the direction",
}
SCOPES = ("prompt", "generated", "all")
OWN_KIND = "units"  # entries of a file without a kind are of this one
Mask = NDArray[np.bool_] | Callable[[Any], Any]


@kinds.add(OWN_KIND)
@dataclass(frozen=True, eq=False)
class Intervention(Change):
    """One change to activations while the model runs.

    target: units, or a direction in a site. operation: a key of OPERATIONS ("project" needs a direction, "mean" units).
    value: one number for all, or float64 of one number per unit (canonical order of the set); for heads also one per
    coordinate of their blocks. For a direction: the coefficient of its vector. None for shuffle and project.
    scope: "prompt", "generated" or "all" positions. A generated token counts as generated when it is fed back; the last
    prompt position, which emits the first new token, is "prompt". With and without a KV cache the meaning is the same.
    mask: bool (batch, positions), True where the change applies, counted from the first column (padding included;
    positions after its end are left alone), or a function of the hooks' Step that returns such an array for its columns.
    seed: of a shuffle. note: free text kept with the data.
    """

    target: UnitSet | Direction
    operation: str
    value: float | NDArray[np.float64] | None = None
    scope: str = "all"
    mask: Mask | None = None
    seed: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise InputError(f"no operation is called {self.operation!r}; there are {', '.join(OPERATIONS)}")
        if self.scope not in SCOPES:
            raise InputError(f"scope={self.scope!r}; it is one of {', '.join(SCOPES)}")
        if not isinstance(self.target, UnitSet | Direction):
            raise InputError(f"a UnitSet or a Direction is needed, not {type(self.target).__name__}")
        needs = {"project": Direction, "mean": UnitSet}.get(self.operation)
        if needs is not None and not isinstance(self.target, needs):
            raise InputError(
                f"operation {self.operation!r} needs a {needs.__name__}, not a {type(self.target).__name__}"
            )
        object.__setattr__(self, "value", self._checked_value())
        object.__setattr__(self, "mask", _checked_mask(self.mask))
        if self.operation == "shuffle":
            object.__setattr__(self, "seed", int(self.seed or 0))

    def _checked_value(self) -> float | NDArray[np.float64] | None:
        if self.operation in ("shuffle", "project"):
            if self.value is not None:
                raise InputError(f"operation {self.operation!r} takes no value, but {self.value!r} was given")
            return None
        if self.value is None:
            raise InputError(f"operation {self.operation!r} needs a value")
        array = np.asarray(self.value, dtype=np.float64)
        if not np.isfinite(array).all():
            raise InputError("values must be finite numbers; NaN or infinity was given")
        if array.ndim == 0:
            return float(array)
        allowed = {n_coordinates(self.target)}
        if isinstance(self.target, UnitSet):
            allowed.add(len(self.target))
        if array.ndim != 1 or len(array) not in allowed:
            wanted = " or ".join(map(str, sorted(allowed)))
            raise InputError(
                f"values of shape {array.shape} given, but the target takes one number or {wanted} of them"
            )
        return array

    @property
    def model(self) -> Mapping[str, Any]:
        """Identity of the model it belongs to."""
        return self.target.model

    def check_model(self, model: Any) -> None:
        """Raise MismatchError unless `model` is the model of the target."""
        self.target.check_model(model)

    def compiled(self, model: LanguageModel) -> list[tuple[Tap, Function]]:
        """The functions that carry it out, tap by tap."""
        from patchclamp.intervene.changes import compiled  # torch is needed only now: the data are usable without it

        return compiled(self)

    def lowest_block(self) -> int | None:
        """First block whose computation it can change; None for an empty set."""
        return lowest_block(self.target)

    @property
    def n_units(self) -> int:
        """Units of the set; layers of a direction."""
        return len(self.target) if isinstance(self.target, UnitSet) else len(self.target.layers)

    def matched_random(self, seed: int) -> Intervention:
        """The same on as many random units of every layer, values dealt out anew, or on random directions of equal length."""
        rng = np.random.default_rng([seed, 1])
        if isinstance(self.target, Direction):
            return replace(self, target=self.target.random(rng))
        value = self.value
        if isinstance(value, np.ndarray):
            if len(value) != len(self.target):
                raise InputError("values for the coordinates of heads have no matched control; give one value per unit")
            value = value[dealt_within_layers(self.target, rng)]
        return replace(self, target=self.target.matched_random(seed), value=value)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the model; InputError for a mask that is a function."""
        if callable(self.mask):
            raise InputError("a mask that is a function can't be saved; give a bool array (batch, positions) instead")
        what = (
            {"units": self.target.names()} if isinstance(self.target, UnitSet) else {"direction": self.target.to_dict()}
        )
        value = self.value.tolist() if isinstance(self.value, np.ndarray) else self.value
        mask = None if self.mask is None else self.mask.astype(int).tolist()
        rest = {"value": value, "scope": self.scope, "mask": mask, "seed": self.seed, "note": self.note}
        return {**what, "operation": self.operation, **rest}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> Intervention:
        target: UnitSet | Direction
        if "units" in data:
            target = UnitSet.of(model, data["units"])
        else:
            target = Direction.from_dict(data["direction"], model)
        value, mask = data["value"], data.get("mask")
        return cls(
            target,
            data["operation"],
            np.asarray(value, dtype=np.float64) if isinstance(value, list) else value,
            data.get("scope", "all"),
            None if mask is None else np.asarray(mask, dtype=bool),
            data.get("seed"),
            data.get("note", ""),
        )

    def describe(self) -> str:
        """One line: what happens to what, where."""
        value = self.value
        if isinstance(value, np.ndarray):
            shown = f"{len(value)} values ({value.min():.3g} to {value.max():.3g})" if len(value) else "no values"
        else:
            shown = "" if value is None else f"{value:g}"
        words = {"set": "set to {}", "mean": "set to mean: {}", "scale": "scaled by {}", "add": "increased by {}"}
        act = words.get(self.operation, "").format(shown)
        act = act or ("removed" if self.operation == "project" else f"shuffled (seed {self.seed})")
        masked = "" if self.mask is None else ", masked positions"
        return f"{_target_words(self.target)} {act}, scope {self.scope}{masked}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True, eq=False)
class Interventions:
    """A list of changes to one model, applied in order (a later one sees what an earlier one left).

    items: `Intervention`s and other kinds of `Change`.
    """

    items: tuple[Change, ...] = field(default=())

    def __init__(self, items: Iterable[Change] = ()) -> None:
        kept = tuple(items)
        for item in kept:
            if not isinstance(item, Change):
                raise InputError(f"a list of interventions is needed, but it holds a {type(item).__name__}")
        functools.reduce(joint_identity, (item.model for item in kept), kept[0].model if kept else {})
        object.__setattr__(self, "items", kept)

    @classmethod
    def of(cls, what: Change | Interventions) -> Interventions:
        """A single change as a list of one; a list as it is."""
        return what if isinstance(what, Interventions) else cls([what])

    def __iter__(self) -> Iterator[Change]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Change:
        return self.items[number]

    def __add__(self, other: Change | Interventions) -> Interventions:
        return Interventions((*self.items, *Interventions.of(other).items))

    def __radd__(self, other: Any) -> Interventions:
        return self if other == 0 else NotImplemented  # sum([...]) starts from 0

    @property
    def model(self) -> Mapping[str, Any]:
        """Identity of the model; an empty mapping for an empty list."""
        return functools.reduce(joint_identity, (item.model for item in self.items)) if self.items else {}

    def applied(self, model: Any) -> AbstractContextManager[None]:
        """Context in which `model` (a LanguageModel) runs with all changes; nests, undone on any exception.

        Raises MismatchError for another model than the one the units belong to.
        """
        from patchclamp.intervene.changes import applied  # torch is needed only now: the data are usable without it

        return applied(self.items, model)

    def check_model(self, model: Any) -> None:
        """Raise MismatchError unless `model` is the model of every change."""
        for item in self.items:
            item.check_model(model)

    def lowest_block(self) -> int | None:
        """First block whose computation the list can change; None if it changes nothing."""
        return min((block for item in self.items if (block := item.lowest_block()) is not None), default=None)

    @property
    def n_units(self) -> int:
        """Units (or directions) of all changes together."""
        return sum(item.n_units for item in self.items)

    def matched_random(self, seed: int) -> Interventions:
        """Every change by its random control; InputError if one has none."""
        return Interventions(item.matched_random(seed) for item in self.items)

    def describe(self) -> str:
        """All changes in one line."""
        return "; then ".join(item.describe() for item in self.items) or "nothing is changed"

    def scoped(self, scope: str) -> Interventions:
        """The same changes with another scope; InputError for a kind that has no choice of scope."""
        return Interventions(_scoped(item, scope) for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "model": dict(self.model), "interventions": [_entry(item) for item in self.items]}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.interventions/1` JSON, whole or not at all."""
        body = self.to_dict()
        source = provenance("Interventions.save", arguments={}, inputs={"model": dict(self.model)})
        return write_json(path, {**body, "provenance": source})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Interventions:
        """Read what `save` wrote; DamagedError for anything else."""
        data = read_json(path, format=FORMAT)
        try:
            return cls(_item(entry, data["model"]) for entry in data["interventions"])
        except (KeyError, TypeError, AttributeError) as problem:
            raise DamagedError(f"{path} is not a complete {FORMAT} file: {problem!r}") from problem

    def __repr__(self) -> str:
        lines = "".join(f"\n  {number}. {item.describe()}" for number, item in enumerate(self.items, 1))
        return f"Interventions({len(self.items)} on model {describe(self.model)}){lines}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{number}</td><td>{html.escape(_kind_words(item))}</td><td>{item.n_units}</td>"
            f"<td>{html.escape(item.describe())}</td></tr>"
            for number, item in enumerate(self.items, 1)
        )
        head = "<tr><th>#</th><th>kind</th><th>units</th><th>in words</th></tr>"
        return f"<p>Interventions on <b>{html.escape(describe(self.model))}</b></p><table>{head}{rows}</table>"


def _entry(item: Change) -> dict[str, Any]:
    """The data of one change in a file; what is no `Intervention` says its kind."""
    return item.to_dict() if isinstance(item, Intervention) else {"kind": kind_name(item), **item.to_dict()}


def _item(entry: Mapping[str, Any], model: Any) -> Change:
    return kinds[entry.get("kind", OWN_KIND)].from_dict(entry, model)


def _scoped(item: Change, scope: str) -> Change:
    if not is_dataclass(item) or "scope" not in {one.name for one in fields(item)}:
        raise InputError(f"its scope can't be chosen: {item.describe()}")
    return replace(item, scope=scope)


def _kind_words(item: Change) -> str:
    return item.operation if isinstance(item, Intervention) else kind_name(item)


def _checked_mask(mask: Any) -> Mask | None:
    if mask is None or callable(mask):
        return mask
    array = np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask)
    if array.ndim != 2 or not (array.dtype == bool or np.isin(array, (0, 1)).all()):
        raise InputError(
            f"a mask is a bool array of shape (batch, positions), not {array.dtype} of shape {array.shape}"
        )
    return array.astype(bool)


def _target_words(target: UnitSet | Direction) -> str:
    if isinstance(target, Direction):
        return f"a direction of {target.site} in layers {', '.join(map(str, target.layers))}"
    shown = ", ".join(str(unit) for _, unit in zip(range(3), target, strict=False))
    return f"{len(target)} units ({shown}{', ...' if len(target) > 3 else ''})" if len(target) else "no units"


def values_of(value: ArrayLike | None) -> float | NDArray[np.float64] | None:
    """A number stays a number, anything array-like (a tensor too) becomes float64."""
    if value is None:
        return None
    array = np.asarray(value.cpu() if hasattr(value, "cpu") else value, dtype=np.float64)
    return float(array) if array.ndim == 0 else array

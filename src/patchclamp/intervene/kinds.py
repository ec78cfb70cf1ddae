"""What every kind of intervention can do: be applied while a model runs, saved, shown, matched by a random one, written.

A kind is one class in one file of this room: `@kinds.add("neuron-adjust") class NeuronAdjust(Change)`. `Interventions` is a
list of changes of any kinds, done in order; a file holds the name of the kind beside the data of each. All are plain data about
one model (tied to its fingerprint) until `with item.applied(model):` puts them to work; leaving the block undoes them.
"""

from __future__ import annotations

import contextlib
import functools
import html
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError, ModelError
from patchclamp.core.files import read_json, write_json
from patchclamp.core.provenance import provenance
from patchclamp.core.registry import Registry
from patchclamp.models.hooks import Seen, Tap, change
from patchclamp.models.units import describe, joint_identity

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

FORMAT = "patchclamp.interventions/1"
OWN_KIND = "units"  # entries of a file without a kind are of this one

kinds: Registry[type[Change]] = Registry("intervention kind", room="patchclamp.intervene")


class Change(ABC):
    """One change of what a model computes, as data about one model.

    model: identity of the model it belongs to. scope: which positions it touches, "prompt", "generated" or "all"; kinds
    that have no choice say "all".
    """

    scope: str = "all"

    if TYPE_CHECKING:  # a property here would become the default of a dataclass's field of that name

        @property
        def model(self) -> Mapping[str, Any]: ...

    @abstractmethod
    def check_model(self, model: Any) -> None:
        """Raise MismatchError unless `model` (a LanguageModel or identity) is the model it belongs to."""

    @abstractmethod
    def compiled(self, model: LanguageModel) -> list[tuple[Tap, Callable[[Seen], Tensor]]]:
        """Fresh functions for the hooks, tap by tap, in order; good for any number of forward passes."""

    @abstractmethod
    def lowest_block(self) -> int | None:
        """First block whose computation it can change (0 where embeddings are touched); None if it changes nothing."""

    @property
    @abstractmethod
    def n_units(self) -> int:
        """How many units (or directions) it changes, for tables."""

    @abstractmethod
    def describe(self) -> str:
        """One line: what happens to what, where."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data without the model; InputError for what can't be saved."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> Change:
        """Read what `to_dict` wrote. model: LanguageModel or identity."""

    def applied(self, model: LanguageModel) -> AbstractContextManager[None]:
        """Context in which the model runs with the change; nests, and is undone on any exception."""
        return Interventions([self]).applied(model)

    def __add__(self, other: Change | Interventions) -> Interventions:
        return Interventions([self]) + other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()}; model {describe(self.model)})"

    def _repr_html_(self) -> str:
        return Interventions([self])._repr_html_()

    @property
    def title(self) -> str:
        """What tables call it: its kind."""
        return kind_name(self)

    def matched_random(self, seed: int) -> Change:
        """The same change on as many random units of every layer, or on a random direction of the same length.

        InputError for a kind that has no such control.
        """
        raise InputError(f"no random control is like this one: {self.describe()}")

    @property
    def n_rows(self) -> int | None:
        """Prompts that it has a row for, in their order; None for a change that is the same for every prompt."""
        return None

    def of_rows(self, numbers: Sequence[int]) -> Change:
        """The change for some of the prompts that it has rows for."""
        return self

    def write(self, edited: LanguageModel) -> dict[str, Any]:
        """Write the change into the weights of `edited` (a copy, in place); returns config attributes that had to change.

        ModelError where weights can't hold it.
        """
        raise ModelError(
            f"no weights can hold this change ({self.describe()}): it depends on what the model computes; apply it while "
            "the model runs, or save it as interventions"
        )


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
        return Prepared(self.items, model).applied()

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
            return cls.from_dict(data, data["model"])
        except (KeyError, TypeError, AttributeError) as problem:
            raise DamagedError(f"{path} is not a complete {FORMAT} file: {problem!r}") from problem

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> Interventions:
        """Read what `to_dict` wrote. model: LanguageModel or identity."""
        return cls(_item(entry, model) for entry in data["interventions"])

    def __repr__(self) -> str:
        lines = "".join(f"\n  {number}. {item.describe()}" for number, item in enumerate(self.items, 1))
        return f"Interventions({len(self.items)} on model {describe(self.model)}){lines}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{number}</td><td>{html.escape(item.title)}</td><td>{item.n_units}</td>"
            f"<td>{html.escape(item.describe())}</td></tr>"
            for number, item in enumerate(self.items, 1)
        )
        head = "<tr><th>#</th><th>kind</th><th>units</th><th>in words</th></tr>"
        return f"<p>Interventions on <b>{html.escape(describe(self.model))}</b></p><table>{head}{rows}</table>"


class Prepared:
    """Interventions made ready for one model once, to be applied many times (index tensors are kept)."""

    def __init__(self, items: Iterable[Change], model: LanguageModel) -> None:
        self.model = model
        self.changes: list[tuple[Tap, Callable[[Seen], Tensor]]] = []
        for item in items:
            item.check_model(model)
            self.changes += item.compiled(model)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The context in which the model runs with the changes."""
        with contextlib.ExitStack() as stack:
            for tap, function in self.changes:  # a tap can occur twice (attn coordinates and heads): one change each
                stack.enter_context(change(self.model, {tap: function}))
            yield


def kind_name(item: Change) -> str:
    """The name under which a change's class is registered."""
    for entry in kinds:
        if entry.target is type(item):
            return entry.name
    raise InputError(f"{type(item).__name__} is no registered kind of intervention; decorate it with @kinds.add(NAME)")


def _entry(item: Change) -> dict[str, Any]:
    """The data of one change in a file; the kind is left out where it is the usual one."""
    name = kind_name(item)
    return item.to_dict() if name == OWN_KIND else {"kind": name, **item.to_dict()}


def _item(entry: Mapping[str, Any], model: Any) -> Change:
    return kinds[entry.get("kind", OWN_KIND)].from_dict(entry, model)


def _scoped(item: Change, scope: str) -> Change:
    if not is_dataclass(item) or "scope" not in {one.name for one in fields(item)}:
        raise InputError(f"its scope can't be chosen: {item.describe()}")
    return replace(item, scope=scope)

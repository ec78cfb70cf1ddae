"""What every kind of intervention can do: be applied while a model runs, saved, shown, matched by a random one, written.

A kind is one class in one file of this room: `@kinds.add("neuron-adjust") class NeuronAdjust(Change)`. Lists of them
(`Interventions`) mix kinds freely; a file holds the name of the kind beside the data of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError, ModelError
from patchclamp.core.registry import Registry
from patchclamp.models.units import describe

if TYPE_CHECKING:
    from torch import Tensor

    from patchclamp.intervene.interventions import Interventions
    from patchclamp.models.hooks import Seen, Tap
    from patchclamp.models.load import LanguageModel

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
        from patchclamp.intervene.interventions import Interventions

        return Interventions([self]).applied(model)

    def __add__(self, other: Change | Interventions) -> Interventions:
        from patchclamp.intervene.interventions import Interventions

        return Interventions([self]) + other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()}; model {describe(self.model)})"

    def _repr_html_(self) -> str:
        from patchclamp.intervene.interventions import Interventions

        return Interventions([self])._repr_html_()

    def matched_random(self, seed: int) -> Change:
        """The same change on as many random units of every layer, or on a random direction of the same length.

        InputError for a kind that has no such control.
        """
        raise InputError(f"no random control is like this one: {self.describe()}")

    def write(self, edited: LanguageModel) -> dict[str, Any]:
        """Write the change into the weights of `edited` (a copy, in place); returns config attributes that had to change.

        ModelError where weights can't hold it.
        """
        raise ModelError(
            f"no weights can hold this change ({self.describe()}): it depends on what the model computes; apply it while "
            "the model runs, or save it as interventions"
        )


def kind_name(item: Change) -> str:
    """The name under which a change's class is registered."""
    for entry in kinds:
        if entry.target is type(item):
            return entry.name
    raise InputError(f"{type(item).__name__} is no registered kind of intervention; decorate it with @kinds.add(NAME)")

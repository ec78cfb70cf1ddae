"""The usual kind of change: which units (or direction), which operation, which value, where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.intervene.changes import Function, compiled
from patchclamp.intervene.kinds import OWN_KIND, Change, kinds
from patchclamp.intervene.targets import Direction, dealt_within_layers, lowest_block, n_coordinates
from patchclamp.models.hooks import SCOPES
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.hooks import Tap
    from patchclamp.models.load import LanguageModel

OPERATIONS = {
    "set": "replace by the value",
    "mean": "replace by the recorded mean (kept in `value`)",
    "scale": "multiply by the value",
    "add": "add the value",
    "shuffle": "permute across positions (seed), never padding",
    "project": "remove the component along the direction",
}
Mask = NDArray[np.bool_] | Callable[[Any], Any]


@kinds.add(OWN_KIND)
@dataclass(frozen=True, eq=False, repr=False)
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
        return compiled(self)

    def lowest_block(self) -> int | None:
        """First block whose computation it can change; None for an empty set."""
        return lowest_block(self.target)

    @property
    def n_units(self) -> int:
        """Units of the set; layers of a direction."""
        return len(self.target) if isinstance(self.target, UnitSet) else len(self.target.layers)

    @property
    def title(self) -> str:
        """The operation."""
        return self.operation

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

    @property
    def n_rows(self) -> int | None:
        """Rows of the mask, if they differ from prompt to prompt."""
        return len(self.mask) if isinstance(self.mask, np.ndarray) and len(self.mask) > 1 else None

    def of_rows(self, numbers: Sequence[int]) -> Intervention:
        """The intervention with some rows of its mask."""
        return self if self.n_rows is None else replace(self, mask=self.mask[list(numbers)])  # type: ignore[index]

    def write(self, edited: LanguageModel) -> dict[str, Any]:
        """Write it into the weights of `edited`, in place; ModelError, with the reason, where they can't hold it."""
        from patchclamp.intervene.weights import write_changes

        return write_changes([self], edited)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the model; InputError for a mask that is a function, unless it is `At` positions."""
        if callable(self.mask) and not hasattr(self.mask, "to_dict"):
            raise InputError("a mask that is a function can't be saved; give a bool array (batch, positions) instead")
        what = (
            {"units": self.target.names()} if isinstance(self.target, UnitSet) else {"direction": self.target.to_dict()}
        )
        value = self.value.tolist() if isinstance(self.value, np.ndarray) else self.value
        mask: Any = self.mask
        if mask is not None:
            mask = mask.to_dict() if hasattr(mask, "to_dict") else mask.astype(int).tolist()
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
            _read_mask(mask),
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


def _read_mask(data: Any) -> Mask | None:
    """A mask as `to_dict` wrote it: rows of 0 and 1, or {"positions": [...]}."""
    if not isinstance(data, Mapping):
        return None if data is None else np.asarray(data, dtype=bool)
    from patchclamp.intervene.positions import At  # with torch

    return At(data["positions"])


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

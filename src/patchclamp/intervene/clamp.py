"""Hold units at a value while the model runs: `with clamp(model, units, to=0.0): ...`"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from patchclamp.core.errors import InputError
from patchclamp.intervene.interventions import Intervention, Mask, values_of
from patchclamp.intervene.means import recorded_means
from patchclamp.intervene.targets import Direction
from patchclamp.models.units import Unit, UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording

Target = UnitSet | Direction | str | Unit | Iterable[str | Unit]


@contextlib.contextmanager
def clamp(
    model: LanguageModel,
    units: Target,
    to: float | ArrayLike | str | None = None,
    *,
    scale: float | ArrayLike | None = None,
    add: float | ArrayLike | None = None,
    shuffle: int | None = None,
    scope: str = "all",
    mask: Mask | Any | None = None,
    recording: Recording | None = None,
    label: str | None = None,
) -> Iterator[Intervention]:
    """Run the model with some units changed; yields the intervention as data. Nests; undone on any exception.

    units: a UnitSet, unit names, or a Direction. Exactly one of: to (a number, one number per unit, or "mean" with
    recording= and perhaps label=; 0.0 on a direction projects it out), scale, add, shuffle (a seed: the kept positions
    of a batch are permuted, never padding, all units and layers by the same permutation).
    scope: "prompt", "generated" or "all" positions, with the same meaning with and without a KV cache.
    mask: bool (batch, positions) or a function of the hooks' Step; see `Intervention`.
    """
    item = intervention(
        model,
        units,
        to,
        scale=scale,
        add=add,
        shuffle=shuffle,
        scope=scope,
        mask=mask,
        recording=recording,
        label=label,
    )
    with item.applied(model):
        yield item


def intervention(
    model: Any,
    units: Target,
    to: float | ArrayLike | str | None = None,
    *,
    scale: float | ArrayLike | None = None,
    add: float | ArrayLike | None = None,
    shuffle: int | None = None,
    scope: str = "all",
    mask: Mask | Any | None = None,
    recording: Recording | None = None,
    label: str | None = None,
    note: str = "",
) -> Intervention:
    """The data of one intervention, in the words of `clamp`; nothing is applied. model: LanguageModel or identity."""
    target = _target(model, units)
    given = {"to": to, "scale": scale, "add": add, "shuffle": shuffle}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(f"give exactly one of to=, scale=, add=, shuffle=; {', '.join(chosen) or 'none'} given")
    rest: dict[str, Any] = {"scope": scope, "mask": mask, "note": note}
    if shuffle is not None:
        return Intervention(target, "shuffle", seed=_seed(shuffle), **rest)
    if isinstance(to, str):
        return _clamped_to_mean(target, to, recording, label, rest)
    if to is not None:
        value = values_of(to)
        if isinstance(target, Direction) and value == 0.0:
            return Intervention(target, "project", **rest)
        return Intervention(target, "set", value, **rest)
    return Intervention(target, chosen[0], values_of(given[chosen[0]]), **rest)


def _clamped_to_mean(
    target: UnitSet | Direction, to: str, recording: Recording | None, label: str | None, rest: dict[str, Any]
) -> Intervention:
    if to != "mean":
        raise InputError(f"to={to!r}; give a number, one number per unit, or 'mean'")
    if isinstance(target, Direction):
        raise InputError("a direction has no recorded mean; give to= a number (the coefficient of its vector)")
    rest = {**rest, "note": rest["note"] or f"mean over {'all labels' if label is None else label}"}
    return Intervention(target, "mean", recorded_means(recording, target, label=label), **rest)


def _target(model: Any, units: Target) -> UnitSet | Direction:
    if isinstance(units, UnitSet | Direction):
        units.check_model(model)
        return units
    return UnitSet.of(model, [units] if isinstance(units, str | Unit) else units)


def _seed(shuffle: Any) -> int:
    if isinstance(shuffle, bool) or not isinstance(shuffle, int) or shuffle < 0:
        raise InputError(f"shuffle={shuffle!r}; give a seed, a whole number from 0")
    return shuffle

"""Two results beside each other, number by number: `compared(...)` gives the `Replay` that says whether they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.provenance import versions

LISTED = 20  # differences that a report names


@dataclass(frozen=True)
class Replay:
    """Whether a result came out the same. compared: numbers compared; worst: largest relative difference among them.

    differences: where numbers or names differ beyond the tolerance (the first 20); versions: library -> (then, now)
    for those that changed.
    """

    call: str
    agrees: bool
    compared: int
    worst: float
    tolerance: float
    differences: list[str] = field(default_factory=list)
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self)}

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        verdict = "agrees" if self.agrees else "does NOT agree"
        yield f"{self.call}: {verdict} ({self.compared:,} values compared, largest relative difference {self.worst:.2g})"
        yield from (f"  {line}" for line in self.differences)
        yield from (f"  {name}: made with {then}, now {now}" for name, (then, now) in self.versions.items())


def compared(source: Mapping[str, Any], then: Any, now: Any, tolerance: float) -> Replay:
    """Compare every leaf of two nested results. source: provenance of the stored one."""
    differences: list[str] = []
    n, worst = 0, 0.0
    for place, old, new in _pairs("", then, now):
        gaps = gaps_of(old, new)
        n, worst = n + gaps.size, max(worst, float(gaps.max(initial=0.0)))
        for at in np.argwhere(gaps > tolerance)[: LISTED - len(differences)]:
            index = tuple(at.tolist())
            here = f"{place}[{', '.join(map(str, index))}]" if index else place
            differences.append(f"{here.lstrip('.')}: {_cell(old, index)} then, {_cell(new, index)} now")
    current = versions()
    changed = {
        name: (str(old), current[name])
        for name, old in source.get("versions", {}).items()
        if name in current and current[name] != old
    }
    call = str(source.get("call", "record"))
    return Replay(call, worst <= tolerance, n, worst, tolerance, differences, changed)


def _pairs(place: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Leaves of two nested results side by side: whole arrays and single values; a missing one stands as None."""
    then, now = (_array(value) for value in (then, now))
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted({*then, *now}, key=str):
            yield from _pairs(f"{place}.{key}", then.get(key), now.get(key))
    elif isinstance(then, list | tuple) and isinstance(now, list | tuple) and len(then) == len(now):
        for number, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _pairs(f"{place}[{number}]", old, new)
    else:
        yield place, then, now


def _array(value: Any) -> Any:
    """Tensors, and lists of numbers or of names, as arrays: results hold millions of them."""
    if hasattr(value, "numpy"):
        return value.numpy()
    if isinstance(value, list) and value and all(type(item) is type(value[0]) for item in value):
        return np.array(value) if isinstance(value[0], bool | int | float | str) else value
    return value


def gaps_of(old: Any, new: Any) -> NDArray[np.float64]:
    """Relative differences of two leaves: 0 where they are equal, infinite where they can't be compared."""
    a, b = np.asarray(old), np.asarray(new)
    if a.shape != b.shape:
        return np.array(np.inf)
    if a.dtype.kind not in "iufb" or b.dtype.kind not in "iufb":
        return np.where(np.asarray(a == b), 0.0, np.inf)
    if np.array_equal(a, b):
        return np.broadcast_to(0.0, a.shape)  # the usual case, without copies in float64 of what may be large
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = np.abs(a - b) / np.maximum(np.abs(a), np.abs(b))
    gaps = np.where(np.isnan(gaps), np.inf, gaps)  # a NaN or an infinity beside another value
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, gaps)


def _cell(value: Any, index: tuple[int, ...]) -> Any:
    """The value at a place of a leaf; what doesn't have that place is described by its shape."""
    array = np.asarray(value)
    if index or not array.ndim:
        return array[index].item() if array.ndim == len(index) and array.dtype.kind != "O" else value
    return f"{array.shape} values"

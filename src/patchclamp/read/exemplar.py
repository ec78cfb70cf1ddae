"""What a unit was seen to do: an exemplar is a passage or an image with the unit's value on every part.

Text and images are the same thing here: an exemplar has `parts` (tokens of a passage, patches of an image) and `values`, one
for each part. Describers and scores look at parts, values and tags only, so they serve both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Exemplar:
    """One passage or image and a unit's value on each of its parts.

    parts: text of every token, which joined give the passage; for an image a name for each patch, row by row. values:
    (n_parts,) float32. label: of the text or image. document: its number within the label. start: position in the document of
    the first part. tags: concept -> (n_parts,) bool, which parts it lies on (word classes, segments of an image). picture:
    (height, width, 3) uint8 of an image, not kept in files; grid: its (rows, columns) of patches. None for text. remembered:
    what was worked out about the parts, shared by all units' exemplars of the same passage.
    """

    parts: tuple[str, ...]
    values: NDArray[np.float32]
    label: str = ""
    document: int = 0
    start: int = 0
    tags: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    picture: NDArray[np.uint8] | None = None
    grid: tuple[int, int] | None = None
    remembered: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        n = len(self.parts)
        if not n or self.values.shape != (n,):
            raise InputError(f"an exemplar of {n} parts was given values of shape {self.values.shape}")
        for name, where in self.tags.items():
            if where.shape != (n,):
                raise InputError(f"tag {name!r} of an exemplar of {n} parts has shape {where.shape}")
        if (self.picture is not None and self.grid is None) or (self.grid and self.grid[0] * self.grid[1] != n):
            raise InputError(f"an exemplar with grid {self.grid} and {n} parts; a picture needs rows x columns patches")

    @property
    def text(self) -> str:
        """The parts joined: the passage itself."""
        return "".join(self.parts)

    @property
    def value(self) -> float:
        """The highest value: what exemplars are ranked by."""
        return float(self.values.max())

    @property
    def peak(self) -> int:
        """The part with the highest value, the first among equal ones."""
        return int(self.values.argmax())

    @property
    def source(self) -> tuple[str, int, int]:
        """(label, document, start): the same for the same passage or image."""
        return (self.label, self.document, self.start)

    def mask(self, bar: float) -> NDArray[np.bool_]:
        """(n_parts,) bool: where the value is above the bar."""
        return np.asarray(self.values > bar)

    def with_values(self, values: NDArray[Any]) -> Exemplar:
        """The same passage or image with another unit's values."""
        return replace(self, values=np.asarray(values, dtype=np.float32))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; of a picture only its size."""
        tags = {name: np.flatnonzero(where).tolist() for name, where in self.tags.items()}
        found: dict[str, Any] = {
            "parts": list(self.parts), "values": [float(f"{value:.6g}") for value in self.values.tolist()],
            "label": self.label, "document": self.document, "start": self.start, "tags": tags,
        }  # fmt: skip
        if self.grid is not None:
            found["grid"] = list(self.grid)
        if self.picture is not None:
            found["size"] = list(self.picture.shape[:2])
        return found


def marked(exemplar: Exemplar, bar: float, *, left: str = "[[", right: str = "]]") -> str:
    """A passage with what is above the bar in brackets; neighbours share one pair."""
    found, inside = [], False
    for part, fires in zip(exemplar.parts, exemplar.mask(bar).tolist(), strict=True):
        if fires and not inside:
            space = len(part) - len(part.lstrip())
            found += [part[:space], left, part[space:]]
        elif inside and not fires:
            found += [right, part]
        else:
            found.append(part)
        inside = fires
    return "".join(found) + (right if inside else "")

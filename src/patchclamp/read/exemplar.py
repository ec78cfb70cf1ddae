"""What a unit was seen to do: exemplars (passages or images, with the unit's value on every part) and stores of them.

Text and images are the same thing here: an exemplar has `parts` (tokens of a passage, patches of an image) and `values`, one
for each part. Describers and scores look at parts, values and tags only, so they serve both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError

MEDIA = ("text", "image")


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


@dataclass(frozen=True, eq=False)
class Exemplars:
    """All that is shown of one unit.

    unit: its name. bar: parts with a value above it count as firing (a high quantile of all values of the unit). top: the
    passages with the highest values, falling; at most one per document, none twice. sample: passages over the whole range,
    rising, evenly spaced in rank. held_out: passages of documents that top and sample have none of, for scoring: high ones
    and random ones. probe: (parts of the store's probe,) float32, the unit's values on what all units were read on.
    """

    unit: str
    bar: float
    top: tuple[Exemplar, ...]
    sample: tuple[Exemplar, ...]
    held_out: tuple[Exemplar, ...]
    probe: NDArray[np.float32]
    notes: tuple[str, ...] = ()

    @property
    def silent(self) -> bool:
        """Whether no part of the top exemplars is above the bar: a dead or constant unit."""
        return not any(one.mask(self.bar).any() for one in self.top)

    def masks(self) -> list[NDArray[np.bool_]]:
        """Where each top exemplar is above the bar."""
        return [one.mask(self.bar) for one in self.top]

    def to_dict(self) -> dict[str, Any]:
        kinds = {name: [one.to_dict() for one in getattr(self, name)] for name in ("top", "sample", "held_out")}
        return {"unit": self.unit, "bar": float(self.bar), **kinds, "notes": list(self.notes)}

    def __repr__(self) -> str:
        return f"Exemplars({self.unit}: {len(self.top)} top, {len(self.sample)} sampled, {len(self.held_out)} held out)"

    def __rich__(self) -> Any:
        from patchclamp.read import exemplar_view

        return exemplar_view.terminal(self)

    def _repr_html_(self) -> str:
        from patchclamp.read import exemplar_view

        return exemplar_view.html(self)


class ExemplarStore(Mapping[str, Exemplars]):
    """Unit name -> its exemplars, and the passages (or images) that all of these units were read on.

    medium: "text" or "image". probe: exemplars whose values are those of no unit (0); `Exemplars.probe` holds each unit's
    values on their parts, one exemplar after another. model: identity. provenance: how it was made.
    """

    def __init__(
        self,
        units: Sequence[Exemplars],
        *,
        probe: Sequence[Exemplar],
        medium: str = "text",
        model: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if medium not in MEDIA:
            raise InputError(f"medium={medium!r}; exemplars are {' or '.join(MEDIA)}")
        self._units = {one.unit: one for one in units}
        if not self._units or len(self._units) < len(units):
            raise InputError(f"a store of exemplars needs units, each once; given {[one.unit for one in units]}")
        n_parts = sum(len(one.parts) for one in probe)
        for one in units:
            if one.probe.shape != (n_parts,):
                raise InputError(f"{one.unit} has values of shape {one.probe.shape} for a probe of {n_parts} parts")
        self.medium = medium
        self.probe = tuple(probe)
        self.model = dict(model or {})
        self.provenance = dict(provenance or {})

    def __getitem__(self, unit: object) -> Exemplars:
        name = str(unit)
        if name not in self._units:
            raise InputError(f"no exemplars of {name} were collected; there are those of {_some(self._units)}")
        return self._units[name]

    def __contains__(self, unit: object) -> bool:
        return str(unit) in self._units

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(self._units)

    def probe_of(self, unit: str) -> list[Exemplar]:
        """The probe's passages with this unit's values."""
        cuts = np.cumsum([len(one.parts) for one in self.probe])[:-1]
        values = np.split(self[unit].probe, cuts) if self.probe else []
        return [one.with_values(own) for one, own in zip(self.probe, values, strict=True)]

    def subset(self, units: Sequence[str]) -> ExemplarStore:
        """The same store with some units only, in the order given."""
        chosen = [self[unit] for unit in units]
        return ExemplarStore(chosen, probe=self.probe, medium=self.medium, model=self.model, provenance=self.provenance)

    def rows(self) -> list[dict[str, Any]]:
        """One row per unit: bar, highest value, and its best passage with what fires in brackets."""
        return [
            {
                "unit": one.unit, "bar": one.bar, "top": one.top[0].value if one.top else None,
                "passages": len(one.top), "held_out": len(one.held_out),
                "passage": marked(one.top[0], one.bar) if one.top else "",
            }
            for one in self._units.values()
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {"reading": "exemplars", "medium": self.medium, "units": [one.to_dict() for one in self._units.values()]}

    def save(self, path: Any) -> Any:
        """Write `patchclamp.reading/1` JSON; the values on the probe go to NAME.probe.safetensors beside it."""
        from patchclamp.read import exemplar_file

        return exemplar_file.write(self, path)

    @classmethod
    def load(cls, path: Any) -> ExemplarStore:
        """Read what `save` wrote; DamagedError for an altered or incomplete file. Pictures are not kept in files."""
        from patchclamp.read import exemplar_file

        return exemplar_file.read(path)

    def __repr__(self) -> str:
        return f"ExemplarStore({len(self)} units: {_some(self._units)}; {self.medium}, probe of {len(self.probe)})"

    def __rich__(self) -> Any:
        from patchclamp.read import exemplar_view

        return exemplar_view.terminal_store(self)

    def _repr_html_(self) -> str:
        from patchclamp.read import exemplar_view

        return exemplar_view.store_html(self)


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


def _some(units: Mapping[str, Any]) -> str:
    names = list(units)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")

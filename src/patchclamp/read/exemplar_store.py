"""All that was seen of some units: the exemplars of each, kept in a file, shown in a terminal or a notebook."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, Error, InputError
from patchclamp.read import exemplar_view as view
from patchclamp.read.exemplar import Exemplar, marked
from patchclamp.read.files import load_reading, save_reading

MEDIA = ("text", "image")


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
        return view.terminal(self)

    def _repr_html_(self) -> str:
        return view.html(self)


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

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.reading/1` JSON; the values on the probe go to NAME.probe.safetensors beside it."""
        values = np.stack([one.probe for one in self._units.values()])
        body = {**self.to_dict(), "model": self.model, "probe": [one.to_dict() for one in self.probe]}
        body.pop("reading")
        return save_reading(path, "exemplars", body, provenance=self.provenance, arrays={"probe": values})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExemplarStore:
        """Read what `save` wrote; DamagedError for an altered or incomplete file. Pictures are not kept in files."""
        data, arrays = load_reading(path, "exemplars")
        try:
            units = [_unit(entry, own) for entry, own in zip(data["units"], arrays["probe"], strict=True)]
            probe = [_exemplar(entry) for entry in data["probe"]]
            return cls(units, probe=probe, medium=data["medium"], model=data["model"], provenance=data["provenance"])
        except (KeyError, TypeError, ValueError, IndexError, Error) as problem:
            raise DamagedError(f"{path} is no complete reading of exemplars: {problem!r}") from problem

    def __repr__(self) -> str:
        return f"ExemplarStore({len(self)} units: {_some(self._units)}; {self.medium}, probe of {len(self.probe)})"

    def __rich__(self) -> Any:
        return view.terminal_store(self)

    def _repr_html_(self) -> str:
        return view.store_html(self)


def _some(units: Mapping[str, Any]) -> str:
    names = list(units)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _unit(entry: Mapping[str, Any], probe: Any) -> Exemplars:
    top, sample, held_out = (tuple(map(_exemplar, entry[name])) for name in ("top", "sample", "held_out"))
    return Exemplars(entry["unit"], float(entry["bar"]), top, sample, held_out, probe, tuple(entry["notes"]))


def _exemplar(entry: Mapping[str, Any]) -> Exemplar:
    parts = tuple(entry["parts"])
    tags = {}
    for name, where in entry["tags"].items():
        tags[name] = np.zeros(len(parts), dtype=bool)
        tags[name][where] = True
    values = np.array(entry["values"], dtype=np.float32)
    grid = (int(entry["grid"][0]), int(entry["grid"][1])) if "grid" in entry else None
    return Exemplar(parts, values, entry["label"], entry["document"], entry["start"], tags, grid=grid)

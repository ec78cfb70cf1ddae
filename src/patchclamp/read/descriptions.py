"""Descriptions of units: what a describer is asked, and the table of what was chosen for every unit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.registry import Registry
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars
from patchclamp.read.files import load_reading, save_reading


@runtime_checkable
class Describer(Protocol):
    """Something that words what a unit does. Made as `describers[name](store, **options)` and used for its units.

    A description is a text. Text and image describers have the same four methods.
    """

    def candidates(self, exemplars: Exemplars) -> list[str]:
        """Descriptions to choose from, most likely first; [] if it finds none."""

    def log_probability(self, descriptions: Sequence[str], exemplars: Exemplars) -> NDArray[np.float64]:
        """(n,) log p(description | exemplars)."""

    def log_prior(self, descriptions: Sequence[str]) -> NDArray[np.float64]:
        """(n,) log p(description), whatever the unit."""

    def predict(self, description: str, exemplar: Exemplar) -> NDArray[np.float64]:
        """(n_parts,) in 0-1: how well every part fits the description. The exemplar's values must not be looked at."""

    def margin(self, description: str, exemplars: Exemplars) -> float | None:
        """How much better than saying nothing the description tells what fires, nats; None if this describer can't say."""


describers: Registry[Any] = Registry("describer", room="patchclamp.read")


@dataclass(frozen=True)
class Description:
    """What was chosen for one unit.

    text: the description. score: weighted pointwise mutual information, log_probability - lam * log_prior, nats. runners_up:
    the next best texts with their scores. margin: log-likelihood ratio to saying nothing, less the price of having chosen
    among so many; at or below 0 the text explains no more than chance (`explains` is False); None where a describer can't say.
    """

    unit: str
    text: str
    score: float
    log_probability: float
    log_prior: float
    margin: float | None = None
    runners_up: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def explains(self) -> bool:
        """Whether the text says more than saying nothing would."""
        return self.margin is None or self.margin > 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "unit": self.unit, "description": self.text, "score": self.score,
            "log_probability": self.log_probability, "log_prior": self.log_prior, "margin": self.margin,
            "explains": self.explains, "runners_up": [list(one) for one in self.runners_up], "notes": list(self.notes),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Description:
        return cls(
            unit=data["unit"],
            text=data["description"],
            score=_number(data["score"]),
            log_probability=_number(data["log_probability"]),
            log_prior=_number(data["log_prior"]),
            margin=data["margin"],
            runners_up=tuple((text, _number(score)) for text, score in data["runners_up"]),
            notes=tuple(data["notes"]),
        )


@dataclass(frozen=True, eq=False)
class Descriptions(Mapping[str, Description]):
    """Unit name -> its description; the reading `describe`.

    describer: its name. lam: weight of the prior. model: identity.
    """

    found: tuple[Description, ...]
    describer: str
    lam: float
    medium: str = "text"
    model: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, unit: object) -> Description:
        for one in self.found:
            if one.unit == str(unit):
                return one
        raise InputError(f"{unit} was not described; {len(self.found)} units were")

    def __contains__(self, unit: object) -> bool:
        return any(one.unit == str(unit) for one in self.found)

    def __iter__(self) -> Iterator[str]:
        return (one.unit for one in self.found)

    def __len__(self) -> int:
        return len(self.found)

    def rows(self) -> list[dict[str, Any]]:
        """One row per unit."""
        keep = ("unit", "description", "score", "log_probability", "log_prior", "margin", "explains")
        return [{key: one.to_dict()[key] for key in keep} for one in self.found]

    def to_dict(self) -> dict[str, Any]:
        return {
            "reading": "describe", "describer": self.describer, "lam": self.lam, "medium": self.medium,
            "descriptions": [one.to_dict() for one in self.found],
        }  # fmt: skip

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.reading/1` JSON."""
        body = {**self.to_dict(), "model": dict(self.model)}
        body.pop("reading")
        return save_reading(path, "describe", body, provenance=self.provenance)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Descriptions:
        """Read what `save` wrote; DamagedError for anything else."""
        data, _ = load_reading(path, "describe")
        try:
            return cls(
                tuple(Description.from_dict(entry) for entry in data["descriptions"]),
                data["describer"], data["lam"], data["medium"], data["model"], data["provenance"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as problem:
            raise DamagedError(f"{path} is no complete reading of descriptions: {problem!r}") from problem

    def __repr__(self) -> str:
        return f"Descriptions({len(self)} units by {self.describer}, lambda {self.lam:g})"

    def __rich__(self) -> Any:
        from patchclamp.read import exemplar_view

        return exemplar_view.rows_table(repr(self), self._shown())

    def _repr_html_(self) -> str:
        from patchclamp.read import exemplar_view

        return exemplar_view.rows_html(repr(self), self._shown())

    def _shown(self) -> list[dict[str, Any]]:
        return [
            {"unit": one.unit, "description": one.text, "score": f"{one.score:.2f}",
             "explains": "yes" if one.explains else "no"}
            for one in self.found
        ]  # fmt: skip


def _number(value: float | None) -> float:
    """A number as JSON kept it: infinities and NaN became null."""
    return float("nan") if value is None else float(value)

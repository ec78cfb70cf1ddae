"""What `tokens` gives: the ends of every unit's row of logits, with names and strings, as a file and as tables."""

from __future__ import annotations

import functools
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.models.units import Layout, Unit, UnitSet, describe, layouts_of
from patchclamp.read.files import load_reading, save_reading

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN = 40
_INTEGER = ("top_ids", "bottom_ids")
_EACH = ("top_ids", "top_values", "bottom_ids", "bottom_values", "mean", "sd", "length")
_SOFTMAX = ("entropy", "log_sum")


@dataclass(frozen=True, eq=False)
class TokenMap:
    """The strongest tokens at both ends of every unit's logits.

    top_ids, top_values: (units, k) int32 and float32, falling. bottom_ids, bottom_values: (units, k), rising; (units, 0) if
    they were not asked for. mean, sd: (units,) over all tokens. length: (units,) of the direction that met the head. softmax:
    "entropy" and "log_sum" (units,), where asked for. positions: site -> sorted flat positions, in the order of the rows;
    own_names: names of raw directions instead. vocabulary: token id -> string. model: identity.
    """

    top_ids: NDArray[np.int32]
    top_values: NDArray[np.float32]
    bottom_ids: NDArray[np.int32]
    bottom_values: NDArray[np.float32]
    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    length: NDArray[np.float32]
    softmax: Mapping[str, NDArray[np.float32]]
    positions: Mapping[str, NDArray[np.int64]]
    own_names: tuple[str, ...] | None
    vocabulary: Mapping[int, str]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_parts(
        cls,
        parts: Sequence[Mapping[str, NDArray[Any]]],
        *,
        model: Mapping[str, Any],
        tokenizer: Any,
        parameters: Mapping[str, Any],
        provenance: Mapping[str, Any],
        positions: Mapping[str, NDArray[np.int64]] | None = None,
        names: Sequence[str] | None = None,
        notes: tuple[str, ...] = (),
    ) -> TokenMap:
        """Put blocks together. positions or names: whose rows they are. tokenizer: gives the strings; without one, ids."""
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        used = np.unique(np.concatenate([arrays["top_ids"].ravel(), arrays["bottom_ids"].ravel()])).tolist()
        softmax = {name: arrays.pop(name) for name in _SOFTMAX if name in arrays}
        return cls(
            **arrays,
            softmax=softmax,
            positions=dict(positions or {}),
            own_names=None if names is None else tuple(names),
            vocabulary=strings_of(tokenizer, used),
            model=dict(model),
            parameters=dict(parameters),
            notes=notes,
            provenance=dict(provenance),
        )

    def __len__(self) -> int:
        return int(self.top_ids.shape[0])

    @property
    def k(self) -> int:
        return int(self.top_ids.shape[1])

    @functools.cached_property
    def layouts(self) -> dict[str, Layout]:
        return layouts_of(self.model)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.positions)

    @property
    def units(self) -> UnitSet:
        """The units that were read; InputError for raw directions, which are none."""
        if self.own_names is not None:
            raise InputError("raw directions were read, which are no units")
        return UnitSet(self.layouts, dict(self.positions), None, self.model)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the rows."""
        if self.own_names is not None:
            return self.own_names
        return tuple(name for site, where in self.positions.items() for name in self.layouts[site].names(where))

    @property
    def undefined(self) -> NDArray[np.bool_]:
        """(units,) whose direction is zero: they point at nothing, and the tokens listed for them mean nothing."""
        return self.length == 0

    @property
    def z(self) -> NDArray[np.float32]:
        """(units,) how far the top token stands out: (its value - mean) / deviation over all tokens; 0 where undefined."""
        spread = np.where(self.sd > 0, self.sd, 1)
        return np.where(self.undefined, 0, (self.top_values[:, 0] - self.mean) / spread).astype(np.float32)

    def rows_of(self, site: str) -> slice:
        """Where the rows of a site lie."""
        start = 0
        for name, where in self.positions.items():
            if name == site:
                return slice(start, start + len(where))
            start += len(where)
        raise InputError(f"no units of {site!r} were read; there are {', '.join(self.positions) or 'raw directions'}")

    def index(self, unit: str | Unit) -> int:
        """The row of a unit (or of a raw direction, by its name); InputError if it was not read."""
        if self.own_names is not None:
            if str(unit) not in self.own_names:
                raise InputError(f"no direction is called {str(unit)!r}; there are {', '.join(self.own_names[:5])} ...")
            return self.own_names.index(str(unit))
        parsed = unit if isinstance(unit, Unit) else Unit.parse(unit)
        rows = self.rows_of(parsed.site)
        where, wanted = self.positions[parsed.site], self.layouts[parsed.site].position(parsed)
        at = int(np.searchsorted(where, wanted))
        if at == len(where) or where[at] != wanted:
            raise InputError(f"{unit} was not read; {len(where)} units of {parsed.site} were")
        return rows.start + at

    def strings(self, unit: str | Unit) -> dict[str, list[str]]:
        """{"promotes": [...], "suppresses": [...]}, strongest first; empty lists for a unit that points at nothing."""
        return self._strings(self.index(unit))

    def _strings(self, row: int) -> dict[str, list[str]]:
        if self.undefined[row]:
            return {"promotes": [], "suppresses": []}
        ids = {"promotes": self.top_ids[row], "suppresses": self.bottom_ids[row]}
        return {side: [self.token(int(one)) for one in listed] for side, listed in ids.items()}

    def token(self, token_id: int) -> str:
        """The string of a token among those listed; `#id` without a tokenizer."""
        return self.vocabulary.get(token_id, f"#{token_id}")

    def holding(self, token_ids: Iterable[int], *, side: str = "top") -> list[tuple[str, int, float]]:
        """(unit, rank, value) of every unit that lists one of some tokens, by rank and then strength. side: top or bottom."""
        ids, values = (self.top_ids, self.top_values) if side == "top" else (self.bottom_ids, self.bottom_values)
        row, rank = np.nonzero(np.isin(ids, np.fromiter(token_ids, dtype=np.int64)) & ~self.undefined[:, None])
        found = [(self.names[r], int(c), float(values[r, c])) for r, c in zip(row.tolist(), rank.tolist(), strict=True)]
        return sorted(found, key=lambda entry: (entry[1], -abs(entry[2])))

    def specialised(self, share: float = 0.01) -> UnitSet:
        """The share of units whose top token stands out most, scored by `z`."""
        if not 0 < share <= 1:
            raise InputError(f"share={share} given; it lies between 0 and 1")
        site = self.sites[0] if len(self.sites) == 1 else None
        if site is None:
            raise InputError("several sites were read; ask for the specialised units of a map of one")
        order = np.argsort(-self.z, kind="stable")[: max(1, round(share * len(self)))]
        return UnitSet.at(self.model, site, self.positions[site][order], self.z[order])

    def by_layer(self) -> list[dict[str, Any]]:
        """Per site and layer: units, how many are undefined, median and 99th percentile of z, median entropy if known."""
        found = []
        for site, where in self.positions.items():
            rows, layout = self.rows_of(site), self.layouts[site]
            layers = np.searchsorted(layout.offsets, where, side="right") - 1
            for layer in np.unique(layers).tolist():
                mine = np.flatnonzero(layers == layer) + rows.start
                entry = {
                    "site": site,
                    "layer": layer,
                    "units": len(mine),
                    "undefined": int(self.undefined[mine].sum()),
                    "z": float(np.median(self.z[mine])),
                    "z99": float(np.quantile(self.z[mine], 0.99)),
                }
                if "entropy" in self.softmax:
                    entry["entropy"] = float(np.median(self.softmax["entropy"][mine]))
                found.append(entry)
        return found

    def rows(self, limit: int | None = None) -> list[dict[str, Any]]:
        """One dict per unit: unit, z, promotes, suppresses (strings), and both ends' values."""
        found = []
        for row, name in enumerate(self.names[:limit]):
            sides = self._strings(row)
            found.append(
                {
                    "unit": name,
                    "z": None if self.undefined[row] else float(self.z[row]),
                    **sides,
                    "values": self.top_values[row].tolist() if sides["promotes"] else [],
                    "bottom_values": self.bottom_values[row].tolist() if sides["suppresses"] else [],
                }
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data of everything; large for whole models."""
        return {
            "reading": "tokens",
            "model": {key: self.model.get(key) for key in ("name", "fingerprint")},
            "parameters": dict(self.parameters),
            "notes": list(self.notes),
            "rows": self.rows(),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.reading/1`: names, strings and provenance as JSON, arrays in a safetensors file beside it."""
        arrays = {name: getattr(self, name) for name in _EACH} | dict(self.softmax)
        arrays |= {f"positions/{site}": where for site, where in self.positions.items()}
        body = {
            "model": dict(self.model),
            "sites": list(self.positions),
            "names": None if self.own_names is None else list(self.own_names),
            "parameters": dict(self.parameters),
            "notes": list(self.notes),
            "vocabulary": {str(token): text for token, text in self.vocabulary.items()},
        }
        return save_reading(path, "tokens", body, provenance=self.provenance, arrays=arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: Any = None) -> TokenMap:
        """Read what `save` wrote. model: checked to be the one that was read, if given."""
        data, arrays = load_reading(path, "tokens")
        try:
            found = cls(
                **{name: arrays[name] for name in _EACH},
                softmax={name: arrays[name] for name in _SOFTMAX if name in arrays},
                positions={site: arrays[f"positions/{site}"] for site in data["sites"]},
                own_names=None if data["names"] is None else tuple(data["names"]),
                vocabulary={int(token): text for token, text in data["vocabulary"].items()},
                model=data["model"],
                parameters=data["parameters"],
                notes=tuple(data["notes"]),
                provenance=data["provenance"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            raise DamagedError(f"{path} is not a complete map of tokens: {problem!r}") from problem
        rows = {len(getattr(found, name)) for name in _EACH} | {len(found.names)}
        if len(rows) != 1:
            raise DamagedError(f"{path} holds arrays of {sorted(rows)} units; they must agree")
        if model is not None and model.fingerprint != found.model.get("fingerprint"):
            raise MismatchError(
                f"{path} was read from {describe(found.model)}, but {describe(model.identity)} was given"
            )
        return found

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        drawn = Table(title=f"Tokens of {len(self):,} units of {describe(self.model)}", title_justify="left")
        for head, side in (("unit", "left"), ("z", "right"), ("promotes", "left"), ("suppresses", "left")):
            drawn.add_column(head, justify=side)  # type: ignore[arg-type]
        for row in self.rows(SHOWN):
            z = "-" if row["z"] is None else f"{row['z']:.1f}"
            drawn.add_row(row["unit"], z, *(Text(listed(row[side])) for side in ("promotes", "suppresses")))
        more = [Text(f"... and {len(self) - SHOWN:,} more units")] if len(self) > SHOWN else []
        return Group(drawn, *more, *(Text(note) for note in self.notes))

    def __repr__(self) -> str:
        return f"TokenMap({len(self)} units of {describe(self.model)}, {self.k} tokens at each end)"

    def _repr_html_(self) -> str:
        cells = [
            f"<tr><td>{html.escape(row['unit'])}</td>"
            + "".join(f"<td>{html.escape(listed(row[side]))}</td>" for side in ("promotes", "suppresses"))
            + "</tr>"
            for row in self.rows(SHOWN)
        ]
        head = "<tr><th>unit</th><th>promotes</th><th>suppresses</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{''.join(cells)}</tbody></table>"


def listed(strings: Sequence[str], most: int = 8) -> str:
    """Some token strings in one line, spaces and control characters visible."""
    return " ".join(visible(text) for text in strings[:most]) or "-"


def visible(text: str) -> str:
    """A token as it can be printed: a leading space as `_`, what can't be printed escaped."""
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return "_" + shown[1:] if shown.startswith(" ") else shown


def strings_of(tokenizer: Any, token_ids: Iterable[int]) -> dict[int, str]:
    """Token id -> what it decodes to by itself; parts of characters as the bytes they are (<0xE3>). {} without a tokenizer."""
    if tokenizer is None:
        return {}
    return {one: _string(tokenizer, one) for one in token_ids}


def _string(tokenizer: Any, token_id: int) -> str:
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if "\N{REPLACEMENT CHARACTER}" in text and isinstance(piece, str):
        return piece
    if isinstance(piece, str) and piece.startswith("\u2581") and not text.startswith(" "):
        return " " + text  # SentencePiece drops the space of a first token
    return text

"""Fill an atlas from numpy arrays, a bounded number of rows at a time; nothing here knows recordings or findings.

Rows are inserted in ascending unit_id (per label or run where one array at a time arrives), so the smallest and largest
unit_id that DuckDB keeps per row group let a look-up of one unit skip nearly all of a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.atlas import schema
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.core.files import to_json
from patchclamp.models.units import SITES, Layout, Unit, UnitSet, describe, joint_identity, layouts_of

if TYPE_CHECKING:
    import duckdb

ROWS = 1 << 18  # inserted at once: two row groups of DuckDB, a few ten MB with twenty columns
Window = tuple[int, int, str, int | None, int | None]  # document, position, text, token_start, token_end


class Writer:
    """Inserts into the tables of one open atlas; the caller opens and closes the connection (see `writing`)."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, model: Mapping[str, Any]) -> None:
        """model: identity of the model; MismatchError if the atlas is already about another one."""
        self._connection = connection
        stored = schema.fetched(connection, "SELECT identity FROM models")
        if not stored:
            self.model = dict(model)
            self._insert_model(self.model)
        else:
            known = json.loads(stored[0][0])
            check_same_model(known, model, "this atlas")
            self.model = dict(joint_identity(known, model))
            if self.model != known:
                connection.execute("UPDATE models SET identity = ?", [to_json(self.model)])
        self.layouts = layouts_of(self.model)
        self.first_units = first_units(self.layouts)

    def run(self, kind: str, **entries: Any) -> int:
        """Add a run and return its id. entries: columns of the table `runs`; mappings are stored as JSON.

        InputError if a run with the same kind and fingerprint is in the atlas already.
        """
        fingerprint = entries.get("fingerprint")
        query = "SELECT source FROM runs WHERE kind = ? AND fingerprint = ?"
        if fingerprint and schema.fetched(self._connection, query, [kind, fingerprint]):
            where = f" ({entries['source']})" if entries.get("source") else ""
            raise InputError(f"the {kind} {fingerprint[:12]}{where} is in this atlas already; give each only once")
        run_id = self._next("runs", "run_id")
        plain = {name: to_json(value) if isinstance(value, Mapping) else value for name, value in entries.items()}
        self._rows("runs", [{"run_id": run_id, "kind": kind, **plain}])
        return run_id

    def labels(self, run_id: int, labels: Mapping[str, tuple[int | None, int | None]]) -> list[int]:
        """Add the labels of a run, label -> (documents, tokens); returns their ids in the same order."""
        start = self._next("labels", "label_id")
        rows: list[dict[str, Any]] = [
            {"label_id": start + number, "run_id": run_id, "label": label, "documents": documents, "tokens": tokens}
            for number, (label, (documents, tokens)) in enumerate(labels.items())
        ]
        self._rows("labels", rows)
        return [row["label_id"] for row in rows]

    def site(self, site: str) -> Layout:
        """Make sure that the units of a site are in the atlas; returns the site's layout."""
        if site not in self.layouts:
            raise MismatchError(f"{describe(self.model)} has no site {site!r}; it has {', '.join(self.layouts)}")
        layout = self.layouts[site]
        if schema.fetched(self._connection, "SELECT 1 FROM layers WHERE site = ? LIMIT 1", [site]):
            return layout
        first = self.first_units[site]
        self._rows(
            "layers",
            [
                {"site": site, "layer": layer, "first_unit": first + start, "width": width, "experts": experts}
                for layer, (start, width, experts) in enumerate(
                    zip(layout.offsets[:-1], layout.widths, layout.experts, strict=True)
                )
            ],
        )
        for start, stop in _chunks(layout.total, ROWS):
            positions = np.arange(start, stop)
            layers = np.searchsorted(layout.offsets, positions, side="right") - 1
            inner = positions - np.asarray(layout.offsets)[layers]
            n_experts = np.asarray(layout.experts)[layers]
            per_expert = np.asarray(layout.widths)[layers] // np.maximum(n_experts, 1)  # the width of a dense layer
            columns = {
                "unit_id": first + positions,
                "name": np.array(layout.names(positions), dtype=object),
                "site": np.full(len(positions), site, dtype=object),
                "layer": layers,
                "expert": np.where(n_experts > 0, inner // np.maximum(per_expert, 1), np.nan),
                "index": inner % per_expert,
            }
            self._insert("units", columns)
        return layout

    def statistics(
        self,
        label_ids: Sequence[int],
        site: str,
        columns: Mapping[str, NDArray[Any]],
        *,
        keep: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add statistics of one site. columns: name -> array (labels, units of the site); new names become columns.

        NaN is stored as NULL. keep: (units,) which units get rows, all by default.
        """
        known = set(schema.columns_of(self._connection, "statistics"))
        for name, values in columns.items():
            if name not in known:
                schema.add_column(
                    self._connection, "statistics", name, values.dtype.kind, "from a recording's statistic"
                )
        self._labelled("statistics", label_ids, site, columns, keep)

    def scores(self, label_ids: Sequence[int], site: str, columns: Mapping[str, NDArray[Any] | None]) -> None:
        """Add what a finder says of every unit and label. columns: score, p, chosen, member -> (labels, units) or None."""
        unknown = set(columns) - {"score", "p", "chosen", "member"}
        if unknown:
            raise InputError(f"scores have no column {min(unknown)!r}; there are score, p, chosen and member")
        self._labelled(
            "scores", label_ids, site, {name: values for name, values in columns.items() if values is not None}
        )

    def classes(
        self,
        run_id: int,
        site: str,
        codes: NDArray[np.integer[Any]] | None,
        names: Sequence[str] = (),
        scores: NDArray[np.floating[Any]] | None = None,
    ) -> None:
        """Add the class and the method's own score of every unit of a site, each (units,) or None.

        codes: indices into `names`; negative for no class. Nothing is added if both are None.
        """
        layout = self.site(site)
        for given in (codes, scores):
            if given is not None and given.shape != (layout.total,):
                raise MismatchError(f"classes have shape {given.shape}, but {site} has {layout.total} units")
        if codes is not None and codes.size and codes.max() >= len(names):
            raise DamagedError(f"class code {int(codes.max())} given, but there are {len(names)} class names")
        if codes is None and scores is None:
            return
        table = np.array([*names, None], dtype=object)  # code -1 finds the None at the end
        for start, stop in _chunks(layout.total, ROWS):
            columns: dict[str, NDArray[Any]] = {
                "unit_id": self.first_units[site] + np.arange(start, stop),
                "run_id": np.full(stop - start, run_id),
            }
            if codes is not None:
                columns["class"] = table[np.maximum(codes[start:stop], -1)]
            if scores is not None:
                columns["score"] = scores[start:stop].astype(np.float64)
            self._insert("classes", columns)

    def set(self, run_id: int, name: str, units: UnitSet, *, label_id: int | None = None) -> int:
        """Add a named unit set of a run and return its id."""
        set_id = self._next("sets", "set_id")
        row = {"set_id": set_id, "run_id": run_id, "label_id": label_id, "name": name, "n_units": len(units)}
        self._rows("sets", [row])
        for site in sorted(units.positions, key=lambda name: self.first_units.get(name, 0)):
            where = units.positions[site]
            self.site(site)
            for start, stop in _chunks(len(where), ROWS):
                columns: dict[str, NDArray[Any]] = {
                    "unit_id": self.first_units[site] + where[start:stop],
                    "set_id": np.full(stop - start, set_id),
                }
                if units.scores is not None:
                    columns["score"] = units.scores[site][start:stop]
                self._insert("set_units", columns)
        return set_id

    def find_set(self, name: str, units: UnitSet) -> int | None:
        """The id of a set of this name with exactly these units, the latest if there are several; None if there is none."""
        query = "SELECT set_id FROM sets WHERE name = ? AND n_units = ? ORDER BY set_id DESC"
        placed = [self.first_units[site] + where for site, where in units.positions.items()]
        wanted = np.sort(np.concatenate([*placed, np.zeros(0, dtype=np.int64)])).tolist()
        for (set_id,) in schema.fetched(self._connection, query, [name, len(units)]):
            members = "SELECT unit_id FROM set_units WHERE set_id = ? ORDER BY unit_id"
            if [row[0] for row in schema.fetched(self._connection, members, [set_id])] == wanted:
                return int(set_id)
        return None

    def exemplars(
        self,
        label_id: int,
        site: str,
        documents: NDArray[np.integer[Any]],
        positions: NDArray[np.integer[Any]],
        values: NDArray[np.floating[Any]],
        windows: Iterable[Window] = (),
    ) -> None:
        """Add the top moments of every unit, arrays (units of the site, k) in falling order of value.

        A moment with a negative document number is none. windows: the text around each moment that has one.
        """
        layout = self.site(site)
        if not documents.shape == positions.shape == values.shape == (layout.total, documents.shape[-1]):
            shapes = f"{documents.shape}, {positions.shape}, {values.shape}"
            raise MismatchError(f"exemplars have shapes {shapes}, but {site} has {layout.total} units")
        self._stage_windows(windows)
        k = documents.shape[1]
        for start, stop in _chunks(layout.total, max(1, ROWS // max(1, k))):
            flat = {name: a[start:stop].ravel() for name, a in (("document", documents), ("position", positions))}
            kept = np.flatnonzero(flat["document"] >= 0)
            columns = {
                "unit_id": self.first_units[site] + start + kept // max(1, k),
                "rank": kept % max(1, k),
                "value": values[start:stop].ravel()[kept].astype(np.float64),
                **{name: array[kept].astype(np.int64) for name, array in flat.items()},
            }
            self._insert(
                "exemplars",
                columns,
                select=f"SELECT c.*, {int(label_id)} AS label_id, w.text, w.token_start, w.token_end FROM chunk c "
                "LEFT JOIN temp.windows w USING (document, position) ORDER BY c.unit_id, c.rank",
            )
        self._connection.execute("DROP TABLE temp.windows")

    def effects(self, run_id: int, rows: Sequence[Mapping[str, Any]], set_ids: Mapping[str, int]) -> None:
        """Add effects rows, keys as in `patchclamp.effects/1`. set_ids: name -> set of this atlas, where there is one."""
        start = self._next("effects", "effect_id")
        columns = schema.columns_of(self._connection, "effects")[5:]
        self._rows(
            "effects",
            [
                {
                    "effect_id": start + number,
                    "run_id": run_id,
                    "set_id": set_ids.get(row["set"]),
                    "set_name": row["set"],
                    "text_label": row["text"],
                    **{name: _plain_number(row.get(name)) for name in columns},
                }
                for number, row in enumerate(rows)
            ],
        )

    def tokens(
        self,
        run_id: int,
        site: str,
        positions: NDArray[np.integer[Any]],
        token_ids: NDArray[np.integer[Any]],
        values: NDArray[np.floating[Any]],
        *,
        sign: int,
    ) -> None:
        """Add the tokens that some units promote (sign 1) or suppress (sign -1), strongest first.

        positions: (units,) flat positions in the site, ascending. token_ids, values: (units, k).
        """
        layout = self.site(site)
        if sign not in (1, -1):
            raise InputError(f"sign {sign} given; 1 means promoted, -1 suppressed")
        if token_ids.shape != values.shape or token_ids.shape[:1] != positions.shape:
            raise MismatchError(f"{len(positions)} units, but token ids {token_ids.shape} and values {values.shape}")
        if len(positions) and not 0 <= positions.min() <= positions.max() < layout.total:
            raise InputError(
                f"positions {positions.min()}-{positions.max()} given, but {site} has {layout.total} units"
            )
        k = token_ids.shape[1]
        for start, stop in _chunks(len(positions), max(1, ROWS // max(1, k))):
            n = stop - start
            columns = {
                "unit_id": np.repeat(self.first_units[site] + positions[start:stop], k),
                "run_id": np.full(n * k, run_id),
                "sign": np.full(n * k, sign, dtype=np.int8),
                "rank": np.tile(np.arange(k), n),
                "token_id": token_ids[start:stop].ravel().astype(np.int64),
                "value": values[start:stop].ravel().astype(np.float32),
            }
            self._insert("tokens", columns)

    def vocabulary(self, token_ids: NDArray[np.integer[Any]], tokens: Sequence[str]) -> None:
        """Add the strings of token ids; ids that are there already keep their string."""
        columns = {"token_id": token_ids.astype(np.int64), "token": np.array(list(tokens), dtype=object)}
        select = "SELECT * FROM chunk WHERE token_id NOT IN (SELECT token_id FROM vocabulary) ORDER BY token_id"
        self._insert("vocabulary", columns, select=select)

    def descriptions(self, run_id: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add descriptions of units: unit (its name) and the columns of the table."""
        placed = []
        for row in rows:
            unit = Unit.parse(row["unit"])
            unit_id = self.first_units[unit.site] + self.site(unit.site).position(unit)
            columns = {name: value for name, value in row.items() if name != "unit"}
            placed.append({"unit_id": unit_id, "run_id": run_id, **columns})
        self._rows("descriptions", sorted(placed, key=lambda row: row["unit_id"]))

    def _insert_model(self, model: Mapping[str, Any]) -> None:
        if not model.get("fingerprint") or not model.get("sites"):
            raise InputError("the model's identity lacks a fingerprint or its sites; record it again with this version")
        named = {name: model.get(name) for name in ("name", "type", "fingerprint", "source", "dtype")}
        self._rows("models", [{"model_id": 1, **named, "identity": to_json(model)}])

    def _labelled(
        self,
        table: str,
        label_ids: Sequence[int],
        site: str,
        columns: Mapping[str, NDArray[Any]],
        keep: NDArray[np.bool_] | None = None,
    ) -> None:
        """Insert arrays (labels, units) as rows in the order of units, the labels of one unit together."""
        layout, ids = self.site(site), np.asarray(label_ids, dtype=np.int64)
        for name, values in columns.items():
            if values.shape != (len(ids), layout.total):
                raise MismatchError(f"{name!r} has shape {values.shape}, but {site} needs {(len(ids), layout.total)}")
        for start, stop in _chunks(layout.total, max(1, ROWS // max(1, len(ids)))):
            kept = np.arange(start, stop) if keep is None else start + np.flatnonzero(keep[start:stop])
            keys = {"unit_id": np.repeat(self.first_units[site] + kept, len(ids)), "label_id": np.tile(ids, len(kept))}
            chunk = {name: np.ascontiguousarray(values[:, kept].T).ravel() for name, values in columns.items()}
            self._insert(table, {**keys, **chunk})

    def _stage_windows(self, windows: Iterable[Window]) -> None:
        """Put the texts where the chunks of exemplars can be joined to them; the table spills to disk if it is large."""
        self._connection.execute(
            "CREATE OR REPLACE TEMP TABLE windows "
            "(document BIGINT, position BIGINT, text VARCHAR, token_start INTEGER, token_end INTEGER)"
        )
        for batch in _batched(windows, 1 << 14):
            document, position, text, start, end = zip(*batch, strict=True)
            columns = {
                "document": np.array(document, dtype=np.int64),
                "position": np.array(position, dtype=np.int64),
                "text": np.array(text, dtype=object),
                "token_start": _nullable(start),
                "token_end": _nullable(end),
            }
            self._insert("temp.windows", columns)

    def _insert(self, table: str, columns: Mapping[str, Any], *, select: str = "SELECT * FROM chunk") -> None:
        self._connection.register("chunk", dict(columns))
        try:
            self._connection.execute(f"INSERT INTO {table} BY NAME {select}")
        finally:
            self._connection.unregister("chunk")

    def _rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert a few rows with bound values; all rows have the same keys, which are our own column names."""
        if not rows:
            return
        names = list(rows[0])
        columns = ", ".join(schema.quoted(schema.identifier(name)) for name in names)
        query = f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(names))})"
        self._connection.executemany(query, [[row[name] for name in names] for row in rows])

    def _next(self, table: str, column: str) -> int:
        rows = schema.fetched(self._connection, f"SELECT coalesce(max({column}), 0) + 1 FROM {table}")
        return int(rows[0][0])


def first_units(layouts: Mapping[str, Layout]) -> dict[str, int]:
    """The unit_id of each site's first unit: sites in the order of `SITES`, features behind in the order they came in."""
    order = sorted(layouts, key=lambda site: SITES.index(site) if site in SITES else len(SITES))
    first, start = {}, 0
    for site in order:
        first[site] = start
        start += layouts[site].total
    return first


def check_same_model(known: Mapping[str, Any], other: Mapping[str, Any], what: str) -> None:
    """Raise MismatchError unless both identities carry the same fingerprint."""
    if known.get("fingerprint") != other.get("fingerprint"):
        raise MismatchError(
            f"{what} is about model {describe(known)}, but something of {describe(other)} was given; an atlas holds one model"
        )


def _chunks(total: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, step):
        yield start, min(start + step, total)


def _batched(items: Iterable[Window], size: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _nullable(values: Sequence[int | None]) -> NDArray[np.float64]:
    """None as NaN, which DuckDB stores as NULL (older versions do not look at the mask of a masked array)."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _plain_number(value: Any) -> Any:
    """Python numbers for numpy ones; NaN is stored as NULL."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value != value else value

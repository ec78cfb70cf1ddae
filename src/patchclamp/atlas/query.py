"""Ask an atlas: by SQL, one unit's page, the units that a method or statistic ranks highest, what is in the file.

This module owns the queries. Values are bound, column names are checked against the file, every list has a limit and an
order whose ties go to the unit that comes first.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.atlas import schema
from patchclamp.atlas.connection import NAME, explained, reading, scratch_folder
from patchclamp.atlas.page import NAMES, Names, UnitPage, read_page
from patchclamp.atlas.result import Result, fetch
from patchclamp.atlas.writer import first_units
from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout, Unit, UnitSet, describe, layouts_of

if TYPE_CHECKING:
    import duckdb


class Atlas:
    """One atlas file, opened read-only. Queries reach this file and nothing else. Safe to use from several threads.

    path: the file. about: versions that wrote it. model: identity of the model it is about.
    """

    def __init__(self, path: Path, *, memory_limit: str | None = None, threads: int | None = None) -> None:
        self.path = path
        self._memory_limit, self._threads = memory_limit, threads
        self._scratch = scratch_folder()
        self._closed = False
        try:
            self._connection = reading(path, Path(self._scratch.name), memory_limit=memory_limit, threads=threads)
            try:
                with explained(path):
                    self.about = schema.check(self._connection, path)
                    stored = schema.fetched(self._connection, "SELECT identity FROM models")
                self.model: dict[str, Any] = json.loads(stored[0][0]) if stored else {}
            except BaseException:
                self._connection.close()
                raise
        except BaseException:
            self._scratch.cleanup()
            raise
        self.layouts: dict[str, Layout] = layouts_of(self.model)
        self._first_units = first_units(self.layouts)
        self._sites: list[str] | None = None
        self._known_names: Names | None = None

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, memory_limit: str | None = None, threads: int | None = None
    ) -> Atlas:
        """Open an atlas file read-only.

        memory_limit: such as "500MB" (DuckDB's own default: 80 % of the machine). threads: for one query.
        Raises InputError without a file, DamagedError for a damaged, foreign or newer one.
        """
        return cls(Path(path), memory_limit=memory_limit, threads=threads)

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        limit: int | None = None,
        seconds: float | None = None,
    ) -> Result:
        """Rows of one SELECT (also DESCRIBE, SUMMARIZE, SHOW TABLES, EXPLAIN) over the tables of `tables()`.

        parameters: values for `?` or `$name` in the query. limit: take so many rows at most. seconds: give up after them.
        Raises InputError for anything else than one such statement, for SQL errors, and when time is up.
        """
        if limit is not None and limit < 0:
            raise InputError(f"limit={limit} given; it is at least 0")
        with self._cursor() as cursor, _timed(cursor, seconds), self._query_errors(seconds):
            _check_statement(cursor, query)
            return fetch(cursor, query, parameters, limit)

    def unit(self, unit: str | Unit) -> UnitPage:
        """Everything about one unit: identity, statistics, scores, classes, sets, exemplars, effects, tokens,
        descriptions.

        InputError for a name that is no unit of this model, or a unit of a site that is not in the atlas.
        """
        parsed = unit if isinstance(unit, Unit) else Unit.parse(unit)
        if parsed.site not in self.layouts:
            raise InputError(
                f"{parsed}: {describe(self.model)} has no site {parsed.site!r}; it has {', '.join(self.layouts)}"
            )
        unit_id = self._first_units[parsed.site] + self.layouts[parsed.site].position(parsed)
        with self._cursor() as cursor, self._query_errors(None):
            if self._sites is None:
                self._sites = [row[0] for row in schema.fetched(cursor, "SELECT DISTINCT site FROM layers ORDER BY 1")]
            if parsed.site not in self._sites:
                known = ", ".join(self._sites) or "none"
                raise InputError(f"{parsed}: nothing about {parsed.site} units in {self.path}; sites there: {known}")
            page: dict[str, Any] = {
                "unit": str(parsed),
                "unit_id": unit_id,
                "site": parsed.site,
                "layer": parsed.layer,
                "expert": parsed.expert,
                "index": parsed.index,
                "model": {name: self.model.get(name) for name in ("name", "type", "fingerprint")},
            }
            read = functools.partial(_dicts, cursor)
            page |= read_page(read, unit_id, self._names(cursor), version=int(self.about["schema_version"]))
        return UnitPage(page)

    def top(
        self,
        *,
        method: str | None = None,
        statistic: str | None = None,
        label: str | None = None,
        run: int | None = None,
        k: int = 20,
    ) -> Result:
        """The k units with the highest score of a method, or the highest value of a statistic (a column).

        label: of which label (needed if there are several). run: of which run, if several used the method or label.
        Columns: unit, site, layer, run_id, label, value, unit_id; ties go to the unit that comes first; NULLs never rank.
        """
        if (method is None) == (statistic is None):
            raise InputError("give either method= (such as 'ternary') or statistic= (such as 'rate')")
        _check_page(k, 0)
        if statistic is not None and statistic not in self._statistics():
            known = ", ".join(self._statistics())
            raise InputError(f"no statistic {statistic!r} in {self.path}; it has {known}")
        label_id, found_label, found_run = self._one_label(method, statistic, label, run)
        table, value = ("scores", "score") if statistic is None else ("statistics", schema.quoted(statistic))
        query = (  # the names are joined to k rows, not to all
            "SELECT name AS unit, site, layer, ? AS run_id, ? AS label, value, unit_id FROM "
            f"(SELECT unit_id, {value} AS value FROM {table} WHERE label_id = ? AND {value} IS NOT NULL "
            "ORDER BY value DESC, unit_id LIMIT ?) JOIN units USING (unit_id) ORDER BY value DESC, unit_id"
        )
        return self._fetched(query, [found_run, found_label, label_id, k])

    def units(
        self,
        *,
        site: str | None = None,
        layer: int | None = None,
        unit_class: str | None = None,
        set: str | None = None,
        run: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Result:
        """Units that meet all conditions given, in ascending order; columns as in the table `units`.

        unit_class, set: of any run, or of the run given. limit, offset: which page of the list.
        """
        _check_page(limit, offset)
        conditions: list[str] = ["true"]
        given: list[Any] = []
        for column, wanted in (("site", site), ("layer", layer)):
            if wanted is not None:
                conditions.append(f"{column} = ?")
                given.append(wanted)
        run_too = "" if run is None else " AND run_id = ?"
        of_run = [] if run is None else [run]
        if unit_class is not None:
            conditions.append(f"unit_id IN (SELECT unit_id FROM classes WHERE class = ?{run_too})")
            given += [unit_class, *of_run]
        if set is not None:
            chosen = f"SELECT unit_id FROM set_units JOIN sets USING (set_id) WHERE name = ?{run_too}"
            conditions.append(f"unit_id IN ({chosen})")
            given += [set, *of_run]
        query = f"SELECT * FROM units WHERE {' AND '.join(conditions)} ORDER BY unit_id LIMIT ? OFFSET ?"
        return self._fetched(query, [*given, limit, offset])

    def set(self, name: str, *, run: int | None = None) -> UnitSet:
        """A stored unit set, ready for `clamp` or `effect`. InputError if there is none, or several and no run given."""
        given: list[Any] = [name] if run is None else [name, run]
        query = "SELECT set_id, run_id FROM sets WHERE name = ?" + ("" if run is None else " AND run_id = ?")
        found = self._fetched(query + " ORDER BY set_id", given).rows
        if not found:
            names = [row[0] for row in self._fetched("SELECT DISTINCT name FROM sets ORDER BY 1 LIMIT 50", []).rows]
            raise InputError(f"no set {name!r} in {self.path}; it has {', '.join(names) or 'none'}")
        if len(found) > 1:
            runs = ", ".join(str(row[1]) for row in found)
            raise InputError(f"{self.path} holds several sets {name!r}, of the runs {runs}; give run=")
        query = "SELECT name, score FROM set_units JOIN units USING (unit_id) WHERE set_id = ? ORDER BY unit_id"
        rows = self._fetched(query, [found[0][0]]).rows
        scores = [row[1] for row in rows]
        return UnitSet.of(self.model, [row[0] for row in rows], None if None in scores else scores)

    def summary(self) -> dict[str, Any]:
        """What the atlas holds: model, versions, sites with their numbers of units, runs, labels, sets, rows per table."""
        listed = {
            "sites": "SELECT site, count(*) AS layers, sum(width)::BIGINT AS units FROM layers GROUP BY site "
            "ORDER BY min(first_unit)",
            "runs": "SELECT run_id, kind, method, call, source, created FROM runs ORDER BY run_id",
            "labels": "SELECT run_id, label, documents, tokens FROM labels ORDER BY label_id",
            "sets": "SELECT run_id, name, n_units FROM sets ORDER BY set_id LIMIT 1000",
        }
        with self._cursor() as cursor, self._query_errors(None):
            found = {name: _dicts(cursor, query, []) for name, query in listed.items()}
            rows = {name: entry["rows"] for name, entry in schema.describe(cursor).items() if name in schema.tables()}
        model = {name: self.model.get(name) for name in ("name", "type", "fingerprint", "source", "dtype")}
        return {"path": str(self.path), "about": self.about, "model": model, **found, "rows": rows}

    def tables(self) -> dict[str, dict[str, Any]]:
        """Table or view -> {"about", "rows" (None for a view), "columns": {name: {"type", "about"}}}."""
        with self._cursor() as cursor, self._query_errors(None):
            return schema.describe(cursor)

    def export(self, folder: str | os.PathLike[str], format: str = "parquet", *, overwrite: bool = False) -> list[Path]:
        """Write every table as one file (`parquet` or `csv`) in a new folder, all or nothing; returns the files."""
        from patchclamp.atlas.export import export

        return export(
            self.path,
            Path(folder),
            format=format,
            overwrite=overwrite,
            memory_limit=self._memory_limit,
            threads=self._threads,
        )

    def close(self) -> None:
        """Close the file; results that were fetched stay usable."""
        if not self._closed:
            self._closed = True
            self._connection.close()
            self._scratch.cleanup()

    def __enter__(self) -> Atlas:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return f"Atlas({self.path}, closed)"
        found = self.summary()
        sites = ", ".join(f"{site['units']:,} {site['site']}" for site in found["sites"])
        runs = ", ".join(f"{run['run_id']} {run['kind']} {run['method'] or ''}".rstrip() for run in found["runs"])
        return f"Atlas({self.path}: {describe(self.model)}; units: {sites or 'none'}; runs: {runs or 'none'})"

    def _names(self, cursor: duckdb.DuckDBPyConnection) -> Names:
        """Labels, runs and sets by id; read once, because the file does not change while it is open."""
        if self._known_names is None:
            self._known_names = {
                table: {next(iter(row.values())): dict(list(row.items())[1:]) for row in _dicts(cursor, query, [])}
                for table, query in NAMES.items()
            }
        return self._known_names

    def _statistics(self) -> list[str]:
        with self._cursor() as cursor:
            return [name for name in schema.columns_of(cursor, "statistics") if name not in ("unit_id", "label_id")]

    def _one_label(
        self, method: str | None, statistic: str | None, label: str | None, run: int | None
    ) -> tuple[int, str, int]:
        """(label_id, label, run_id) of what is asked for; InputError unless it is exactly one: others can't be compared."""
        what = method or statistic
        condition, given = (
            ("kind = 'recording'", []) if method is None else ("kind = 'finding' AND method = ?", [method])
        )
        query = (
            f"SELECT label_id, label, run_id FROM labels JOIN runs USING (run_id) WHERE {condition} ORDER BY label_id"
        )
        known = self._fetched(query, given).rows
        if not known:
            query = "SELECT DISTINCT method FROM runs WHERE kind = 'finding' ORDER BY 1"
            methods = ", ".join(row[0] for row in self._fetched(query, []).rows)
            raise InputError(f"nothing of {what!r} in {self.path}; methods there: {methods or 'none'}")
        left = [row for row in known if (label is None or row[1] == label) and (run is None or row[2] == run)]
        if not left:
            where = "" if run is None else f" in run {run}"
            raise InputError(f"{what!r} has no label {label!r}{where}; labels: {_pairs(known)}")
        if len(left) > 1:
            raise InputError(f"{what!r} is there for several labels or runs: {_pairs(left)}; give label= or run=")
        return left[0]

    def _fetched(self, query: str, parameters: list[Any]) -> Result:
        with self._cursor() as cursor, self._query_errors(None):
            return fetch(cursor, query, parameters, None)

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own to the same open file: threads must not share one."""
        if self._closed:
            raise InputError(f"{self.path} is closed; open it again with Atlas.open")
        cursor = self._connection.cursor()
        try:
            cursor.execute(f"USE {NAME}")
            yield cursor
        finally:
            cursor.close()

    @contextlib.contextmanager
    def _query_errors(self, seconds: float | None) -> Iterator[None]:
        import duckdb

        try:
            with explained(self.path):
                yield
        except duckdb.InterruptException as problem:
            raise InputError(f"the query took longer than {seconds} s and was stopped; ask for less") from problem
        except duckdb.Error as problem:
            first = " ".join(str(problem).split("\n\n")[0].split())
            raise InputError(f"the query failed: {first}") from problem


def _check_statement(cursor: duckdb.DuckDBPyConnection, query: str) -> None:
    import duckdb

    statements = cursor.extract_statements(query)
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    if len(statements) != 1 or statements[0].type not in allowed:
        raise InputError("one SELECT is needed; an atlas can be read, not changed, through sql()")


@contextlib.contextmanager
def _timed(cursor: duckdb.DuckDBPyConnection, seconds: float | None) -> Iterator[None]:
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, cursor.interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _dicts(cursor: duckdb.DuckDBPyConnection, query: str, parameters: list[Any]) -> list[dict[str, Any]]:
    cursor.execute(query, parameters)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _check_page(limit: int, offset: int) -> None:
    if limit < 0 or offset < 0:
        raise InputError(f"{limit} rows from {offset} asked for; both are at least 0")


def _pairs(rows: Sequence[tuple[Any, ...]]) -> str:
    return ", ".join(f"{label!r} of run {run}" for _, label, run in rows)

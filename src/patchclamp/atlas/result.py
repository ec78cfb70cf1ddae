"""The answer to a query: columns of numpy arrays, shown as a table, handed on to polars, pandas or Arrow."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.atlas.rows import Rows
from patchclamp.core.errors import InputError

if TYPE_CHECKING:
    import duckdb
    import pandas
    import polars
    import pyarrow

SHOWN = 25  # rows in a printed table
_EXACT = 2.0**53  # beyond it a float64 no longer tells neighbouring integers apart


class Result:
    """Rows of a query, held in memory, independent of the atlas they came from.

    data: column name -> array of one length; masked where NULL. types: DuckDB's name for the type of each column.
    truncated: more rows were there than asked for.
    """

    def __init__(self, data: Mapping[str, Any], types: Sequence[str], *, truncated: bool = False) -> None:
        self.data = dict(data)
        self.types = tuple(types)
        self.truncated = truncated

    @property
    def columns(self) -> list[str]:
        """Names of the columns in order; repeated names have got a number."""
        return list(self.data)

    @functools.cached_property
    def rows(self) -> list[tuple[Any, ...]]:
        """The rows as tuples of Python values; NULL is None."""
        return list(zip(*[values.tolist() for values in self.data.values()], strict=True))

    def dicts(self) -> list[dict[str, Any]]:
        """The rows as mappings from column name to value."""
        return [dict(zip(self.data, row, strict=True)) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {"columns", "rows" (list of mappings), "truncated"}."""
        return {"columns": self.columns, "rows": self.dicts(), "truncated": self.truncated}

    def polars(self) -> polars.DataFrame:
        """A polars DataFrame; NULL stays null. InputError without polars."""
        polars = _imported("polars")
        series = []
        for (name, values), kind in zip(self.data.items(), self.types, strict=True):
            if values.dtype.kind == "O":  # text, lists, structs
                series.append(polars.Series(name, values.tolist(), dtype=polars.String if kind == "VARCHAR" else None))
                continue
            whole = polars.Series(name, _filled(values))
            missing = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
            if missing is not None and missing.any():
                whole = polars.select(
                    polars.when(polars.lit(polars.Series(missing))).then(None).otherwise(polars.lit(whole)).alias(name)
                )[name]
            series.append(whole)
        return polars.DataFrame(series)

    def pandas(self) -> pandas.DataFrame:
        """A pandas DataFrame; NULL becomes NaN in float columns, NA in nullable integer and boolean ones, else None."""
        pandas = _imported("pandas")
        return pandas.DataFrame({name: _pandas_column(values, pandas) for name, values in self.data.items()})

    def arrow(self) -> pyarrow.Table:
        """A pyarrow Table. InputError without pyarrow."""
        pyarrow = _imported("pyarrow")
        arrays = [
            pyarrow.array(
                _filled(values), mask=np.ma.getmaskarray(values), type=pyarrow.string() if kind == "VARCHAR" else None
            )
            for values, kind in zip(self.data.values(), self.types, strict=True)
        ]
        return pyarrow.Table.from_arrays(arrays, names=self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.data.values()), ()))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __rich__(self) -> Rows:
        numbers = [name for name, values in self.data.items() if values.dtype.kind in "iuf"]
        rows = [[shown(value) for value in row] for row in self.rows[:SHOWN]]
        return Rows(self.columns, rows, numbers, caption=self._caption())

    def __repr__(self) -> str:
        from rich.console import Console

        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.data)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(shown(value))}</td>" for value in row) + "</tr>"
            for row in self.rows[:SHOWN]
        )
        caption = html.escape(self._caption() or "")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{caption}</p>"

    def _caption(self) -> str | None:
        if len(self) > SHOWN:
            more = " or more" if self.truncated else ""
            return f"{SHOWN} of {len(self):,}{more} rows"
        return "there are more rows; raise the limit" if self.truncated else None


def fetch(cursor: duckdb.DuckDBPyConnection, query: str, parameters: Any, limit: int | None) -> Result:
    """Run one query with bound values and take up to `limit` rows."""
    import duckdb

    relation = cursor.sql(query, params=parameters) if parameters else cursor.sql(query)
    if relation is None:  # a statement without rows
        return Result({}, ())
    names = _unrepeated(relation.columns)
    kinds = [str(kind) for kind in relation.types]
    if limit is not None:
        relation = relation.limit(limit + 1)
    try:
        arrays = list(relation.fetchnumpy().values())
    except duckdb.NotImplementedException:  # a type without a numpy counterpart
        fetched = relation.fetchall()
        arrays = [_objects([row[number] for row in fetched]) for number in range(len(names))]
    truncated = limit is not None and len(arrays[0]) > limit
    kept = [
        _exact(values if limit is None else values[:limit], kind) for values, kind in zip(arrays, kinds, strict=True)
    ]
    return Result(dict(zip(names, kept, strict=True)), kinds, truncated=truncated)


def shown(value: Any) -> str:
    """A value as people read it in a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 or not np.isfinite(value) else f"{value:,.0f}"
    return str(value)


def _exact(values: Any, kind: str) -> Any:
    """Sums of integers come as HUGEINT, which numpy gets as float64: back to int64 where that loses nothing."""
    if not kind.endswith("HUGEINT") or values.dtype.kind != "f":
        return values
    plain = np.ma.filled(values, 0.0)
    if not np.all(np.abs(plain) < _EXACT):
        return values
    return (
        np.ma.masked_array(plain.astype(np.int64), mask=values.mask)
        if np.ma.isMaskedArray(values)
        else plain.astype(np.int64)
    )


def _unrepeated(names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in found:
            candidate, number = f"{name}_{number}", number + 1
        found.append(candidate)
    return found


def _objects(values: list[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _filled(values: Any) -> Any:
    """Values without their mask; masked text becomes None, masked numbers are arbitrary."""
    if not np.ma.isMaskedArray(values):
        return values
    if values.dtype.kind == "O":
        return _objects(
            [None if missing else value for value, missing in zip(values.data, np.ma.getmaskarray(values), strict=True)]
        )
    return values.data


def _pandas_column(values: Any, pandas: Any) -> Any:
    mask = np.ma.getmaskarray(values)
    plain = _filled(values)
    if not mask.any() or plain.dtype.kind == "O":
        return plain
    if plain.dtype.kind == "f":
        return np.where(mask, np.nan, plain)
    if plain.dtype.kind in "iu":
        return pandas.arrays.IntegerArray(plain.copy(), mask.copy())
    if plain.dtype.kind == "b":
        return pandas.arrays.BooleanArray(plain.copy(), mask.copy())
    return pandas.Series(plain).mask(mask)


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise InputError(f"this needs {name}, which is not installed; `pip install {name}`, or use .rows") from problem

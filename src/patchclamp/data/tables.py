"""Documents from rows with named columns: JSONL, CSV and Parquet files (streamed by DuckDB), data frames, `datasets` rows."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.documents import Document

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_CHUNK = 1000


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    text: the document (default: the column "text", else the only text column). prompt: put before the text (or response), and
    not part of the span "response". tags: columns with a mapping name -> [[start, stop], ...], or with one tag per
    whitespace-separated word, which makes spans such as "upos=NOUN". where: keep only rows with this value in this column.
    """

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    tags: tuple[str, ...] = ()
    where: tuple[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Columns:
        where = data.get("where")
        tags = tuple(data.get("tags", ()))
        return cls(
            data.get("text"), data.get("prompt"), data.get("response"), tags, (where[0], where[1]) if where else None
        )

    def body(self, available: Iterable[str], where: str) -> str:
        """The column with the document's own text; InputError lists the columns if it can't be told."""
        there = list(available)
        wanted = self.response or self.text
        if wanted is None:
            candidates = [name for name in ("response", "text") if name in there] if self.prompt else ["text"]
            wanted = next((name for name in candidates if name in there), None)
        if wanted is None and len(there) == 1:
            wanted = there[0]
        for name in (wanted, self.prompt, *self.tags, self.where[0] if self.where else None):
            if name is not None and name not in there:
                raise InputError(f"{where} has no column {name!r}; its columns are {', '.join(map(str, there))}")
        if wanted is None:
            raise InputError(
                f"{where} has the columns {', '.join(map(str, there))}; say which holds the text (text=...)"
            )
        return wanted


def document_of_row(row: Mapping[str, Any], columns: Columns, where: str) -> Document | None:
    """The document of one row, or None for a row without text or one that `columns.where` leaves out."""
    body = columns.body(row.keys(), where)
    if columns.where is not None and row[columns.where[0]] != columns.where[1]:
        return None
    text = _text(row[body], body, where)
    if text is None:
        return None
    prompt = None if columns.prompt is None else _text(row[columns.prompt], columns.prompt, where)
    shift = len(prompt or "")
    spans: dict[str, tuple[tuple[int, int], ...]] = {}
    for name in columns.tags:
        spans |= _tag_spans(name, row[name], text, shift, where)
    if columns.prompt is not None or columns.response is not None:
        spans["response"] = ((shift, shift + len(text)),)
        if prompt:
            spans["prompt"] = ((0, shift),)
    named = row.get("id")
    return Document((prompt or "") + text, spans, where if named is None else str(named))


def _text(value: Any, name: str, where: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        raise InputError(f"{where}: column {name!r} holds {type(value).__name__} {value!r}, but text is needed")
    return value


def _tag_spans(name: str, value: Any, text: str, shift: int, where: str) -> dict[str, tuple[tuple[int, int], ...]]:
    if isinstance(value, str) and value[:1] in ("[", "{", '"'):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as problem:
            raise InputError(f"{where}: column {name!r} is neither tags nor JSON ({problem})") from problem
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {key: tuple((a + shift, b + shift) for a, b in ranges) for key, ranges in value.items() if ranges}
    tags = value.split() if isinstance(value, str) else list(value)
    words = [match.span() for match in re.finditer(r"\S+", text)]
    if len(tags) != len(words):
        raise InputError(
            f"{where}: {len(tags)} tags in column {name!r} for {len(words)} words; there must be one per word"
        )
    spans: dict[str, list[tuple[int, int]]] = {}
    for tag, (start, stop) in zip(tags, words, strict=True):
        spans.setdefault(f"{name}={tag}", []).append((start + shift, stop + shift))
    return {key: tuple(ranges) for key, ranges in spans.items()}


def table_documents(path: Path, columns: Columns) -> Iterator[Document]:
    """Documents of a JSONL, JSON, CSV, TSV or Parquet file in file order; DuckDB reads it in chunks."""
    for number, row in enumerate(table_rows(path, columns), 1):
        document = document_of_row(row, columns, f"{path}, row {number}")
        if document is not None and document.text.strip():
            yield document


def table_rows(path: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    """Rows of a table file, with the columns that are needed."""
    import duckdb

    reader, options = _reader(path)

    def typed(names: list[str]) -> str:
        """Types for JSON are given, not guessed from the first rows: text as text, tags as JSON."""
        if reader != "read_json":
            return ""
        kinds = ", ".join(f"{_quoted(name)}: '{'JSON' if name in columns.tags else 'VARCHAR'}'" for name in names)
        return f", columns = {{{kinds}}}"

    try:
        with _plain_name(path) as name_for_duckdb, duckdb.connect() as connection:
            connection.execute("SET preserve_insertion_order = true")
            described = connection.execute(f"DESCRIBE SELECT * FROM {reader}(?{options})", [name_for_duckdb]).fetchall()
            available = [name for name, *_ in described]
            body = columns.body(available, str(path))
            named = ["id"] if "id" in available else []
            filtered = [columns.where[0]] if columns.where else []
            wanted = list(
                dict.fromkeys([body, *([columns.prompt] if columns.prompt else []), *columns.tags, *named, *filtered])
            )
            quoted = ", ".join(map(_quoted, wanted))
            result = connection.execute(f"SELECT {quoted} FROM {reader}(?{options}{typed(wanted)})", [name_for_duckdb])
            while rows := result.fetchmany(_CHUNK):
                for row in rows:
                    yield dict(zip(wanted, row, strict=True))
    except duckdb.Error as problem:
        reason = str(problem).strip().replace("\n", " ")
        raise InputError(f"{path} can't be read as {reader.removeprefix('read_')}: {reason}") from problem


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextlib.contextmanager
def _plain_name(path: Path) -> Iterator[str]:
    """A name for the file in which DuckDB sees no pattern: through a link where the real name has `*`, `?` or `[`."""
    if not set("*?[") & set(str(path)):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"table{path.suffix}"
        link.symlink_to(path.absolute())
        yield str(link)


def _reader(path: Path) -> tuple[str, str]:
    """DuckDB's reader function for a file name, and its options."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return "read_parquet", ""
    if suffix in (".csv", ".tsv"):
        delimiter = "\\t" if suffix == ".tsv" else ","
        return "read_csv", f", delim = '{delimiter}', quote = '\"', escape = '\"', header = true, all_varchar = true"
    form = "auto" if suffix == ".json" else "newline_delimited"
    return "read_json", f", format = '{form}', maximum_object_size = 268435456"


def distinct(rows: Iterable[Mapping[str, Any]], column: str, where: str) -> list[Any]:
    """Values of one column in order of first appearance; InputError if it isn't there."""
    found: dict[Any, None] = {}
    for row in rows:
        if column not in row:
            raise InputError(f"{where} has no column {column!r}; its columns are {', '.join(map(str, row))}")
        if row[column] is not None:
            found[row[column]] = None
    return list(found)


def is_frame(value: Any) -> bool:
    """Whether a value is a polars, pandas or pyarrow table (a frame iterates over columns, not rows)."""
    return hasattr(value, "columns") and type(value).__module__.partition(".")[0] in ("polars", "pandas", "pyarrow")


def frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    """Rows of a polars or pandas frame or a pyarrow table, one at a time."""
    if hasattr(frame, "collect"):  # polars LazyFrame
        frame = frame.collect()
    if hasattr(frame, "iter_rows"):
        yield from frame.iter_rows(named=True)
        return
    if hasattr(frame, "to_batches"):
        for batch in frame.to_batches():
            yield from batch.to_pylist()
        return
    names = list(frame.columns)
    for row in frame.itertuples(index=False, name=None):
        yield dict(zip(names, row, strict=True))

"""Where documents come from: text, table and treebank files, folders, standard input, tables and lists in memory.

`source_of(value, ...)` turns any of them into a `Source`, whose `documents()` can be called again and again and
never holds the whole text.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.documents import Document
from patchclamp.data.tables import TABLES, Columns, document_of_row, frame_rows, is_frame, table_documents
from patchclamp.data.treebanks import treebank_documents

UNITS = ("line", "block", "file")
TREEBANKS = (".conllu", ".conll")


@dataclass(frozen=True)
class Source:
    """Re-iterable documents. info: plain data that says where they are (enough to reopen a file)."""

    documents: Callable[[], Iterator[Document]]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cheap(self) -> bool:
        """Whether reading it twice costs little: files and what is in memory already, not streams."""
        return self.info.get("kind") in ("file", "folder", "memory", "demo")


def source_of(value: Any, *, unit: str = "line", columns: Columns | None = None) -> Source:
    """A source for a path, "-" (standard input), a list, a generator or its factory, a table or a `datasets` object.

    unit: what a document is in a plain text file: a "line", a "block" between blank lines, or the whole "file".
    Raises InputError for a missing path, an unknown kind of value, or a unit that isn't one.
    """
    if unit not in UNITS:
        raise InputError(f"unit {unit!r} given; a document of a text file is one of {', '.join(UNITS)}")
    columns = columns or Columns()
    if isinstance(value, str) and value == "-":
        return _once(_text_lines_of_stdin(unit), "stdin", columns)
    if isinstance(value, str | os.PathLike):
        return _path_source(Path(value), unit, columns)
    if isinstance(value, Document):
        raise InputError("a single Document given as a label's text; put it in a list")
    if is_frame(value):
        return Source(lambda: _from_items(frame_rows(value), columns), _memory(value))
    if callable(value) and not hasattr(value, "__iter__"):
        return Source(lambda: _from_items(value(), columns), {"kind": "stream", "type": "factory"})
    if isinstance(value, Iterator):
        return _once(value, "iterator", columns)
    if isinstance(value, Iterable):
        kind = _memory(value) if hasattr(value, "__len__") else {"kind": "stream", "type": type(value).__name__}
        return Source(lambda: _from_items(value, columns), kind)
    raise InputError(
        f"text can't be read from {type(value).__name__}; give a path, a list of strings, a table or a `datasets` object"
    )


def _memory(value: Any) -> dict[str, Any]:
    return {"kind": "memory", "type": f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"}


def _from_items(items: Iterable[Any], columns: Columns) -> Iterator[Document]:
    """Documents from strings, Documents or rows; blank ones are left out."""
    for number, item in enumerate(items):
        if isinstance(item, Document):
            document: Document | None = item
        elif isinstance(item, str):
            document = Document(item)
        elif isinstance(item, Mapping):
            document = document_of_row(item, columns, f"row {number}")
        elif item is None:
            continue
        else:
            raise InputError(
                f"item {number} is {type(item).__name__}; a text, a Document or a row with named columns is needed"
            )
        if document is not None and document.text.strip():
            yield document


def _path_source(path: Path, unit: str, columns: Columns) -> Source:
    info = {"path": str(path.absolute()), "unit": unit, "columns": columns.to_dict()}
    if path.is_dir():
        if not folder_files(path):
            raise InputError(f"the folder {path} holds no files to read")
        return Source(lambda: _folder_documents(path, unit, columns), {"kind": "folder", **info})
    if not path.exists():
        hint = "; to give the text itself, put it in a list" if len(str(path).split()) > 1 else ""
        raise InputError(f"no file at {path}{hint}")
    if not path.is_file():  # a pipe can be read once only
        return _once(_units(_text_lines_of_pipe(path), unit, str(path)), "pipe", columns)
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; a label needs at least one document")
    return Source(lambda: file_documents(path, unit, columns), {"kind": "file", **info})


def folder_files(path: Path) -> list[Path]:
    """Files of a folder and its subfolders in the order of their relative names; hidden ones are left out."""
    found = (file for file in path.rglob("*") if file.is_file())
    visible = [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    return sorted(visible, key=lambda file: file.relative_to(path).as_posix())


def _folder_documents(path: Path, unit: str, columns: Columns) -> Iterator[Document]:
    for file in folder_files(path):
        yield from file_documents(file, unit, columns)


def file_documents(path: Path, unit: str, columns: Columns) -> Iterator[Document]:
    """Documents of one file, read by what its name ends in."""
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return table_documents(path, columns)
    if suffix in TREEBANKS:
        return treebank_documents(_text_lines(path), str(path))
    return _units(_text_lines(path), unit, str(path))


def _units(lines: Iterable[str], unit: str, name: str) -> Iterator[Document]:
    """Cut lines into documents; ids say file and line."""
    if unit == "line":
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Document(line, id=f"{name}:{number}")
        return
    if unit == "file":
        text = "\n".join(lines).strip("\n")
        if text.strip():
            yield Document(text, id=name)
        return
    block: list[str] = []
    for number, line in enumerate(itertools.chain(lines, [""]), 1):
        if line.strip():
            block.append(line)
        elif block:
            yield Document("\n".join(block), id=f"{name}:{number - len(block)}")
            block = []


def _text_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        yield from _decoded(stream, str(path))


def _text_lines_of_pipe(path: Path) -> Iterator[str]:
    yield from _text_lines(path)


def _text_lines_of_stdin(unit: str) -> Iterator[Document]:
    return _units(_decoded(sys.stdin.buffer, "standard input"), unit, "stdin")


def _decoded(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """UTF-8 lines without their line ends; InputError names file, line and byte of what can't be decoded."""
    for number, raw in enumerate(stream, 1):
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise InputError(f"{name} is UTF-16 text; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as problem:
            raise InputError(
                f"{name}, line {number}: byte 0x{raw[problem.start]:02x} at byte {problem.start + 1} of the line is not UTF-8; "
                "convert the file to UTF-8 first (for example iconv -f LATIN1 -t UTF-8)"
            ) from problem


def _once(items: Iterable[Any], kind: str, columns: Columns) -> Source:
    """A source from something that can be read only once: what was read is kept in a temporary file."""
    spool = _Spool(_from_items(items, columns))
    return Source(spool.documents, {"kind": "stream", "type": kind})


class _Spool:
    """Documents of an iterator, written to a temporary file as they are first read, so that they can be read again."""

    def __init__(self, items: Iterator[Document]) -> None:
        self._items = items
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (lives as long as the spool)
        self._end = 0

    def documents(self) -> Iterator[Document]:
        here = 0
        while True:
            if here < self._end:
                self._file.seek(here)
                line = self._file.readline()
                here = self._file.tell()
                stored = json.loads(line)
                spans = {name: tuple((a, b) for a, b in ranges) for name, ranges in stored[1].items()}
                yield Document(stored[0], spans, stored[2])
                continue
            document = next(self._items, None)
            if document is None:
                return
            line = json.dumps([document.text, dict(document.spans), document.id]).encode() + b"\n"
            self._file.seek(self._end)
            self._file.write(line)
            self._end += len(line)
            here = self._end
            yield document

"""Sentences of a CoNLL-U treebank as documents whose spans carry the annotation: "upos=NOUN", "deprel=nsubj", "Number=Plur"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from patchclamp.core.errors import InputError
from patchclamp.data.documents import Document

_LOOK_AHEAD = 40  # a form that differs from the text (clitics written apart) may push the next match this far


def treebank_documents(lines: Iterable[str], name: str = "a CoNLL-U file") -> Iterator[Document]:
    """One document per sentence; the words of a multiword token all get the token's characters.

    The text is the `# text` comment, or the forms joined where there is none. A word whose form isn't found in the text gets no
    span. Raises InputError for a line with too few columns.
    """
    comments: dict[str, str] = {}
    rows: list[list[str]] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            key, _, value = line[1:].partition("=")
            comments[key.strip()] = value.strip()
        elif line.strip():
            cells = line.split("\t")
            if len(cells) < 8:
                raise InputError(
                    f"{name}, line {number}: {len(cells)} columns instead of the 10 of CoNLL-U: {line[:60]!r}"
                )
            rows.append(cells + ["_"] * (10 - len(cells)))
        elif rows:
            yield _sentence(rows, comments)
            comments, rows = {}, []
    if rows:
        yield _sentence(rows, comments)


def _sentence(rows: list[list[str]], comments: dict[str, str]) -> Document:
    text = comments.get("text") or _joined(rows)
    spans: dict[str, list[tuple[int, int]]] = {}
    cursor, covered, token = 0, 0, (0, 0)
    for cells in rows:
        number, form = cells[0], cells[1]
        if "." in number:  # an empty node is not in the text
            continue
        if not (number.isdigit() and int(number) <= covered):
            start = text.find(form, cursor, cursor + _LOOK_AHEAD + len(form))
            if start < 0:
                token = (0, 0)
            else:
                token = (start, start + len(form))
                cursor = token[1]
        if "-" in number:
            covered = int(number.partition("-")[2])
            continue
        if token[1] > token[0]:
            for name in _names(cells):
                spans.setdefault(name, []).append(token)
    kept = {name: tuple(dict.fromkeys(ranges)) for name, ranges in spans.items()}
    return Document(text, kept, comments.get("sent_id"))


def _names(cells: list[str]) -> list[str]:
    names = [f"{key}={cells[place]}" for key, place in (("upos", 3), ("xpos", 4), ("deprel", 7)) if cells[place] != "_"]
    return names + ([] if cells[5] == "_" else cells[5].split("|"))


def _joined(rows: list[list[str]]) -> str:
    """The surface text from forms and SpaceAfter=No."""
    text, covered = "", 0
    for cells in rows:
        number = cells[0]
        if "." in number or (number.isdigit() and int(number) <= covered):
            continue
        if "-" in number:
            covered = int(number.partition("-")[2])
        text += cells[1] + ("" if "SpaceAfter=No" in cells[9] else " ")
    return text.rstrip()

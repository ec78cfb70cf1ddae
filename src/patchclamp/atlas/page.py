"""A unit's page: the queries that fill it, and how it is shown in a terminal and a notebook."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from patchclamp.atlas.result import shown
from patchclamp.atlas.rows import Rows

if TYPE_CHECKING:
    from rich.console import RenderableType

# Part of the page -> query with the unit_id as its only value. A page has a handful of rows per part, so sorting them and
# joining the small tables of names is left to `read_page`: DuckDB would spend more on planning that than on reading.
QUERIES = {
    "statistics": "SELECT * EXCLUDE (unit_id) FROM statistics WHERE unit_id = ?",
    "scores": "SELECT * EXCLUDE (unit_id) FROM scores WHERE unit_id = ?",
    "classes": "SELECT * EXCLUDE (unit_id) FROM classes WHERE unit_id = ?",
    "sets": "SELECT set_id, score FROM set_units WHERE unit_id = ?",
    "exemplars": "SELECT * EXCLUDE (unit_id) FROM exemplars WHERE unit_id = ?",
    "effects": "SELECT * FROM effects WHERE set_id IN (SELECT set_id FROM set_units WHERE unit_id = ?)",
    "tokens": "SELECT run_id, sign, rank, token_id, token, value FROM tokens LEFT JOIN vocabulary USING (token_id) "
    "WHERE unit_id = ?",
    "descriptions": "SELECT * EXCLUDE (unit_id) FROM descriptions WHERE unit_id = ?",
}
SINCE = {"descriptions": 2}  # part -> version of the schema that brought its table; older atlases have none
ORDER: dict[str, Callable[[dict[str, Any]], Any]] = {
    "statistics": itemgetter("label_id"),
    "scores": itemgetter("label_id"),
    "classes": itemgetter("run_id"),
    "sets": itemgetter("set_id"),
    "exemplars": itemgetter("label_id", "rank"),
    "effects": itemgetter("effect_id"),
    "tokens": lambda row: (row["run_id"], -row["sign"], row["rank"]),
    "descriptions": itemgetter("run_id"),
}
BRIEF = {
    "effects": ("set", "text", "plain", "clamped", "effect", "control_mean", "p_holm")
}  # what a terminal has room for
NAMES = {
    "labels": "SELECT label_id, run_id, method, label FROM labels JOIN runs USING (run_id)",
    "runs": "SELECT run_id, method FROM runs",
    "sets": "SELECT set_id, run_id, method, name, n_units FROM sets JOIN runs USING (run_id)",
}
Names = dict[str, dict[int, dict[str, Any]]]


def read_page(
    read: Callable[[str, list[Any]], list[dict[str, Any]]], unit_id: int, names: Names, *, version: int
) -> dict[str, Any]:
    """All parts of a unit's page. read: rows of a query with bound values. names: table -> id -> columns, as NAMES say.

    version: of the atlas's schema.
    """
    page: dict[str, Any] = {}
    for part, query in QUERIES.items():
        if (part == "effects" and not page["sets"]) or SINCE.get(part, 1) > version:
            page[part] = []
            continue
        rows = sorted(read(query, [unit_id]), key=ORDER[part])
        page[part] = [_named(part, row, names) for row in rows]
    return page


def _named(part: str, row: dict[str, Any], names: Names) -> dict[str, Any]:
    """A row with the names that its ids stand for put in front."""
    if "label_id" in row:
        label = names["labels"][row.pop("label_id")]
        method = {} if label["method"] is None else {"method": label["method"]}
        return {"run_id": label["run_id"], **method, "label": label["label"], **row}
    if part == "sets":
        return {**names["sets"][row["set_id"]], "score": row["score"]}
    if part in ("classes", "descriptions"):
        return {"method": names["runs"][row["run_id"]]["method"], **row}
    if part == "effects":
        kept = {
            name: value for name, value in row.items() if name not in ("effect_id", "set_id", "set_name", "text_label")
        }
        return {"set": row["set_name"], "text": row["text_label"], **kept}
    return row


class UnitPage(dict[str, Any]):
    """What an atlas knows of one unit, as plain data; prints as tables.

    Keys: unit, unit_id, site, layer, expert, index, model, and one list of rows per part of `QUERIES`.
    """

    def to_dict(self) -> dict[str, Any]:
        """A plain dict of the same content."""
        return dict(self)

    def token(self, exemplar: dict[str, Any]) -> tuple[str, str, str] | None:
        """An exemplar's text cut into what is before the token, the token, and what is behind; None without text."""
        text, start, end = exemplar["text"], exemplar["token_start"], exemplar["token_end"]
        if text is None or start is None or end is None:
            return None if text is None else (text, "", "")
        return text[:start], text[start:end], text[end:]

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [Text(self._title(), style="bold")]
        for name in QUERIES:
            rows = self._printable(name)
            if not rows:
                continue
            columns = [column for column in rows[0] if column in BRIEF.get(name, rows[0])]
            cells = [[row[column] for column in columns] for row in rows]
            parts.append(Rows(columns, cells, self._numbers(name), title=name))
        return Group(*parts)

    def __repr__(self) -> str:
        from rich.console import Console

        console = Console(width=140, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        parts = [f"<h3>{html.escape(self._title())}</h3>"]
        for name in QUERIES:
            rows = self._printable(name)
            if not rows:
                continue
            head = "".join(f"<th>{html.escape(column)}</th>" for column in rows[0])
            cells = ["".join(f"<td>{html.escape(value)}</td>" for value in row.values()) for row in rows]
            body = "".join(f"<tr>{row}</tr>" for row in cells)
            parts.append(f"<h4>{name}</h4><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        return "".join(parts)

    def _title(self) -> str:
        model = self["model"]
        return f"{self['unit']} of {model['name'] or 'an unnamed model'} ({str(model['fingerprint'])[:12]})"

    def _numbers(self, part: str) -> list[str]:
        """The columns of a part that hold numbers."""
        return [name for name in self[part][0] if any(isinstance(row[name], int | float) for row in self[part])]

    def _printable(self, part: str) -> list[dict[str, str]]:
        """The rows of a part as text, without columns that are empty throughout; the token of an exemplar in brackets."""
        rows: Sequence[dict[str, Any]] = self[part]
        if part == "exemplars":
            rows = [{**row, "text": _marked(self.token(row))} for row in rows]
        hidden = {"token_start", "token_end"}
        columns = [
            name for name in (rows[0] if rows else ()) if name not in hidden and any(r[name] is not None for r in rows)
        ]
        return [{name: shown(row[name]) for name in columns} for row in rows]


def _marked(pieces: tuple[str, str, str] | None) -> str | None:
    if pieces is None:
        return None
    before, token, after = pieces
    return " ".join(f"{before}[{token}]{after}".split()) if token else before

"""Renew the list of atlas tables in docs/formats.md from the schema itself: python scripts/write_atlas_docs.py

A test compares the list with what this makes, so it can't lag behind the schema.
"""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "formats.md"
BEGIN, END = "<!-- atlas tables: begin -->\n", "<!-- atlas tables: end -->\n"


def tables() -> str:
    """One heading and one Markdown table per table and view of an empty atlas."""
    import duckdb

    from patchclamp.atlas import schema

    with duckdb.connect() as connection:
        schema.create(connection, created="")
        schema.create_views(connection)
        described = schema.describe(connection)
    known = schema.tables()
    return "\n".join(
        f"### {'Table' if name in known else 'View'} `{name}`\n\n{_sentence(entry['about'])}\n\n{_columns(entry['columns'])}"
        for name, entry in described.items()
    )


def _columns(columns: dict[str, dict[str, str]]) -> str:
    if not any(column["about"] for column in columns.values()):  # a view: its columns are documented in its tables
        return "Columns: " + ", ".join(f"`{name}`" for name in columns) + ".\n"
    rows = [f"| `{name}` | {column['type']} | {column['about'] or ''} |" for name, column in columns.items()]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows, ""])


def _sentence(about: str) -> str:
    return " ".join(about.split())


def renewed(page: str) -> str:
    """The page with a current list between its two markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")

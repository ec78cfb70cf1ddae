"""Pages of results: escaped, self-contained, with cells as people read them."""

from __future__ import annotations

from pathlib import Path

import altair as alt

from patchclamp.core.page import Page, Section, Table, cell


def test_cells_are_written_as_people_read_them() -> None:
    shown = [cell(value) for value in (None, float("nan"), True, 1234, 0.123456, 123456.0, "x")]
    assert shown == ["–", "–", "yes", "1,234", "0.1235", "123,456", "x"]


def test_an_empty_page_and_text_that_looks_like_markup() -> None:
    page = Page("<script>x</script>", "lead", [Section("A & B", ["<i>"], tables=[Table([], {"a": "a"}, note="<u>")])])
    source = page.html()
    for raw in ("<script>", "<i>", "<u>"):
        assert raw not in source
    assert "A &amp; B" in source


def test_a_page_is_one_file_with_its_charts_tables_and_facts(tmp_path: Path) -> None:
    chart = alt.Chart(alt.Data(values=[{"x": 1, "y": "one"}])).mark_bar().encode(x="x:Q", y="y:N")
    table = Table([{"name": "first\n  line", "n": 3, "good": True}, {"name": "b", "n": 4, "good": False}],
                  {"name": "Name", "n": "N"}, strong="good")  # fmt: skip
    page = Page(
        "Title", "lead", [Section("One", charts=[chart], tables=[table], commands=["patchclamp list"])], {"seed": "7"}
    )
    path = page.save(tmp_path / "page.html")
    source = path.read_text(encoding="utf-8")
    assert source == page.html()
    assert "<svg" in source
    assert source.count('<tr class="strong">') == 1
    assert '<td class="left">first\n  line</td><td>3</td>' in source
    assert "td.left { white-space: pre-wrap; }" in source  # line breaks and indents of what models write are seen
    assert "<dt>seed</dt><dd>7</dd>" in source
    assert "patchclamp list" in source
    assert "http" not in source.replace("http://www.w3.org", "")  # names of SVG, which nothing fetches
    folded = Page("T", "l", [Section("Closed", ["x"], folded=True)]).html()
    assert "<details><summary>Closed</summary>" in folded

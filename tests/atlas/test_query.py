"""Queries: answers, order, limits; bound values; nothing but reading; pages; frames."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from patchclamp.atlas import Atlas
from patchclamp.core.errors import InputError
from patchclamp.core.files import to_json

HOSTILE = "fr'; DROP TABLE units; --"


def test_top_is_the_stable_sort_of_the_scores(atlas: Atlas, filled: SimpleNamespace) -> None:
    scores = filled.scores[1]
    order = [unit for unit in np.argsort(-scores, kind="stable").tolist() if not np.isnan(scores[unit])]
    found = atlas.top(method="lape", label=HOSTILE, k=5)
    assert [row["unit_id"] for row in found.dicts()] == order[:5]
    assert [row["value"] for row in found.dicts()] == scores[order[:5]].tolist()


def test_ties_of_top_go_to_the_unit_that_comes_first(atlas: Atlas) -> None:
    assert [row["unit_id"] for row in atlas.top(statistic="n", label="en", k=4).dicts()] == [0, 1, 2, 3]


def test_top_of_a_statistic_leaves_out_other_labels_and_nulls(atlas: Atlas, filled: SimpleNamespace) -> None:
    found = atlas.top(statistic="rate", label="en", k=100).dicts()
    assert len(found) == 14  # the attn units have no rate
    assert [row["value"] for row in found] == sorted(filled.statistics["rate"][0].tolist(), reverse=True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give either"),
        ({"method": "lape", "statistic": "rate"}, "give either"),
        ({"method": "lape"}, "several labels"),
        ({"method": "other", "label": "en"}, "methods there: lape"),
        ({"statistic": "rate; DROP TABLE units", "label": "en"}, "no statistic"),
        ({"statistic": "label_id", "label": "en"}, "no statistic"),
        ({"method": "lape", "label": "de"}, "no label 'de'"),
        ({"method": "lape", "label": "en", "run": 1}, "no label 'en' in run 1"),
        ({"method": "lape", "label": "en", "k": -1}, "at least 0"),
    ],
)
def test_top_refuses_what_it_can_not_rank(atlas: Atlas, asked: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        atlas.top(**asked)


def test_units_meets_all_conditions_in_order_and_pages(atlas: Atlas) -> None:
    assert [row[1] for row in atlas.units(unit_class="specific", layer=0).rows] == ["mlp.0.1", "mlp.0.4"]
    assert [row[1] for row in atlas.units(set="en").rows] == ["mlp.0.1", "mlp.1.e1.2", "attn.1.0"]
    assert [row[1] for row in atlas.units(set="en", run=2, site="attn").rows] == ["attn.1.0"]
    assert atlas.units(set="en", run=1).rows == []
    whole = [row[0] for row in atlas.units().rows]
    paged = [row[0] for start in range(0, 22, 5) for row in atlas.units(limit=5, offset=start).rows]
    assert whole == paged == list(range(22))
    assert atlas.units(site="'; DROP TABLE units; --").rows == []
    with pytest.raises(InputError, match="at least 0"):
        atlas.units(limit=-1)


def test_the_page_of_a_unit_holds_what_the_tables_hold(atlas: Atlas, filled: SimpleNamespace) -> None:
    page = atlas.unit("mlp.1.e1.2")
    assert (page["unit"], page["unit_id"], page["layer"], page["expert"], page["index"]) == ("mlp.1.e1.2", 12, 1, 1, 2)
    assert page["model"]["fingerprint"] == "ab" * 32
    assert [(row["label"], row["rate"]) for row in page["statistics"]] == [
        (label, filled.statistics["rate"][number, 12]) for number, label in enumerate(filled.labels)
    ]
    assert [(row["method"], row["label"], row["chosen"]) for row in page["scores"]] == [
        ("lape", label, bool(filled.chosen[number, 12])) for number, label in enumerate(filled.labels)
    ]
    assert page["classes"] == [{"method": "lape", "run_id": 2, "class": None, "score": filled.unit_scores[12]}]
    assert page["sets"] == [{"run_id": 2, "method": "lape", "name": "en", "n_units": 3, "score": 2.0}]
    assert [(row["set"], row["text"], row["effect"]) for row in page["effects"]] == [("en", HOSTILE, 1.0)]
    assert [row["document"] for row in page["exemplars"]] == [d for d in filled.documents[12].tolist() if d >= 0]
    assert [row["token_id"] for row in page["tokens"]] == [*filled.token_ids[1].tolist()] * 2
    assert json.loads(to_json(page.to_dict()))["unit"] == "mlp.1.e1.2"


def test_an_exemplar_is_cut_at_its_token(atlas: Atlas, filled: SimpleNamespace) -> None:
    unit = next(u for u in range(14) if (filled.documents[u] > 0).any())
    page = atlas.unit(atlas.sql("SELECT name FROM units WHERE unit_id = ?", [unit]).rows[0][0])
    exemplar = next(row for row in page["exemplars"] if row["text"] is not None)
    assert page.token(exemplar) == ("<b>", "text", exemplar["text"][7:])
    assert page.token({**exemplar, "token_start": None}) == (exemplar["text"], "", "")
    assert page.token({**exemplar, "text": None}) is None


def test_text_from_data_is_escaped_where_it_is_shown(atlas: Atlas, filled: SimpleNamespace) -> None:
    unit = next(u for u in range(14) if (filled.documents[u] > 0).any())
    page = atlas.unit(atlas.sql("SELECT name FROM units WHERE unit_id = ?", [unit]).rows[0][0])
    html = page._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "<script>" not in atlas.sql("SELECT * FROM vocabulary")._repr_html_()
    assert "[red]" in repr(page)  # rich markup in a text is text
    assert "[red]" in repr(atlas.sql("SELECT text FROM exemplars WHERE text IS NOT NULL"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlp.0.99", "has units 0-5"),
        ("mlp.1.3", "looks like"),
        ("up.0.1", "no site 'up'"),
        ("mlp.0.1' OR 1=1 --", "no unit name"),
        ("nonsense", "no unit name"),
    ],
)
def test_a_name_that_is_no_unit_is_refused(atlas: Atlas, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        atlas.unit(name)


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE units",
        "DELETE FROM units",
        "INSERT INTO units VALUES (1)",
        "CREATE TEMP TABLE x AS SELECT 1",
        "COPY units TO 'out.csv'",
        "ATTACH 'other.duckdb'",
        "SET threads = 1",
        "CHECKPOINT",
        "SELECT 1; SELECT 2",
        "INSTALL httpfs",
        "",
    ],
)
def test_sql_takes_one_select_and_nothing_else(atlas: Atlas, query: str) -> None:
    with pytest.raises(InputError, match="one SELECT"):
        atlas.sql(query)


@pytest.mark.parametrize("function", ["read_csv('{}')", "read_text('{}')", "'{}'", "glob('{}')", "read_blob('{}')"])
def test_sql_reaches_no_other_file(atlas: Atlas, function: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="the query failed"):
        atlas.sql(f"SELECT * FROM {function.format(secret)}")


def test_the_connection_itself_is_read_only_and_locked(atlas: Atlas) -> None:
    import duckdb

    with atlas._cursor() as cursor:
        for statement in (
            "DELETE FROM units",
            "SET enable_external_access = true",
            "SET threads = 1",
            "ATTACH '/nowhere/x'",
        ):
            with pytest.raises(duckdb.Error):
                cursor.execute(statement)


def test_sql_sees_no_python_variables(atlas: Atlas) -> None:
    hidden = {"a": np.arange(3)}
    assert len(hidden) == 1
    with pytest.raises(InputError, match="does not exist"):
        atlas.sql("SELECT * FROM hidden")


def test_values_are_bound_not_written_into_the_query(atlas: Atlas) -> None:
    assert atlas.sql("SELECT count(*) FROM labels WHERE label = ?", [HOSTILE]).rows == [(2,)]
    assert atlas.sql("SELECT count(*) FROM labels WHERE label = $name", {"name": HOSTILE}).rows == [(2,)]
    assert atlas.sql("SELECT count(*) FROM units").rows == [(22,)]


def test_sql_errors_are_one_clear_line(atlas: Atlas) -> None:
    with pytest.raises(InputError, match="the query failed: Parser Error") as caught:
        atlas.sql("SELEC 1")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="nothere"):
        atlas.sql("SELECT nothere FROM units")


def test_a_limit_says_that_there_is_more(atlas: Atlas) -> None:
    cut = atlas.sql("SELECT unit_id FROM units ORDER BY unit_id DESC", limit=3)
    assert (cut.rows, cut.truncated) == ([(21,), (20,), (19,)], True)
    assert not atlas.sql("SELECT unit_id FROM units", limit=22).truncated
    assert atlas.sql("SELECT unit_id FROM units WHERE unit_id > ?", [19], limit=1).to_dict() == {
        "columns": ["unit_id"], "rows": [{"unit_id": 20}], "truncated": True,
    }  # fmt: skip
    with pytest.raises(InputError, match="at least 0"):
        atlas.sql("SELECT 1", limit=-2)


def test_a_query_that_takes_too_long_is_stopped_and_the_atlas_goes_on(atlas: Atlas) -> None:
    with pytest.raises(InputError, match="took longer than"):
        atlas.sql("SELECT sum(a.range * b.range) FROM range(10000000) a, range(1000000) b", seconds=0.3)
    assert atlas.sql("SELECT 1 AS one", seconds=30).rows == [(1,)]


def test_describe_summarize_show_and_explain_are_reading_too(atlas: Atlas) -> None:
    assert [row[0] for row in atlas.sql("DESCRIBE labels").rows] == [
        "label_id",
        "run_id",
        "label",
        "documents",
        "tokens",
    ]
    assert ("units",) in atlas.sql("SHOW TABLES").rows
    assert len(atlas.sql("SUMMARIZE labels")) == 5
    assert "units" in str(atlas.sql("EXPLAIN SELECT * FROM units").rows)


def test_sums_of_integers_stay_integers(atlas: Atlas, filled: SimpleNamespace) -> None:
    (value,) = atlas.sql("SELECT sum(fired) FROM statistics").rows[0]
    assert value == int(filled.statistics["fired"].sum())
    assert isinstance(value, int)


def test_odd_types_and_repeated_names_come_through(atlas: Atlas) -> None:
    result = atlas.sql("SELECT 1 AS a, 2 AS a, [1, 2] AS l, {'x': 'y'} AS s, NULL AS n, 1::UHUGEINT AS u, 1.5 AS d")
    assert result.columns == ["a", "a_1", "l", "s", "n", "u", "d"]
    assert json.loads(to_json(result.to_dict()))["rows"][0]["a_1"] == 2


def test_frames_agree_with_the_rows(atlas: Atlas) -> None:
    result = atlas.sql(
        "SELECT name, expert, layer, score, chosen, class FROM units LEFT JOIN (SELECT * FROM scores WHERE label_id = 3) "
        "USING (unit_id) LEFT JOIN (SELECT unit_id, class FROM classes) USING (unit_id) ORDER BY unit_id"
    )
    rows = result.rows
    assert result.polars().rows() == rows
    assert [tuple(row.values()) for row in result.arrow().to_pylist()] == rows
    frame = result.pandas()
    assert frame.astype(object).where(frame.notna(), None).to_records(index=False).tolist() == rows
    assert [str(kind) for kind in result.polars().dtypes] == [
        "String",
        "Int32",
        "Int32",
        "Float64",
        "Boolean",
        "String",
    ]


def test_frames_of_no_rows_keep_their_columns(atlas: Atlas) -> None:
    result = atlas.sql("SELECT name, layer FROM units WHERE layer = 99")
    assert result.rows == []
    assert result.polars().columns == list(result.pandas().columns) == result.arrow().column_names == ["name", "layer"]


def test_results_outlive_the_atlas_but_queries_do_not(filled: SimpleNamespace) -> None:
    with Atlas.open(filled.path) as opened:
        result = opened.sql("SELECT count(*) AS n FROM units")
    assert result.rows == [(22,)]
    assert result.polars()["n"].to_list() == [22]
    with pytest.raises(InputError, match="is closed"):
        opened.sql("SELECT 1")
    assert "closed" in repr(opened)


def test_several_atlases_and_threads_at_once(filled: SimpleNamespace) -> None:
    first, second = (
        Atlas.open(filled.path, memory_limit="100MB", threads=1),
        Atlas.open(filled.path, memory_limit="300MB"),
    )
    found: list[str] = []

    def read(number: int) -> None:
        for unit in range(6):
            found.append((first if number % 2 else second).unit(f"mlp.0.{unit}")["unit"])

    workers = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(found) == sorted([f"mlp.0.{unit}" for unit in range(6)] * 4)
    first.close()
    second.close()


@pytest.mark.parametrize("limits", [{"memory_limit": "lots"}, {"threads": 0}])
def test_limits_that_make_no_sense_are_refused(filled: SimpleNamespace, limits: dict) -> None:
    with pytest.raises(InputError):
        Atlas.open(filled.path, **limits)


def test_opening_an_atlas_needs_no_torch(filled: SimpleNamespace) -> None:
    code = "import sys, patchclamp.atlas as a; a.Atlas.open(sys.argv[1]).unit('mlp.0.1'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(filled.path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_the_summary_and_the_views_name_everything(atlas: Atlas, filled: SimpleNamespace) -> None:
    summary = json.loads(to_json(atlas.summary()))
    assert summary["sites"] == [{"site": "mlp", "layers": 2, "units": 14}, {"site": "attn", "layers": 2, "units": 8}]
    assert [run["kind"] for run in summary["runs"]] == ["recording", "finding", "effects", "tokens"]
    assert summary["rows"]["tokens"] == 12
    assert "units: 14 mlp, 8 attn; runs: 1 recording, 2 finding lape" in repr(atlas)
    view = atlas.sql("SELECT unit, rate FROM recorded WHERE label = ? AND site = 'mlp' ORDER BY unit_id", [HOSTILE])
    np.testing.assert_array_equal(view.data["rate"], filled.statistics["rate"][1])
    view = atlas.sql("SELECT unit_id, class, unit_score FROM found WHERE label = 'en' AND method = 'lape' ORDER BY 1")
    np.testing.assert_array_equal(view.data["unit_score"], filled.unit_scores)

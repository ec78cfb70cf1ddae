"""What was written into the tables is what comes back, number for number; the schema documents itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.atlas import SCHEMA_VERSION, Atlas, Writer, schema
from patchclamp.atlas.connection import scratch_folder, writing
from patchclamp.atlas.writer import first_units
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.models.units import Layout, UnitSet, layouts_of


def test_units_have_the_names_and_places_of_the_layout(atlas: Atlas, identity: dict[str, Any]) -> None:
    layouts = layouts_of(identity)
    rows = atlas.sql("SELECT unit_id, name, site, layer, expert, index FROM units ORDER BY unit_id").rows
    expected = []
    for site, start in (("mlp", 0), ("attn", 14)):  # mlp first: its ids are the flat positions
        for position in range(layouts[site].total):
            unit = layouts[site].unit(position)
            expected.append((start + position, str(unit), site, unit.layer, unit.expert, unit.index))
    assert rows == expected


def test_statistics_are_the_arrays_that_went_in(atlas: Atlas, filled: SimpleNamespace) -> None:
    names = list(filled.statistics)
    query = f"SELECT {', '.join(names)} FROM statistics WHERE unit_id < 14 AND label_id = ? ORDER BY unit_id"
    for number in range(2):
        back = atlas.sql(query, [number + 1]).data
        for name in names:
            np.testing.assert_array_equal(back[name], filled.statistics[name][number])
    attn = atlas.sql("SELECT mean FROM statistics WHERE unit_id >= 14 ORDER BY label_id, unit_id").data["mean"]
    np.testing.assert_array_equal(attn.reshape(2, 8), filled.attn["mean"])


def test_scores_keep_nan_as_null_and_membership(atlas: Atlas, filled: SimpleNamespace) -> None:
    back = atlas.sql("SELECT score, chosen, p FROM scores ORDER BY label_id, unit_id").data
    np.testing.assert_array_equal(np.ma.filled(back["score"], np.nan).reshape(2, 14), filled.scores)
    np.testing.assert_array_equal(back["chosen"].reshape(2, 14), filled.chosen)
    assert atlas.sql("SELECT count(*) FROM scores WHERE score IS NULL").rows == [(int(np.isnan(filled.scores).sum()),)]
    assert back["p"].mask.all()


def test_classes_and_unit_scores_come_back(atlas: Atlas, filled: SimpleNamespace) -> None:
    rows = atlas.sql("SELECT class, score FROM classes ORDER BY unit_id").rows
    names = {-1: None, 0: "specific", 1: "related"}
    assert rows == [(names[c], s) for c, s in zip(filled.codes.tolist(), filled.unit_scores.tolist(), strict=True)]


def test_exemplars_come_back_with_their_texts(atlas: Atlas, filled: SimpleNamespace) -> None:
    query = "SELECT unit_id, rank, value, document, position, text, token_start, token_end FROM exemplars ORDER BY ALL"
    expected = []
    for unit in range(14):
        for rank in range(2):
            document, position = int(filled.documents[unit, rank]), int(filled.positions[unit, rank])
            if document >= 0:
                cut = filled.windows.get((document, position), (None, None, None))
                expected.append((unit, rank, float(filled.values[unit, rank]), document, position, *cut))
    assert atlas.sql(query).rows == expected


def test_sets_come_back_as_unit_sets(atlas: Atlas, filled: SimpleNamespace) -> None:
    assert atlas.set("en") == filled.units
    assert dict(zip(atlas.set("en").names(), atlas.set("en").score_list() or [], strict=True)) == dict(
        zip(filled.units.names(), filled.units.score_list(), strict=True)
    )
    with pytest.raises(InputError, match="it has en"):
        atlas.set("de")


def test_effects_come_back_with_nan_and_none_as_null(atlas: Atlas) -> None:
    row = atlas.sql("SELECT * FROM effects").dicts()[0]
    assert (row["set_id"], row["set_name"], row["plain"], row["clamped"], row["p"], row["n_units"]) == (
        1,
        "en",
        1.5,
        2.5,
        0.01,
        3,
    )
    assert [row[name] for name in ("low", "high", "p_holm")] == [None, None, None]


def test_tokens_come_back_with_their_strings(atlas: Atlas, filled: SimpleNamespace) -> None:
    rows = atlas.sql(
        "SELECT unit_id, sign, rank, token_id, token, value FROM tokens LEFT JOIN vocabulary USING (token_id) "
        "ORDER BY unit_id, sign DESC, rank"
    ).rows
    strings = {0: "a", 1: "'\"", 2: "<script>"}
    expected = [
        (unit, sign, rank, int(t), strings.get(int(t)), sign * float(v))
        for unit, ids, values in zip((7, 12), filled.token_ids, filled.token_values, strict=True)
        for sign in (1, -1)
        for rank, (t, v) in enumerate(zip(ids, values, strict=True))
    ]
    assert rows == expected


def test_every_table_and_column_is_documented_in_the_file(atlas: Atlas) -> None:
    found = atlas.tables()
    assert list(found)[: len(schema.tables())] == schema.tables()
    assert {"recorded", "found"} <= set(found)
    for name, table in found.items():
        assert table["about"], name
        if name in schema.tables():
            assert [column for column, entry in table["columns"].items() if not entry["about"]] == [], name
    assert found["units"]["rows"] == 22
    assert "own_number" in found["statistics"]["columns"]
    assert "own_number" in found["recorded"]["columns"]


def test_the_file_says_what_wrote_it(atlas: Atlas) -> None:
    assert atlas.about["format"] == "patchclamp.atlas"
    assert atlas.about["schema_version"] == SCHEMA_VERSION


def test_rows_lie_in_the_order_of_units_so_that_a_look_up_skips_blocks(tmp_path: Path) -> None:
    model = {"name": "big", "fingerprint": "c" * 64, "sites": {"mlp": {"widths": [300_000], "experts": [0]}}}
    with (
        scratch_folder() as scratch,
        writing(tmp_path / "a", Path(scratch), memory_limit=None, threads=2) as connection,
    ):
        schema.create(connection, created="")
        writer = Writer(connection, model)
        labels = writer.labels(writer.run("recording"), {"en": (1, 1), "fr": (1, 1)})
        writer.statistics(labels, "mlp", {"rate": np.arange(600_000).reshape(2, -1) / 1e6})
    with Atlas.open(tmp_path / "a") as atlas:
        for table in ("units", "statistics"):
            stored = atlas.sql(f"SELECT unit_id FROM {table} ORDER BY rowid").data["unit_id"]
            assert (np.diff(stored) >= 0).all()
        page = atlas.unit("mlp.0.200000")
        assert [(row["label"], row["rate"]) for row in page["statistics"]] == [("en", 0.2), ("fr", 0.5)]


@settings(max_examples=10, deadline=None)
@given(
    widths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    n_labels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_layout_comes_back_whatever_the_chunks(
    widths: list[int], n_labels: int, seed: int, tmp_path_factory: Any
) -> None:
    rng = np.random.default_rng(seed)
    model = {"name": "any", "fingerprint": "d" * 64, "sites": {"mlp": {"widths": widths, "experts": [0] * len(widths)}}}
    layout, path = Layout("mlp", tuple(widths)), tmp_path_factory.mktemp("any") / "a"
    values = np.where(rng.random((n_labels, layout.total)) < 0.2, np.nan, rng.standard_normal((n_labels, layout.total)))
    keep = rng.random(layout.total) < 0.7
    with pytest.MonkeyPatch.context() as patch, scratch_folder() as scratch:
        patch.setattr("patchclamp.atlas.writer.ROWS", 3)
        with writing(path, Path(scratch), memory_limit=None, threads=1) as connection:
            schema.create(connection, created="")
            writer = Writer(connection, model)
            ids = writer.labels(writer.run("recording"), {f"l{n}": (1, 1) for n in range(n_labels)})
            writer.statistics(ids, "mlp", {"mean": values}, keep=keep)
            writer.scores(ids, "mlp", {"score": values})
            chosen = UnitSet.at(model, "mlp", np.flatnonzero(keep))
            writer.set(1, "kept", chosen)
    with Atlas.open(path) as atlas:
        assert atlas.sql("SELECT name FROM units ORDER BY unit_id").rows == [(name,) for name in layout.names()]
        rows = atlas.sql("SELECT unit_id, label_id, mean FROM statistics").rows
        expected = [(u, n + 1, values[n, u]) for u in np.flatnonzero(keep).tolist() for n in range(n_labels)]
        assert [row[:2] for row in rows] == [row[:2] for row in expected]
        np.testing.assert_array_equal([np.nan if r[2] is None else r[2] for r in rows], [r[2] for r in expected])
        assert len(atlas.sql("SELECT * FROM scores")) == values.size
        assert atlas.set("kept") == chosen


def test_sites_do_not_share_unit_ids_and_mlp_comes_first(identity: dict[str, Any]) -> None:
    assert first_units(layouts_of(identity)) == {"mlp": 0, "attn": 14}


def _writer(path: Path, model: Any, scratch: str) -> Any:
    return writing(path, Path(scratch), memory_limit=None, threads=1)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda w: w.statistics([1], "mlp", {"mean": np.zeros((1, 3))}), MismatchError, "has shape"),
        (lambda w: w.statistics([1], "mlp", {"x; drop": np.zeros((1, 14))}), InputError, "can't name a column"),
        (lambda w: w.statistics([1], "mlp", {"word": np.full((1, 14), "a")}), InputError, "numbers and booleans"),
        (lambda w: w.statistics([1], "up", {"mean": np.zeros((1, 14))}), MismatchError, "no site 'up'"),
        (lambda w: w.scores([1], "mlp", {"other": np.zeros((1, 14))}), InputError, "no column 'other'"),
        (lambda w: w.classes(1, "mlp", np.full(14, 2), ["a", "b"]), DamagedError, "class code 2"),
        (lambda w: w.classes(1, "mlp", np.zeros(3, int), ["a"]), MismatchError, "has 14 units"),
        (
            lambda w: w.tokens(1, "mlp", np.array([99]), np.zeros((1, 2), int), np.zeros((1, 2)), sign=1),
            InputError,
            "99",
        ),
        (
            lambda w: w.tokens(1, "mlp", np.array([1]), np.zeros((1, 2), int), np.zeros((1, 2)), sign=2),
            InputError,
            "sign 2",
        ),
        (
            lambda w: w.tokens(1, "mlp", np.array([1]), np.zeros((2, 2), int), np.zeros((2, 2)), sign=1),
            MismatchError,
            "1 units",
        ),
        (lambda w: w.exemplars(1, "mlp", *(np.zeros((3, 2), int),) * 3), MismatchError, "14 units"),
        (lambda w: [w.run("recording", fingerprint="q") for _ in range(2)], InputError, "already"),
    ],
)
def test_the_writer_refuses_what_does_not_fit(
    act: Any, error: type[Exception], message: str, identity: dict[str, Any], tmp_path: Path
) -> None:
    with scratch_folder() as scratch, _writer(tmp_path / "a", identity, scratch) as connection:
        schema.create(connection, created="")
        with pytest.raises(error, match=message):
            act(Writer(connection, identity))


def test_an_atlas_is_about_one_model(identity: dict[str, Any], tmp_path: Path) -> None:
    with scratch_folder() as scratch, _writer(tmp_path / "a", identity, scratch) as connection:
        schema.create(connection, created="")
        Writer(connection, identity)
        with pytest.raises(MismatchError, match="an atlas holds one model"):
            Writer(connection, {**identity, "fingerprint": "ff" * 32})
    with scratch_folder() as scratch, _writer(tmp_path / "b", identity, scratch) as connection:
        schema.create(connection, created="")
        with pytest.raises(InputError, match="lacks a fingerprint"):
            Writer(connection, {"name": "nothing"})

"""Building from real recordings, findings and effects of a tiny model: what the sources say is what the atlas says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from patchclamp.atlas import Atlas, build
from patchclamp.core.errors import DamagedError, Error, InputError, MismatchError
from patchclamp.core.files import write_json
from patchclamp.data.corpora import corpus
from patchclamp.find.finding import Finding
from patchclamp.find.language import language
from patchclamp.measure.effects import effect
from patchclamp.models.units import UnitSet
from patchclamp.record.recorder import record

STATISTICS = {"firing": {}, "moments": {}, "histogram": {}, "exemplars": {"k": 3}, "pooled": {}}
ENGLISH = [
    "The cat sat on the mat.",
    "Two and two make four.",
    "A <b>bold</b> 'word'; DROP TABLE units;",
    "The moon and the mat.",
]
FRENCH = [
    "Le chat est assis sur le tapis.",
    "Il regarde la lune, été comme hiver.",
    "Deux et deux font quatre.",
    "Oui.",
]


@pytest.fixture(scope="module")
def made(tiny_gpt2: Any) -> SimpleNamespace:
    """A recording, a finding and effects of the tiny GPT-2 on two labels."""
    text = corpus(en=ENGLISH * 3, fr=FRENCH * 3)
    recording = record(tiny_gpt2, text, sites=("mlp", "attn"), statistics=STATISTICS, quiet=True)
    finding = language(recording, rate=0.05, shuffles=2)
    sets = {"few": UnitSet.of(tiny_gpt2, ["mlp.0.3", "mlp.2.7"])}
    effects = effect(tiny_gpt2, sets, on=text, controls=2, permutations=400, resamples=20, quiet=True)
    return SimpleNamespace(model=tiny_gpt2, text=text, recording=recording, finding=finding, effects=effects, sets=sets)


@pytest.fixture(scope="module")
def built(made: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("built") / "tiny.atlas.duckdb"
    with build(
        path, recordings=[made.recording], findings=[made.finding, made.sets], effects=[made.effects], corpus=made.text,
        model=made.model, quiet=True,
    ) as atlas:  # fmt: skip
        yield atlas


@pytest.mark.parametrize("site", ["mlp", "attn"])
@pytest.mark.parametrize("label", ["en", "fr"])
def test_statistics_equal_the_recording(built: Atlas, made: SimpleNamespace, site: str, label: str) -> None:
    found = built.sql("SELECT * FROM recorded WHERE site = ? AND label = ? ORDER BY unit_id", [site, label]).data
    firing, moments, histogram = (made.recording.get(name, label, site) for name in ("firing", "moments", "histogram"))
    np.testing.assert_array_equal(found["fired"], firing.counts.sum(0))
    np.testing.assert_array_equal(found["n"], np.full(firing.layout.total, made.recording.tokens(label)))
    np.testing.assert_array_equal(found["rate"], firing.counts.sum(0) / made.recording.tokens(label))
    np.testing.assert_array_equal(found["mean"], moments.mean)
    np.testing.assert_allclose(found["sd"], np.sqrt(moments.m2 / (made.recording.tokens(label) - 1)), rtol=1e-12)
    np.testing.assert_array_equal(found["min"], moments.min)
    np.testing.assert_array_equal(found["max"], moments.max)
    np.testing.assert_array_equal(found["q05"], histogram.quantiles(0.05))
    np.testing.assert_array_equal(found["q50"], histogram.quantiles(0.5))
    assert list(found["unit"]) == firing.layout.names()


def test_labels_carry_their_documents_and_tokens(built: Atlas, made: SimpleNamespace) -> None:
    rows = built.sql("SELECT label, documents, tokens FROM labels WHERE run_id = 1 ORDER BY label_id").rows
    assert rows == [(label, 12, made.recording.tokens(label)) for label in ("en", "fr")]


def test_scores_classes_and_sets_equal_the_finding(built: Atlas, made: SimpleNamespace) -> None:
    finding = made.finding
    for number, label in enumerate(finding.labels):
        found = built.sql(
            "SELECT * FROM found WHERE method = ? AND label = ? ORDER BY unit_id", [finding.method, label]
        ).data
        np.testing.assert_array_equal(np.ma.filled(found["score"], np.nan), finding.scores[number])
        np.testing.assert_array_equal(found["chosen"], finding.chosen[number])
        assert list(found["class"]) == [finding.class_names[code] for code in finding.classes]
        assert built.set(label, run=2) == finding.sets[label]


def test_a_finding_over_several_sites_gives_each_site_its_scores(made: SimpleNamespace, tmp_path: Path) -> None:
    layouts = tuple(made.model.layouts[site] for site in ("pre", "v"))
    scores = np.arange(float(sum(layout.total for layout in layouts)))[None]
    chosen = np.isin(scores, (3.0, layouts[0].total + 1.0))
    finding = Finding(
        "mine", ("a",), layouts=layouts, model=made.model.identity, chosen=chosen, scores=scores, unit_score=scores[0]
    )
    path = finding.save(tmp_path / "two.json")
    for number, source in enumerate((finding, path)):
        with build(tmp_path / f"{number}.atlas.duckdb", findings=[source], model=made.model, quiet=True) as atlas:
            assert atlas.unit("pre.0.3")["scores"][0]["score"] == 3.0
            assert atlas.unit("v.0.1")["scores"][0]["score"] == layouts[0].total + 1.0
            members = atlas.sql("SELECT count(*) AS n FROM set_units").rows
            assert next(iter(members[0].values() if isinstance(members[0], dict) else members[0])) == 2


def test_effects_are_tied_to_the_sets_that_were_clamped(built: Atlas, made: SimpleNamespace) -> None:
    stored = built.sql("SELECT * FROM effects ORDER BY effect_id").dicts()
    for row, given in zip(stored, made.effects.rows, strict=True):
        assert (row["set_name"], row["text_label"]) == (given["set"], given["text"])
        assert {key: row[key] for key in given if key not in ("set", "text")} == {
            key: value for key, value in given.items() if key not in ("set", "text")
        }
    assert built.sql("SELECT count(*) FROM sets WHERE name = 'few'").rows == [(1,)]  # the set given, not a second one
    assert [row["text"] for row in built.unit("mlp.2.7")["effects"]] == ["en", "fr"]
    assert built.unit("mlp.2.8")["effects"] == []


def test_exemplars_equal_the_recording_and_point_at_their_token(built: Atlas, made: SimpleNamespace) -> None:
    kept = made.recording.get("exemplars", "fr", "mlp")
    layout = kept.layout
    tokenizer = made.model.tokenizer
    for position in range(0, layout.total, 29):
        rows = [row for row in built.unit(layout.unit(position))["exemplars"] if row["label"] == "fr"]
        assert [(row["document"], row["position"]) for row in rows] == list(
            zip(kept.document[:, position].tolist(), kept.position[:, position].tolist(), strict=True)
        )
        assert [row["value"] for row in rows] == kept.value[:, position].astype(float).tolist()
        for row in rows:
            text = (FRENCH * 3)[row["document"]]
            ids = tokenizer(text)["input_ids"]  # <s> in front, as it was recorded
            token = tokenizer.decode([ids[row["position"]]])
            assert row["text"] == text  # shorter than the window
            cut = row["text"][row["token_start"] : row["token_end"]]
            assert cut == token or "�" in token  # a byte of é decodes to nothing on its own


def test_the_page_holds_the_statistics_of_the_sources(built: Atlas, made: SimpleNamespace) -> None:
    page = built.unit("mlp.1.5")
    position = made.recording.layouts["mlp"].offsets[1] + 5
    assert [row["mean"] for row in page["statistics"]] == [
        made.recording.get("moments", label).mean[position] for label in made.recording.labels
    ]
    assert [row["class"] for row in page["classes"]] == [made.finding.class_of("mlp.1.5")]
    assert page["model"]["fingerprint"] == made.model.fingerprint


def test_runs_carry_arguments_versions_and_seeds(built: Atlas, made: SimpleNamespace) -> None:
    runs = built.sql(
        "SELECT kind, method, call, fingerprint, seed, versions, arguments FROM runs ORDER BY run_id"
    ).dicts()
    assert [run["kind"] for run in runs] == ["recording", "finding", "sets", "effects"]
    assert runs[0]["fingerprint"] == made.recording.fingerprint
    assert (runs[1]["method"], runs[1]["call"], runs[1]["seed"]) == (made.finding.method, "find.language", 0)
    assert '"torch"' in runs[3]["versions"]
    assert '"controls":2' in runs[3]["arguments"].replace(" ", "")


def test_files_give_the_same_atlas_as_objects(built: Atlas, made: SimpleNamespace, tmp_path: Path) -> None:
    made.recording.save(tmp_path / "rec")
    made.finding.save(tmp_path / "found.json")
    made.effects.save(tmp_path / "effects.json")
    with build(
        tmp_path / "a", recordings=tmp_path / "rec", findings=[str(tmp_path / "found.json"), made.sets],
        effects=[tmp_path / "effects.json"], corpus=made.text, model=made.model, quiet=True,
    ) as atlas:  # fmt: skip
        for table in atlas.tables():
            if table not in ("about", "runs"):
                assert atlas.sql(f"SELECT * FROM {table}").rows == built.sql(f"SELECT * FROM {table}").rows, table
        query = "SELECT kind, fingerprint FROM runs ORDER BY run_id"
        assert atlas.sql(query).rows == built.sql(query).rows


def test_two_recordings_stay_apart(made: SimpleNamespace, tmp_path: Path) -> None:
    other = record(
        made.model, corpus(de=["Die Katze sitzt auf der Matte."], en=["Another text."]), layers=[1], quiet=True
    )
    with build(tmp_path / "a", recordings=[made.recording, other], quiet=True) as atlas:
        assert atlas.sql("SELECT run_id, label FROM labels ORDER BY label_id").rows == [
            (1, "en"),
            (1, "fr"),
            (2, "de"),
            (2, "en"),
        ]
        assert {(row["run_id"], row["label"]) for row in atlas.unit("mlp.1.0")["statistics"]} == {
            (1, "en"), (1, "fr"), (2, "de"), (2, "en"),
        }  # fmt: skip
        assert len(atlas.unit("mlp.0.0")["statistics"]) == 2  # layer 0 was not recorded the second time
        assert atlas.unit("mlp.1.0")["exemplars"][0]["text"] is None  # no corpus was given
        with pytest.raises(InputError, match="several labels or runs"):
            atlas.top(statistic="rate", label="en")
        means = [row["value"] for row in atlas.top(statistic="mean", label="en", run=2, k=500).dicts()]
        assert means == sorted(other.get("moments", "en").mean[other.layouts["mlp"].slice(1)].tolist(), reverse=True)


def test_appending_equals_building_at_once(built: Atlas, made: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "a"
    build(path, recordings=made.recording, corpus=made.text, model=made.model, quiet=True).close()
    build(path, findings=[made.finding, made.sets], append=True, quiet=True).close()
    with build(path, effects=made.effects, append=True, quiet=True) as atlas:
        for table in atlas.tables():
            if table not in ("about",):
                assert atlas.sql(f"SELECT * FROM {table}").rows == built.sql(f"SELECT * FROM {table}").rows, table
    before = path.read_bytes()
    with pytest.raises(InputError, match="already"):
        build(path, recordings=made.recording, append=True, quiet=True)
    with pytest.raises(InputError, match="no atlas at"):
        build(tmp_path / "none", recordings=made.recording, append=True, quiet=True)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_an_existing_file_is_kept_unless_told_otherwise(made: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        build(path, findings=made.finding, quiet=True)
    assert path.read_text() == "mine"
    with build(path, findings=made.finding, overwrite=True, quiet=True) as atlas:
        assert atlas.units(set=made.finding.labels[0]).rows is not None
    with pytest.raises(InputError, match="both given"):
        build(path, findings=made.finding, overwrite=True, append=True, quiet=True)


def test_things_of_different_models_are_refused(made: SimpleNamespace, tiny_llama: Any, tmp_path: Path) -> None:
    other = record(tiny_llama, corpus(en=["Hello there."]), quiet=True)
    with pytest.raises(MismatchError, match="one model"):
        build(tmp_path / "a", recordings=[made.recording, other], quiet=True)
    with pytest.raises(MismatchError, match="one model"):
        build(tmp_path / "a", recordings=[other], findings=[made.finding], quiet=True)
    with pytest.raises(MismatchError, match="one model"):
        build(tmp_path / "a", effects=[made.effects], model=tiny_llama, quiet=True)
    build(tmp_path / "b", recordings=[other], quiet=True).close()
    with pytest.raises(MismatchError, match="one model"):
        build(tmp_path / "b", recordings=[made.recording], append=True, quiet=True)
    assert [item.name for item in tmp_path.iterdir()] == ["b"]


def test_a_corpus_that_was_not_recorded_is_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="not the text recorded under the labels en, fr"):
        build(tmp_path / "a", recordings=made.recording, corpus=corpus(en=["Something else."]), quiet=True)
    with pytest.raises(InputError, match="no recording with exemplars"):
        build(tmp_path / "a", findings=made.finding, corpus=made.text, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_of_some_labels_gives_text_to_those(made: SimpleNamespace, tmp_path: Path) -> None:
    longer = corpus(fr=FRENCH * 3 + ["Encore un texte que personne n'a lu."])
    with build(tmp_path / "a", recordings=made.recording, corpus=longer, quiet=True) as atlas:
        query = "SELECT DISTINCT label, text IS NULL, token_start IS NULL FROM exemplars JOIN labels USING (label_id) ORDER BY 1"
        assert atlas.sql(query).rows == [
            ("en", True, True),
            ("fr", False, True),
        ]  # no model: where the token is, is unknown


def test_nothing_or_nonsense_is_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to put"):
        build(tmp_path / "a", quiet=True)
    for name in ("recordings", "findings", "effects"):
        with pytest.raises(InputError, match="needed"):
            build(tmp_path / "a", **{name: [3]}, quiet=True)
    with pytest.raises(InputError, match="no recording at"):
        build(tmp_path / "a", recordings=tmp_path / "none", quiet=True)
    with pytest.raises(InputError, match="no file at"):
        build(tmp_path / "a", findings=tmp_path / "none.json", quiet=True)
    write_json(tmp_path / "foreign.json", {"format": "other/1"})
    with pytest.raises(DamagedError, match="other/1"):
        build(tmp_path / "a", effects=tmp_path / "foreign.json", quiet=True)
    with pytest.raises(InputError, match="does not exist"):
        build(tmp_path / "no" / "a", findings=made.finding, quiet=True)
    with pytest.raises(InputError, match="only once"):
        build(tmp_path / "a", recordings=[made.recording, made.recording], quiet=True)
    with pytest.raises(InputError, match="memory_limit"):
        build(tmp_path / "a", findings=made.finding, memory_limit="much", quiet=True)
    assert [item.name for item in tmp_path.iterdir()] == ["foreign.json"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_interrupted_build_leaves_what_was_there(
    problem: type[BaseException], made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    build(path, findings=made.finding, quiet=True).close()
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise problem

    monkeypatch.setattr(sys.modules["patchclamp.atlas.build"], "_write_effects", fail)  # the function hides the module
    with pytest.raises(problem):
        build(path, recordings=made.recording, effects=made.effects, overwrite=True, quiet=True)
    with pytest.raises(problem):
        build(tmp_path / "b", recordings=made.recording, effects=made.effects, quiet=True)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_sets_without_a_finding_can_be_stored(made: SimpleNamespace, tmp_path: Path) -> None:
    made.sets["few"].save(tmp_path / "few.json")
    with build(tmp_path / "a", findings=tmp_path / "few.json", quiet=True) as atlas:
        assert atlas.set("units") == made.sets["few"]
        assert atlas.sql("SELECT kind, method FROM runs").rows == [("sets", None)]
        assert atlas.unit("mlp.0.3")["sets"][0]["name"] == "units"
        with pytest.raises(InputError, match="nothing about attn"):
            atlas.unit("attn.0.0")


def test_a_finding_without_its_scores_file_keeps_the_scores_of_its_sets(made: SimpleNamespace, tmp_path: Path) -> None:
    made.finding.save(tmp_path / "f.json", scores=False)
    loaded = Finding.load(tmp_path / "f.json")
    with build(tmp_path / "a", findings=loaded, quiet=True) as atlas:
        rows = atlas.sql(
            "SELECT count(*) FILTER (chosen AND score IS NULL), count(*) FILTER (chosen) FROM scores"
        ).rows[0]
        assert rows == (0, int(made.finding.chosen.sum()))


_FULL = """
import resource, signal, sys
from patchclamp.atlas import build
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
build(sys.argv[2], recordings=sys.argv[1], quiet=True)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(made: SimpleNamespace, tmp_path: Path) -> None:
    made.recording.save(tmp_path / "rec")
    target = tmp_path / "out"
    target.mkdir()
    command = [sys.executable, "-c", _FULL, str(tmp_path / "rec"), str(target / "a")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120
    )
    assert done.returncode == 1
    assert f"{Error.__module__}.Error: {target / 'a'}: " in done.stderr
    assert done.returncode != -signal.SIGXFSZ
    assert list(target.iterdir()) == []

"""A result is run again from what it says of itself: agreement, altered numbers, missing and changed inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchclamp as pc
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.replay import replay
from patchclamp.replay.comparison import compared, gaps_of

LABELS = {
    "en": [f"The cat number {n} sat on the mat and looked at the moon." for n in range(24)],
    "fr": [f"Le chat {n} est assis sur le tapis et regarde la lune." for n in range(24)],
}


@pytest.fixture(scope="module")
def made(tiny_gpt2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, text files, and a recording, sets and effects made from them; also effects with recorded means."""
    folder = tmp_path_factory.mktemp("made")
    tiny_gpt2.hf.save_pretrained(folder / "model")
    tiny_gpt2.tokenizer.save_pretrained(folder / "model")
    for label, lines in LABELS.items():
        (folder / f"{label}.txt").write_text("\n".join(lines) + "\n")
    model = pc.load(folder / "model")
    text = pc.corpus({label: folder / f"{label}.txt" for label in LABELS})
    recording = pc.record(model, text, out=folder / "rec", statistics=("firing", "moments", "exemplars"), layers=[0, 2])
    found = pc.find.language(recording, rate=0.05, shuffles=3)
    found.save(folder / "sets.json")
    cheap: dict[str, Any] = {"controls": 2, "permutations": 999, "resamples": 50}
    sets = {name: units.top(5) for name, units in found.select(top=5).items()}
    pc.effect(model, sets, on=text, **cheap).save(folder / "effects.json")
    pc.effect(model, sets, on=text, to="mean", recording=recording, **cheap).save(folder / "means.json")
    return folder


def altered(path: Path, target: Path, change: Any) -> Path:
    """A copy of a JSON file after `change(data)`."""
    data = json.loads(path.read_text())
    change(data)
    target.write_text(json.dumps(data))
    return target


@pytest.mark.parametrize("name", ["rec", "sets.json", "effects.json", "means.json"])
def test_an_untouched_result_agrees_to_the_last_digit(made: Path, name: str) -> None:
    report = replay(made / name)
    assert report.agrees
    assert (report.worst, report.differences, report.versions) == (0.0, [], {})
    assert report.compared > 50
    assert report.to_dict()["agrees"] is True


def test_altered_numbers_are_named(made: Path, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["rows"][1]["effect"] *= 1.5

    report = replay(altered(made / "effects.json", tmp_path / "e.json", change))
    assert not report.agrees
    assert len(report.differences) == 1
    assert report.differences[0].startswith("rows[1].effect: ")
    assert report.worst == pytest.approx(1 / 3)
    assert replay(tmp_path / "e.json", tolerance=0.5).agrees


def test_altered_units_and_scores_are_named(made: Path, tmp_path: Path) -> None:
    label = "en"
    there = pc.Finding.load(made / "sets.json").sets[label].names()
    foreign = next(name for name in ("mlp.0.0", "mlp.0.1", "mlp.0.2") if name not in there)

    def change(data: dict[str, Any]) -> None:
        data["sets"][label] = {"units": [*there, foreign], "scores": [0.0] * (len(there) + 1)}

    path = altered(made / "sets.json", tmp_path / "s.json", change)
    report = replay(path)  # no scores file lies beside it: that is no difference
    assert not report.agrees
    assert report.worst == np.inf
    assert [line.partition(":")[0] for line in report.differences] == [f"sets.{label}"]


def test_a_file_saved_without_scores_or_narrowed_agrees(made: Path, tmp_path: Path) -> None:
    found = pc.Finding.load(made / "sets.json")
    found.save(tmp_path / "bare.json", scores=False)
    found.save(tmp_path / "narrow.json", classes=["specific"])
    assert pc.Finding.load(tmp_path / "bare.json").scores is None
    whole, bare = replay(made / "sets.json"), replay(tmp_path / "bare.json")
    assert bare.agrees
    assert bare.compared < whole.compared
    assert replay(tmp_path / "narrow.json").agrees


def test_a_changed_number_in_a_large_array_is_found_by_its_place(made: Path) -> None:
    rng = np.random.default_rng(0)
    then = {"scores": rng.normal(size=(3, 200_000)), "names": ["a", "b"], "same": None}
    now = {"scores": then["scores"].copy(), "names": ["a", "c"], "same": None}
    now["scores"][2, 77] += 1e-3
    now["scores"][0, 5] = np.nan
    report = compared({"call": "test"}, then, now, 1e-6)
    places = [line.partition(":")[0] for line in report.differences]
    assert places == ["names[1]", "scores[0, 5]", "scores[2, 77]"]
    assert report.compared == 600_003
    assert not report.agrees


@pytest.mark.parametrize(
    ("old", "new", "gap"),
    [
        (1.0, 1.0, 0), (1.0, 1.1, 0.1 / 1.1), (0.0, 0.0, 0), (0.0, 1e-9, 1), (np.nan, np.nan, 0), (np.nan, 1.0, np.inf),
        (np.inf, np.inf, 0), (np.inf, -np.inf, np.inf), (np.inf, 1.0, np.inf), (None, None, 0), (None, 1.0, np.inf),
        ("a", "a", 0), ("a", "b", np.inf), ("a", 1, np.inf), (True, True, 0), (3, 3.0, 0), ([], [], 0),
        (np.zeros(3), np.zeros(4), np.inf), (np.array(["a"]), np.array(["a"]), 0),
    ],
)  # fmt: skip
def test_relative_difference_of_two_leaves(old: Any, new: Any, gap: float) -> None:
    assert gaps_of(old, new).max(initial=0.0) == pytest.approx(gap)


def test_missing_inputs_are_named_and_can_be_given(made: Path, tiny_gpt2: Any, tmp_path: Path) -> None:
    text = pc.corpus(LABELS)
    units = pc.UnitSet.of(tiny_gpt2, ["mlp.1.3", "mlp.2.5"])
    path = tmp_path / "live.json"
    pc.effect(tiny_gpt2, units, on=text, controls=1, permutations=999, resamples=20).save(path)
    with pytest.raises(InputError, match="live object; give it as model="):
        replay(path)
    with pytest.raises(InputError, match=r"label 'en' was .* can't be opened again; give it"):
        replay(path, model=tiny_gpt2)
    assert replay(path, model=tiny_gpt2, text=text).agrees
    with pytest.raises(MismatchError, match="text given is not the one"):
        replay(path, model=tiny_gpt2, text=pc.corpus(en=LABELS["en"]))
    in_memory = pc.record(tiny_gpt2, text)
    pc.find.language(in_memory, shuffles=0).save(tmp_path / "memory.json")
    with pytest.raises(InputError, match="not kept on disk; give it as recording="):
        replay(tmp_path / "memory.json")
    assert replay(tmp_path / "memory.json", recording=in_memory).agrees
    with pytest.raises(MismatchError, match=r"is not the one that .*memory\.json was made from"):
        replay(tmp_path / "memory.json", recording=pc.Recording.open(made / "rec"))


def test_another_model_or_text_in_the_same_place_is_refused(made: Path, tiny_llama: Any, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="is not the one of the result"):
        replay(made / "effects.json", model=tiny_llama)
    text = made / "en.txt"
    before = text.read_text()
    try:
        text.write_text(before.replace("cat", "dog"))
        with pytest.raises(MismatchError, match=r"'en' in .*en\.txt is not what was read before"):
            replay(made / "effects.json")
    finally:
        text.write_text(before)

    def foreign(data: dict[str, Any]) -> None:
        data["provenance"]["inputs"]["text"]["labels"]["en"]["source"]["path"] = str(tmp_path / "gone.txt")

    with pytest.raises(InputError, match=r"no file at .*gone\.txt"):
        replay(altered(made / "effects.json", tmp_path / "e.json", foreign))


def test_files_that_do_not_say_how_they_were_made(made: Path, tmp_path: Path, tiny_gpt2: Any) -> None:
    path = altered(made / "effects.json", tmp_path / "e.json", lambda data: data.update(provenance={}))
    with pytest.raises(DamagedError, match="does not say how it was made"):
        replay(path)
    pc.UnitSet.of(tiny_gpt2, ["mlp.0.1"]).save(tmp_path / "plain.json")
    with pytest.raises(InputError, match="no finding"):
        replay(tmp_path / "plain.json")
    merged = pc.Recording.open(made / "rec").merge(pc.Recording.open(made / "rec"))
    merged.save(tmp_path / "merged")
    with pytest.raises(InputError, match=r"made by Recording\.merge, from recordings: replay those"):
        replay(tmp_path / "merged")


def test_versions_that_changed_are_listed(made: Path, tmp_path: Path) -> None:
    def older(data: dict[str, Any]) -> None:
        data["provenance"]["versions"]["torch"] = "1.0"

    report = replay(altered(made / "effects.json", tmp_path / "e.json", older))
    assert report.agrees
    assert report.versions["torch"][0] == "1.0"

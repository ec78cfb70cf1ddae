"""Readings, fitted interventions and selections are run again from what their files say of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.cli.program import program
from tests.test_replay import altered

import patchclamp as pc
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.intervene.fits import fit, fits
from patchclamp.models.features import LinearDictionary, load_dictionary
from patchclamp.replay import replay
from patchclamp.train.select import select

LABELS = {
    "en": [f"The cat number {n} sat on the mat and looked at the moon {n % 5} times." for n in range(30)],
    "fr": [f"Le chat {n} est assis sur le tapis et regarde la lune {n % 3} fois." for n in range(30)],
}
ASKED = [
    {"prompt": f"The cat {n}", "answer": " sat", "choices": [" sat", " lune"], "labels": {"tone": "ab"[n % 2]}}
    for n in range(24)
]


@pytest.fixture(scope="module")
def folder(tiny_gpt2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, text and task files, a recording, and an autoencoder's folder."""
    place = tmp_path_factory.mktemp("made")
    tiny_gpt2.hf.save_pretrained(place / "model")
    tiny_gpt2.tokenizer.save_pretrained(place / "model")
    for label, lines in LABELS.items():
        (place / f"{label}.txt").write_text("\n".join(lines) + "\n")
    (place / "asked.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ASKED))
    pc.record(
        opened(place), text(place), out=place / "rec", sites=("mlp",), quiet=True,
        statistics={"exemplars": {"k": 20}, "histogram": {}, "moments": {}, "shape": {}},
    )  # fmt: skip
    return place


def opened(place: Path) -> Any:
    return pc.load(place / "model")


def text(place: Path) -> Any:
    return pc.corpus({label: place / f"{label}.txt" for label in LABELS})


def tokens(place: Path) -> Any:
    return pc.read.tokens(opened(place), units=["mlp.0.3", "mlp.2.7"], k=5)


def words(place: Path) -> Any:
    return pc.read.word_units(opened(place), words=["cat", "the=the|sur"], top=3)


def factors(place: Path) -> Any:
    return pc.read.snmf(opened(place), text=text(place), layer=1, k=4, max_tokens=200, contexts=3, quiet=True)


def exemplars(place: Path) -> Any:
    return pc.read.exemplars(pc.Recording.open(place / "rec"), units=["mlp.0.3", "mlp.2.7"], k=4, window=8, probe=12)


def descriptions(place: Path) -> Any:
    recording = pc.Recording.open(place / "rec")
    return pc.read.describe(
        recording, units=["mlp.0.3"], k=4, window=8, lam=0.1, candidates=['the word "moon"'], quiet=True
    )


def autoencoder(place: Path) -> Any:
    from patchclamp.read.sae import sae

    target = place / f"sae-{len(list(place.glob('sae-*')))}"
    return sae(opened(place), text(place), to=str(target), layer=1, n_features=16, k=4, steps=20, batch=64, quiet=True)


def network(place: Path) -> Any:
    tasks = {"tone": pc.task(place / "asked.jsonl")}
    few = {"prompts": 2, "repeats": 1, "items": 6, "runs": 4, "nulls": 3, "permutations": 9}
    return pc.read.communities(opened(place), tasks, by=["tone"], quiet=True, **few)


READINGS: dict[str, Callable[[Path], Any]] = {
    "communities": network,
    "describe": descriptions,
    "exemplars": exemplars,
    "sae": autoencoder,
    "snmf": factors,
    "tokens": tokens,
    "word": words,
}


def test_every_reading_is_tried_here() -> None:
    own = [entry.name for entry in pc.read.readings if entry.target.__module__.startswith("patchclamp.")]
    assert sorted(READINGS) == own


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", READINGS)
def test_an_untouched_reading_agrees_to_the_last_digit(name: str, folder: Path, tmp_path: Path) -> None:
    report = replay(READINGS[name](folder).save(tmp_path / f"{name}.json"))
    assert report.agrees, report.differences
    assert (report.worst, report.differences) == (0.0, [])
    assert report.compared > 5


def test_an_altered_reading_and_another_model_are_told(folder: Path, tmp_path: Path, tiny_llama: Any) -> None:
    path = words(folder).save(tmp_path / "words.json")

    def change(data: dict[str, Any]) -> None:
        data["rows"][0]["value"] *= 2

    report = replay(altered(path, tmp_path / "altered.json", change))
    assert [line.partition(":")[0] for line in report.differences] == ["rows[0].value"]
    with pytest.raises(MismatchError, match="not the one of the result"):
        replay(path, model=tiny_llama)


def test_a_reading_of_what_was_in_memory_says_so(folder: Path, tmp_path: Path, tiny_gpt2: Any) -> None:
    found = pc.read.tokens_of(tiny_gpt2, torch.eye(32)[:3], k=2)
    with pytest.raises(InputError, match=r"made by read\.tokens_of from what was in memory"):
        replay(found.save(tmp_path / "directions.json"))


def shift(place: Path) -> Any:
    return fit("eigenshift", opened(place), task=pc.task(place / "asked.jsonl"), label="tone", positive="a", k=3)


def adjusted(place: Path) -> Any:
    return fit("neuron-adjust", pc.Recording.open(place / "rec"), forget=["fr"], site="mlp", share=0.05, seed=3)


def damped(place: Path) -> Any:
    model = opened(place)
    units = pc.UnitSet.of(model, ["mlp.0.3", "mlp.1.4", "mlp.2.5"], [0.9, 0.7, 0.3])
    return fit("aura", model, units=units)


@pytest.mark.parametrize("make", [shift, adjusted, damped])
def test_fitted_interventions_agree_to_the_last_digit(make: Any, folder: Path, tmp_path: Path) -> None:
    path = make(folder).save(tmp_path / "fitted.json")
    report = replay(path)
    assert report.agrees, report.differences
    assert report.worst == 0.0
    assert report.call.startswith("fit.")
    assert report.compared > 3
    assert isinstance(pc.Interventions.load(path), pc.Interventions)


def test_what_was_fitted_is_interventions_with_a_source(folder: Path) -> None:
    made = damped(folder)
    assert made.provenance["call"] == "fit.aura"
    assert repr(made).startswith("Interventions(1 on model ")
    both = made + made[0]
    assert type(both) is pc.Interventions
    assert len(both) == 2


def test_a_changed_number_of_a_packed_array_is_named(folder: Path, tmp_path: Path) -> None:
    from patchclamp.core.arrays import packed, unpacked

    def change(data: dict[str, Any]) -> None:
        entry = data["interventions"][0]
        vectors = unpacked(entry["vectors"])
        vectors[1] *= 1 + 1e-9  # far below what makes it no direction
        entry["vectors"] = packed(vectors)

    path = altered(shift(folder).save(tmp_path / "shift.json"), tmp_path / "altered.json", change)
    assert replay(path).agrees
    report = replay(path, tolerance=1e-12)
    assert not report.agrees
    assert report.differences[0].startswith("[0].vectors[1, ")


def test_live_arguments_and_interventions_by_hand_say_so(folder: Path, tmp_path: Path, tiny_gpt2: Any) -> None:
    hand = pc.Interventions([pc.Intervention(pc.UnitSet.of(tiny_gpt2, ["mlp.0.3"]), "set", 0.0)])
    with pytest.raises(InputError, match="put together by hand; no fit made them"):
        replay(hand.save(tmp_path / "hand.json"))

    def live(data: dict[str, Any]) -> None:
        data["provenance"]["arguments"]["task"] = {"live": "function"}

    with pytest.raises(InputError, match="made with a live function"):
        replay(altered(shift(folder).save(tmp_path / "shift.json"), tmp_path / "live.json", live))
    task = pc.Task.of(ASKED)
    path = fit("eigenshift", tiny_gpt2, task=task, label="tone", positive="a", k=3).save(tmp_path / "memory.json")
    with pytest.raises(InputError, match="give it as model="):
        replay(path)
    with pytest.raises(InputError, match="were in memory"):
        replay(path, model=tiny_gpt2)
    assert replay(path, model=tiny_gpt2, task=task).agrees


def test_a_fit_must_give_changes(monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Any) -> None:
    list(fits)
    monkeypatch.setattr(fits, "_entries", dict(fits._entries))
    fits.add("number")(lambda model: 3)
    with pytest.raises(InputError, match=r"the fit number gave a int; it must give Interventions"):
        fit("number", tiny_gpt2)
    with pytest.raises(InputError, match="no fit is called 'nothing'"):
        fit("nothing", tiny_gpt2)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_selections_agree(folder: Path, tmp_path: Path, tiny_gpt2: Any) -> None:
    rng = np.random.default_rng(0)
    LinearDictionary("words", "resid", 1, torch.from_numpy(rng.normal(size=(12, 32))).float(), activation="relu").save(
        folder / "words"
    )
    model, pool = opened(folder), text(folder)
    target = pc.corpus(aim=folder / "fr.txt").limited(max_documents=4)
    made = {
        "bm25": select(pool, target, "bm25", budget=5),
        "random": select(pool, how="random", budget=0.2, seed=4),
        "task": select(pc.task(folder / "asked.jsonl"), target, "bm25", budget=30, counting="tokens", model=model),
        "features": select(
            pool, target, "features", budget=5, model=model, dictionary=load_dictionary(folder / "words"), quiet=True
        ),
    }  # fmt: skip
    for name, found in made.items():
        report = replay(found.save(tmp_path / f"{name}.json"))
        assert report.agrees, (name, report.differences)
        assert report.worst == 0.0
    live = select(pc.corpus(LABELS), target, "bm25", budget=5).save(tmp_path / "live.json")
    with pytest.raises(InputError, match="can't be opened again; give it"):
        replay(live)
    assert replay(live, text=pc.corpus(LABELS)).agrees
    path = altered(tmp_path / "bm25.json", tmp_path / "altered.json", lambda data: data["scores"].reverse())
    assert not replay(path).agrees


def test_the_command_says_whether_they_agree(folder: Path, tmp_path: Path) -> None:
    path = damped(folder).save(tmp_path / "aura.json")
    ran = program("replay", path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("fit.aura: agrees (")

    def change(data: dict[str, Any]) -> None:
        data["interventions"][0]["value"] = [0.5 for _ in data["interventions"][0]["value"]]

    ran = program("replay", altered(path, tmp_path / "altered.json", change), "--json")
    assert ran.code == 1
    assert ran.json["agrees"] is False
    (tmp_path / "other.json").write_text('{"format": "patchclamp.measurements/1"}')
    ran = program("replay", tmp_path / "other.json")
    assert ran.code == 2
    assert "is no result that can be replayed" in ran.err

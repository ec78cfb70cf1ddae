"""Patching, edges, trade-offs and sweeps of steering are run again from what their files say of themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.test_replay import altered

import patchclamp as pc
from patchclamp.core.arrays import packed, unpacked
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.data.paired import PairedItem, PairedTask
from patchclamp.data.paired_sources import paired
from patchclamp.intervene import Direction, Interventions, intervention
from patchclamp.intervene.edge_attribution import attribute_edges, attribute_parts
from patchclamp.intervene.patching import patch
from patchclamp.intervene.path_patching import path_patch
from patchclamp.measure.concepts import Words
from patchclamp.measure.steering import steering_sweep
from patchclamp.measure.tradeoff import Tradeoff, tradeoff
from patchclamp.replay import replay

PROMPTS = ["The cat", "Le chat", "Two and two"]
LINES = ["The cat sat on the mat.", "Two and two make four.", "Le chat est assis."]
LETTERS = [("a", "b", "c", "d"), ("e", "f", "g", "h"), ("i", "j", "k", "l"), ("m", "n", "o", "p")]
JUDGE = Words(["��", ")"])  # what a random model writes are bytes that are no text
CHEAP: dict[str, Any] = {"samples": 2, "max_new_tokens": 3, "resamples": 20, "quiet": True}
SWEEP: dict[str, Any] = {**CHEAP, "controls": 1, "permutations": 999}


@pytest.fixture(scope="module")
def folder(tiny_llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a file of pairs, of text and of a task."""
    place = tmp_path_factory.mktemp("made")
    tiny_llama.hf.save_pretrained(place / "model")
    tiny_llama.tokenizer.save_pretrained(place / "model")
    pairs().save(place / "pairs.jsonl")
    (place / "en.txt").write_text("\n".join(LINES) + "\n")
    items = [{"prompt": text, "answer": " a", "choices": [" a", " o"]} for text in PROMPTS]
    (place / "asked.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return place


def pairs() -> PairedTask:
    """Pairs whose middle letter differs, one token a letter; the spot S is that letter."""
    items = [PairedItem(f"{a}-{b}-{c}", f"{a}-{d}-{c}", b, d, {"S": (2, 3)}) for a, b, c, d in LETTERS]
    return PairedTask("letters", tuple(items))


def model(place: Path) -> Any:
    return pc.load(place / "model")


def task(place: Path) -> PairedTask:
    return paired(place / "pairs.jsonl")


def heads(place: Path) -> Any:
    return patch(model(place), task(place).chosen([0, 1, 3]), layers=iter([0, 2]), way="denoise", batch_size=2)


def neurons(place: Path) -> Any:
    opened = model(place)
    units = pc.UnitSet.of(opened, ["mlp.2.5", "head.1.0", "mlp.0.3"])
    return patch(opened, task(place), units, positions=["S", 1, torch.tensor([2, 3, 2, 1])])


def estimated(place: Path) -> Any:
    return attribute_parts(model(place), task(place), "resid", positions="each", steps=2, batch_size=3)


def paths(place: Path) -> Any:
    return path_patch(model(place), task(place), senders=(f"head.{layer}.1" for layer in range(2)), freeze_mlps=True)


def paths_within(place: Path) -> Any:
    opened = model(place)
    heads = pc.UnitSet.of(opened, ["head.2.1", "head.2.3"])
    where = torch.zeros(4, len(task(place).encode(opened.tokenizer).clean[0]), dtype=torch.bool)
    where[:, 3] = True
    return path_patch(opened, task(place), heads, component="q", position=where, senders="all", below="all")


def edges(place: Path) -> Any:
    return attribute_edges(model(place), task(place).swapped(), position=3, steps=2, batch_size=2)


@pytest.mark.parametrize("make", [heads, neurons, estimated, paths, paths_within, edges])
def test_untouched_patching_agrees_to_the_last_digit(make: Any, folder: Path, tmp_path: Path) -> None:
    made = make(folder)
    report = replay(made.save(tmp_path / "made.json"))
    assert report.agrees, report.differences
    assert (report.worst, report.differences, report.versions) == (0.0, [], {})
    assert report.compared >= made.base.size * 2 + 3
    assert report.call == made.provenance["call"]


def test_generated_pairs_are_made_again(tmp_path: Path) -> None:
    demo = pc.load("demo")
    pairs = paired("generate:ioi,n=2,templates=demo,seed=3", demo.tokenizer)
    path = patch(demo, pairs, "mlp_out", layers=[1], positions=["S2", "END"]).save(tmp_path / "demo.json")
    report = replay(path, model=demo)
    assert (report.agrees, report.worst, report.compared) == (True, 0.0, 1 + 2 + 4 + 2 + 2)


def test_a_changed_number_is_named(folder: Path, tmp_path: Path) -> None:
    def shifted(name: str, place: tuple[int, ...]) -> Any:
        def change(data: dict[str, Any]) -> None:
            values = unpacked(data[name])
            values[place] += 1e-3
            data[name] = packed(values)

        return change

    path = neurons(folder).save(tmp_path / "neurons.json")
    report = replay(altered(path, tmp_path / "altered.json", shifted("patched", (1, 0, 2))))
    assert not report.agrees
    assert [line.partition(":")[0] for line in report.differences] == ["patched[1, 0, 2]"]
    path = edges(folder).save(tmp_path / "edges.json")
    report = replay(altered(path, tmp_path / "altered.json", shifted("effects", (0, 1))))
    assert [line.partition(":")[0] for line in report.differences] == ["effects[0, 1]"]


def test_missing_pairs_and_models_are_named_and_can_be_given(folder: Path, tmp_path: Path, tiny_llama: Any) -> None:
    in_memory = pairs()
    path = patch(tiny_llama, in_memory, layers=[0]).save(tmp_path / "live.json")
    with pytest.raises(InputError, match="give it as model="):
        replay(path)
    with pytest.raises(InputError, match=r"can't be opened again; give the pairs of .*live\.json as pairs="):
        replay(path, model=tiny_llama)
    assert replay(path, model=tiny_llama, pairs=in_memory).agrees
    with pytest.raises(MismatchError, match="the pairs given are not the ones"):
        replay(path, model=tiny_llama, pairs=in_memory.swapped())
    ids = in_memory.encode(tiny_llama.tokenizer)
    path = attribute_edges(tiny_llama, ids, steps=1).save(tmp_path / "ids.json")
    with pytest.raises(InputError, match="token ids that were in memory; give them as pairs="):
        replay(path, model=tiny_llama)
    assert replay(path, model=tiny_llama, pairs=ids).agrees
    with pytest.raises(MismatchError, match="the pairs given are not the ones"):
        replay(path, model=tiny_llama, pairs=ids.rows([1, 0, 2, 3]))


def test_pairs_that_changed_are_refused(folder: Path, tmp_path: Path) -> None:
    pairs().save(tmp_path / "own.jsonl")
    path = patch(model(folder), paired(tmp_path / "own.jsonl"), layers=[0]).save(tmp_path / "own.json")
    pairs().swapped().save(tmp_path / "own.jsonl")
    with pytest.raises(MismatchError, match="has other items now"):
        replay(path)
    (tmp_path / "own.jsonl").unlink()
    with pytest.raises(InputError, match=r"no file at .*as pairs="):
        replay(path)


def test_what_was_not_made_by_a_call_says_so(folder: Path, tmp_path: Path) -> None:
    path = heads(folder).save(tmp_path / "heads.json")

    def other(data: dict[str, Any]) -> None:
        data["provenance"]["call"] = "mine.patch"

    with pytest.raises(InputError, match=r"made by mine\.patch, which can't be replayed"):
        replay(altered(path, tmp_path / "mine.json", other))
    with pytest.raises(DamagedError, match="does not say how it was made"):
        replay(altered(path, tmp_path / "bare.json", lambda data: data.update(provenance={})))
    circuit = edges(folder).top(k=3).save(tmp_path / "circuit.json")
    with pytest.raises(InputError, match="is no result that can be replayed"):
        replay(circuit)


# --- trade-offs and sweeps -----------------------------------------------------------------------------------------


def along(place: Path) -> Direction:
    return Direction.of(model(place), "resid", 1, np.random.default_rng(0).standard_normal(32))


def curve(place: Path, **other: Any) -> Tradeoff:
    opened = model(place)
    runs: dict[str, Any] = {
        "zero/3": intervention(opened, [f"mlp.2.{n}" for n in range(40)], to=0.0),
        "both": Interventions(
            [intervention(opened, along(place), add=2.0), intervention(opened, "mlp.0.1", scale=3.0)]
        ),
    }
    given: dict[str, Any] = {
        "prompts": PROMPTS,
        "judge": JUDGE,
        "text": pc.corpus(en=place / "en.txt"),
        **CHEAP,
        **other,
    }
    return tradeoff(opened, runs, **given)


def test_tradeoffs_agree_and_a_changed_loss_is_named(folder: Path, tmp_path: Path) -> None:
    made = curve(folder, seed=4, stop=(".",), max_length=16)
    assert made["none"]["rate"] > 0
    path = made.save(tmp_path / "curve.json")
    report = replay(path)
    assert (report.agrees, report.worst) == (True, 0.0), report.differences
    again = Tradeoff.load(path).save(tmp_path / "again.json")  # what was applied is kept through a second file
    assert replay(again).agrees
    asked = curve(folder, prompts=pc.task(folder / "asked.jsonl")).save(tmp_path / "asked.json")
    assert replay(asked).agrees

    def change(data: dict[str, Any]) -> None:
        data["losses"]["both"][1] *= 1.01

    report = replay(altered(path, tmp_path / "altered.json", change))
    assert [line.partition(":")[0] for line in report.differences] == ["losses.both[1]"]


def test_judges_and_live_inputs_of_tradeoffs_are_named(folder: Path, tmp_path: Path) -> None:
    path = curve(folder, judge=str.islower).save(tmp_path / "function.json")
    with pytest.raises(InputError, match=r"judged by str\.islower, which no file can hold"):
        replay(path)
    live = pc.corpus(en=LINES)
    path = curve(folder, text=live).save(tmp_path / "live.json")
    with pytest.raises(InputError, match=r"can't be opened again; give the text of .* as text="):
        replay(path)
    assert replay(path, text=live).agrees
    given = pc.Task.of([{"prompt": text, "answer": " a"} for text in PROMPTS])
    path = curve(folder, prompts=given).save(tmp_path / "task.json")
    with pytest.raises(InputError, match=r"can't be opened again; give the task of .* as task="):
        replay(path)
    assert replay(path, task=given).agrees
    (tmp_path / "dict.json").write_text(json.dumps(json.loads(pc.core.files.to_json(curve(folder).to_dict()))))
    with pytest.raises(InputError, match="only names what was applied"):
        replay(tmp_path / "dict.json")


def test_sweeps_of_steering_agree_and_a_changed_row_is_named(folder: Path, tmp_path: Path) -> None:
    opened, text = model(folder), pc.corpus(en=folder / "en.txt")
    asked = pc.task(folder / "asked.jsonl")
    made = {
        "written": steering_sweep(opened, along(folder), [-0.5, 1], on=text, prompts=PROMPTS, judge=JUDGE, **SWEEP),
        "tasks": steering_sweep(opened, along(folder), [2], on={"a": asked, "b": asked}, strength_in="own", **SWEEP),
        "task": steering_sweep(opened, "mlp.1.3", [1.5], on=asked, scope="generated", how="choice", **SWEEP),
    }
    for name, sweep in made.items():
        report = replay(sweep.save(tmp_path / f"{name}.json"))
        assert (report.agrees, report.worst) == (True, 0.0), (name, report.differences)
        assert report.compared > 10

    def change(data: dict[str, Any]) -> None:
        data["rows"][0]["control_mean"] += 0.1

    report = replay(altered(tmp_path / "written.json", tmp_path / "altered.json", change))
    assert [line.partition(":")[0] for line in report.differences] == ["rows[0].control_mean"]


def test_judges_and_live_inputs_of_sweeps_are_named(folder: Path, tmp_path: Path, tiny_llama: Any) -> None:
    path = tmp_path / "sweep.json"
    direction, live = along(folder), pc.corpus(en=LINES)
    steering_sweep(tiny_llama, direction, [1], prompts=PROMPTS, judge=str.isupper, text=live, **SWEEP).save(path)
    with pytest.raises(InputError, match=r"judged by str\.isupper, which no file can hold"):
        replay(path)
    steering_sweep(tiny_llama, direction, [1], on=live, text=live, **SWEEP).save(path)
    with pytest.raises(InputError, match="give it as model="):
        replay(path)
    with pytest.raises(InputError, match=r"can't be opened again; give the text of .* as text="):
        replay(path, model=tiny_llama)
    assert replay(path, model=tiny_llama, text=live).agrees

    def unkept(data: dict[str, Any]) -> None:
        data["provenance"]["inputs"]["steering"]["interventions"] = None

    with pytest.raises(InputError, match="could not be kept as data"):
        replay(altered(path, tmp_path / "mask.json", unkept), model=tiny_llama, text=live)

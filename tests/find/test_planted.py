"""The planted checkpoints are what they claim to be, by plain transformers; and the whole path finds the plant."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.find.planted import Plant, plant
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchclamp.data.corpora import corpus
from patchclamp.find import Finding
from patchclamp.find.language import language
from patchclamp.intervene.clamp import clamp
from patchclamp.measure.perplexity import perplexity
from patchclamp.models.load import load
from patchclamp.record.recorder import record

FAMILIES = ("gpt2", "llama")
Recorded = tuple[Any, Any, Any]  # model, text, recording


@pytest.fixture(scope="module", params=FAMILIES)
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    return plant(tmp_path_factory.mktemp(request.param), family=request.param)


def down_projections(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(("mlp.c_proj", "mlp.down_proj"))]


def test_neurons_fire_exactly_as_wired(planted: Plant) -> None:
    tokenizer = AutoTokenizer.from_pretrained(planted.path)
    model = AutoModelForCausalLM.from_pretrained(planted.path)
    seen: list[torch.Tensor] = []
    handles = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0] > 0)) for m in down_projections(model)]
    fired = {}
    for label, lines in planted.text(documents=3).items():
        seen.clear()
        ids = torch.tensor([tokenizer(line)["input_ids"] for line in lines])
        assert ids.shape == (3, 20)
        model(ids)
        fired[label] = torch.cat([layer.flatten(0, 1).sum(0) for layer in seen])
    for handle in handles:
        handle.remove()
    for kind, names in planted.classes.items():
        for name in names:
            _, layer, index = name.split(".")
            counts = {label: int(total[int(layer) * planted.width + int(index)]) for label, total in fired.items()}
            often = 3 if kind == "unassigned" else 60
            assert counts == {label: often if label in planted.serves[name] else 0 for label in planted.labels}


def test_silencing_a_language_by_hand_hurts_only_it(planted: Plant) -> None:
    tokenizer = AutoTokenizer.from_pretrained(planted.path)
    lines = planted.text(documents=4)
    texts = {label: torch.tensor([tokenizer(line)["input_ids"] for line in lines[label]]) for label in lines}

    whole = AutoModelForCausalLM.from_pretrained(planted.path)

    def losses() -> dict[str, float]:
        model = copy.deepcopy(whole)
        with torch.no_grad():
            for name in silenced:
                _, layer, index = name.split(".")
                module = down_projections(model)[int(layer)]
                column = module.weight[int(index)] if planted.family == "gpt2" else module.weight[:, int(index)]
                column.zero_()
            return {label: float(model(ids, labels=ids).loss) for label, ids in texts.items()}

    silenced: list[str] = []
    plain = losses()
    for label in planted.labels:
        silenced = planted.sets("specific")[label]
        for text, loss in losses().items():
            if text == label:
                assert loss > plain[text] + 0.1
            else:
                assert loss == plain[text]


@pytest.fixture(scope="module")
def recorded(planted: Plant) -> Recorded:
    model = load(str(planted.path))
    text = corpus(planted.text())
    return model, text, record(model, text, sites=("mlp", "gate"), statistics=("firing",), quiet=True)


def test_the_plant_is_recovered_exactly(planted: Plant, recorded: Recorded, tmp_path: Path) -> None:
    model, _, recording = recorded
    found = language(recording)
    assert {label: units.names() for label, units in found.sets.items()} == planted.sets()
    assert found.class_counts() == planted.counts
    for kind, names in planted.classes.items():
        assert {found.class_of(name) for name in names} == {kind}
    again = Finding.load(found.save(tmp_path / "neurons.json"))
    assert again.sets == found.sets
    again.sets["fr"].check_model(model)
    assert again.provenance["inputs"]["recording"]["fingerprint"] == recording.fingerprint


def test_lape_finds_the_same_plant(planted: Plant, recorded: Recorded) -> None:
    found = language(recorded[2], method="lape", shuffles=0)
    assert {label: units.names() for label, units in found.sets.items()} == planted.sets()


def test_the_gate_site_names_the_same_neurons(planted: Plant, recorded: Recorded) -> None:
    found = language(recorded[2], site="gate", shuffles=0)
    assert {k: [name.replace("gate", "mlp") for name in v.names()] for k, v in found.sets.items()} == planted.sets()


def test_clamping_a_found_set_hurts_only_its_language(planted: Plant, recorded: Recorded) -> None:
    model, text, recording = recorded
    sets = language(recording, shuffles=0).select(classes=["specific"])
    plain = {label: result.value for label, result in perplexity(model, text).items()}
    for label, units in sets.items():
        with clamp(model, units, to=0.0):
            clamped = {key: result.value for key, result in perplexity(model, text).items()}
        for key in plain:
            if key == label:
                assert clamped[key] > 1.1 * plain[key]
            else:
                assert clamped[key] == plain[key]


def test_the_plant_is_far_above_its_null(planted: Plant, recorded: Recorded) -> None:
    null = language(recorded[2], shuffles=9, seed=3).null
    assert null["named"]["observed"] == 12
    assert null["classes"]["specific"]["max"] < 8
    assert np.isfinite(null["named"]["mean"])

"""Effects on a hand-wired model against the closed form; prefix reuse, scopes, degenerate sets and texts, files."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import DamagedError, InputError, MismatchError, ModelError
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import corpus
from patchclamp.data.documents import Document
from patchclamp.intervene import clamp
from patchclamp.measure import Effects, effect, perplexity
from patchclamp.models.units import UnitSet
from patchclamp.record import record

spec = importlib.util.spec_from_file_location("planted", Path(__file__).parent / "planted.py")
assert spec is not None
assert spec.loader is not None
planted = importlib.util.module_from_spec(spec)
spec.loader.exec_module(planted)

KEYS = {
    "set", "text", "metric", "plain", "clamped", "effect", "low", "high", "control_mean", "control_sd", "p", "p_holm",
    "p_controls", "n_documents", "n_tokens", "n_units",
}  # fmt: skip
TEXT = {
    "en": ["The cat sat on the mat.", "Two and two make four.", "The moon"],
    "fr": ["Le chat est assis.", "Il regarde la lune."],
}


@pytest.fixture(scope="module")
def wired() -> Any:
    return planted.planted()


@pytest.fixture(scope="module")
def wired_text() -> Any:
    return corpus(a=planted.documents("a", 20), b=planted.documents("b", 15))


@pytest.fixture(scope="module")
def wired_effects(wired: Any, wired_text: Any) -> Effects:
    sets = {name: UnitSet.of(wired, [unit]) for name, unit in planted.NEURONS.items()}
    return effect(wired, sets, on=wired_text, controls=3, seed=1, quiet=True)


def test_the_planted_neuron_changes_the_loss_by_the_closed_form_and_controls_change_nothing(
    wired_effects: Effects,
) -> None:
    for name in "ab":
        for text, n in (("a", 20), ("b", 15)):
            row = wired_effects.row(name, text)
            texts = planted.documents(text, n)
            tokens = sum(len(document.split()) - 1 for document in texts)
            plain = math.exp(sum(planted.loss(document) for document in texts) / tokens)
            clamped = math.exp(sum(planted.loss(document, clamped={name: 0.0}) for document in texts) / tokens)
            assert row["plain"] == pytest.approx(plain, rel=1e-5)
            assert row["clamped"] == pytest.approx(clamped, rel=1e-5)
            assert row["n_tokens"] == tokens
            if name == text:
                assert row["effect"] > 0.5
                assert row["low"] < row["effect"] < row["high"]
                assert row["p"] < 0.001
                assert 3 * row["p"] <= row["p_holm"] <= 4 * row["p"] or row["p_holm"] == 1
                assert row["p_controls"] == 1 / 4
                assert row["control_mean"] == 0
                assert row["control_sd"] == 0
            else:
                assert row["effect"] == 0
                assert (row["low"], row["high"]) == (0, 0)
                assert row["p"] == 1


def test_the_matrix_is_dominated_by_its_diagonal(wired_effects: Effects) -> None:
    assert wired_effects.matrix().shape == (2, 2)
    assert wired_effects.matrix("log_ratio")[0, 1] == 0
    row = wired_effects.row("a", "a")
    assert wired_effects.matrix("log_ratio")[0, 0] == pytest.approx(math.log(row["clamped"] / row["plain"]))
    found = wired_effects.dominance()
    assert found["dominant"] is True
    assert found["share"] == 1
    assert found["labels"] == ["a", "b"]
    assert found["diagonal"] > found["off_diagonal"] == 0


def test_clamping_to_another_value_also_follows_the_closed_form(wired: Any) -> None:
    texts = planted.documents("b", 4)
    units = UnitSet.of(wired, [planted.NEURONS["a"]])
    row = effect(wired, units, on=corpus(b=texts), to=2.5, controls=0).rows[0]
    tokens = sum(len(document.split()) - 1 for document in texts)
    assert row["set"] == "units"
    assert row["clamped"] == pytest.approx(
        math.exp(sum(planted.loss(t, clamped={"a": 2.5}) for t in texts) / tokens), rel=1e-5
    )


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def some(model: Any) -> dict[str, UnitSet]:
    return {
        "low": UnitSet.of(model, ["mlp.0.3", "mlp.2.4"]),
        "high": UnitSet.of(model, ["mlp.2.4", "mlp.2.7", "mlp.1.1"]),
        "head": UnitSet.of(model, ["head.2.1"]),
        "resid": UnitSet.of(model, ["resid.1.3"]),
        "embed": UnitSet.of(model, ["embed.0.3"]),
    }


@pytest.mark.parametrize("how", [{"to": 0.0}, {"scale": -1.0}, {"add": 3.0}])
def test_an_effect_is_the_difference_of_two_perplexities(model: Any, how: dict[str, float]) -> None:
    text = corpus(TEXT)
    found = effect(model, some(model), on=text, controls=0, quiet=True, **how)
    plain = perplexity(model, text)
    for name, units in some(model).items():
        with clamp(model, units, **how):
            clamped = perplexity(model, text)
        for label in text.labels:
            row = found.row(name, label)
            assert row["plain"] == pytest.approx(plain[label].value, rel=1e-6)
            assert row["clamped"] == pytest.approx(clamped[label].value, rel=1e-5)
            change = clamped[label] - plain[label]
            assert row["effect"] == pytest.approx(change.value, rel=1e-3, abs=1e-3)
            assert (row["low"], row["high"]) == pytest.approx(change.interval(), rel=1e-3, abs=2e-2)
            assert row["p"] == pytest.approx(change.p())


def test_reusing_the_prefix_gives_the_same_table(model: Any) -> None:
    text = corpus(TEXT)
    with_prefix = effect(model, some(model), on=text, controls=2, quiet=True)
    without = effect(model, some(model), on=text, controls=2, reuse=False, quiet=True)
    assert with_prefix.rows == without.rows
    assert with_prefix.documents == without.documents


def test_the_blocks_below_a_set_run_once_per_batch_and_not_once_per_run(tiny_llama: Any) -> None:
    calls = [0, 0, 0]
    originals = [layer.forward for layer in tiny_llama.hf.model.layers]

    def counting(number: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            calls[number] += 1
            return originals[number](*args, **kwargs)

        return forward

    effect(tiny_llama, UnitSet.of(tiny_llama, ["mlp.2.4"]), on=corpus(TEXT), controls=1, quiet=True)  # verified before
    for number, layer in enumerate(tiny_llama.hf.model.layers):
        layer.forward = counting(number)
    try:
        effect(tiny_llama, UnitSet.of(tiny_llama, ["mlp.2.4"]), on=corpus(en=TEXT["en"]), controls=4, quiet=True)
    finally:
        for layer in tiny_llama.hf.model.layers:
            del layer.forward
    assert calls == [2, 2, 6]  # plain and prefix; then plain, set and 4 controls


def test_an_effect_can_be_measured_inside_a_clamp_of_lower_layers(tiny_llama: Any) -> None:
    text, units = corpus(TEXT), UnitSet.of(tiny_llama, ["mlp.2.4"])
    with clamp(tiny_llama, ["mlp.0.1", "mlp.0.2"], to=2.0):
        found = effect(tiny_llama, units, on=text, controls=1, quiet=True)
        plain = perplexity(tiny_llama, text)
        with clamp(tiny_llama, units, to=0.0):
            clamped = perplexity(tiny_llama, text)
    for label in text.labels:
        row = found.row("units", label)
        assert (row["plain"], row["clamped"]) == pytest.approx((plain[label].value, clamped[label].value), rel=1e-5)


def test_batch_size_does_not_change_an_effect(tiny_llama: Any) -> None:
    text, sets = corpus(TEXT), some(tiny_llama)
    one = effect(tiny_llama, sets, on=text, controls=2, batch_tokens=1, quiet=True)
    all_at_once = effect(tiny_llama, sets, on=text, controls=2, quiet=True)
    for left, right in zip(one.rows, all_at_once.rows, strict=True):
        assert left["effect"] == pytest.approx(right["effect"], rel=1e-3, abs=1e-3)


def test_controls_are_matched_per_layer_exclude_the_set_and_enter_the_row(tiny_llama: Any) -> None:
    units = UnitSet.of(tiny_llama, ["mlp.0.3", "mlp.2.4", "mlp.2.5"])
    text = corpus(en=TEXT["en"])
    row = effect(tiny_llama, units, on=text, controls=3, seed=5, quiet=True).rows[0]
    plain = perplexity(tiny_llama, text)["en"]
    expected, changes = [], []
    for seed in (5, 6, 7):
        control = units.matched_random(seed)
        assert control.per_layer().tolist() == [1, 0, 2]
        assert not len(control & units)
        with clamp(tiny_llama, control, to=0.0):
            measured = perplexity(tiny_llama, text)["en"]
        expected.append(measured.value - plain.value)
        changes.append(measured.totals - plain.totals)
    assert row["control_mean"] == pytest.approx(np.mean(expected), rel=1e-3, abs=1e-3)
    assert row["control_sd"] == pytest.approx(np.std(expected, ddof=1), rel=1e-2, abs=1e-3)
    larger = sum(abs(value) >= abs(row["effect"]) for value in expected)
    assert row["p_controls"] == (larger + 1) / 4


def test_a_clamp_to_the_mean_uses_the_recording_for_set_and_controls(tiny_llama: Any) -> None:
    text, units = corpus(TEXT), UnitSet.of(tiny_llama, ["mlp.1.3", "mlp.1.4"])
    recording = record(tiny_llama, text, statistics=("moments",), quiet=True)
    found = effect(tiny_llama, units, on=text, to="mean", recording=recording, label="fr", controls=1, quiet=True)
    plain = perplexity(tiny_llama, text)
    for chosen, key in ((units, "effect"), (units.matched_random(0), "control_mean")):
        with clamp(tiny_llama, chosen, to="mean", recording=recording, label="fr"):
            changed = perplexity(tiny_llama, text)
        for row in found.rows:
            label = row["text"]
            assert row[key] == pytest.approx(changed[label].value - plain[label].value, rel=1e-3, abs=1e-3)
    assert found.provenance["inputs"]["recording"]["fingerprint"] == recording.fingerprint


def test_a_response_scope_changes_response_positions_only(model: Any) -> None:
    texts = ["The cat sat on the mat.", "Two and two make four."]
    cut = [text.index(word) for text, word in zip(texts, ("on", "make"), strict=True)]
    documents = [Document(text, {"response": ((start, len(text)),)}) for text, start in zip(texts, cut, strict=True)]
    units = UnitSet.at(model, "mlp", range(0, model.layouts["mlp"].total, 4))
    select = Selection(inside="response")
    for scope in ("prompt", "generated"):
        found = effect(
            model, units, on=corpus(en=documents), to=1.0, scope=scope, select=select, controls=0, quiet=True
        )
        for number, (text, start) in enumerate(zip(texts, cut, strict=True)):
            encoded = model.tokenizer(text, return_offsets_mapping=True)
            ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
            response = np.array([stop > start for _, stop in offsets])
            mask = response if scope == "generated" else ~response
            with clamp(model, units, to=1.0, mask=mask[None, :]):
                logits = torch.log_softmax(model.logits(torch.tensor([ids]))[0].double(), -1)
            expected = -sum(float(logits[i - 1, ids[i]]) for i in np.flatnonzero(response))
            assert found.documents["en"]["clamped"]["units"][number] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(InputError, match="inside='response'"):
        effect(model, units, on=corpus(en=texts), scope="generated")


def test_an_empty_set_has_no_effect_p_one_and_a_warning(tiny_llama: Any) -> None:
    with pytest.warns(UserWarning, match="'none' is empty"):
        found = effect(tiny_llama, {"none": UnitSet.of(tiny_llama, [])}, on=corpus(en=TEXT["en"]), quiet=True)
    row = found.rows[0]
    assert row["effect"] == 0
    assert (row["low"], row["high"]) == (0, 0)
    assert (row["p"], row["p_holm"], row["n_units"]) == (1, 1, 0)
    assert row["control_mean"] is None
    assert "empty" in found.warnings[0]


def test_one_document_has_no_interval_and_a_warning(tiny_llama: Any) -> None:
    with pytest.warns(UserWarning, match="'en' has 1 document"):
        row = effect(tiny_llama, some(tiny_llama)["low"], on=corpus(en=TEXT["en"][:1]), controls=1, quiet=True).rows[0]
    assert row["low"] is None
    assert row["high"] is None
    assert row["p"] == 1
    assert row["control_sd"] is None


def test_a_set_of_more_than_half_a_layer_is_warned_about(tiny_llama: Any) -> None:
    with pytest.warns(UserWarning, match="share units"):
        effect(tiny_llama, UnitSet.at(tiny_llama, "mlp", range(40)), on=corpus(en=TEXT["en"]), controls=1, quiet=True)


def test_units_of_another_model_are_refused(tiny_llama: Any, tiny_gpt2: Any) -> None:
    with pytest.raises(MismatchError, match="belong to model"):
        effect(tiny_gpt2, UnitSet.of(tiny_llama, ["mlp.0.1"]), on=corpus(en=TEXT["en"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": 0.0, "scale": 2.0}, "one of"),
        ({"to": [1.0]}, "one number"),
        ({"to": "mean"}, "recording"),
        ({"controls": -1}, "at least 0"),
        ({"scope": "answer"}, "scope"),
        ({"max_length": 1000}, "2 to 64"),
    ],
)
def test_bad_requests_say_what_to_do(tiny_llama: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        effect(tiny_llama, UnitSet.of(tiny_llama, ["mlp.0.1"]), on=corpus(en=TEXT["en"]), quiet=True, **arguments)


def test_no_set_and_no_unit_set_are_refused(tiny_llama: Any) -> None:
    with pytest.raises(InputError, match="no unit set"):
        effect(tiny_llama, {}, on=corpus(en=TEXT["en"]))
    with pytest.raises(InputError, match="UnitSet is needed"):
        effect(tiny_llama, {"x": ["mlp.0.1"]}, on=corpus(en=TEXT["en"]))  # type: ignore[dict-item]


def test_an_exploding_clamp_names_the_document(tiny_gpt2: Any) -> None:
    units = UnitSet.at(tiny_gpt2, "mlp", range(260, 300))
    with pytest.raises(ModelError, match=r"'en', document \d, is not finite"):
        effect(tiny_gpt2, units, on=corpus(en=TEXT["en"]), to=3e38, controls=0, quiet=True)


def test_an_interrupt_leaves_the_model_as_it_was(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from patchclamp.measure import effect_runs

    plain, calls = tiny_llama.logits(torch.tensor([[1, 2, 3]])), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = effect_runs.score
    monkeypatch.setattr(effect_runs, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        effect(tiny_llama, some(tiny_llama), on=corpus(TEXT), controls=1, quiet=True)
    assert torch.equal(tiny_llama.logits(torch.tensor([[1, 2, 3]])), plain)


def test_memory_running_out_cuts_the_batches_and_changes_nothing(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchclamp.measure import likelihood

    text, sets = corpus(TEXT), some(tiny_llama)
    wanted = effect(tiny_llama, sets, on=text, controls=1, quiet=True)
    original = likelihood.batch_sums

    def tight(logits: torch.Tensor, batch: Any) -> torch.Tensor:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return original(logits, batch)

    monkeypatch.setattr(likelihood, "batch_sums", tight)
    found = effect(tiny_llama, sets, on=text, controls=1, quiet=True)
    for left, right in zip(found.rows, wanted.rows, strict=True):
        assert left["effect"] == pytest.approx(right["effect"], rel=1e-3, abs=1e-3)


def test_the_table_is_saved_loaded_and_says_where_it_comes_from(
    wired: Any, wired_effects: Effects, tmp_path: Path
) -> None:
    path = wired_effects.save(tmp_path / "effects.json")
    data = json.loads(path.read_text())
    assert data["format"] == "patchclamp.effects/1"
    assert all(set(row) == KEYS for row in data["rows"])
    loaded = Effects.load(path)
    assert loaded.rows == wired_effects.rows
    assert loaded.documents == wired_effects.documents
    source = loaded.provenance
    assert source["call"] == "effect"
    assert source["arguments"]["to"] == 0.0
    assert source["seed"] == 1
    assert source["inputs"]["model"]["fingerprint"] == wired.fingerprint
    assert source["inputs"]["sets"]["a"]["units"] == ["mlp.1.5"]
    assert set(source["inputs"]["text"]["labels"]) == {"a", "b"}
    path.write_text('{"format": "patchclamp.effects/1", "rows": []}')
    with pytest.raises(DamagedError, match="complete"):
        Effects.load(path)


def test_frames_and_tables_hold_the_rows(wired_effects: Effects) -> None:
    assert wired_effects.polars()["effect"].to_list() == [row["effect"] for row in wired_effects.rows]
    assert wired_effects.pandas()["effect"].tolist() == [row["effect"] for row in wired_effects.rows]
    assert "p (Holm)" in repr(wired_effects)
    page = wired_effects._repr_html_()
    assert "<table>" in page
    assert "rgb(255" in page
    for value in ("excess", "n_units", "control_mean"):
        assert wired_effects.matrix(value).shape == (2, 2)
    with pytest.raises(InputError, match="log_ratio"):
        wired_effects.matrix("text")
    with pytest.raises(InputError, match="no effect of 'c'"):
        wired_effects.row("c", "a")


def test_dominance_needs_two_names_that_are_set_and_text(tiny_llama: Any) -> None:
    found = effect(tiny_llama, some(tiny_llama)["low"], on=corpus(en=TEXT["en"]), controls=0, quiet=True)
    with pytest.raises(InputError, match="2 names"):
        found.dominance()


def test_frames_are_imported_only_when_asked_for() -> None:
    """No file of the room imports polars or pandas outside a function."""
    import patchclamp.measure

    for path in Path(patchclamp.measure.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"polars", "pandas"}


def test_too_few_permutations_for_the_size_of_the_table_are_warned_about(wired: Any) -> None:
    units = UnitSet.of(wired, ["mlp.1.5"])
    with pytest.warns(UserWarning, match="permutations=200"):
        row = effect(
            wired, units, on=corpus(a=planted.documents("a", 20)), permutations=49, controls=0, quiet=True
        ).rows[0]
    assert row["p"] == 1 / 50

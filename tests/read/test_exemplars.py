"""Exemplars of text units against brute force, on a tiny random model; files; rendering."""

from __future__ import annotations

import html as markup
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.data import corpus
from patchclamp.data.batches import Selection
from patchclamp.data.documents import Document
from patchclamp.models.collect import collect
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_config
from patchclamp.models.units import Unit, UnitSet
from patchclamp.read.exemplar import Exemplar, marked
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
from patchclamp.read.exemplar_view import png, render, rows_html
from patchclamp.read.exemplars import distinct, exemplars, is_kept_out
from patchclamp.read.passages import PassageReader, Wanted, parts_of
from patchclamp.record import record

EN = [f"The cat number {n} sat on the mat and looked at the moon." for n in range(12)]
FR = [f"Le chat {n} est assis sur le tapis et regarde la lune ; 猫は{n}匹。" for n in range(12)]
UNITS = ["mlp.0.3", "mlp.1.100", "mlp.2.17"]
KEPT = {"exemplars": {"k": 400}, "histogram": {"bits": 5}}


@pytest.fixture(scope="module")
def text() -> Any:
    return corpus(en=EN, fr=FR)


@pytest.fixture(scope="module")
def recording(tiny_gpt2: Any, text: Any) -> Any:
    return record(tiny_gpt2, text, statistics=KEPT, quiet=True)


@pytest.fixture(scope="module")
def store(recording: Any, tiny_gpt2: Any, text: Any) -> ExemplarStore:
    return exemplars(recording, units=UNITS, model=tiny_gpt2, text=text, k=6, probe=8, held_out=4, sample=5)


def small(kind: str, tokenizer: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny random model of a type, with the tokenizer's vocabulary."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(kind)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    return load(AutoModelForCausalLM.from_config(config).to(dtype), tokenizer=tokenizer)


def values_of(model: Any, line: str, unit: str) -> np.ndarray:
    """The unit's values on the tokens of a text without BOS, from a plain forward pass."""
    ids = torch.tensor([model.tokenize(line)])
    seen = collect(model, "mlp", ids)[0, 1:, model.layouts["mlp"].position(Unit.parse(unit))]
    return seen.numpy()


def test_top_passages_are_those_of_brute_force(store: ExemplarStore, tiny_gpt2: Any) -> None:
    for unit in UNITS:
        best = []
        for label, lines in (("en", EN), ("fr", FR)):
            for number, line in enumerate(lines):
                if not is_kept_out(number):
                    best.append((float(values_of(tiny_gpt2, line, unit).max()), label, number))
        expected = sorted(best, reverse=True)[:6]
        shown = store[unit].top
        np.testing.assert_allclose([one.value for one in shown], [value for value, _, _ in expected], rtol=1e-4)
        assert len({one.source[:2] for one in shown}) == 6


def test_a_window_is_short_and_holds_the_highest_token(recording: Any, tiny_gpt2: Any, text: Any) -> None:
    shown = exemplars(recording, units=UNITS, model=tiny_gpt2, text=text, k=3, window=5, probe=2, held_out=2)
    lines = {"en": EN, "fr": FR}
    for unit in UNITS:
        for one in shown[unit].top:
            whole = values_of(tiny_gpt2, lines[one.label][one.document], unit)
            assert len(one.parts) == 5
            assert one.value == pytest.approx(float(whole.max()), rel=1e-4)


def test_every_token_carries_the_value_of_a_plain_forward_pass(store: ExemplarStore, tiny_gpt2: Any) -> None:
    lines = {"en": EN, "fr": FR}
    for unit in UNITS:
        for one in (*store[unit].top, *store[unit].sample, *store[unit].held_out):
            whole = values_of(tiny_gpt2, lines[one.label][one.document], unit)
            np.testing.assert_allclose(one.values, whole[one.start : one.start + len(one.parts)], rtol=1e-3, atol=1e-5)
            assert one.text in lines[one.label][one.document]


def test_the_bar_is_the_quantile_of_all_values(store: ExemplarStore, tiny_gpt2: Any) -> None:
    for unit in UNITS:
        every = np.concatenate([values_of(tiny_gpt2, line, unit) for line in EN + FR])
        exact = np.sort(every)[int(np.floor(0.99 * (len(every) - 1)))]
        assert store[unit].bar == pytest.approx(exact, rel=1 / 65 + 1e-6)


def test_held_out_documents_serve_nothing_else(store: ExemplarStore) -> None:
    for unit in UNITS:
        shown = store[unit]
        assert all(is_kept_out(one.document) for one in shown.held_out)
        assert not any(is_kept_out(one.document) for one in (*shown.top, *shown.sample))
        places = [one.source[:2] for one in shown.held_out]
        assert len(set(places)) == len(places)
    assert not any(is_kept_out(one.document) for one in store.probe)


def test_the_sample_covers_the_range_of_the_probe(store: ExemplarStore) -> None:
    for unit in UNITS:
        values = [one.value for one in store[unit].sample]
        every = sorted(one.value for one in store.probe_of(unit))
        assert values == sorted(values)
        assert (values[0], values[-1]) == (every[0], every[-1])


def test_a_text_that_comes_twice_is_shown_once(tiny_gpt2: Any) -> None:
    text = corpus(en=[EN[0], EN[0].upper().capitalize(), *EN[:9], *EN[:9]])
    recorded = record(tiny_gpt2, text, statistics=KEPT, quiet=True)
    shown = exemplars(recorded, units=UNITS[:1], model=tiny_gpt2, text=text, k=12, window=64, probe=4, held_out=4)
    texts = [" ".join(one.text.casefold().split()) for one in shown[UNITS[0]].top]
    assert len(set(texts)) == len(texts) < 12
    assert any("distinct top passages" in note for note in shown[UNITS[0]].notes)


def test_long_documents_are_read_in_the_pieces_of_the_recording(tiny_gpt2: Any) -> None:
    text = corpus(en=[" ".join(EN[n : n + 6]) for n in range(6)])
    recorded = record(tiny_gpt2, text, statistics=KEPT, max_length=20, quiet=True)
    shown = exemplars(recorded, units=UNITS, model=tiny_gpt2, text=text, k=3, window=6, probe=2, held_out=2)
    kept = recorded.get("exemplars", "en")
    for unit in UNITS:
        position = tiny_gpt2.layouts["mlp"].position(Unit.parse(unit))
        allowed = [value for value, document in zip(kept.value[:, position], kept.document[:, position], strict=True)
                   if not is_kept_out(int(document))]  # fmt: skip
        assert shown[unit].top[0].value == pytest.approx(float(allowed[0]), rel=1e-4)
        assert any(one.start > 0 for one in shown[unit].top)


def test_recordings_of_selected_tokens_mean_the_same_positions(tiny_gpt2: Any) -> None:
    text = corpus(en=[Document(line, {"tail": ((20, len(line)),)}) for line in EN])
    recorded = record(tiny_gpt2, text, statistics=KEPT, select=Selection(inside="tail"), quiet=True)
    shown = exemplars(recorded, units=UNITS[:1], model=tiny_gpt2, text=text, k=3, probe=2, held_out=2)
    best = shown[UNITS[0]].top[0]
    whole = values_of(tiny_gpt2, EN[best.document], UNITS[0])
    np.testing.assert_allclose(best.values, whole[best.start :][: len(best.parts)], rtol=1e-3, atol=1e-5)
    assert "tail" in best.tags


def test_units_of_heads_and_of_the_residual_stream_have_exemplars(tiny_llama: Any, text: Any) -> None:
    recorded = record(tiny_llama, text, sites=("head", "resid"), statistics=KEPT, quiet=True)
    units = UnitSet.of(tiny_llama, ["head.1.2", "resid.2.5"])
    shown = exemplars(recorded, units=units, model=tiny_llama, text=text, k=2, probe=2, held_out=2)
    for site, unit in (("head", "head.1.2"), ("resid", "resid.2.5")):
        at = tiny_llama.layouts[site].position(Unit.parse(unit))
        line = {"en": EN, "fr": FR}[shown[unit].top[0].label][shown[unit].top[0].document]
        plain = collect(tiny_llama, site, torch.tensor([tiny_llama.tokenize(line)]))[0, 1:, at].numpy()
        assert shown[unit].top[0].value == pytest.approx(float(plain.max()), rel=1e-4)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_expert_neurons_have_exemplars(kind: str, tiny_tokenizer: Any) -> None:
    model = small(kind, tiny_tokenizer)
    text = corpus(en=EN[:6])
    recorded = record(model, text, statistics=KEPT, quiet=True)
    unit = next(name for name in model.layouts["mlp"].names([3]) if ".e" in name)
    shown = exemplars(recorded, units=[unit], model=model, text=text, k=2, probe=2, held_out=2)[unit]
    kept = recorded.get("exemplars", "en")
    allowed = [value for value, document in zip(kept.value[:, 3], kept.document[:, 3], strict=True)
               if document >= 0 and not is_kept_out(int(document))]  # fmt: skip
    assert shown.top[0].value == pytest.approx(max(float(allowed[0]), 0.0), rel=1e-3)


def test_a_bfloat16_model_has_exemplars_with_its_own_values(tiny_tokenizer: Any) -> None:
    model = small("llama", tiny_tokenizer, torch.bfloat16)
    text = corpus(en=EN[:6])
    recorded = record(model, text, statistics=KEPT, quiet=True)
    shown = exemplars(recorded, units=["mlp.0.1"], model=model, text=text, k=2, probe=2, held_out=2)["mlp.0.1"]
    kept = recorded.get("exemplars", "en")
    allowed = [float(v) for v, d in zip(kept.value[:, 1], kept.document[:, 1], strict=True) if not is_kept_out(int(d))]
    assert shown.top[0].value == pytest.approx(allowed[0], rel=0.02)
    assert shown.top[0].values.dtype == np.float32


def test_without_a_histogram_the_bar_is_of_the_probe_and_said(tiny_gpt2: Any, text: Any) -> None:
    recorded = record(tiny_gpt2, text, statistics={"exemplars": {"k": 12}}, quiet=True)
    shown = exemplars(recorded, units=UNITS[:1], model=tiny_gpt2, text=text, k=2, probe=4, held_out=2)[UNITS[0]]
    assert shown.bar == pytest.approx(float(np.quantile(shown.probe, 0.99)))
    assert any("no histogram" in note for note in shown.notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"units": []}, "no units"),
        ({"units": ["mlp.0.9999"]}, "9999"),
        ({"units": ["attn.0.1"]}, "not recorded"),
        ({"k": 100}, "24 were recorded"),
        ({"k": 0}, "k=0"),
        ({"window": 0}, "window=0"),
        ({"quantile": 1.0}, "quantile=1.0"),
        ({"probe": 0}, "probe=0"),
    ],
)
def test_bad_wishes_are_refused(recording: Any, tiny_gpt2: Any, text: Any, options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        exemplars(recording, **{"units": UNITS, "model": tiny_gpt2, "text": text, **options})


def test_another_model_or_text_is_refused(recording: Any, tiny_gpt2: Any, tiny_llama: Any, text: Any) -> None:
    with pytest.raises(MismatchError, match="the recording is of"):
        exemplars(recording, units=UNITS, model=tiny_llama, text=text, k=3)
    with pytest.raises(MismatchError, match="is not what was recorded"):
        exemplars(recording, units=UNITS, model=tiny_gpt2, text=corpus(en=EN[::-1], fr=FR), k=3)
    with pytest.raises(MismatchError, match="no label 'fr'"):
        exemplars(recording, units=UNITS, model=tiny_gpt2, text=corpus(en=EN), k=3)
    with pytest.raises(InputError, match="in memory"):
        exemplars(recording, units=UNITS, k=3)


def test_a_recording_without_exemplars_is_refused(tiny_gpt2: Any, text: Any) -> None:
    plain = record(tiny_gpt2, text, quiet=True)
    with pytest.raises(InputError, match="has no exemplars"):
        exemplars(plain, units=UNITS, model=tiny_gpt2, text=text, k=3)


def test_a_store_comes_back_from_its_files(store: ExemplarStore, tmp_path: Any) -> None:
    path = store.save(tmp_path / "exemplars.json")
    again = ExemplarStore.load(path)
    assert again.units == store.units
    for unit in UNITS:
        assert [one.text for one in again[unit].top] == [one.text for one in store[unit].top]
        np.testing.assert_allclose(again[unit].top[0].values, store[unit].top[0].values, rtol=1e-5)
        np.testing.assert_array_equal(again[unit].probe, store[unit].probe)
    (tmp_path / "exemplars.safetensors").write_bytes(b"damaged")
    with pytest.raises(DamagedError):
        ExemplarStore.load(path)


def test_tokens_joined_are_the_text_in_any_script(tiny_tokenizer: Any) -> None:
    for line in ["The cat  sat. ", "猫はマットの上", "שלום עולם", "🙂👍🏽 ok", "ไทย", "e\u0301te\u0301\n\tx"]:
        parts, tags = parts_of(tiny_tokenizer, Document(line, {"all": ((0, len(line)),), "none": ()}))
        assert "".join(parts) == line
        assert tags["all"].all()
        assert not tags["none"].any()


def test_a_tokenizer_without_offsets_gives_decoded_tokens() -> None:
    class Slow:
        is_fast = False

        def __call__(self, line: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) for c in line]}

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    assert parts_of(Slow(), Document("héé")) == (["h", "é", "é"], {})


def test_a_missing_document_is_said(tiny_gpt2: Any) -> None:
    reader = PassageReader(
        tiny_gpt2, corpus(en=EN[:3]), [Unit.parse("mlp.0.0")], max_length=64, select=Selection(), window=8
    )
    with pytest.raises(MismatchError, match="no document 7"):
        list(reader.read([Wanted("en", 7, 1, np.array([0]))]))
    with pytest.raises(MismatchError, match="no token 500"):
        list(reader.read([Wanted("en", 1, 500, np.array([0]))]))


def one_unit(parts: tuple[str, ...], values: list[float], **more: Any) -> Exemplars:
    one = Exemplar(parts, np.array(values, dtype=np.float32), "x", 0, **more)
    return Exemplars("mlp.0.0", 0.5, (one,), (), (), np.zeros(0, dtype=np.float32))


def test_html_shows_text_as_text_and_values_as_colour() -> None:
    shown = one_unit(("<script>", "alert(1)", "</script>", " & \u202e"), [1.0, -2.0, 0.0, 0.1])
    page = render(shown, "html")
    assert "<script>" not in page
    assert markup.escape("<script>") in page
    assert "\u202e" not in page
    assert "rgba(217,95,2,0.42)" in page  # half of the largest magnitude, 0.85 at full
    assert "rgba(31,120,180,0.85)" in page
    assert "http" not in page  # nothing from outside
    assert shown._repr_html_() == render(shown, "html", kinds=("top", "sample"))


def test_the_terminal_gets_no_control_characters() -> None:
    from rich.console import Console

    shown = one_unit(("\x1b[31mred", " [bold]x[/bold]", "\n", "שלום", "猫"), [1.0, 0.0, 0.0, 0.2, 0.9])
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(render(shown, "terminal"))
    printed = out.getvalue()
    assert "\x1b" not in printed
    assert "␛[31mred [bold]x[/bold]↵שלום猫" in printed


def test_right_to_left_text_is_left_to_the_browser() -> None:
    page = render(one_unit(("שלום ", "עולם"), [0.2, 1.0]), "html")
    assert "dir='auto'" in page
    assert "unicode-bidi:plaintext" in page


def test_brackets_join_neighbours_and_leave_spaces_outside() -> None:
    one = Exemplar(("a", " b", " c", " d"), np.array([0, 1, 1, 0], dtype=np.float32))
    assert marked(one, 0.5) == "a [[b c]] d"
    assert marked(one.with_values(np.array([0, 0, 0, 1])), 0.5) == "a b c [[d]]"
    assert "[[b c]]" in render(Exemplars("u", 0.5, (one,), (), (), np.zeros(0, dtype=np.float32)), "text")


def test_a_picture_becomes_a_png_with_dark_patches_where_nothing_fires() -> None:
    picture = np.full((4, 6, 3), 200, dtype=np.uint8)
    one = Exemplar(("a", "b"), np.array([1.0, 0.0], dtype=np.float32), picture=picture, grid=(1, 2))
    data = png(one, 0.5, smallest=1)
    assert struct.unpack(">II", data[16:24]) == (6, 4)
    length = struct.unpack(">I", data[33:37])[0]
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + length]), dtype=np.uint8).reshape(4, 19)
    np.testing.assert_array_equal(rows[0, 1:].reshape(6, 3)[:, 0], [200, 200, 200, 70, 70, 70])


def test_bad_forms_and_shapes_are_refused() -> None:
    shown = one_unit(("a",), [1.0])
    with pytest.raises(InputError, match="form='pdf'"):
        render(shown, "pdf")
    with pytest.raises(InputError, match="kind 'best'"):
        render(shown, "html", kinds=("best",))
    with pytest.raises(InputError, match="2 parts"):
        Exemplar(("a", "b"), np.zeros(3, dtype=np.float32))
    with pytest.raises(InputError, match="grid"):
        Exemplar(("a", "b"), np.zeros(2, dtype=np.float32), picture=np.zeros((2, 2, 3), dtype=np.uint8), grid=(2, 2))
    with pytest.raises(InputError, match="probe of 1 parts"):
        ExemplarStore([shown], probe=[Exemplar(("a",), np.zeros(1, dtype=np.float32))])


def test_tables_escape_and_distinct_keeps_the_first() -> None:
    assert "<b>" not in rows_html("t<b>", [{"a": "<b>"}])
    first, second = (Exemplar((text,), np.ones(1, dtype=np.float32)) for text in ("A  b", " a B"))
    assert distinct([first, second]) == [first]
    assert distinct([second], without=[first]) == []

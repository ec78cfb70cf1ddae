"""Perplexity against one document at a time by the plain formula; selections, padding, pieces, bad losses."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import DamagedError, InputError, MismatchError, ModelError
from patchclamp.data.batches import Budget, Selection
from patchclamp.data.corpora import corpus
from patchclamp.data.documents import Document
from patchclamp.intervene import clamp
from patchclamp.measure import Measurements, perplexity
from patchclamp.measure.likelihood import Documents, Reading, score
from patchclamp.models.load import load

ENGLISH = ["The cat sat on the mat.", "Two and two make four.", "The moon", "a", "The cat looked at the moon and sat."]
FRENCH = ["Le chat est assis.", "Il regarde la lune sur le tapis et le chat."]


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def alone(model: Any, text: str, special: tuple[int, ...] = (0, 1, 2)) -> tuple[float, int]:
    """Negative log-likelihood and number of scored tokens of one document, in float64 from its own forward pass."""
    ids = model.tokenize(text)
    logits = model.logits(torch.tensor([ids]))[0].double()
    scored = [i for i in range(1, len(ids)) if ids[i] not in special]
    return sum(float(-torch.log_softmax(logits[i - 1], -1)[ids[i]]) for i in scored), len(scored)


def test_it_is_exp_of_the_summed_loss_over_the_summed_tokens(model: Any) -> None:
    found = perplexity(model, corpus(en=ENGLISH, fr=FRENCH))
    for label, texts in (("en", ENGLISH), ("fr", FRENCH)):
        each = [alone(model, text) for text in texts]
        np.testing.assert_allclose(found[label].totals, [loss for loss, _ in each], rtol=1e-5)
        assert found[label].weights.tolist() == [n for _, n in each]
        assert found[label].value == pytest.approx(
            math.exp(sum(a for a, _ in each) / sum(n for _, n in each)), rel=1e-5
        )
        assert found[label].n == len(texts)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(alphabet="abc th é月", min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=6),
    tokens=st.integers(1, 200),
    side=st.sampled_from(["left", "right"]),
)
def test_batching_and_padding_side_do_not_matter(tiny_llama: Any, texts: list[str], tokens: int, side: str) -> None:
    documents, reading = Documents("x"), Reading(tokens, side=side)
    for batch in reading.batches(tiny_llama, corpus(x=texts), "x"):
        documents.add("plain", batch.document, score(tiny_llama, batch, Budget(tokens)))
        documents.count(batch)
    expected = [alone(tiny_llama, text) for text in texts]
    assert documents.tokens.tolist() == [n for _, n in expected]
    np.testing.assert_allclose(documents.totals["plain"], [loss for loss, _ in expected], rtol=1e-4, atol=1e-4)


def test_without_bos_the_first_token_is_not_scored(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    from tokenizers import processors

    bare = copy.deepcopy(tiny_tokenizer)
    bare.backend_tokenizer.post_processor = processors.ByteLevel()
    model = load(tiny_gpt2.hf, tokenizer=bare)
    found = perplexity(model, corpus(en=ENGLISH))["en"]
    each = [alone(model, text) for text in ENGLISH]
    assert found.weights.tolist() == [n for _, n in each] == [len(bare(text)["input_ids"]) - 1 for text in ENGLISH]
    assert found.weights[3] == 0
    assert found.n == 4
    np.testing.assert_allclose(found.totals, [loss for loss, _ in each], rtol=1e-5)


def test_long_documents_are_read_in_pieces_that_begin_with_bos(tiny_llama: Any) -> None:
    text = " ".join(ENGLISH)
    ids = tiny_llama.tokenize(text)[1:]
    pieces = [[1, *ids[start : start + 9]] for start in range(0, len(ids), 9)]
    expected = 0.0
    for piece in pieces:
        logits = torch.log_softmax(tiny_llama.logits(torch.tensor([piece]))[0].double(), -1)
        expected -= sum(float(logits[i - 1, piece[i]]) for i in range(1, len(piece)))
    found = perplexity(tiny_llama, corpus(en=[text]), max_length=10)["en"]
    assert found.totals[0] == pytest.approx(expected, rel=1e-5)
    assert found.weights.tolist() == [len(ids)]


def test_only_selected_target_tokens_are_scored(tiny_llama: Any) -> None:
    text = "Two and two make four"
    inside = Document(text, {"response": ((text.index("four"), len(text)),)})
    found = perplexity(tiny_llama, corpus(en=[inside]), select=Selection(inside="response"))["en"]
    encoded = tiny_llama.tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    scored = [i for i, (_, stop) in enumerate(offsets) if stop > text.index("four")]
    logits = torch.log_softmax(tiny_llama.logits(torch.tensor([ids]))[0].double(), -1)
    assert found.weights.tolist() == [len(scored)]
    assert found.totals[0] == pytest.approx(-sum(float(logits[i - 1, ids[i]]) for i in scored), rel=1e-5)


def test_bfloat16_models_are_scored_in_float32(tiny_llama: Any) -> None:
    model = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer)
    found = perplexity(model, corpus(en=ENGLISH))["en"]
    assert found.value == pytest.approx(perplexity(tiny_llama, corpus(en=ENGLISH))["en"].value, rel=0.05)
    ids = torch.tensor([model.tokenize(ENGLISH[0])])
    logits = model.logits(ids)[0].float()  # bfloat16 logits, float32 log-softmax
    exact = -torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None]).double().sum()
    assert perplexity(model, corpus(en=ENGLISH[:1]))["en"].totals[0] == pytest.approx(float(exact), rel=1e-6)


def test_it_reads_the_clamped_model(tiny_llama: Any) -> None:
    text = corpus(en=ENGLISH)
    plain = perplexity(tiny_llama, text)
    with clamp(tiny_llama, ["mlp.0.1", "mlp.2.5"], to=4.0):
        clamped = perplexity(tiny_llama, text)
        expected = [alone(tiny_llama, document)[0] for document in ENGLISH]
    np.testing.assert_allclose(clamped["en"].totals, expected, rtol=1e-5)
    change = (clamped - plain)["en"]
    assert change.value == pytest.approx(clamped["en"].value - plain["en"].value)
    assert change.value != 0
    low, high = change.interval()
    assert low <= high
    assert 0 < change.p() <= 1
    assert (plain - plain)["en"].value == 0
    assert (plain - plain)["en"].p() == 1


def test_a_loss_that_is_not_finite_names_the_document(tiny_llama: Any) -> None:
    hf = copy.deepcopy(tiny_llama.hf)
    odd = tiny_llama.tokenize("月")[-1]
    with torch.no_grad():
        hf.model.embed_tokens.weight[odd] = float("nan")
    broken = load(hf, tokenizer=tiny_llama.tokenizer, check=False)
    with pytest.raises(ModelError, match=r"'ja', document 2\b"):
        perplexity(broken, corpus(ja=["The cat", "Two", "月 月 月", "The moon"]))


def test_a_label_without_a_token_to_score_is_refused(tiny_llama: Any) -> None:
    with pytest.raises(InputError, match="'fr' can be scored"):
        perplexity(tiny_llama, corpus(en=ENGLISH, fr=FRENCH).subset(["fr"]), select=Selection(inside="response"))


def test_too_long_pieces_are_refused(tiny_llama: Any) -> None:
    with pytest.raises(InputError, match="2 to 64"):
        perplexity(tiny_llama, corpus(en=ENGLISH), max_length=65)


def test_one_document_has_no_interval(tiny_llama: Any) -> None:
    found = perplexity(tiny_llama, corpus(en=ENGLISH[:1]))
    assert np.isnan(found["en"].interval()).all()
    assert found.rows[0]["low"] is None
    several = perplexity(tiny_llama, corpus(en=ENGLISH))["en"]
    low, high = several.interval()
    assert low < several.value < high


def test_results_are_saved_with_their_provenance_and_load_the_same(tiny_llama: Any, tmp_path: Path) -> None:
    text = corpus(en=ENGLISH, fr=FRENCH)
    found = perplexity(tiny_llama, text)
    loaded = Measurements.load(found.save(tmp_path / "ppl.json"))
    assert loaded.rows == found.rows
    assert loaded.provenance == found.provenance
    assert found.provenance["inputs"]["model"]["fingerprint"] == tiny_llama.fingerprint
    assert found.provenance["inputs"]["text"]["fingerprint"] == text.fingerprint
    assert (loaded - found)["fr"].value == 0
    (tmp_path / "ppl.json").write_text('{"format": "patchclamp.measurements/1"}')
    with pytest.raises(DamagedError, match="complete"):
        Measurements.load(tmp_path / "ppl.json")


def test_only_measurements_of_the_same_items_subtract(tiny_llama: Any) -> None:
    one, other = perplexity(tiny_llama, corpus(en=ENGLISH))["en"], perplexity(tiny_llama, corpus(en=FRENCH))["en"]
    with pytest.raises(MismatchError, match="same items"):
        one - other


def test_tables_show_every_label_and_escape_html(tiny_llama: Any) -> None:
    found = perplexity(tiny_llama, corpus({"<i>en</i>": ENGLISH, "fr": FRENCH}))
    assert "fr" in repr(found)
    assert "n_tokens" in repr(found)
    assert "<i>en</i>" not in found._repr_html_()
    assert "&lt;i&gt;en" in found._repr_html_()
    with pytest.raises(InputError, match="no measurement of 'de'"):
        found["de"]

"""record(): one pass gives what keeping everything and reducing with numpy gives, whatever batches, shards and engines."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch

from patchclamp.core.errors import InputError, MismatchError, ModelError
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import corpus
from patchclamp.data.documents import Document
from patchclamp.models.hooks import observe
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet
from patchclamp.record import Recording, record

EN = [
    f"The cat number {number} sat on the mat" + " and looked at the moon" * (number % 4) + "." for number in range(21)
]
FR = [f"Le chat {number} est assis sur le tapis" + ", oui" * (number % 3) for number in range(17)]
ALL = ("firing", "moments", "histogram", "exemplars", "pooled")


@pytest.fixture(scope="module")
def text():
    return corpus(en=EN, fr=FR)


def everything(model, documents, site="mlp", keep=lambda tokens: slice(1, None)):
    """All activations of all tokens that count, one document at a time: (n, total), and the documents' numbers."""
    rows, numbers = [], []
    for number, document in enumerate(documents):
        layers: dict = {}
        ids = torch.tensor([model.tokenize(document)])
        with observe(
            model, [(site, layer) for layer in range(3)], lambda seen, to=layers: to.update({seen.layer: seen.values})
        ):
            model.logits(ids)
        values = np.concatenate([layers[layer].double().numpy() for layer in range(3)], axis=1)[keep(ids[0])]
        rows.append(values)
        numbers += [number] * len(values)
    return np.concatenate(rows), np.array(numbers)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_a_recording_equals_keeping_everything(name, text, request):
    model = request.getfixturevalue(name)
    recording = record(model, text, statistics=ALL, batch_tokens=200, shard_tokens=150)
    for label, documents in (("en", EN), ("fr", FR)):
        x, number = everything(model, documents)
        assert recording.tokens(label) == len(x)
        assert recording.documents(label) == len(documents)
        moments = recording.get("moments", label)
        assert moments.n == len(x)
        np.testing.assert_allclose(moments.mean, x.mean(0), atol=1e-5)
        np.testing.assert_allclose(moments.std, x.std(0, ddof=1), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(moments.max, x.max(0), rtol=1e-4, atol=1e-5)
        firing = recording.get("firing", label)
        gate = (
            everything(model, documents, "gate")[0] if name == "tiny_llama" else x
        )  # a gated neuron fires at its gate
        for fold in range(8):
            counts = (gate[number % 8 == fold] > 0).sum(0)
            assert abs(firing.counts[fold] - counts).max() <= 1  # a value may sit within rounding of 0
            assert firing.n[fold] == (number % 8 == fold).sum()
        pooled = recording.get("pooled", label)
        means = np.stack([x[number == document].mean(0) for document in range(len(documents))])
        np.testing.assert_allclose(np.asarray(pooled.mean), means, atol=1e-5)
        best = recording.get("exemplars", label)
        np.testing.assert_allclose(best.value, -np.sort(-x, axis=0)[:10], rtol=1e-4, atol=1e-5)


def test_firing_of_a_gated_mlp_can_be_read_from_the_product_instead(tiny_llama, text):
    statistics = {"firing": {"signal": "value"}, "moments": {}}
    recording = record(tiny_llama, text, statistics=statistics)
    x, _ = everything(tiny_llama, EN)
    assert abs(recording.get("firing", "en").counts.sum(0) - (x > 0).sum(0)).max() <= 1
    with pytest.raises(InputError, match="signals are gate, value"):
        record(tiny_llama, text, statistics={"firing": {"signal": "up"}})


@pytest.fixture(scope="module")
def double(tiny_gpt2):
    """The tiny model in float64: activations don't depend on the batch to 1e-12 or so."""
    return load(copy.deepcopy(tiny_gpt2.hf).double(), tokenizer=tiny_gpt2.tokenizer)


@pytest.mark.parametrize(
    "arguments", [{"batch_tokens": 20}, {"batch_tokens": 3000}, {"shard_tokens": 40}, {"shard_documents": 3}]
)
def test_numbers_do_not_depend_on_batches_or_shards(double, text, arguments):
    base = record(double, text, statistics=ALL, max_length=64)
    other = record(double, text, statistics=ALL, max_length=64, **arguments)
    for label in text.labels:
        np.testing.assert_array_equal(base.get("firing", label).counts, other.get("firing", label).counts)
        np.testing.assert_array_equal(base.get("histogram", label).counts, other.get("histogram", label).counts)
        np.testing.assert_array_equal(base.get("exemplars", label).document, other.get("exemplars", label).document)
        np.testing.assert_array_equal(base.get("exemplars", label).position, other.get("exemplars", label).position)
        np.testing.assert_allclose(
            base.get("moments", label).mean, other.get("moments", label).mean, rtol=1e-11, atol=1e-13
        )
        np.testing.assert_allclose(
            base.get("moments", label).m2, other.get("moments", label).m2, rtol=1e-11, atol=1e-13
        )
        np.testing.assert_allclose(base.get("pooled", label).last[3], other.get("pooled", label).last[3], rtol=1e-6)


def test_shards_of_equal_activations_give_equal_bits(tiny_gpt2, text):
    """The embedding is looked up, so it is bit-equal in every batch: counts and extremes must be too."""
    base = record(tiny_gpt2, text, sites=("embed",), statistics=ALL)
    other = record(tiny_gpt2, text, sites=("embed",), statistics=ALL, batch_tokens=16, shard_tokens=30)
    for label in text.labels:
        for name in ("firing", "histogram", "exemplars"):
            for key, array in base.get(name, label, "embed").state().items():
                np.testing.assert_array_equal(array, other.get(name, label, "embed").state()[key])
        a, b = (each.get("moments", label, "embed") for each in (base, other))
        np.testing.assert_array_equal((a.min, a.max), (b.min, b.max))
        np.testing.assert_allclose(a.m2, b.m2, rtol=1e-12, atol=1e-15)


def test_folder_and_memory_agree_and_a_saved_recording_is_read_back(tiny_gpt2, text, tmp_path):
    memory = record(tiny_gpt2, text, statistics=ALL, shard_tokens=100)
    disk = record(tiny_gpt2, text, statistics=ALL, shard_tokens=100, out=tmp_path / "rec")
    assert disk.fingerprint == memory.fingerprint
    assert Recording.open(tmp_path / "rec").fingerprint == memory.fingerprint
    memory.save(tmp_path / "copy")
    copied = Recording.open(tmp_path / "copy")
    copied.check()
    assert copied.fingerprint == memory.fingerprint
    assert copied.corpus["fingerprint"] == text.fingerprint
    assert isinstance(copied.get("pooled", "en").mean.pieces[0], np.memmap)


@pytest.mark.slow
def test_processes_give_the_numbers_of_one_process(tiny_gpt2, text):
    one = record(tiny_gpt2, text, shard_tokens=60, layers=[0])
    many = record(tiny_gpt2, text, shard_tokens=60, layers=[0], engine="processes", workers=2)
    assert many.fingerprint == one.fingerprint


def test_only_selected_tokens_count(tiny_gpt2):
    documents = [Document("2+2= The cat sat.", {"response": ((5, 12),)}), Document("None here.")]
    text = corpus(x=documents)
    recording = record(tiny_gpt2, text, select=Selection(inside="response"), statistics=("moments",))
    offsets = tiny_gpt2.tokenizer(documents[0].text, return_offsets_mapping=True)["offset_mapping"]
    inside = np.array([b > 5 and a < 12 and b > a for a, b in offsets])
    x, _ = everything(tiny_gpt2, [documents[0].text], keep=lambda ids: inside)
    assert recording.get("moments", "x").n == inside.sum()
    np.testing.assert_allclose(recording.get("moments", "x").mean, x.mean(0), atol=1e-5)
    special = record(tiny_gpt2, text, select=Selection(special=True), statistics=("moments",))
    skipped = record(tiny_gpt2, text, select=Selection(skip_first=4), statistics=("moments",))
    total = sum(len(tiny_gpt2.tokenize(document.text)) for document in documents)
    assert (special.tokens("x"), skipped.tokens("x")) == (total, total - 8)
    with pytest.raises(InputError, match="no tokens that count inside 'upos=X'"):
        record(tiny_gpt2, text, select=Selection(inside="upos=X"))


def test_token_and_document_limits(tiny_gpt2, text):
    recording = record(tiny_gpt2, text, max_tokens=77, shard_tokens=30)
    assert [recording.tokens(label) for label in text.labels] == [77, 77]
    assert int(recording.get("firing", "en").n.sum()) == 77
    assert recording.documents("en") < len(EN)
    few = record(tiny_gpt2, corpus(en=EN, max_documents=4))
    assert few.documents("en") == 4
    assert few.corpus["fingerprint"] == corpus(en=EN[:4]).fingerprint


def test_layers_above_the_highest_asked_for_are_not_computed(tiny_gpt2, text, monkeypatch):
    def broken(*args, **kwargs):
        raise AssertionError("computed")

    blocks = tiny_gpt2.hf.transformer.h
    monkeypatch.setattr(blocks[2], "forward", broken)
    monkeypatch.setattr(blocks[1].mlp.c_proj, "forward", broken)
    monkeypatch.setattr(tiny_gpt2.hf.lm_head, "forward", broken)
    recording = record(tiny_gpt2, text, layers=[0, 1])
    rate = recording.get("firing", "en").rate
    assert np.isfinite(rate[:256]).all()
    assert np.isnan(rate[256:]).all()
    assert recording.layers() == (0, 1)


def test_several_sites_are_recorded_in_one_pass(tiny_llama, text):
    recording = record(tiny_llama, text, sites=("mlp", "gate", "up", "attn", "resid", "embed"), statistics=("moments",))
    for site in recording.sites:
        alone = record(tiny_llama, text, sites=(site,), statistics=("moments",))
        np.testing.assert_array_equal(alone.get("moments", "en", site).mean, recording.get("moments", "en", site).mean)


def test_cofiring_of_a_unit_set(tiny_gpt2, text):
    units = UnitSet.of(tiny_gpt2, ["mlp.0.3", "mlp.1.7", "mlp.2.100"])
    recording = record(tiny_gpt2, text, statistics={"cofiring": {"units": units}})
    fires = (everything(tiny_gpt2, EN)[0][:, [3, 128 + 7, 256 + 100]] > 0).astype(int)
    assert abs(recording.get("cofiring", "en").counts - fires.T @ fires).max() <= 1


def test_recordings_merge_to_the_recording_of_both_texts(double):
    whole = record(double, corpus(en=EN, fr=FR), statistics=ALL, folds=1)
    first = record(double, corpus(en=EN[:9]), statistics=ALL, folds=1)
    second = record(double, corpus(en=EN[9:], fr=FR), statistics=ALL, folds=1)
    merged = first.merge(second)
    assert merged.labels == ("en", "fr")
    assert merged.tokens("en") == whole.tokens("en")
    for name in ("firing", "histogram", "exemplars"):
        for key, array in whole.get(name, "en").state().items():
            if array.dtype == np.int64:
                np.testing.assert_array_equal(array, merged.get(name, "en").state()[key])
    np.testing.assert_allclose(merged.get("moments", "en").m2, whole.get("moments", "en").m2, rtol=1e-11)
    assert len(merged.get("pooled", "en").mean) == len(EN)
    with pytest.raises(MismatchError, match="folds"):
        first.merge(record(double, corpus(en=EN), statistics=ALL, folds=2))


def test_the_observed_model_is_unchanged(tiny_gpt2, text):
    ids = torch.tensor([tiny_gpt2.tokenize(EN[0])])
    before = tiny_gpt2.logits(ids)
    record(tiny_gpt2, text)
    assert torch.equal(before, tiny_gpt2.logits(ids))


def test_nan_activations_are_named(tiny_gpt2, text):
    model = load(copy.deepcopy(tiny_gpt2.hf), tokenizer=tiny_gpt2.tokenizer)
    model.hf.transformer.h[1].mlp.c_fc.bias[5] = float("nan")
    with pytest.raises(ModelError, match=r"site mlp, layer 1, unit 5, document \d+, token \d+ of label 'en'"):
        record(model, text)


def test_out_of_memory_shrinks_the_batches_and_gives_the_same_numbers(double, text, monkeypatch):
    from patchclamp.record import job

    base = record(double, text, batch_tokens=1000)
    real, sizes = job.run, []

    def tight(model, input_ids, *rest, **named):
        sizes.append(input_ids.numel())
        if input_ids.numel() > 200:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, input_ids, *rest, **named)

    monkeypatch.setattr(job, "run", tight)
    other = record(double, text, batch_tokens=1000)
    assert max(sizes[-3:]) <= 200
    np.testing.assert_array_equal(base.get("firing", "fr").counts, other.get("firing", "fr").counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": ("mpl",)}, "site 'mpl' asked for, but .* has .*mlp"),
        ({"sites": ()}, "no site"),
        ({"layers": [3]}, r"layer 3 asked for, but .* has 3 \(0-2\)"),
        ({"statistics": ("firings",)}, "no statistic is called 'firings'"),
        ({"statistics": ()}, "no statistic"),
        ({"statistics": {"firing": {"bar": 1}}}, "doesn't take these arguments.*bar"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"max_length": 65}, "takes at most 64"),
        ({"engine": "cloud"}, "no engine is called 'cloud'"),
        ({"resume": True}, "needs out="),
    ],
)
def test_bad_arguments_are_refused(tiny_gpt2, text, arguments, message):
    with pytest.raises(InputError, match=message):
        record(tiny_gpt2, text, **arguments)


def test_a_model_without_tokenizer_and_text_that_is_no_corpus_are_refused(tiny_gpt2, text):
    with pytest.raises(InputError, match="tokenizer"):
        record(load(tiny_gpt2.hf), text)
    with pytest.raises(InputError, match="give a corpus"):
        record(tiny_gpt2, {"en": EN})


def test_ray_is_named_where_it_is_missing(tiny_gpt2, text, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"patchclamp\[ray\]"):
        record(tiny_gpt2, text, engine="ray")


def test_a_recording_shows_itself_and_refuses_what_it_does_not_hold(tiny_gpt2):
    from rich.console import Console

    recording = record(tiny_gpt2, corpus({"<b>": EN}))
    stream = io.StringIO()
    Console(file=stream, width=200).print(recording)
    assert "firing rate" in stream.getvalue()
    assert "&lt;b&gt;" in recording._repr_html_()
    assert "<b>" not in recording._repr_html_().replace("<br>", "")
    for arguments, message in ((("firing", "xx"), "no label 'xx'"), (("pooled", "<b>"), "no statistic 'pooled'")):
        with pytest.raises(InputError, match=message):
            recording.get(*arguments)
    with pytest.raises(InputError, match="site 'attn' was not recorded"):
        recording.get("firing", "<b>", "attn")

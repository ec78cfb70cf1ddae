"""Activations: the rows on disk, the rows of a running model and plain numpy agree, in order, shuffled and sampled."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError, ModelError
from patchclamp.data import corpus
from patchclamp.data.batches import Selection
from patchclamp.models import load
from patchclamp.models.collect import collect
from patchclamp.models.tiny import tiny_model
from patchclamp.models.units import Layout
from patchclamp.record import Activations, Recording, record
from patchclamp.record.statistics import Where, statistics

TEXT = {
    "en": ["The cat sat on the mat.", "Moon.", "A moon.", "Two and two make four, three and three make six."],
    "fr": ["Le chat est assis.", "La lune et le tapis.", "Deux."],
}
LAYOUT = Layout("mlp", (3, 0, 4), (0, 0, 2))


@pytest.fixture(scope="module")
def text() -> Any:
    return corpus(TEXT)


def by_hand(model: Any, site: str, layer: int) -> tuple[torch.Tensor, list[int], list[int]]:
    """Document after document, alone in its batch; the BOS token is left out."""
    rows, documents, positions = [], [], []
    for label in TEXT:
        for number, document in enumerate(TEXT[label]):
            ids = torch.tensor([model.tokenize(document)])
            if ids.shape[1] > 1:
                rows.append(collect(model, site, ids)[0, 1:, model.layouts[site].slice(layer)])
                documents += [number] * (ids.shape[1] - 1)
                positions += list(range(1, ids.shape[1]))
    return torch.cat(rows), documents, positions


@pytest.mark.parametrize("site", ["mlp", "resid", "head"])
def test_recorded_and_live_rows_are_the_models_in_text_order(
    tiny_llama: Any, text: Any, site: str, tmp_path: Any
) -> None:
    expected, documents, positions = by_hand(tiny_llama, site, 1)
    options: dict[str, Any] = {"sites": (site,), "statistics": ["activations"], "quiet": True}
    kept = record(tiny_llama, text, out=tmp_path / "rec", layers=[1, 2], shard_documents=2, batch_tokens=32, **options)
    for found in (
        Activations.of_recording(kept, site, 1),
        Activations.of_recording(Recording.open(kept.folder), site, 1),
        Activations.live(tiny_llama, text, site, 1, batch_tokens=24),
        Activations.live(tiny_llama, text, site, 1),
    ):
        np.testing.assert_array_equal(found.documents(), documents)
        np.testing.assert_array_equal(found.positions(), positions)
        torch.testing.assert_close(found.all(), expected)
        assert (found.n, found.width) == expected.shape
        assert found.model["fingerprint"] == tiny_llama.fingerprint
        assert [len(block) for block in found.blocks(10)] == [10] * (len(expected) // 10) + [len(expected) % 10]
        again = [block.clone() for block in found.blocks(7)]
        torch.testing.assert_close(torch.cat(again), expected)
    assert Activations.of_recording(kept, site, 1, "fr").n == np.count_nonzero(documents_of(TEXT["fr"], tiny_llama))


def documents_of(texts: list[str], model: Any) -> list[int]:
    return [1 for one in texts for _ in model.tokenize(one)[1:]]


def test_shuffling_is_a_permutation_that_its_seed_decides(tiny_llama: Any, text: Any) -> None:
    kept = record(tiny_llama, text, sites=("resid",), statistics=["activations"], quiet=True)
    plain = Activations.of_recording(kept, "resid", 1)
    for found in (
        plain,
        Activations.of_tensor(plain.all()),
        Activations.live(tiny_llama, text, "resid", 1, batch_tokens=16),
    ):
        first, again, other = (torch.cat(list(found.blocks(5, seed=seed))) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not torch.equal(first, plain.all())
        order = (first[:, None] - plain.all()[None]).abs().sum(-1).argmin(1)
        assert sorted(order.tolist()) == list(range(plain.n))
        assert all(len(block) <= 5 for block in found.blocks(5, seed=1))


def test_live_rows_take_gradients_and_only_what_counts(tiny_llama: Any, text: Any) -> None:
    live = Activations.live(tiny_llama, text, "resid", 0, max_tokens=6, select=Selection(special=True))
    weight = torch.ones(live.width, requires_grad=True)
    for block in live.blocks(4):
        (block @ weight).square().sum().backward()
    assert weight.grad is not None
    assert live.n == 12  # six of each label
    assert live.positions()[0] == 0


@pytest.mark.parametrize(("dtype", "close"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 8e-3)])
def test_dtypes_keep_what_they_can_hold(tiny_llama: Any, text: Any, dtype: str, close: float, tmp_path: Any) -> None:
    plain = Activations.live(tiny_llama, text, "mlp", 2).all()
    kept = record(
        tiny_llama, text, statistics={"activations": {"dtype": dtype}}, layers=[2], out=tmp_path / "rec", quiet=True
    )
    found = Activations.of_recording(kept, "mlp", 2)
    assert found.all().dtype is torch.float32
    torch.testing.assert_close(found.all(), plain, rtol=close + 1e-5, atol=1e-5)
    assert kept.save(tmp_path / "copy")
    assert Recording.open(tmp_path / "copy").fingerprint == kept.fingerprint
    stored = kept.get("activations", "en", "mlp").rows(2)
    assert stored.dtype.itemsize == (4 if dtype == "float32" else 2)
    assert isinstance(next(stored.pieces), np.memmap)


def test_float16_refuses_what_it_would_turn_into_infinity() -> None:
    statistic = statistics["activations"](Layout("mlp", (2,)), dtype="float16")
    rows = np.zeros(1, dtype=np.int64)
    where = Where(rows, rows, rows, rows)
    statistic.begin(where)
    statistic.update(torch.tensor([[1e5, 0.0]]), 0, 0, where)
    statistic.end()
    with pytest.raises(InputError, match="more than float16 holds"):
        statistic.close()


def fed(documents: range, seed: int, **arguments: Any) -> Any:
    """A shard of random values: every document has 6 tokens, the expert e sees the tokens of parity e."""
    rng = np.random.default_rng(seed)
    values = np.random.default_rng(7).normal(size=(200, 7)).astype(np.float32)
    found = statistics["activations"](LAYOUT, **arguments)
    document = np.repeat(np.array(documents, dtype=np.int64), 6)
    position = np.tile(np.arange(6, dtype=np.int64), len(documents))
    order = rng.permutation(len(document))
    for some in np.array_split(order, 3):
        where = Where(document[some], position[some], document[some] % 8, np.arange(len(some)))
        found.begin(where)
        mine = torch.from_numpy(values[document[some] * 6 + position[some]])
        found.update(mine[:, :3], 0, 0, where)
        for expert in (0, 1):
            seen = np.flatnonzero(position[some] % 2 == expert)
            if len(seen):
                columns = slice(3 + 2 * expert, 5 + 2 * expert)
                found.update(mine[seen][:, columns], 2, 2 * expert, where.take(seen))
        found.end()
    found.close(documents)
    return found, values


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), cuts=st.lists(st.integers(0, 20), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_sample_does_not_depend_on_shards_and_its_rows_are_right(seed: int, rows: int, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 20]
    parts = [fed(range(a, b), seed, rows=rows)[0] for a, b in itertools.pairwise(edges)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    whole, values = fed(range(20), seed + 1, rows=rows)
    assert merged.n == whole.n == 120
    assert len(merged) == min(rows, 120)
    for layer in (0, 2):
        np.testing.assert_array_equal(np.asarray(merged.rows(layer)), np.asarray(whole.rows(layer)))
    place = merged.document * 6 + merged.position
    assert (np.diff(place) > 0).all()
    np.testing.assert_array_equal(merged.rows(0).take(np.arange(len(place))), values[place, :3])
    expected = values[place, 3:].copy()
    expected[merged.position % 2 == 1, :2] = 0
    expected[merged.position % 2 == 0, 2:] = 0
    np.testing.assert_array_equal(merged.rows(2)[:], expected)
    again = type(merged).from_state(LAYOUT, merged.state(), rows=rows)
    np.testing.assert_array_equal(np.asarray(again.rows(2)), np.asarray(merged.rows(2)))


def test_a_sample_is_even() -> None:
    counts = np.zeros(20)
    found, _ = fed(range(20), 0, rows=60)
    counts += np.bincount(found.document, minlength=20)
    assert counts.sum() == 60
    assert np.count_nonzero(counts) >= 17  # six tokens each, three expected
    assert abs(found.position.mean() - 2.5) < 0.6


def test_shards_hold_a_bounded_number_of_rows(tiny_llama: Any) -> None:
    size = statistics["activations"].tokens_per_shard
    assert size(Layout("mlp", (1 << 14,) * 4), (0, 1)) == (256 << 20) // (4 << 15)
    assert size(Layout("mlp", (1 << 14,)), (0,), dtype="bfloat16") == (256 << 20) // (2 << 14)
    assert size(Layout("mlp", (4,)), (0,), rows=10) is None
    assert size(Layout("mlp", (1 << 30,)), (0,)) == 1024


def test_experts_that_did_not_see_a_token_have_zeros() -> None:
    mixed = load(tiny_model("mixtral"), check=False)
    ids = torch.arange(3, 15).view(1, 12)
    values = collect(mixed, "mlp", ids)[0, :, mixed.layouts["mlp"].slice(1)]
    assert (values == 0).any()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model, kept, text: Activations.of_recording(kept, "mlp", 1), "not activations"),
        (lambda model, kept, text: Activations.live(model, text, "sae", 1), "no site 'sae'"),
        (lambda model, kept, text: Activations.live(model, text, "mlp", 9), "layer 9"),
        (lambda model, kept, text: Activations.live(model, ["a"], "mlp", 1), "give a corpus"),
        (lambda model, kept, text: Activations.live(model, text, "mlp", 1, batch_tokens=0), "batch_tokens=0"),
        (lambda model, kept, text: list(Activations.of_tensor(torch.ones(2, 3)).blocks(0)), "rows=0"),
        (lambda model, kept, text: Activations.of_tensor(torch.ones(3)), "shape"),
        (lambda model, kept, text: Activations.of_tensor(torch.ones(3, 2)).documents(), "doesn't know its tokens"),
        (lambda model, kept, text: record(model, text, statistics={"activations": {"dtype": "int8"}}), "int8"),
        (lambda model, kept, text: record(model, text, statistics={"activations": {"rows": 0}}), "rows=0"),
    ],
)
def test_what_can_not_be_read_is_refused(tiny_llama: Any, text: Any, call: Any, said: str) -> None:
    kept = record(tiny_llama, text, quiet=True)
    with pytest.raises(InputError, match=said):
        call(tiny_llama, kept, text)


def test_layers_and_sites_that_were_not_recorded_are_named(tiny_llama: Any, text: Any) -> None:
    kept = record(tiny_llama, text, statistics=["activations"], layers=[1], quiet=True)
    for site, layer, said in (("resid", 1, "'resid' was not recorded"), ("mlp", 2, "layer 2 of mlp was not recorded")):
        with pytest.raises(InputError, match=said):
            Activations.of_recording(kept, site, layer)
    with pytest.raises(InputError, match="no label 'de'"):
        Activations.of_recording(kept, "mlp", 1, "de")


def test_recordings_of_one_label_merge_with_documents_counted_on(tiny_llama: Any, text: Any) -> None:
    kept = record(tiny_llama, text, statistics=["activations"], quiet=True)
    both = kept.merge(kept)
    found, once = Activations.of_recording(both, "mlp", 0, "fr"), Activations.of_recording(kept, "mlp", 0, "fr")
    torch.testing.assert_close(found.all(), torch.cat([once.all(), once.all()]))
    np.testing.assert_array_equal(found.documents(), np.concatenate([once.documents(), once.documents() + 3]))


def test_nan_activations_are_refused_by_name(tiny_gpt2: Any) -> None:
    broken = load(copy.deepcopy(tiny_gpt2.hf), tokenizer=tiny_gpt2.tokenizer, check=False)
    broken.anatomy.down(0).weight[:] = torch.nan
    small = corpus(en=["a b"])
    with pytest.raises(ModelError, match=r"resid\.0 in documents 0-0 of label 'en'"):
        list(Activations.live(broken, small, "resid", 0, max_length=8).blocks())

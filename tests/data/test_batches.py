"""Batches: every token once, the right ones count, nothing depends on chance."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import Error, InputError
from patchclamp.data.batches import Batch, Budget, Selection, Tokens, batches, encode, padded
from patchclamp.data.documents import Document


def encoded(tokenizer, texts, **arguments):
    documents = [text if isinstance(text, Document) else Document(text) for text in texts]
    return list(encode(tokenizer, documents, **{"max_length": 64, **arguments}))


def test_short_documents_are_encoded_as_the_tokenizer_does_and_special_tokens_do_not_count(tiny_tokenizer):
    (piece,) = encoded(tiny_tokenizer, ["The cat"])
    assert list(piece.ids) == tiny_tokenizer("The cat")["input_ids"]
    assert list(piece.keep) == [False] + [True] * (len(piece.ids) - 1)
    (piece,) = encoded(tiny_tokenizer, ["The cat</s>"], select=Selection(special=True))
    assert piece.keep is None
    (piece,) = encoded(tiny_tokenizer, ["The cat</s>"])
    assert not piece.keep[-1]
    assert piece.counted == len(piece.ids) - 2


def test_long_documents_are_cut_each_piece_begins_with_bos_and_positions_run_on(tiny_tokenizer):
    text = "The cat sat on the mat. " * 20
    whole = tiny_tokenizer(text)["input_ids"]
    pieces = encoded(tiny_tokenizer, ["x", text], max_length=16)[1:]
    assert {piece.ids[0] for piece in pieces} == {tiny_tokenizer.bos_token_id}
    for piece in pieces:
        assert len(piece.ids) <= 16
        for column, token in list(enumerate(piece.ids))[1:]:
            assert whole[piece.start + column] == token
    assert sum(piece.counted for piece in pieces) == len(whole) - 1
    assert {piece.document for piece in pieces} == {1}


def test_only_tokens_inside_the_named_spans_count(tiny_tokenizer):
    text = "2+2= The cat sat"
    document = Document(text, {"response": ((5, 12),)})
    (piece,) = encoded(tiny_tokenizer, [document], select=Selection(inside="response"))
    offsets = tiny_tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    wanted = [a < 12 and b > 5 and b > a for a, b in offsets]
    assert list(piece.keep) == wanted
    (piece,) = encoded(tiny_tokenizer, ["no spans"], select=Selection(inside="response"))
    assert piece.counted == 0


def test_the_first_positions_can_be_left_out(tiny_tokenizer):
    (piece,) = encoded(tiny_tokenizer, ["The cat sat"], select=Selection(skip_first=3))
    assert list(piece.keep[:4]) == [False, False, False, True]
    with pytest.raises(InputError, match="skip_first=-1"):
        Selection(skip_first=-1)


@given(limit=st.integers(1, 80))
@settings(max_examples=25, deadline=None)
def test_a_token_limit_is_met_exactly(tiny_tokenizer, limit):
    texts = ["The cat sat on the mat."] * 10
    total = sum(piece.counted for piece in encoded(tiny_tokenizer, texts))
    pieces = encoded(tiny_tokenizer, texts, max_tokens=limit, max_length=9)
    assert sum(piece.counted for piece in pieces) == min(limit, total)


def test_a_missing_tokenizer_or_too_short_a_length_is_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="no tokenizer"):
        encoded(None, ["a"])
    with pytest.raises(InputError, match="max_length=1 leaves no room"):
        encoded(tiny_tokenizer, ["a"], max_length=1)


PIECES = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=30)


@given(kept=PIECES, budget=st.integers(1, 60), side=st.sampled_from(["left", "right"]))
@settings(max_examples=25, deadline=None)
def test_batches_hold_every_token_once_within_the_budget(kept, budget, side):
    pieces = [Tokens(list(range(1, len(keep) + 1)), keep, number, number) for number, keep in enumerate(kept)]
    seen = {}
    for batch in batches(pieces, token_budget=budget, pad_id=0, side=side):
        assert len(batch) == 1 or batch.input_ids.numel() <= budget
        assert not bool((batch.keep & ~batch.attention_mask.bool()).any())
        for row, number in enumerate(batch.document.tolist()):
            there = batch.attention_mask[row].bool()
            seen[number] = (batch.input_ids[row][there].tolist(), batch.keep[row][there].tolist())
            first = int(there.nonzero()[0])
            assert int(batch.start[row]) + first == number
    assert seen == {number: (list(range(1, len(keep) + 1)), keep) for number, keep in enumerate(kept)}


def test_batches_do_not_depend_on_the_order_of_the_pieces():
    pieces = [Tokens([1] * (1 + number % 5), None, number, 0) for number in range(20)]
    shuffled = [pieces[i] for i in np.random.default_rng(0).permutation(20)]
    for a, b in zip(batches(pieces, token_budget=16), batches(shuffled, token_budget=16), strict=True):
        assert torch.equal(a.document, b.document)


def make_batch(rows: int) -> Batch:
    return padded([Tokens([1, 2], None, number, 0) for number in range(rows)])


def test_the_budget_shrinks_on_out_of_memory_and_remembers():
    sizes = []

    def work(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise RuntimeError("CUDA out of memory")
        return batch.document.tolist()

    budget = Budget(100)
    assert list(chain.from_iterable(budget.run(work, make_batch(10)))) == list(range(10))
    sizes.clear()
    assert list(chain.from_iterable(budget.run(work, make_batch(10)))) == list(range(10))
    assert max(sizes) <= 3
    with pytest.raises(RuntimeError, match="another matter"):
        budget.run(lambda batch: (_ for _ in ()).throw(RuntimeError("another matter")), make_batch(2))


def test_a_single_sequence_that_does_not_fit_is_an_error_that_says_what_to_do():
    def work(batch):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(Error, match="smaller max_length"):
        Budget().run(work, make_batch(2))
